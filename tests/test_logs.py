"""Log lines of the driver and of real actors."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from common.failures import InfraFailure
from common.storage.run_directory import RunDirectory
from common.telemetry.logs import keep_traceback, setup_logging

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) first ([\w-]+): (.*)"
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield RunDirectory(str(tmp_path), "first")
    logging.captureWarnings(False)
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()


def lines(run: RunDirectory, name: str) -> list[tuple[str, ...]]:
    matches = [LINE.fullmatch(line) for line in run.read_text(f"logs/{name}").splitlines()]
    assert all(matches)
    return [match.groups() for match in matches if match]


def test_a_record_keeps_its_lines_and_its_traceback(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging("driver", run)
    log = logging.getLogger("learner.rl.update")
    log.info("50% done\r\nsecond line")
    try:
        raise KeyError("missing")
    except KeyError:
        log.exception("failed")
    first, second, third, *trace = run.read_text("logs/driver.log").split("\n")
    assert LINE.fullmatch(first).groups() == ("INFO", "driver", "50% done")  # type: ignore[union-attr]
    assert second == "second line"
    assert LINE.fullmatch(third).groups() == ("ERROR", "driver", "failed")  # type: ignore[union-attr]
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[-2:] == ["KeyError: 'missing'", ""]
    assert capsys.readouterr().err == run.read_text("logs/driver.log")


def test_a_failure_that_is_told_in_one_sentence_leaves_its_traceback_in_the_log(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keep_traceback(InfraFailure("before there is a log")) is None
    setup_logging("driver", run)
    with pytest.raises(InfraFailure) as caught:
        raise InfraFailure("no cluster answers")
    assert keep_traceback(caught.value) == run.path("logs/driver.log")
    assert capsys.readouterr().err == ""
    kept = run.read_text("logs/driver.log")
    assert "Traceback (most recent call last):" in kept
    assert kept.endswith("InfraFailure: no cluster answers\n")


def test_setting_up_twice_does_not_write_twice(run: RunDirectory) -> None:
    setup_logging("driver", run)
    setup_logging("driver", run)
    logging.getLogger("common.x").info("once")
    assert len(lines(run, "driver.log")) == 1


def test_libraries_are_heard_from_warning_on(run: RunDirectory) -> None:
    setup_logging("driver", run)
    logging.getLogger("somelibrary").info("chatter")
    logging.getLogger("somelibrary").warning("trouble")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old name", DeprecationWarning, stacklevel=1)
    kept = run.read_text("logs/driver.log")
    assert len(LINE.findall(kept)) == 2
    assert "WARNING first driver: trouble\n" in kept
    assert "DeprecationWarning: old name" in kept


def test_a_run_behind_a_uri_logs_to_stderr_only(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = RunDirectory(f"memory://{tmp_path.name}", "first")
    setup_logging("reward-worker-1", remote)
    logging.getLogger("reward_service.worker").info("hello")
    assert LINE.fullmatch(capsys.readouterr().err.rstrip("\n"))
    assert not remote.exists("logs")


@pytest.mark.usefixtures("ray_local")
def test_what_an_actor_said_outlives_it(run: RunDirectory) -> None:
    @ray.remote(num_cpus=0)
    class Speaker:
        def speak(self, run: RunDirectory, rank: int) -> None:
            setup_logging(f"rollout-worker-{rank}", run)
            logging.getLogger("rollout.worker").info("from actor %d", rank)

    speakers = [Speaker.remote() for _ in range(2)]  # type: ignore[attr-defined]
    ray.get([speaker.speak.remote(run, rank) for rank, speaker in enumerate(speakers)], timeout=60)
    for speaker in speakers:
        ray.kill(speaker)
    for rank in range(2):
        who = f"rollout-worker-{rank}"
        assert lines(run, f"{who}.log") == [("INFO", who, f"from actor {rank}")]
