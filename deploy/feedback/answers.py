"""Answers of a round's policies, how the reward model ranks them, and which of them people are
asked about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.config.feedback import Feedback
from common.data.datasets.table import load_corpus
from common.episode import Row
from common.models.causal import open_causal
from common.seeding import derive
from common.storage.checkpoint import open_checkpoint
from common.storage.run_directory import write_atomically
from deploy.feedback.rounds import model_after, questions_file, reward_name
from deploy.label.judgements import Question
from learner.evaluation.preferences import PASS_TOKENS
from learner.evaluation.prompts import prompt_tasks
from learner.policies.table import CheckpointPolicy, open_policy
from reward_service.reward_models.model import (
    Dialogue,
    PreferenceModel,
    expected_and_std,
    from_folder,
    in_passes,
)
from rollout.policies.play import play


@dataclass(frozen=True)
class Answered:
    """A prompt, its answers, and the round whose policy gave each."""

    prompt: str
    answers: tuple[str, ...]
    rounds: tuple[int, ...]


def question_of(asked: Answered) -> Question:
    return Question(asked.prompt, asked.answers)


def answers_of(
    loop: Feedback, number: int, rows: Sequence[Row], seed: int, times: int = 1
) -> list[list[str]]:
    """`times` answers to each prompt by the policy after a round, sampled in this process; empty
    where one failed."""
    run = loop.policy
    path = model_after(loop, number)
    if Path(path, "checkpoints").is_dir():
        opened = open_policy(open_checkpoint(path))
    else:
        assert run.model.causal is not None
        opened = CheckpointPolicy("causal", *open_causal(run.model.causal))
    policy = opened.playing(run.rollout, run.environment)
    played = [
        play(policy, prompt_tasks(rows, derive(seed, "sample", sample))) for sample in range(times)
    ]
    return [
        [each.answered[0].answer if each.status != "failed" else "" for each in of_row]
        for of_row in zip(*played, strict=True)
    ]


def ask(loop: Feedback, number: int) -> list[Answered]:
    """The questions of a round, those first of which the last reward model is least sure. Round 0:
    prompts without answers, which ask for demonstrations."""
    if number == 0:
        # From the end: the rounds come to these prompts last.
        rows = _prompts(loop, -loop.demonstrations, loop.demonstrations)
        return [Answered(row.interactions[0].query, (), ()) for row in rows]
    seed = derive(loop.seed, "questions", number)
    rows = _prompts(loop, (number - 1) * loop.candidates, loop.candidates)
    new = answers_of(loop, number - 1, rows, seed, loop.answers)
    # What is compared is drawn, not chosen: the win rate is to be that of all prompts.
    between = round(loop.questions * loop.compared) if number > 1 else 0
    elder = max(1, loop.answers // 2)
    old = answers_of(loop, number - 2, rows[:between], seed, elder) if between else []
    found = []
    for place, row in enumerate(rows):
        told = [(text, number - 1) for text in new[place]]
        if place < between:
            told[:elder] = [(text, number - 2) for text in old[place]]
        found.append(_answered(row, told))
    compared, others = found[:between], found[between:]
    first = [each for each in compared if len(set(each.rounds)) > 1]
    rest = by_doubt(loop, number, [each for each in others if len(each.answers) > 1])
    return first + rest[: loop.questions - len(first)]


def _prompts(loop: Feedback, start: int, count: int) -> list[Row]:
    """Prompts to train on in the loop's own order, from one on and round again after the last,
    without repeats."""
    train = load_corpus(loop.policy.data, loop.seed).train
    draws = torch.Generator().manual_seed(derive(loop.seed, "prompts"))
    order = torch.randperm(len(train), generator=draws).tolist()
    chosen = [train[order[(start + i) % len(order)]] for i in range(count)]
    return list({row.interactions[0].query: row for row in chosen}.values())


def _answered(row: Row, told: Sequence[tuple[str, int]]) -> Answered:
    """Answers that can be told apart, each with its round: without empty ones, each once."""
    by: dict[str, int] = {}
    for answer, number in told:
        if answer.strip():
            by.setdefault(answer, number)
    return Answered(row.interactions[0].query, tuple(by), tuple(by.values()))


def by_doubt(loop: Feedback, number: int, asked: list[Answered]) -> list[Answered]:
    """By how sure the reward model of the round before is of its two best answers, the least sure
    first; as they are in the first round."""
    if number == 1 or not asked:
        return asked
    scores = scores_of(
        loop, number - 1, [(each.prompt, answer) for each in asked for answer in each.answers]
    )
    ahead, at = [], 0
    for each in asked:
        best, second, *_ = sorted(scores[at : at + len(each.answers)], reverse=True)
        ahead.append(best - second)
        at += len(each.answers)
    return [asked[i] for i in sorted(range(len(asked)), key=lambda i: ahead[i])]


def scores_of(loop: Feedback, number: int, said: Sequence[tuple[str, str]]) -> list[float]:
    """Rewards of (prompt, answer) by the reward model of a round."""
    where = str(Path(loop.runs, reward_name(loop, number)))
    with open_checkpoint(where).folder() as folder:
        model = from_folder(where, folder)
    return rewards_of(model, said)


def rewards_of(model: PreferenceModel, said: Sequence[tuple[str, str]]) -> list[float]:
    model.module.eval()
    readings = [model.read(Dialogue((), prompt, answer)) for prompt, answer in said]
    with torch.no_grad():
        logits = in_passes(model.logits, readings, PASS_TOKENS)
    return list(expected_and_std(logits)[0].tolist())


def held_out(loop: Feedback) -> list[Row]:
    """Prompts that no round trains on or asks about."""
    return load_corpus(loop.policy.data, loop.seed).eval[: loop.policy.evaluation.episodes]


def write_questions(loop: Feedback, number: int, asked: Sequence[Answered]) -> None:
    lines = [
        json.dumps(
            {"prompt": each.prompt, "answers": each.answers, "rounds": each.rounds},
            ensure_ascii=False,
        )
        for each in asked
    ]
    write_atomically(questions_file(loop, number), "".join(f"{line}\n" for line in lines).encode())


def read_questions(loop: Feedback, number: int) -> list[Answered]:
    # Not splitlines(): answers may hold other line separators than "\n".
    lines = questions_file(loop, number).read_bytes().split(b"\n")
    records: list[dict[str, Any]] = [json.loads(line) for line in lines if line]
    return [
        Answered(each["prompt"], tuple(each["answers"]), tuple(each["rounds"])) for each in records
    ]
