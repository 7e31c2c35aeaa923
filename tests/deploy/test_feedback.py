"""The loop with people, round by round: its stages run here, its answers come from a tiny model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from common.config.feedback import Feedback
from common.config.loader import load_section
from common.config.run import Run
from common.data.conversations import load_pairs
from common.data.preferences import load_preferences
from common.failures import EXIT_BAD_INPUT, Drained, InputError
from common.telemetry.progress import QuietProgress
from deploy.cli import run_command
from deploy.feedback.answers import (
    Answered,
    question_of,
    read_questions,
    scores_of,
    write_questions,
)
from deploy.feedback.command import rounds_table
from deploy.feedback.loop import Loop, by_people
from deploy.feedback.rounds import (
    begins_with_a_run,
    demonstrations_file,
    policy_run,
    preferences_file,
    reward_run,
)
from deploy.label.desk import Desk
from deploy.label.judgements import Judgement, LabelFile
from deploy.label.questions import open_source
from tests.local_source import run_here
from tests.tiny_causal import SENTENCES, write_model

ROOT = Path(__file__).resolve().parents[2]
PICKS = Callable[[tuple[str, ...]], tuple[int, ...] | None]


def loop_of(folder: Path, **changes: Any) -> Feedback:
    if not (folder / "model").exists():
        write_model(folder / "model")
        words = [line.split() for line in SENTENCES]
        prompts = [{"prompt": " ".join(each[: 2 + k])} for k in range(5) for each in words]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    model = str(folder / "model")
    rl = {"stage": "lm_rl", "episodes": 4, "iterations": 1, "optimizer": {"learning_rate": 1e-3}}
    settings: dict[str, Any] = {
        "name": "loop",
        "runs": str(folder),
        "rounds": 2,
        "questions": 8,
        "candidates": 12,
        "policy": {
            "data": {
                "kind": "prompts",
                "train": [str(folder / "prompts.jsonl")],
                "eval_fraction": 0.2,
            },
            "model": {"causal": {"path": model, "interactions": 0}},
            "stages": [rl],
            "environment": {"kind": "single_turn"},
            "rollout": {"workers": 1, "slots": 4, "sampling": {"max_new_tokens": 5}},
            "learner": {"checkpoint_every": 1, "log_every": 1},
            "evaluation": {"episodes": 4},
        },
        "reward_model": {
            "stages": [{"stage": "reward_model", "backbone": model, "steps": 2, "batch_size": 4}],
            "learner": {"checkpoint_every": 2, "log_every": 1},
        },
    }
    return Feedback.model_validate(settings | changes)


class Trainer:
    """Runs stages in this process, and notes which."""

    def __init__(self, dies_at: str | None = None):
        self.trained: list[str] = []
        self.dies_at = dies_at

    def __call__(self, run: Run) -> dict[str, Any]:
        if run.name == self.dies_at:
            raise KeyboardInterrupt
        directory, _ = run_here(run)
        self.trained.append(run.name)
        done = {"status": "done", "wall_seconds": 1.0, "stages": [], "retention": {}}
        directory.write_summary(done)
        return done


def shorter(answers: tuple[str, ...]) -> tuple[int, ...]:
    lengths = sorted({len(answer) for answer in answers})
    return tuple(lengths.index(len(answer)) + 1 for answer in answers)


def label(loop: Feedback, picks: PICKS = shorter, written: str | None = None) -> int:
    """Judge all that is asked; how many questions that were."""
    source = open_source(str(Path(loop.runs, loop.name)))
    with LabelFile(source.labels) as file:
        desk = Desk(source.questions, file)
        count = 0
        while (question := desk.next("anna")) is not None:
            ranks = picks(question.answers)
            order = tuple(range(len(question.answers)))
            verdict: Any = "skipped" if ranks is None else "ranked"
            if not question.answers and written is not None:
                verdict, ranks = "demonstration", None
            name = f"{question.id}-anna"
            desk.judge(
                Judgement(name, "anna", question, order, verdict, ranks, written, time.time())
            )
            count += 1
    return count


def go(loop: Feedback, trainer: Trainer) -> dict[str, Any]:
    return Loop(loop, trainer, QuietProgress()).run()


def test_a_loop_waits_for_labels_and_goes_on_wherever_it_was_killed(tmp_path: Path) -> None:
    loop, trainer = loop_of(tmp_path), Trainer()
    with pytest.raises(Drained, match=r"round 1 waits for labels: 0 of \d questions"):
        go(loop, trainer)
    assert trainer.trained == [], "nothing runs while people judge"
    first = label(loop)
    with pytest.raises(KeyboardInterrupt):
        go(loop, Trainer(dies_at="loop-round-1"))
    with pytest.raises(Drained, match="round 2 waits for labels"):
        go(loop, trainer)
    assert trainer.trained == ["loop-round-1"], "the reward model of the killed loop is kept"
    asked = read_questions(loop, 2)
    doubtful = [each for each in asked if len(set(each.rounds)) == 1]
    assert {each.rounds for each in asked if each not in doubtful} == {(0, 1)}
    scores = [
        scores_of(loop, 1, [(each.prompt, answer) for answer in each.answers]) for each in doubtful
    ]
    ahead = [max(each) - min(each) for each in scores]
    assert ahead == sorted(ahead), "what the reward model is least sure of comes first"
    second = label(loop)
    state = go(loop, trainer)
    assert trainer.trained[1:] == ["loop-round-2-reward", "loop-round-2"]
    assert (state["status"], state["reason"]) == ("done", "all 2 rounds are done")
    assert [each["judged"] for each in state["rounds"]] == [first, second]
    people = state["rounds"][0]["people"]
    assert 0 <= people["low"] <= people["share"] <= people["high"] <= 1
    assert all(0 <= each["win_rate"]["share"] <= 1 for each in state["rounds"])
    rows = [load_preferences(preferences_file(loop, number)) for number in (1, 2)]
    assert rows[0] == rows[1][: len(rows[0])], "a reward model learns from all labels so far"
    assert len(rows[1]) > len(rows[0])
    assert go(loop, Trainer()) == state, "a loop that is over trains nothing"


def test_a_round_without_new_comparisons_ends_the_loop_and_says_so(tmp_path: Path) -> None:
    loop, trainer = loop_of(tmp_path), Trainer()
    with pytest.raises(Drained):
        go(loop, trainer)
    label(loop, lambda answers: None)
    state = go(loop, trainer)
    assert "round 1 brought no new comparison" in state["reason"]
    assert trainer.trained == []


def test_fewer_labels_are_enough_where_the_settings_say_so(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, labels=3)
    with pytest.raises(Drained, match="0 of 3 questions are judged"):
        go(loop, Trainer())


def test_people_win_rate_and_its_rule_worked_by_hand() -> None:
    asked = [Answered(f"p{i}", ("old", "new"), (0, 1)) for i in range(4)]
    names = {question_of(each).id: each for each in asked}
    ranks = [(2, 1), (2, 1), (1, 1), (1, 2)]
    told = [
        Judgement(f"judgement {i}", "anna", question_of(each), (0, 1), "ranked", own)
        for i, (each, own) in enumerate(zip(asked, ranks, strict=True))
    ]
    found = by_people(told, names, 2)
    assert found is not None
    assert (found["share"], found["judgements"]) == (2.5 / 4, 4)
    assert found["low"] < 0.5 < found["high"]
    assert by_people(told[:0], names, 2) is None


def test_a_loop_without_gain_ends(tmp_path: Path) -> None:
    loop, trainer = loop_of(tmp_path, until_no_gain=True, rounds=3), Trainer()
    for _ in range(2):
        with pytest.raises(Drained):
            go(loop, trainer)
        label(loop)
    state = go(loop, trainer)
    assert (
        "round 1 brought no gain beyond the interval: people prefer its answers" in state["reason"]
    )
    assert "loop-round-2" not in trainer.trained


def demonstrated(folder: Path, pairs: tuple[str, ...] = (), **changes: Any) -> Feedback:
    """A loop whose policy learns demonstrations; three are asked for."""
    loop = loop_of(folder)
    policy = loop.policy.model_dump(mode="json")
    policy["stages"] = [
        {"stage": "lm_sft", "steps": 30, "batch_size": 4, "optimizer": {"learning_rate": 3e-3}},
        {"stage": "lm_rl", "episodes": 4, "iterations": 1},
    ]
    policy["data"] |= {"pairs": pairs}
    return loop_of(folder, **({"demonstrations": 3, "policy": policy} | changes))


class Notes(QuietProgress):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def stages_of(folder: Path) -> list[str]:
    run = yaml.safe_load((folder / "config.yaml").read_text())
    return [stage["stage"] for stage in run["stages"]]


def test_demonstrations_come_first_and_are_learnt_before_answers_are_compared(
    tmp_path: Path,
) -> None:
    loop, trainer, notes = demonstrated(tmp_path), Trainer(), Notes()
    with pytest.raises(Drained, match="waits for demonstrations: 0 of 3 prompts are answered"):
        go(loop, trainer)
    assert trainer.trained == [], "nothing runs while people write"
    asked = open_source(str(tmp_path / "loop")).questions
    assert [each.answers for each in asked] == [(), (), ()]
    assert label(loop, written="dog dog dog") == 3
    with pytest.raises(KeyboardInterrupt):
        go(loop, Trainer(dies_at="loop-round-0"))
    with pytest.raises(Drained, match="round 1 waits for labels"):
        go(loop, trainer)
    assert trainer.trained == ["loop-round-0"]
    learnt = load_pairs(demonstrations_file(loop, 0))
    assert {each.query for each in learnt} == {each.prompt for each in asked}
    assert {each.answer for each in learnt} == {"dog dog dog"}
    compared = read_questions(loop, 1)
    assert all(each.answers and set(each.rounds) == {0} for each in compared)
    told = [answer.startswith("dog") for each in compared for answer in each.answers]
    assert sum(told) > len(told) / 2, "answers come from the policy that learnt them"

    label(loop)
    first = question_of(compared[0])
    with LabelFile(tmp_path / "loop" / "labels.jsonl") as file:
        better = (tuple(range(len(first.answers))), "ranked", shorter(first.answers), "a cat")
        Desk([first], file, shared=1.0).judge(Judgement("better-1", "ben", first, *better))
    with pytest.raises(Drained, match="round 2 waits for labels"):
        go(loop, trainer)
    assert stages_of(tmp_path / "loop-round-1") == ["lm_sft", "lm_rl"]
    so_far = load_pairs(demonstrations_file(loop, 1))
    assert so_far[:3] == learnt, "written answers join the demonstrations"
    assert [(each.query, each.answer) for each in so_far[3:]] == [(first.prompt, "a cat")]
    label(loop)
    state = Loop(loop, trainer, notes).run()
    assert stages_of(tmp_path / "loop-round-2") == ["lm_rl"]
    assert "round 2: no new demonstration, so lm_sft is left out" in notes.told
    assert state["demonstrations"] == {"judged": 3, "written": 3}
    assert [each["written"] for each in state["rounds"]] == [1, 0]
    table = rounds_table(state)
    assert "written" in table
    assert [line.split()[0] for line in table.splitlines()[-4:-1]] == ["0", "1", "2"]


def test_demonstrations_that_nobody_gave_end_the_loop_until_somebody_does(tmp_path: Path) -> None:
    loop, trainer, notes = demonstrated(tmp_path), Trainer(), Notes()
    with pytest.raises(Drained):
        go(loop, trainer)
    label(loop, lambda answers: None)
    assert "nobody gave a demonstration" in go(loop, trainer)["reason"]
    source = open_source(str(tmp_path / "loop"))
    with LabelFile(source.labels) as file:
        desk = Desk(source.questions, file)
        last = desk.undo("anna")
        assert last is not None
        blank = Judgement("blank-01", "anna", last.question, (), "demonstration", None, " \n")
        desk.judge(blank)
    assert "nobody gave a demonstration" in Loop(loop, trainer, notes).run()["reason"]
    assert "demonstrations: 1 demonstration without a row: nothing is written" in notes.told
    assert trainer.trained == []
    with LabelFile(source.labels) as file:
        desk = Desk(source.questions, file)
        desk.undo("anna")
        told = ((), "demonstration", None)
        desk.judge(Judgement("too-long", "anna", last.question, *told, "dog " * 80))
    assert "nobody gave a demonstration" in Loop(loop, trainer, notes).run()["reason"]
    assert any("1 demonstration longer than the policy's 64 tokens" in each for each in notes.told)
    with LabelFile(source.labels) as file:
        desk = Desk(source.questions, file)
        desk.judge(Judgement("told-001", "ben", last.question, *told, "dog"))
    with pytest.raises(Drained, match="round 1 waits for labels"):
        go(loop, trainer)
    assert trainer.trained == ["loop-round-0"]
    assert [each.answer for each in load_pairs(demonstrations_file(loop, 0))] == ["dog"]


def test_a_loop_without_demonstrations_asks_for_none(tmp_path: Path) -> None:
    pairs = str(tmp_path / "pairs.jsonl")
    loop = demonstrated(tmp_path, (pairs,), demonstrations=0)
    assert [stage.stage for stage in policy_run(loop, 0).stages] == ["lm_sft"]
    assert policy_run(loop, 0).data.pairs == (pairs,)  # type: ignore[union-attr]
    loop = demonstrated(tmp_path, demonstrations=0)
    assert not begins_with_a_run(loop)
    with pytest.raises(Drained, match="round 1 waits for labels"):
        go(loop, Trainer())
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "the", "answer": "cat"}\n')
    assert begins_with_a_run(loop), "prompts with an answer are demonstrations"
    with pytest.raises(ValidationError, match=r"demonstrations: 3 .* policy.stages has no lm_sft"):
        loop_of(tmp_path, demonstrations=3)


def test_what_people_wrote_joins_the_pairs_of_the_configuration(tmp_path: Path) -> None:
    plain, pairs = loop_of(tmp_path), str(tmp_path / "pairs.jsonl")
    loop = demonstrated(tmp_path, (pairs,))
    written = tmp_path / "written.jsonl"
    run = policy_run(loop, 2, written)
    assert [stage.stage for stage in run.stages] == ["lm_sft", "lm_rl"]
    assert run.data.pairs == (pairs, str(written))  # type: ignore[union-attr]
    assert [stage.stage for stage in policy_run(loop, 2).stages] == ["lm_rl"]
    assert run.model.causal is not None
    assert run.model.causal.path == str(tmp_path / "loop-round-1")
    assert run.rewards.cumulative.models[0].path == str(tmp_path / "loop-round-2-reward")
    assert reward_run(loop, 2).data.train == (str(preferences_file(loop, 2)),)  # type: ignore[union-attr]
    assert [stage.stage for stage in policy_run(plain, 1, written).stages] == ["lm_rl"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": 9}, "labels: waits for 9 of 8 questions"),
        ({"answers": 5}, "less than or equal to 4"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        loop_of(tmp_path, **changes)


def test_the_two_runs_must_fit_a_loop(tmp_path: Path) -> None:
    loop = loop_of(tmp_path).model_dump(mode="json")
    stage = loop["reward_model"]["stages"][0]
    for part, changes, sentence in (
        ("policy", {"stages": [{"stage": "lm_sft"}]}, "policy.stages: are lm_sft; give lm_rl"),
        ("reward_model", {"stages": [stage | {"backbone": None}]}, "with a backbone"),
    ):
        with pytest.raises(ValidationError, match=sentence):
            Feedback.model_validate(loop | {part: loop[part] | changes})


def test_the_configuration_that_is_shipped_is_read_and_a_wrong_key_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(ROOT / "configs" / "feedback.yaml")
    words = ["policy.stages.lm_rl.iterations=3", f"runs={tmp_path}"]
    loop = load_section(Feedback, {}, [config], words)
    assert (loop.rounds, loop.policy.stages[-1].total_steps) == (3, 3)
    assert run_command(["feedback", config, "policy.stages.lm_rl.iteration=3"]) == EXIT_BAD_INPUT
    assert "did you mean 'iterations'" in capsys.readouterr().err
    assert set(yaml.safe_load(Path(config).read_text())) < set(Feedback.model_fields)


def test_questions_are_read_as_they_were_written(tmp_path: Path) -> None:
    loop = loop_of(tmp_path)
    asked = [Answered("a\u2028b", ("\x85 one", "two\x1c\n\ttwo"), (0, 1))]
    write_questions(loop, 1, asked)
    assert read_questions(loop, 1) == asked
    (question,) = open_source(str(tmp_path / "loop")).questions
    assert question == question_of(asked[0])


def test_every_key_of_a_loop_stands_on_its_page() -> None:
    page = (ROOT / "docs" / "feedback.md").read_text(encoding="utf-8")
    assert [key for key in Feedback.model_fields if f"`{key}`" not in page] == []


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "feedback.json").write_text("[1]")
    with pytest.raises(InputError, match=r"feedback.json: is not what the loop wrote"):
        Loop(loop_of(tmp_path), Trainer(), QuietProgress())
