"""The driver of a loop with people: asks, waits for labels, trains a reward model on all of them,
continues the policy, and measures; round by round. Demonstrations come before the first round.

Everything that it decides follows from files, each written as a whole: questions, labels, rows, and
the ordinary runs that a round starts. So a loop that was killed is started again by the same
command. It never waits: where labels are missing it ends with code 75, and nothing is running.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.config.feedback import Feedback
from common.config.run import Run
from common.failures import Drained, InputError
from common.storage.run_directory import RunDirectory, write_atomically
from common.telemetry.progress import Progress
from common.text.counted import counted
from deploy.feedback import answers, rounds
from deploy.feedback.answers import Answered, question_of
from deploy.feedback.rows import write_demonstrations, write_rows
from deploy.label.judgements import Judgement, broken_sentence, read_labels
from deploy.label.questions import LABELS
from deploy.label.rows import Rows, rows_of, rows_sentences
from learner.evaluation.intervals import wilson
from learner.evaluation.prompts import win_figures
from learner.summary import SUMMARY, last_status

STATE = "feedback.json"
SETTINGS = "feedback.yaml"
TrainRun = Callable[[Run], dict[str, Any]]


@dataclass(frozen=True)
class Told:
    """Judgements of people on the questions of a round."""

    judged: int
    """Questions that somebody judged or skipped."""
    rows: Rows
    """Comparisons and demonstrations to learn from."""
    people: dict[str, float] | None
    """Win rate of the newest policy over the one before, by people."""


class Loop:
    def __init__(self, settings: Feedback, train: TrainRun, progress: Progress):
        """train: trains or resumes a run to its end."""
        self.settings, self._train, self._progress = settings, train, progress
        self.folder = rounds.folder(settings)
        self.state: dict[str, Any] = {
            "name": settings.name,
            "status": "running",
            "rounds": self._finished(),
        }

    def run(self) -> dict[str, Any]:
        """Go on to the end, or as far as labels reach; returns what feedback.json holds.

        Raises Drained where it waits for labels, and what a run raises.
        """
        self._write_settings()
        demonstrations = None
        if self.settings.demonstrations:
            demonstrations = self._demonstrations()
            if demonstrations is None:
                return self._end(
                    "nobody gave a demonstration, so lm_sft has nothing to learn from; undo what "
                    "was skipped on the page (u), or leave them out: demonstrations=0"
                )
        if rounds.begins_with_a_run(self.settings):
            self._finish(rounds.policy_run(self.settings, 0, demonstrations))
        for number in range(len(self.state["rounds"]) + 1, self.settings.rounds + 1):
            ended = self._round(number)
            if ended is not None:
                return self._end(ended)
        return self._end(f"all {counted(self.settings.rounds, 'rounds')} are done")

    def _round(self, number: int) -> str | None:
        """One round; why the loop ends with it, where it does."""
        settings = self.settings
        self._ask(number)
        told = self._told(number)
        figures: dict[str, Any] = {"round": number, "judged": told.judged, "people": told.people}
        if told.people is not None:
            self.state["rounds"][-1]["people"] = told.people
            if settings.until_no_gain and told.people["low"] <= 0.5:
                return (
                    f"round {number - 1} brought no gain beyond the interval: people prefer its "
                    f"answers in {told.people['share']:.0%} ({told.people['low']:.0%} to "
                    f"{told.people['high']:.0%}); the labels of round {number} are kept"
                )
        figures["new_rows"] = len(told.rows.preferences)
        if not told.rows.preferences:
            self.state["rounds"].append(figures)
            return (
                f"round {number} brought no new comparison: of {counted(told.judged, 'questions')} "
                "all were skipped, alike or all bad, so there is nothing to learn from"
            )
        demonstrations = write_rows(settings, number, self._progress.note)
        figures["written"] = len(told.rows.demonstrations)
        if demonstrations is None and rounds.has_sft(settings):
            self._progress.note(f"round {number}: no new demonstration, so lm_sft is left out")
        reward = self._finish(rounds.reward_run(settings, number))
        self._finish(rounds.policy_run(settings, number, demonstrations))
        figures |= {"reward_model": reward, "policy": rounds.model_after(settings, number)}
        figures["win_rate"] = self._measure(number)
        del figures["people"]  # of the round before, where it stands already
        self.state["rounds"].append(figures)
        self._write("running")
        share = figures["win_rate"]
        self._progress.note(
            f"round {number}: its reward model prefers the new answers to {share['prompts']} "
            f"held-out prompts in {share['share']:.0%} ({share['low']:.0%} to {share['high']:.0%})"
        )
        return None

    # --- steps of a round -------------------------------------------------------------------------

    def _demonstrations(self) -> Path | None:
        """The file of demonstrations that people gave before the first round; None where they gave
        none. Raises Drained where they are missing."""
        written = rounds.demonstrations_file(self.settings, 0)
        self._ask(0)
        # Once lm_sft may have begun, an undo on the page holds nothing up.
        told = self._told(0, waits=not written.is_file())
        self.state["demonstrations"] = {
            "judged": told.judged,
            "written": len(told.rows.demonstrations),
        }
        for sentence in rows_sentences(told.rows):
            self._progress.note(f"demonstrations: {sentence}")
        return (
            written
            if written.is_file()
            else write_demonstrations(self.settings, 0, self._progress.note)
        )

    def _ask(self, number: int) -> None:
        if rounds.questions_file(self.settings, number).is_file():
            return
        with self._progress.doing(f"sampling the questions of round {number}"):
            asked = answers.ask(self.settings, number)
        if not asked:
            raise InputError(
                "policy", f"gives the same answer to every prompt of round {number}: nothing to ask"
            )
        answers.write_questions(self.settings, number, asked)

    def _told(self, number: int, waits: bool = True) -> Told:
        """Raises Drained where labels are missing, unless it does not wait for them."""
        asked = answers.read_questions(self.settings, number)
        path = self.folder / LABELS
        labels = read_labels(path)
        fault = broken_sentence(path, labels)
        if fault is not None:
            self._progress.note(fault)
        names = {question_of(each).id: each for each in asked}
        told = [each for each in labels.latest.values() if each.question.id in names]
        judged = len({each.question.id for each in told})
        needed = min(self.settings.labels or len(names), len(names))
        if waits and judged < needed:
            self._write("waiting")
            missing = (
                f"round {number} waits for labels: {judged} of {needed} questions are judged"
                if number
                else f"the loop waits for demonstrations: {judged} of {needed} prompts are answered"
            )
            raise Drained(f"{missing}; engram label {self.folder}, then the same command goes on")
        return Told(judged, rows_of(told), by_people(told, names, number))

    def _finish(self, run: Run) -> dict[str, Any]:
        """Train a run to its end, if it has not come there; what its reward model reached."""
        directory = RunDirectory(run.runs, run.name)
        if not directory.exists(SUMMARY) or last_status(directory) != "done":
            self._progress.note(f"run {run.name}")
            self._train(run)
        if not directory.exists("reward_model.json"):
            return {}
        found = json.loads(directory.read_text("reward_model.json"))
        return {key: found[key] for key in ("accuracy", "accuracy_low", "accuracy_high", "pairs")}

    def _measure(self, number: int) -> dict[str, Any]:
        """Share of held-out prompts whose answer by the new policy the round's reward model prefers
        to that of the policy before, sampled with the same random numbers."""
        with self._progress.doing(f"measuring round {number}"):
            rows = answers.held_out(self.settings)
            scores: list[list[float]] = []
            for each in (number, number - 1):
                given = answers.answers_of(self.settings, each, rows, self.settings.seed)
                said = [
                    (row.interactions[0].query, told[0])
                    for row, told in zip(rows, given, strict=True)
                ]
                scores.append(answers.scores_of(self.settings, number, said))
        return win_figures(scores[0], scores[1])

    def _finished(self) -> list[dict[str, Any]]:
        """The rounds that were done to their end when the loop was last running."""
        path = self.folder / STATE
        if not path.is_file():
            return []
        try:
            held = json.loads(path.read_text(encoding="utf-8"))["rounds"]
            return [each for each in held if each.get("win_rate")]
        except (ValueError, KeyError, TypeError, AttributeError) as broken:
            raise InputError(
                str(path), f"is not what the loop wrote ({broken!r}); remove it: it is made anew"
            ) from None

    # --- files ------------------------------------------------------------------------------------

    def _write_settings(self) -> None:
        text = yaml.safe_dump(
            self.settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True
        )
        write_atomically(self.folder / SETTINGS, text.encode())

    def _write(self, status: str) -> None:
        self.state["status"] = status
        text = json.dumps(self.state, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / STATE, text.encode())

    def _end(self, reason: str) -> dict[str, Any]:
        self.state["reason"] = reason
        self._write("done")
        return self.state


def by_people(
    told: list[Judgement], asked: dict[str, Answered], number: int
) -> dict[str, float] | None:
    """How often people prefer answers of the newest policy to those of the one before, half for
    each tie, with a 95 % interval over judgements; None where they compared none."""
    shares = []
    for judgement in told:
        one = asked[judgement.question.id]
        newer = {text: by == number - 1 for text, by in zip(one.answers, one.rounds, strict=True)}
        if judgement.ranks is None or len(set(newer.values())) < 2:
            continue
        ranked = list(zip(judgement.question.answers, judgement.ranks, strict=True))
        pairs = [
            (own, other)
            for text, own in ranked
            if newer[text]
            for elder, other in ranked
            if not newer[elder]
        ]
        shares.append(sum((a < b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
    if not shares:
        return None
    share = sum(shares) / len(shares)
    low, high = wilson(share, len(shares))
    return {"share": share, "low": low, "high": high, "judgements": len(shares)}
