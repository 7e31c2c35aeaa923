"""A whole run on a real Ray: learner groups under Ray Train, rollout workers, reward pool,
conductor, driver."""

from __future__ import annotations

import json
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from common.config.run import Run
from common.episode import Episode
from common.failures import Drained, InputError
from common.storage.checkpoint import latest_checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from common.telemetry.progress import QuietProgress
from deploy.cli import run_command
from learner.driver import train
from learner.evaluation.evaluate import evaluate_checkpoint
from learner.evaluation.replay import parting, replay
from rollout.journal.journal import outcomes
from rollout.journal.reader import find_episode
from tests.local_source import STAGES, at_step, tiny_run

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(420)]

WORKERS: dict[str, Any] = {
    "learner": {"ranks": 2, "checkpoint_every": 2, "log_every": 1},
    "rollout": {"workers": 2, "slots": 4, "sampling": {"max_new_tokens": 8}, "deadline": 120},
}


FIRST_LOOKED_AT = (
    "train/loss_lm",
    "train/loss_lm",
    "train/memory_cosine",
    "train/loss_lm",
    "objective/scores",
)
"""Metric by which each stage is judged."""


class Told(QuietProgress):
    """Keeps what the driver said."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[int] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str, total: int, unit: str = "steps") -> None:
        self.stages.append(name)

    def update(self, step: int, **figures: float) -> None:
        self.steps.append(step)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, ray_local: None
) -> tuple[Run, dict[str, Any], Told]:
    """A run of all five stages on two ranks."""
    short = [
        STAGES[name] | {"steps": 2}
        for name in ("joint_lm", "sft", "memory_pretrain", "memory_aware")
    ]
    run = tiny_run(tmp_path_factory.mktemp("pipeline"), *short, "mrl", **WORKERS)
    told = Told()
    return run, train(run, told), told


def directory_of(run: Run) -> RunDirectory:
    return RunDirectory(run.runs, run.name)


def test_run_of_all_stages_leaves_what_the_contract_promises(
    finished: tuple[Run, dict[str, Any], Told],
) -> None:
    run, summary, told = finished
    directory = directory_of(run)
    assert json.loads(directory.read_text("summary.json")) == summary
    assert {"name", "status", "wall_seconds", "stages", "retention"} <= summary.keys()
    assert (summary["name"], summary["status"]) == ("tiny", "done")
    names = ["joint_lm", "sft", "memory_pretrain", "memory_aware", "mrl"]
    assert told.stages == [stage["name"] for stage in summary["stages"]] == names
    assert [stage["steps"] for stage in summary["stages"]] == [2, 2, 2, 2, 6]
    for stage in summary["stages"]:
        assert 0 < stage["wall_seconds"] < summary["wall_seconds"]
    for stage, metric in zip(summary["stages"], FIRST_LOOKED_AT, strict=True):
        assert stage["metrics"][metric].keys() == {"first", "last", "best"}
    retention = summary["retention"]
    recalls = {"before_mrl", "after_mrl", "training", "erased", "most_frequent"}
    figures = {"exact", "precision", "changed", "outdated", "by_order", "held"}
    assert retention.keys() == recalls | figures | {"intervals", "counts"}
    assert "all" in retention["after_mrl"]
    assert all(
        retention[name].keys() == retention["after_mrl"].keys() for name in recalls - {"training"}
    )
    assert summary["warnings"] == []
    assert all(retention[name].keys() == {"before_mrl", "after_mrl"} for name in figures)
    for shares, intervals in (
        (retention, retention["intervals"]),
        *((retention[name], retention["intervals"][name]) for name in figures),
    ):
        for name in {"before_mrl", "after_mrl"} & shares.keys():
            assert shares[name].keys() == intervals[name].keys()
            assert all(
                low <= shares[name][key] <= high for key, (low, high) in intervals[name].items()
            )

    rows = read_rows(directory)
    assert [row["step"] for row in rows] == list(range(1, 15))
    first_mrl, recall = rows[8], "eval/recall{memory=kept,distance=all}"
    kept = [retention["before_mrl"]["all"], retention["after_mrl"]["all"]]
    assert [first_mrl[recall], rows[-1][recall]] == pytest.approx(kept)
    assert [
        summary["stages"][-1]["metrics"][recall][name] for name in ("first", "last")
    ] == pytest.approx(kept)
    assert first_mrl["ppo/ratio_max_deviation_first"] <= 1e-4
    assert first_mrl["ppo/log_prob_max_difference"] <= 1e-4
    ended = outcomes(Path(directory.path())).to_pylist()
    assert len(ended) == 6 * 7
    assert {row["status"] for row in ended} == {"trained"}
    assert directory.exists("config.yaml")
    assert directory.exists("environment.json")
    assert directory.read_text("checkpoints/latest").strip() == "step_00000014"


def test_finished_run_started_again_finishes_at_once(
    finished: tuple[Run, dict[str, Any], Told],
) -> None:
    run, before, _ = finished
    began = time.monotonic()
    again = train(run, QuietProgress())
    assert time.monotonic() - began < 15
    assert again["status"] == "done"
    assert (again["stages"], again["retention"]) == (before["stages"], before["retention"])


def without_after_mrl(retention: dict[str, Any]) -> dict[str, Any]:
    """What was kept of an evaluation before MRL, when none was made after it."""
    return {
        name: without_after_mrl(value) if isinstance(value, dict) else value
        for name, value in retention.items()
        if name not in ("after_mrl", "training", "erased", "most_frequent")
    }


class Interrupting(QuietProgress):
    """Ctrl-C, or SIGTERM, in the driver's thread a moment after the driver said `when`; not after
    the block that it is used in."""

    def __init__(self, when: str, number: signal.Signals):
        self.when, self.number, self.sent_at = when, number, float("inf")
        self._driver, self._over = threading.get_ident(), threading.Event()
        self._sender = threading.Thread(target=self._send)

    def __enter__(self) -> Interrupting:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._sender.is_alive():
            self._sender.join()

    def note(self, text: str) -> None:
        if self.when in text:
            self._sender.start()

    def _send(self) -> None:
        if not self._over.wait(0.2):
            self.sent_at = time.monotonic()
            signal.pthread_kill(self._driver, self.number)


def test_driver_that_ended_while_it_evaluated_after_mrl_does_so_when_it_is_started_again(
    finished: tuple[Run, dict[str, Any], Told],
) -> None:
    run, before, _ = finished
    directory = directory_of(run)
    whole = json.loads(directory.read_text("summary.json"))
    cut = json.loads(directory.read_text("summary.json")) | {"status": "running"}
    cut["retention"] = without_after_mrl(whole["retention"])
    cut["stages"][-1] |= {"evaluated": ["before_mrl"], "metrics": {}}
    directory.write_json("summary.json", cut)

    for number in (signal.SIGINT, signal.SIGTERM):
        with (
            Interrupting("evaluating after MRL", number) as told,
            pytest.raises(Drained, match="the same command goes on"),
        ):
            train(run, told)
        assert time.monotonic() - told.sent_at < 15
        stopped = json.loads(directory.read_text("summary.json"))
        assert (stopped["status"], stopped["retention"]) == ("stopped", cut["retention"])

    again = train(run, QuietProgress())
    assert again["status"] == "done"
    assert again["retention"] == before["retention"]
    assert again["counts"] == before["counts"]
    assert [stage["metrics"] for stage in again["stages"]] == [
        stage["metrics"] for stage in before["stages"]
    ]
    for each, other in zip(again["stages"], before["stages"], strict=True):
        assert (each["wall_seconds"] > other["wall_seconds"]) == (each["name"] == "mrl")


def test_run_of_another_shape_under_the_same_name_is_refused_by_its_key(
    finished: tuple[Run, dict[str, Any], Told],
) -> None:
    run, _, _ = finished
    wider = run.model_copy(update={"model": run.model.model_copy(update={"width": 48})})
    with pytest.raises(InputError, match=r"^model\.width: "):
        train(wider, QuietProgress())


def test_checkpoint_of_a_run_is_evaluated_with_the_settings_of_that_run(
    finished: tuple[Run, dict[str, Any], Told], tmp_path: Path
) -> None:
    run, _, _ = finished
    data = tmp_path / "rows.jsonl"
    fact = {"value": "Rex", "said_in": 0}
    follow_up = {
        "query": "what is my dog called?",
        "answer": "your dog is called Rex",
        "role": "recall",
        "facts": [fact],
    }
    data.write_text(
        json.dumps(
            {"query": "I have a dog called Rex", "answer": "okay", "interactions": [follow_up]}
        )
        + "\n"
    )
    result = evaluate_checkpoint(directory_of(run).path(), str(data))
    assert result["counts"] == {"1": 1, "all": 1}
    assert all(
        result["retention"][name].keys() == {"1", "all"}
        for name in ("memory", "erased", "most_frequent", "exact")
    )
    assert result["retention"]["changed"] == {}
    assert {"bleu", "cosine", "length", "recall", "total"} <= result["rewards"].keys()


def test_recorded_episodes_are_replayed_from_their_checkpoint(
    finished: tuple[Run, dict[str, Any], Told],
) -> None:
    run, _, _ = finished
    where = directory_of(run).path()
    results = [replay(where, f"4-000004-{place:05d}@12") for place in range(7)]
    assert {result.parted for result in results} == {None}
    assert {result.weights_version for result in results} == {12}
    assert all(
        result.turns and result.tokens and result.log_prob_max_difference <= 1e-5
        for result in results
    )
    carried = [
        find_episode(directory_of(run), result.episode).episode.initial_memory is not None
        for result in results
    ]
    assert any(carried)
    assert run_command(["replay", where, "4-000004-00000@12", "--json"]) == 0


def test_a_replay_needs_the_weights_and_the_episode(
    finished: tuple[Run, dict[str, Any], Told],
) -> None:
    where = directory_of(finished[0]).path()
    with pytest.raises(
        InputError,
        match=r"weights of step 9, and checkpoints are kept of steps 12, 14 "
        r"\(learner\.keep",
    ):
        replay(where, "4-000001-00000@9")
    with pytest.raises(
        InputError,
        match=r"is none of the run's 42 episodes, which go from 4-000000-00000@8 to "
        r"4-000005-00006@13",
    ):
        replay(where, "4-000009-00000")
    assert replay(where, "4-000004-00000").episode == "4-000004-00000@12"
    with pytest.raises(InputError, match="is not a run directory"):
        replay(f"{where}/checkpoints", "4-000004-00000@12")


def test_a_replay_says_where_it_parts(finished: tuple[Run, dict[str, Any], Told]) -> None:
    recorded = find_episode(directory_of(finished[0]), "4-000004-00000@12").episode
    assert parting(recorded, recorded) is None

    def changed(index: int, **fields: Any) -> Episode:
        turns = list(recorded.turns)
        turns[index] = replace(turns[index], **fields)
        return replace(recorded, turns=tuple(turns))

    last = recorded.turns[-1]
    index = len(recorded.turns) - 1
    other = [*last.answer_ids[:-1], last.answer_ids[-1] + 1]
    place = f"turn {index}, token {len(other) - 1}"
    assert str(parting(recorded, changed(index, answer_ids=other))).startswith(
        f"tokens part at {place}: recorded"
    )
    shorter = parting(recorded, changed(1, answer_ids=list(recorded.turns[1].answer_ids)[:-1]))
    assert shorter is not None
    assert (shorter.turn, shorter.replayed) == (1, None)
    nudged = [value + 2e-5 * (i == 0) for i, value in enumerate(last.log_probs)]
    assert str(parting(recorded, changed(index, log_probs=nudged))).startswith(
        f"log_probs part at turn {index}, token 0"
    )
    paid = parting(recorded, changed(index, rewards={**last.rewards, "length": 0.123}))
    assert paid is not None
    assert (paid.what, paid.replayed) == ("rewards", {"length": 0.123})
    assert str(parting(recorded, replace(recorded, memory_hash="00"))).startswith("memory part")


def test_interrupted_run_is_drained_and_goes_on_to_the_end(tmp_path: Path) -> None:
    # Many, because on a quick machine a dozen are over before the driver has heard the signal.
    curriculum = [{"name": "all", "iterations": 25, "max_steps": 3, "reset_probability": 0.5}]
    settings = WORKERS | {"learner": {"ranks": 2, "checkpoint_every": 100, "log_every": 1}}
    run = tiny_run(tmp_path, STAGES["mrl"] | {"curriculum": curriculum}, name="drained", **settings)
    driver = threading.get_ident()

    def interrupt() -> None:
        # To the driver's thread, which a terminal's signal wakes too; raised in the watcher's, it
        # would wait for the driver to look.
        signal.pthread_kill(driver, signal.SIGINT)

    with pytest.raises(Drained, match="the same command goes on"), at_step(run, 3, interrupt):
        train(run, QuietProgress())
    directory = directory_of(run)
    stopped = latest_checkpoint(directory)
    assert stopped is not None
    assert 3 <= stopped.step < 25
    summary = json.loads(directory.read_text("summary.json"))
    assert summary["status"] == "stopped"
    assert "before_mrl" in summary["retention"]
    assert summary["retention"] == without_after_mrl(summary["retention"])

    # An interrupt in the last step breaks off the evaluation that would come after it.
    told = Told()
    with pytest.raises(Drained, match="the same command goes on"), at_step(run, 25, interrupt):
        train(run, told)
    assert told.stages == ["mrl"]
    assert min(told.steps) >= stopped.step
    assert not [note for note in told.notes if note.startswith("evaluating")]
    again = json.loads(directory.read_text("summary.json"))
    assert (again["status"], again["retention"]) == ("stopped", summary["retention"])

    told = Told()
    finished = train(run, told)
    assert finished["status"] == "done"
    assert told.stages == []
    assert finished["retention"]["before_mrl"] == summary["retention"]["before_mrl"]
    assert finished["wall_seconds"] > summary["wall_seconds"]
    assert [row["step"] for row in read_rows(directory)] == list(range(1, 26))
    assert {row["status"] for row in outcomes(Path(directory.path())).to_pylist()} == {"trained"}
    named = ray.util.list_named_actors(all_namespaces=True)
    assert [actor for actor in named if actor["namespace"].startswith("engram-drained")] == []
