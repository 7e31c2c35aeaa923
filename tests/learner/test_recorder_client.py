"""What ranks and driver see of a recorder that fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from common.failures import DataFailure, InfraFailure
from common.storage.run_directory import RunDirectory
from learner.recorder import RecorderClient
from tests.local_source import tiny_run

pytestmark = pytest.mark.usefixtures("ray_local")


def ask_until_killed(rank: RecorderClient) -> None:
    """Ray kills an actor in its own time, and until then it answers."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        rank.stop_requested()


def test_a_recorder_that_is_gone_is_no_bug_of_the_rank_that_reports_to_it(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    recorder = RecorderClient.start(run, RunDirectory(str(tmp_path), "tiny"), "asking", None)
    rank = RecorderClient.connect("asking")
    assert rank.failed() is False
    with pytest.raises(DataFailure, match="the recorder to record: ValueError: no metric"):
        rank.record(0, 1, 1, 1, {"no/such": (1.0,)})
    recorder.close()
    with pytest.raises(InfraFailure, match="the recorder to stop requested"):
        ask_until_killed(rank)
    with pytest.raises(InfraFailure, match="there is no actor asking-recorder"):
        RecorderClient.connect("asking")
