"""A driver that lost its lease: it writes nothing more, and the next one waits for what it left."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from common.failures import InputError, LeaseLost
from common.storage import lease, lease_records
from common.storage.checkpoint import save_checkpoint
from common.storage.lease import hold, register_writer, take, wait_for_writers
from common.storage.lease_records import LeaseTerm, Record, create, newest, write
from common.storage.process_identity import ProcessIdentity
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress
from learner.summary import run_status
from rollout.journal.journal import open_journal
from tests.leases import Noted, elsewhere, started

WRITE = """
import pickle, sys, time
from common.storage.lease import register_writer
register_writer(pickle.loads(bytes.fromhex(sys.argv[1])))
print("writes", flush=True)
time.sleep(120)
"""

SUMMARY: dict[str, Any] = {"wall_seconds": 1.0, "stages": [], "retention": {}}


WRITES: dict[str, Callable[[RunDirectory], Any]] = {
    "text": lambda run: run.write_text("summary.json", "{}"),
    "line": lambda run: run.append_line("metrics.jsonl", "{}"),
    "remove": lambda run: run.remove("config.yaml"),
    "checkpoint": lambda run: save_checkpoint(run, 1, lambda folder: None, {}),
    "writer": register_writer,
    "journal": lambda run: open_journal(run, 0),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("what", WRITES)
def test_driver_whose_lease_was_taken_over_writes_nothing_more(
    directory: RunDirectory, what: str
) -> None:
    directory.write_text("config.yaml", "name: one")
    with hold(directory, QuietProgress()) as held:
        successor = Record.own(2, "successor")
        assert create(directory, successor)
        before = sorted(
            str(path) for path in Path(directory.path()).rglob("*") if "lease" not in path.parts
        )
        with pytest.raises(LeaseLost, match="no longer this driver's"):
            WRITES[what](held)
        assert (
            sorted(
                str(path) for path in Path(directory.path()).rglob("*") if "lease" not in path.parts
            )
            == before
        )
        time.sleep(0.5)
    assert newest(directory) == successor


def test_checkpoint_that_was_being_written_when_the_lease_was_lost_is_not_put_in_place(
    directory: RunDirectory,
) -> None:
    with hold(directory, QuietProgress()) as held:
        with pytest.raises(LeaseLost):
            save_checkpoint(
                held, 1, lambda folder: create(directory, Record.own(2, "successor")) and None, {}
            )
        assert directory.names("checkpoints") == []


def test_journal_stops_at_the_moment_its_driver_lost_the_lease(directory: RunDirectory) -> None:
    with hold(directory, QuietProgress()) as held:
        journal = open_journal(held, 0)
        journal.dealt(0, ["a"])
        assert create(directory, Record.own(2, "successor"))
        for write_more in (
            lambda: journal.failed(0, ["a"], "late"),
            journal.close,
            lambda: journal.dealt(1, ["b"]),
        ):
            with pytest.raises(LeaseLost):
                write_more()
    lines = (Path(directory.path()) / "episodes" / "_status.log").read_bytes().splitlines()
    assert len(lines) == 1
    assert not list((Path(directory.path()) / "episodes").glob("*.parquet"))


def test_store_that_is_away_for_a_moment_ends_no_run_and_one_that_stays_away_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_records, "READ_BACK_SECONDS", 0.1)
    monkeypatch.setattr(lease_records, "LOOK_AGAIN_SECONDS", (0.05, 0.05))
    run = RunDirectory(f"memory://{tmp_path.name}", "one")
    held = replace(run, term=LeaseTerm(1, take(run, QuietProgress(), False).owner))
    answers, failures = MemoryFileSystem.cat_file, [2]

    def cat_file(files: MemoryFileSystem, *args: Any, **kwargs: Any) -> bytes:
        if failures[0]:
            failures[0] -= 1
            raise ConnectionError("503")
        return bytes(answers(files, *args, **kwargs))

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    held.require_lease()
    assert failures == [0]
    failures[0] = 3
    with pytest.raises(ConnectionError):
        held.require_lease()
    assert failures == [0]
    write(run, Record.own(2, "successor"))
    with pytest.raises(LeaseLost):
        held.require_lease()


def test_run_directory_that_was_removed_ends_its_driver(directory: RunDirectory) -> None:
    with hold(directory, QuietProgress()) as held:
        directory.remove("lease")
        with pytest.raises(LeaseLost, match="was removed"):
            held.write_text("summary.json", "{}")


def test_next_driver_waits_for_processes_that_wrote_for_the_last_one(
    directory: RunDirectory,
) -> None:
    with hold(directory, QuietProgress()) as held:
        sent = pickle.dumps(held).hex()
        writer = started(WRITE, sent, says="writes")
        process = writer.__enter__()
    told = Noted()
    threading.Timer(1.5, process.kill).start()
    began = time.monotonic()
    with hold(directory, told):
        assert 1 < time.monotonic() - began < 20
        assert (
            f"waiting for processes of the last driver of run one to end ({process.pid})"
            in told.notes
        )
        with pytest.raises(LeaseLost):
            register_writer(held)  # an actor that Ray starts late
    writer.__exit__(None, None, None)


def test_next_driver_is_refused_where_they_do_not_end(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WRITERS_SECONDS", 0.3)
    with (
        hold(directory, QuietProgress()) as held,
        started(WRITE, pickle.dumps(held).hex(), says="writes") as process,
    ):
        with pytest.raises(
            InputError,
            match="one: waited 0 s in vain for processes of the last driver of run one to end",
        ) as refused:
            wait_for_writers(directory, QuietProgress())
        assert refused.value.what.endswith(
            f"to end ({process.pid}); end them (kill), then start again"
        )


@pytest.mark.parametrize(
    ("summary", "alive", "status"),
    [
        (None, True, "running"),
        ("running", True, "running"),
        ("stopped", True, "running"),  # it was resumed, and has not written yet
        ("running", False, "killed"),
        ("stopped", False, "stopped"),
        ("failed", False, "failed"),
        ("done", False, "done"),
        (None, False, "killed"),  # before it could write one
        (None, False, "new"),
    ],
)
def test_status_of_a_run_is_what_its_summary_and_its_lease_say_together(
    directory: RunDirectory, summary: str | None, alive: bool, status: str
) -> None:
    if status != "new":
        directory.write_text("config.yaml", "name: one")
    if summary is not None:
        directory.write_json("summary.json", SUMMARY | {"status": summary})
    process = ProcessIdentity.own() if alive else replace(ProcessIdentity.own(), started="0")
    assert create(directory, Record(1, "x", process, beat_at=time.time()))
    assert run_status(directory) == status


def test_status_of_a_run_on_another_host_follows_its_heartbeat(directory: RunDirectory) -> None:
    directory.write_json("summary.json", SUMMARY | {"status": "running"})
    theirs = elsewhere(directory)
    assert run_status(directory) == "running"
    write(directory, replace(theirs, beat_at=time.time() - 60))
    assert run_status(directory) == "killed"
