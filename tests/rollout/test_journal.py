import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from common.episode import Episode, Turn
from common.episode_arrow import from_table
from common.failures import DataFailure
from common.storage.run_directory import RunDirectory
from rollout.journal.journal import Journal, open_journal, outcomes


def episode(task: str, iteration: int = 0) -> Episode:
    return Episode(
        f"{task}.e",
        task,
        3,
        (Turn([1], [2, 3], [-0.5, -0.25], [4], rewards={"bleu": 0.5}, reward=0.5),),
        7,
        status="scored",
        iteration=iteration,
    )


def play(journal: Journal, iteration: int, tasks: str, scored: str, failed: str = "") -> None:
    journal.dealt(iteration, [f"{iteration}{name}" for name in tasks])
    journal.arrived(iteration, [episode(f"{iteration}{name}", iteration) for name in scored])
    journal.failed(iteration, [f"{iteration}{name}" for name in failed], "sampling: bad row")


def status_of(run: Path) -> dict[tuple[str, int], str]:
    return {(row["task"], row["attempt"]): row["status"] for row in outcomes(run).to_pylist()}


def test_every_dealt_task_is_in_exactly_one_place(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    play(journal, 0, "abcd", scored="ab", failed="c")
    counts = journal.counts
    assert (counts.dealt, counts.failed, counts.in_flight, counts.scored) == (4, 1, 2 + 1, 2)
    assert journal.trained(0, version=1) == 2
    journal.dropped(0, ["0d"], "stale")
    counts = journal.counts
    assert (counts.dealt, counts.trained, counts.dropped, counts.failed, counts.in_flight) == (
        4,
        2,
        1,
        1,
        0,
    )
    assert status_of(tmp_path) == {
        ("0a", 0): "trained",
        ("0b", 0): "trained",
        ("0c", 0): "failed",
        ("0d", 0): "dropped",
    }


WRONG: dict[str, Callable[[Journal], None]] = {
    "dealt twice": lambda journal: journal.dealt(0, ["0b"]),
    "ended twice": lambda journal: journal.dropped(0, ["0a"], "late"),
    "failed unknown": lambda journal: journal.failed(0, ["0z"], "sampling"),
    "arrived unknown": lambda journal: journal.arrived(0, [episode("0z")]),
    "arrived twice": lambda journal: journal.arrived(0, [episode("0b")]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_books_refuse_what_contradicts_them_and_write_nothing(tmp_path: Path, wrong: str) -> None:
    journal = Journal(tmp_path)
    play(journal, 0, "ab", scored="a")
    journal.trained(0, 1)
    journal.arrived(0, [episode("0b")])
    logs = sorted((tmp_path / "episodes").glob("_*.log"))
    sizes = [log.stat().st_size for log in logs]
    with pytest.raises(DataFailure):
        WRONG[wrong](journal)
    assert [log.stat().st_size for log in logs] == sizes


def test_reopened_journal_knows_what_the_closed_one_knew(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    play(journal, 0, "abc", scored="ab", failed="c")
    journal.trained(0, 1)
    play(journal, 1, "ab", scored="a")
    journal.close()
    again = Journal(tmp_path)
    assert again.counts == journal.counts
    assert again.torn_bytes == 0
    again.trained(1, 2)
    assert again.counts.trained == 3


def test_sealed_episodes_are_a_data_set_and_equal_those_that_arrived(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    play(journal, 0, "ab", scored="ab")
    journal.seal()
    play(journal, 1, "ab", scored="a")
    assert ds.dataset(tmp_path / "episodes", format="parquet").count_rows() == 2
    journal.close()
    table = ds.dataset(tmp_path / "episodes", format="parquet").to_table()
    assert from_table(table) == [episode("0a"), episode("0b"), episode("1a", 1)]
    assert table["iteration"].to_pylist() == [0, 0, 1]


def test_segment_seals_itself_when_it_grows(tmp_path: Path) -> None:
    journal = Journal(tmp_path, seal_above=100)
    play(journal, 0, "a", scored="a")
    journal.trained(0, 1)
    assert len(list((tmp_path / "episodes").glob("part-*.parquet"))) == 1


def test_after_a_resume_later_episodes_are_dropped_and_dealt_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for iteration in range(3):
        play(journal, iteration, "ab", scored="ab")
        journal.trained(iteration, iteration + 1)
    play(journal, 3, "ab", scored="a")
    again = Journal(tmp_path)
    again.roll_back(1)
    counts = again.counts
    assert (counts.dealt, counts.trained, counts.dropped, counts.in_flight) == (8, 2, 6, 0)
    assert again.books.dropped == {"rolled back to step 1": 6}
    play(again, 1, "ab", scored="ab")
    again.trained(1, 2)
    assert again.counts.trained == 4
    assert status_of(tmp_path)["1a", 0] == "dropped"
    assert status_of(tmp_path)["1a", 1] == "trained"
    again.close()
    table = ds.dataset(tmp_path / "episodes", format="parquet").to_table()
    twice = [row["attempt"] for row in table.to_pylist() if row["task"] == "1a"]
    assert twice == [0, 1]


def test_going_back_in_one_stage_leaves_the_stages_before_it_alone(tmp_path: Path) -> None:
    first = Journal(tmp_path, stage=4)
    play(first, 0, "ab", scored="ab")
    first.trained(0, 1)
    first.close()
    second = Journal(tmp_path, stage=5)
    second.roll_back(0)
    assert second.counts.trained == 2
    play(second, 0, "cd", scored="cd")
    second.trained(0, 1)
    second.roll_back(0)
    assert (second.counts.trained, second.counts.dropped) == (2, 2)
    assert status_of(tmp_path) == {
        ("0a", 0): "trained",
        ("0b", 0): "trained",
        ("0c", 0): "dropped",
        ("0d", 0): "dropped",
    }


def test_rolling_back_to_where_the_run_stands_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    play(journal, 0, "ab", scored="ab")
    journal.trained(0, 1)
    before = journal.counts
    journal.roll_back(1)
    assert journal.counts == before


WRITER = """
import sys
from pathlib import Path
from rollout.journal.journal import Journal
from test_journal import play
journal = Journal(Path(sys.argv[1]))
iteration = 0
while True:
    play(journal, iteration, "abc", scored="ab", failed="c")
    journal.trained(iteration, iteration + 1)
    print(iteration, flush=True)
    if iteration % 7 == 6:
        journal.seal()
    iteration += 1
"""


def test_killed_writer_loses_nothing_that_it_confirmed(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {"PYTHONPATH": f"{here}:{here.parent.parent}", "OMP_NUM_THREADS": "1"}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert writer.stdout is not None
    confirmed = -1
    while confirmed < 24:
        confirmed = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split()
    confirmed = int(rest[-1]) if rest else confirmed
    writer.wait()

    journal = Journal(tmp_path)
    journal.counts.check()
    assert journal.counts.trained >= 2 * (confirmed + 1)
    assert journal.counts.failed >= confirmed + 1
    journal.close()
    tasks = ds.dataset(tmp_path / "episodes", format="parquet").to_table()["task"].to_pylist()
    assert set(tasks) >= {f"{i}{name}" for i in range(confirmed + 1) for name in "ab"}
    assert len(tasks) == len(set(tasks))


@pytest.mark.parametrize("name", ["_status.log", "_open-00000000.log"])
@pytest.mark.parametrize("tear", ["cut", "zeros", "half"])
def test_torn_tail_is_cut_off_and_the_rest_kept(tmp_path: Path, name: str, tear: str) -> None:
    journal = Journal(tmp_path)
    play(journal, 0, "ab", scored="ab")
    journal.trained(0, 1)
    journal.dealt(1, ["1a"])
    path = tmp_path / "episodes" / name
    whole = path.read_bytes()
    journal.arrived(1, [episode("1a")])
    torn = path.read_bytes()
    match tear:
        case "cut":
            path.write_bytes(torn[:-3])
        case "zeros":
            path.write_bytes(whole + bytes(40))
        case "half":
            path.write_bytes(torn[: len(whole) + 10])
    again = Journal(tmp_path)
    assert path.read_bytes() == whole
    assert again.torn_bytes == {
        "cut": len(torn) - 3,
        "zeros": len(whole) + 40,
        "half": len(whole) + 10,
    }[tear] - len(whole)
    assert again.counts.trained == 2
    again.roll_back(1)
    play(again, 1, "a", scored="a")
    assert again.counts.scored == 1


@pytest.mark.parametrize("name", ["_status.log", "_open-00000000.log"])
def test_damage_in_the_middle_is_a_failure(tmp_path: Path, name: str) -> None:
    journal = Journal(tmp_path)
    for iteration in range(3):
        play(journal, iteration, "ab", scored="ab")
    path = tmp_path / "episodes" / name
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataFailure, match="damaged at byte 0"):
        Journal(tmp_path)


def test_run_behind_a_uri_keeps_sealed_episodes_and_books_there(tmp_path: Path) -> None:
    run = RunDirectory("memory://journal-test", tmp_path.name)
    journal = open_journal(run, 0)
    play(journal, 0, "ab", scored="ab")
    journal.trained(0, 1)
    journal.seal()
    play(journal, 1, "ab", scored="a")
    assert run.names("episodes") == ["_status.log", "part-00000000.parquet"]
    again = open_journal(run, 0)
    assert (again.counts.dealt, again.counts.trained) == (2, 2)
    play(again, 1, "ab", scored="ab")
    again.close()
    assert run.names("episodes") == [
        "_status.log",
        "part-00000000.parquet",
        "part-00000001.parquet",
    ]


def test_crash_between_sealing_and_clearing_does_not_double_episodes(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    play(journal, 0, "ab", scored="ab")
    segment = tmp_path / "episodes" / "_open-00000000.log"
    data = segment.read_bytes()
    journal.seal()
    segment.write_bytes(data)
    Journal(tmp_path).close()
    assert ds.dataset(tmp_path / "episodes", format="parquet").count_rows() == 2
