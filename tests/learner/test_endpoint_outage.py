"""A whole run whose reward endpoint is away: for a while, or for good."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.config.run import Run
from common.failures import EXIT_DRAINED, Drained
from common.storage.checkpoint import latest_checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from common.telemetry.progress import QuietProgress
from deploy.tables import replay_text
from learner.driver import train
from learner.evaluation.replay import replay
from rollout.journal.journal import outcomes
from tests.endpoints import Endpoint, Judge
from tests.local_source import STAGES, at_step, tiny_run

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.timeout(420),
]

ITERATIONS = 6


class Notes(QuietProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def make(judge: Judge, tmp_path: Path) -> Iterator[Callable[[float], Run]]:
    """A run of MRL alone, rewarded by the judge, who is waited for so many seconds."""
    with contextlib.closing(Endpoint(judge)) as server:

        def make(patience: float) -> Run:
            mix = {"endpoints": [{"name": "judge", "url": server.url, "patience": patience}]}
            curriculum = [{"name": "all", "iterations": ITERATIONS, "max_steps": 2}]
            return tiny_run(
                tmp_path,
                STAGES["mrl"] | {"curriculum": curriculum},
                learner={"ranks": 2, "checkpoint_every": 100, "log_every": 1},
                rewards={"single": mix, "cumulative": mix, "long_term": mix},
            )

        yield make


def assert_whole(run: Run) -> None:
    """Every iteration was trained once, on all of its turns."""
    directory = RunDirectory(run.runs, run.name)
    rows = read_rows(directory)
    assert [row["step"] for row in rows] == list(range(1, ITERATIONS + 1))
    assert not [key for row in rows for key in row if key.startswith("reward/failed_turns")]
    assert all(row["reward/component{component=judge,cohort=trained}"] == 1.0 for row in rows)
    deals = outcomes(Path(directory.path())).to_pylist()
    trained = [row["task"] for row in deals if row["status"] == "trained"]
    assert len(trained) == len(set(trained)) == ITERATIONS * 7
    # What waited in vain was let go, and dealt again when the run went on.
    let_go = [(row["status"], row["reason"]) for row in deals if row["status"] != "trained"]
    assert set(let_go) <= {("dropped", "its batch failed: Unavailable")}


def test_a_run_waits_with_a_word_for_an_endpoint_that_comes_back(
    judge: Judge, make: Callable[[float], Run]
) -> None:
    run, told = make(120), Notes()
    with at_step(run, 2, lambda: judge.leave(4)):
        summary = train(run, told)
    assert summary["status"] == "done"
    assert judge.asked
    words = [
        note for note in told.notes if note.startswith("reward endpoint judge at http://127.0.0.1:")
    ]
    assert words[0].endswith(
        "does not answer (it answered 503 Service Unavailable); waiting up to 120 s, for 0 s now"
    )
    assert "answers again, after " in words[-1]
    assert_whole(run)


def test_a_run_stops_for_an_endpoint_that_does_not_come_back_and_goes_on_once_it_has(
    judge: Judge, make: Callable[[float], Run]
) -> None:
    run = make(1)
    directory = RunDirectory(run.runs, run.name)
    stop = (
        r"^reward endpoint judge at .* does not answer .* \d+ s; stopped at step [2-5]; the "
        r"same command goes on"
    )
    with at_step(run, 2, judge.leave), pytest.raises(Drained, match=stop) as stopped:
        train(run, QuietProgress())
    assert stopped.value.exit_code == EXIT_DRAINED
    assert json.loads(directory.read_text("summary.json"))["status"] == "stopped"
    last = latest_checkpoint(directory)
    assert last is not None
    assert last.step == read_rows(directory)[-1]["step"] >= 2

    judge.come_back()
    assert train(run, QuietProgress())["status"] == "done"
    assert_whole(run)

    # What needs no endpoint is compared without it.
    episode = f"0-{last.step:06d}-00000@{last.step}"
    whole = replay(directory.path(), episode)
    assert (whole.parted, whole.rewards_not_compared) == (None, None)
    assert "same tokens and rewards" in replay_text(whole)
    judge.leave()
    partial = replay(directory.path(), episode)
    assert replace(partial, rewards_not_compared=None) == whole
    assert "same tokens, log-probs within" in replay_text(partial)
    assert "; rewards were not compared: reward endpoint judge at http://127.0.0.1:" in replay_text(
        partial
    )


def test_recall_is_measured_without_an_endpoint_that_was_never_there(
    judge: Judge, make: Callable[[float], Run]
) -> None:
    run, told = make(1), Notes()
    judge.leave()
    with pytest.raises(Drained, match=r" \d+ s; stopped at step 0; the same command"):
        train(run, told)
    assert any(note.startswith("reward endpoint judge") for note in told.notes), (
        "said during the evaluation before MRL"
    )
    assert (
        "before_mrl"
        in json.loads(RunDirectory(run.runs, run.name).read_text("summary.json"))["retention"]
    )
