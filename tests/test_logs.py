"""Log lines of the driver and of real actors."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from common.storage.run_directory import RunDirectory
from common.telemetry.logs import setup_logging

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) first (\w+)\[(\d+)\] (.*)"
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


def test_one_line_per_record_even_with_a_traceback(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging("driver", 0, run)
    log = logging.getLogger("learner.rl.update")
    log.info("50% done\nsecond line")
    try:
        raise KeyError("missing")
    except KeyError:
        log.exception("failed")
    first, second = lines(run, "driver-0.log")
    assert first == ("INFO", "driver", "0", r"50% done\nsecond line")
    assert second[0] == "ERROR"
    assert second[3].startswith(r"failed\nTraceback")
    assert second[3].endswith("KeyError: 'missing'")
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_setting_up_twice_does_not_write_twice(run: RunDirectory) -> None:
    setup_logging("driver", 0, run)
    setup_logging("driver", 0, run)
    logging.getLogger("common.x").info("once")
    assert len(lines(run, "driver-0.log")) == 1


def test_libraries_are_heard_from_warning_on(run: RunDirectory) -> None:
    setup_logging("driver", 0, run)
    logging.getLogger("somelibrary").info("chatter")
    logging.getLogger("somelibrary").warning("trouble")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old name", DeprecationWarning, stacklevel=1)
    texts = [text for *_, text in lines(run, "driver-0.log")]
    assert texts[0] == "trouble"
    assert "old name" in texts[1]
    assert len(texts) == 2


def test_a_run_behind_a_uri_logs_to_stderr_only(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = RunDirectory(f"memory://{tmp_path.name}", "first")
    setup_logging("reward", 1, remote)
    logging.getLogger("reward_service.worker").info("hello")
    assert LINE.fullmatch(capsys.readouterr().err.rstrip("\n"))
    assert not remote.exists("logs")


@pytest.mark.usefixtures("ray_local")
def test_what_an_actor_said_outlives_it(run: RunDirectory) -> None:
    @ray.remote(num_cpus=0)
    class Speaker:
        def speak(self, run: RunDirectory, rank: int) -> None:
            setup_logging("rollout", rank, run)
            logging.getLogger("rollout.worker").info("from actor %d", rank)

    speakers = [Speaker.remote() for _ in range(2)]  # type: ignore[attr-defined]
    ray.get([speaker.speak.remote(run, rank) for rank, speaker in enumerate(speakers)], timeout=60)
    for speaker in speakers:
        ray.kill(speaker)
    assert lines(run, "rollout-0.log") == [("INFO", "rollout", "0", "from actor 0")]
    assert lines(run, "rollout-1.log") == [("INFO", "rollout", "1", "from actor 1")]
