"""The same command started twice, and a driver that is killed: as a shell sees it, on a local
Ray."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import ray
import yaml

from common.storage.lease_records import Record, create, newest, write
from common.storage.process_identity import ProcessIdentity
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from learner.summary import run_status
from rollout.journal.journal import Journal, outcomes
from tests.terminal import sentences

ROOT = Path(__file__).resolve().parent.parent.parent
ITERATIONS, EPISODES = 20, 5
SMALL = {
    "name": "once",
    "data": {"kind": "synth", "train": 40, "eval": 8, "steps": [2], "subjects": 3, "values": 5},
    "tokenizer": {"vocab_size": 350},
    "model": {
        "size": "tiny",
        "width": 32,
        "layers": 1,
        "heads": 2,
        "query_heads": 2,
        "kv_heads": 2,
        "decoder_ff": 32,
        "encoder_ff": 32,
    }
    | {"slots": 4, "max_tokens": 48},
    "learner": {"ranks": 1, "checkpoint_every": 2, "log_every": 1},
    "rollout": {"workers": 1, "slots": 4, "sampling": {"max_new_tokens": 6}},
    "evaluation": {"episodes": 2},
    "stages": [
        {
            "stage": "mrl",
            "episodes": EPISODES,
            "curriculum": [{"name": "all", "iterations": ITERATIONS, "max_steps": 2}],
        }
    ],
}


def assert_books_add_up(directory: RunDirectory) -> None:
    """Every task was dealt, scored and trained on once in the course that counts, and no step or
    episode stands twice."""
    assert [row["step"] for row in read_rows(directory)] == list(range(1, ITERATIONS + 1))
    ended = outcomes(Path(directory.path())).to_pylist()
    trained = Counter(row["task"] for row in ended if row["status"] == "trained")
    assert set(trained.values()) == {1}
    assert len(trained) == ITERATIONS * EPISODES
    assert {row["status"] for row in ended} <= {"trained", "dropped"}
    recorded = (
        ds.dataset(str(Path(directory.path()) / "episodes"), format="parquet")
        .to_table()
        .to_pylist()
    )
    episodes = Counter((row["task"], row["attempt"]) for row in recorded)
    assert set(episodes.values()) == {1}
    assert {
        (row["task"], row["attempt"]) for row in ended if row["status"] == "trained"
    } <= episodes.keys()
    journal = Journal(Path(directory.path()))
    assert journal.torn_bytes == 0
    assert journal.counts.in_flight == 0


@pytest.mark.cluster
@pytest.mark.nightly
@pytest.mark.timeout(420)
@pytest.mark.usefixtures("ray_local")
def test_one_driver_at_a_time_whatever_becomes_of_it(tmp_path: Path) -> None:
    """The first is killed while a second tries; the third loses its lease as if it had been
    suspended; the fourth ends the run."""
    config, directory = tmp_path / "once.yaml", RunDirectory(str(tmp_path / "runs"), "once")
    config.write_text(yaml.safe_dump(SMALL))
    # One Ray for all: what it runs for a driver outlives that driver by a moment.
    address = ray.get_runtime_context().gcs_address
    command = [
        sys.executable,
        "-m",
        "deploy",
        "train",
        str(config),
        f"runs={directory.root}",
        "--address",
        address,
    ]

    @contextmanager
    def started(log: str) -> Iterator[subprocess.Popen[bytes]]:
        with (tmp_path / log).open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    with started("first") as first:
        wait_until(lambda: run_status(directory) == "running", first)
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert second.returncode == 2
        # No word of waiting, and no Ray was started.
        (said,) = sentences(second.stderr)
        assert f"once: is being driven by process {first.pid} on this host" in said
        wait_until(lambda: len(read_rows(directory)) >= 3, first)
    assert run_status(directory) == "killed"

    with started("third") as third:
        wait_until(lambda: "mrl: " in (tmp_path / "third").read_text(), third)
        assert "run once (killed) goes on from step " in (tmp_path / "third").read_text()
        theirs = Record(3, "successor", ProcessIdentity("another boot", "gpu-7", 4242, "9"))
        assert create(directory, theirs)
        assert third.wait(timeout=60) == 1
    said = (tmp_path / "third").read_text()
    assert "Traceback" not in said  # no report of what is another's, and no crash
    last = said.splitlines()[-1]
    assert last.endswith(
        "is no longer this driver's: its lease was taken over by process 4242 on gpu-7"
    )
    assert (
        json.loads(directory.read_text("summary.json"))["status"] == "running"
    )  # what its successor would have written
    assert newest(directory) == theirs
    write(directory, replace(theirs, released=True))

    with started("fourth") as fourth:
        assert fourth.wait(timeout=200) == 0, (tmp_path / "fourth").read_text()
    assert run_status(directory) == "done"
    assert_books_add_up(directory)


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
