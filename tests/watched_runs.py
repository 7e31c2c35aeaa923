"""Run directories as runs leave them, made by the writers of runs without training: for tests of
what one looks at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.config.run import Run
from common.episode import Episode, Fact, RewardTerm, Turn
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import MetricsWriter
from common.telemetry.metrics import Metrics
from learner.summary import Summary
from rollout.journal.journal import Journal
from tests.local_source import tiny_run

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>\x1b[2J\u202eevil'
"""A text that would act if it were taken for more than text."""
SUPERVISED, ITERATIONS, EPISODES = 4, 6, 8
CHANGES = [
    [[round(0.1 * turn + 0.05 * layer + 0.02 * slot, 2) for slot in range(6)] for layer in range(2)]
    for turn in range(4)
]
"""Change of memory by the write of each turn, [writes][layers][slots]."""
TERMS = {"bleu": RewardTerm(0.4, "1"), "recall": RewardTerm(0.6, "1", low=0.0, high=1.0)}


def conversation(name: str, iteration: int, right: bool, hostile: bool = False) -> Episode:
    """A dog is told of and renamed, and its name and a city are asked for."""
    ids = {"query_ids": [5, 9, 6], "answer_ids": [8, 9, 3], "reference_ids": [8, 3]}
    answer = "It is Rex." if right else "It is Max, in Rome."
    rewards = {"bleu": 0.5, "recall": 1.0 if right else 0.0}
    asked = Turn(
        **ids,
        log_probs=[-0.1, -2.5, -0.01],
        role="recall",
        query=HOSTILE if hostile else "What is my dog called?",
        answer=answer,
        reference="It is Rex.",
        facts=(Fact("Rex", 1, ("Max",)),),
        rewards=rewards,
        terms=TERMS,
        reward=0.2 + 0.6 * rewards["recall"],
    )
    where = Turn(
        **ids,
        log_probs=[-0.2, -0.3, -0.4],
        role="recall",
        query="Where do I live?",
        answer="In Rome.",
        reference="In Rome.",
        facts=(Fact("Rome", 0),),
        failure="reward worker 1 did not answer" if name.endswith("-0") else None,
    )
    turns = (
        Turn(
            [5], [], [], [], role="remember", query="I live in Rome. My dog is Max.", answer="Ok."
        ),
        Turn(**ids, log_probs=[-1.0, -1.0, -1.0], query="He is Rex now.", answer="Rex it is."),
        asked,
        where,
    )
    return Episode(
        name, name, 7, turns, SUPERVISED + iteration, step="short" if iteration < 2 else "up to 16",
        status="scored", worker="rollout-worker-0", iteration=iteration, backend="torch",
        memory_change=CHANGES[: 3 if name.endswith("-0") else 4],
    )  # fmt: skip


def settings(folder: Path, name: str = "watched") -> Run:
    return tiny_run(folder, "joint_lm", "mrl", name=name)


def begin(folder: Path, name: str = "watched") -> tuple[Run, RunDirectory]:
    """A run that has written its settings and nothing more."""
    run = settings(folder, name)
    directory = RunDirectory(run.runs, run.name)
    directory.write_config(run)
    directory.write_environment()
    return run, directory


def record_iteration(
    metrics: Metrics, writer: MetricsWriter, journal: Journal, iteration: int, count: int = EPISODES
) -> None:
    """One iteration of reinforcement learning as a run writes it."""
    played = [
        conversation(f"1-{iteration:06d}-{each}", iteration, each % 2 == 0, each == 1)
        for each in range(count)
    ]
    journal.dealt(iteration, [one.task for one in played])
    journal.arrived(iteration, played)
    journal.trained(iteration, SUPERVISED + iteration + 1)
    metrics.record("objective/scores", 0.4 + 0.05 * iteration)
    metrics.record("rollout/recall", 0.5)
    metrics.record("run/stage", 1)
    metrics.record("run/curriculum_step", int(iteration >= 2))
    metrics.record("reward/failed_turns", 1, reason="timeout")
    for component in ("bleu", "recall"):
        metrics.record("reward/component", 0.5, component=component)
    for phase, seconds in (("collect", 2.0), ("update", 1.0)):
        metrics.record("time/phase_seconds", seconds, phase=phase, role="learner")
    metrics.record("time/idle_fraction", 0.66, role="learner")
    metrics.record("time/idle_fraction", 0.9, role="rewards")
    metrics.record("eval/recall", 0.7, memory="kept", distance="all")
    metrics.record("eval/recall", 0.1, memory="erased", distance="all")
    writer.write(metrics.flush(SUPERVISED + iteration + 1, "mrl"))


def watched_run(folder: Path, name: str = "watched", iterations: int = ITERATIONS) -> RunDirectory:
    """A run with all of its files: one that is over."""
    run, directory = begin(folder, name)
    metrics, writer = Metrics(), MetricsWriter(directory)
    for step in range(1, SUPERVISED + 1):
        metrics.record("train/loss_lm", 3.0 / step, 10)
        metrics.record("run/stage", 0)
        metrics.record("time/phase_seconds", 0.5, phase="train", role="learner")
        writer.write(metrics.flush(step, "joint_lm"))
    assert directory.local is not None
    journal = Journal(directory.local, stage=1)
    for iteration in range(iterations):
        record_iteration(metrics, writer, journal, iteration)
        if iteration == iterations // 2:
            journal.seal()
    journal.close()
    summary = Summary(run, directory)
    for index in (0, 1):
        summary.refresh(index)
    recall = {"1": 0.9, "2": 0.5, "all": 0.7}
    summary.value["retention"] = {
        "before_mrl": {"1": 0.4, "all": 0.4},
        "after_mrl": recall,
        "erased": {"1": 0.1, "all": 0.1},
        "intervals": {"after_mrl": {key: [share - 0.1, share] for key, share in recall.items()}},
        "counts": {"after_mrl": dict.fromkeys(recall, 20)},
    }
    summary.write("done")
    directory.write_text("logs/recorder.log", f"2026 WARNING x: hacking alarm: {HOSTILE}\n")
    directory.write_text("logs/driver.log", "2026 INFO x: began\n")
    return directory


def long_run(folder: Path) -> RunDirectory:
    """A run of 10,000 episodes, 20 iterations of 500."""
    _, directory = begin(folder)
    assert directory.local is not None
    journal = Journal(directory.local, stage=1)
    one = conversation("x", 0, True)
    for iteration in range(20):
        played = [
            replace(one, id=f"{iteration}-{each}", task=f"{each}", iteration=iteration)
            for each in range(500)
        ]
        journal.dealt(iteration, [each.task for each in played])
        journal.arrived(iteration, played)
        journal.trained(iteration, iteration + 1)
        journal.seal()
    return directory
