"""One driver per run: who gets the lease, who is refused, and that who lost it writes no more."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from common.failures import InputError, LeaseLost
from common.storage import lease, lease_records
from common.storage.lease import Heartbeat, hold, take
from common.storage.lease_records import Record, create, newest, write
from common.storage.process_identity import ProcessIdentity
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress
from learner.summary import run_status
from tests.leases import Noted, elsewhere, started

HOLD = """
import sys, time
from common.storage.lease import hold, register_writer
from common.telemetry.progress import QuietProgress
from common.storage.run_directory import RunDirectory
with hold(RunDirectory(sys.argv[1], "one"), QuietProgress()) as directory:
    print("held", flush=True)
    time.sleep(120)
"""


def is_taken(directory: RunDirectory, take_over: bool = False) -> Record:
    record = take(directory, QuietProgress(), take_over)
    assert newest(directory) == record
    return record


# --- on one host ----------------------------------------------------------------------------------


def test_second_driver_is_refused_with_the_process_id_and_a_killed_one_leaves_the_run_free(
    directory: RunDirectory,
) -> None:
    with started(HOLD, directory.root, says="held") as process:
        for state in (signal.SIGCONT, signal.SIGSTOP):  # stopped, it may go on at any moment
            process.send_signal(state)
            for take_over in (False, True):
                with pytest.raises(
                    InputError, match=f"one: is being driven by process {process.pid} on this host"
                ):
                    take(directory, QuietProgress(), take_over)
        assert run_status(directory) == "running"
        process.kill()
        os.waitid(
            os.P_PID, process.pid, os.WEXITED | os.WNOWAIT
        )  # ended, and not asked for its exit code: a zombie
        began = time.monotonic()
        told = Noted()
        with hold(directory, told):
            assert time.monotonic() - began < 2
        assert f"(process {process.pid})" in told.notes[0]


def test_lease_is_given_back_at_the_end_however_the_driver_ends(directory: RunDirectory) -> None:
    with pytest.raises(ZeroDivisionError), hold(directory, QuietProgress()):
        raise ZeroDivisionError
    told = Noted()
    with hold(directory, told):
        pass
    assert told.notes == []
    assert directory.names("lease") == ["00000002.json", "writers"]


def test_two_drivers_in_one_process_are_two_drivers(directory: RunDirectory) -> None:
    with hold(directory, QuietProgress()), pytest.raises(InputError, match="is being driven"):
        take(directory, QuietProgress(), False)


def test_process_that_has_the_id_of_a_dead_driver_does_not_hold_its_lease(
    directory: RunDirectory,
) -> None:
    own = ProcessIdentity.own()
    assert own.lives()
    assert create(directory, Record(1, "dead", replace(own, started=str(int(own.started) - 1))))
    assert is_taken(directory).number == 2


def test_command_name_with_spaces_and_brackets_hides_no_start_time() -> None:
    script = (
        "import time; from common.storage.process_identity import ProcessIdentity as P; a = "
        "P.own()\n"
        "open('/proc/self/comm', 'w').write(') Z (1 2'); print(a == P.own(), flush=True); "
        "time.sleep(60)"
    )
    with started(script, says="True"):
        pass


def test_process_in_another_namespace_of_ids_is_judged_by_its_heartbeat() -> None:
    own = ProcessIdentity.own()
    boot = own.host.split()[0]
    assert replace(own, host=f"{boot} pid:[1]").lives() is None
    assert replace(own, host=own.host.replace(boot, "another-boot")).lives() is None


def race(root: str, rounds: int, barrier: Barrier, won: Any) -> None:
    for index in range(rounds):
        directory = RunDirectory(root, f"round-{index}")
        barrier.wait(60)
        try:
            take(directory, QuietProgress(), False)
        except InputError:
            pass
        else:
            with won.get_lock():
                won[index] += 1
        barrier.wait(60)  # the winner lives until the others have looked


def raced(root: Path, rounds: int) -> list[int]:
    context = multiprocessing.get_context("spawn")
    barrier, won = context.Barrier(4), context.Array("i", rounds)
    racers = [
        context.Process(target=race, args=(str(root), rounds, barrier, won)) for _ in range(4)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(90)
        assert racer.exitcode == 0
    return list(won)


def test_of_drivers_that_start_at_the_same_moment_one_wins(tmp_path: Path) -> None:
    dead = replace(ProcessIdentity.own(), started="0")
    for index in range(20, 40):  # a dead driver's lease, which all of them find free
        assert create(RunDirectory(str(tmp_path), f"round-{index}"), Record(5, "dead", dead))
    assert raced(tmp_path, 40) == [1] * 40


def test_of_drivers_that_write_the_same_file_of_an_object_store_one_wins(tmp_path: Path) -> None:
    run = RunDirectory(f"memory://{tmp_path.name}", "one")
    barrier, ended = threading.Barrier(5), []

    def drive() -> None:
        barrier.wait()
        try:
            ended.append(take(run, QuietProgress(), False).owner)
        except InputError:
            ended.append("refused")

    threads = [threading.Thread(target=drive) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    held = newest(run)
    assert held is not None
    assert sorted(ended, key="refused".__eq__) == [held.owner] + ["refused"] * 4


def test_driver_whose_record_in_an_object_store_was_written_over_has_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_records, "READ_BACK_SECONDS", 1.0)
    run = RunDirectory(f"memory://{tmp_path.name}", "one")
    other = threading.Timer(0.3, lambda: write(run, Record.own(1, "other")))
    other.start()
    assert not create(run, Record.own(1, "first"))
    other.join()
    assert newest(run).owner == "other"  # type: ignore[union-attr]


def test_driver_that_writes_late_in_an_object_store_does_not_win_beside_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found no lease, and its write arrived when the first had read its own back."""
    monkeypatch.setattr(lease_records, "READ_BACK_SECONDS", 0.3)
    run = RunDirectory(f"memory://{tmp_path.name}", "one")
    first = Heartbeat(run, take(run, QuietProgress(), False))
    run.write_text(
        lease_records.file_name(1),
        run.read_text(lease_records.file_name(1)).replace(first.record.owner, "late"),
    )
    with pytest.raises(LeaseLost, match="taken over"):
        replace(run, term=first.term).write_text("summary.json", "{}")
    first.close()
    held = newest(run)
    assert held is not None
    assert (held.owner, held.released) == ("late", False)


@pytest.mark.usefixtures("quick")
def test_driver_that_died_while_it_created_its_lease_does_not_lock_the_run(
    directory: RunDirectory,
) -> None:
    directory.write_text("lease/00000001.json", "")
    told = Noted()
    take(directory, told, False)
    assert "an unknown host" in told.notes[0]


def test_file_system_without_links_has_one_winner_too(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    first, second = Record.own(1, "first"), Record.own(1, "second")
    assert create(directory, first)
    assert not create(directory, second)
    assert newest(directory) == first


def test_folder_that_cannot_be_written_to_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("a file, not a folder")
    with pytest.raises(InputError, match="one: cannot be written to"):
        take(RunDirectory(str(tmp_path), "one"), QuietProgress(), False)


# --- on several hosts -----------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_lease_of_another_host_is_taken_over_when_its_heartbeat_stood_still_long_enough(
    directory: RunDirectory,
) -> None:
    theirs, told, began = elsewhere(directory), Noted(), time.monotonic()
    record = take(directory, told, False)
    assert 1.5 <= time.monotonic() - began < 5
    assert record.number == theirs.number + 1
    assert (
        "run one was driven from gpu-7 (process 4242), last heartbeat 4 s ago; waiting until it "
        "is stale" in told.notes[0]
    )
    assert len(told.notes) == 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("clock", [-3600, 3600])
def test_lease_whose_heartbeat_goes_on_is_refused_whatever_the_other_clock_says(
    directory: RunDirectory, clock: int
) -> None:
    theirs = elsewhere(directory, beat_at=time.time() + clock)
    beat = threading.Timer(
        0.7, lambda: write(directory, replace(theirs, beat=4, beat_at=time.time() + clock))
    )
    beat.start()
    with pytest.raises(
        InputError,
        match=r"one: is being driven from gpu-7 \(process 4242\), whose heartbeat goes on",
    ):
        take(directory, QuietProgress(), False)
    beat.join()
    assert newest(directory) == replace(theirs, beat=4, beat_at=newest(directory).beat_at)  # type: ignore[union-attr]


@pytest.mark.usefixtures("quick")
def test_lease_that_is_given_back_while_it_is_waited_for_is_free(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE_SECONDS", 60)
    theirs = elsewhere(directory)
    end = threading.Timer(0.5, lambda: write(directory, replace(theirs, released=True)))
    end.start()
    assert is_taken(directory).number == 2
    end.join()


def test_take_over_does_not_wait_for_another_host(directory: RunDirectory) -> None:
    elsewhere(directory)
    began = time.monotonic()
    assert is_taken(directory, take_over=True).number == 2
    assert time.monotonic() - began < 1


@pytest.mark.usefixtures("quick")
def test_heartbeat_goes_on_until_the_lease_is_given_back(directory: RunDirectory) -> None:
    beats = []
    with hold(directory, QuietProgress()):
        for _ in range(3):
            time.sleep(0.5)
            held = newest(directory)
            assert held is not None
            beats.append(held.beat)
            assert not held.released
    assert beats == sorted(set(beats))
    held = newest(directory)
    assert held is not None
    assert held.released
