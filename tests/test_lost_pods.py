"""Processes in place of pods: what is lost with the submitter of a run, and with the head of its
cluster and all that runs there."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobStatus

from common.failures import EXIT_DONE
from common.storage.checkpoint import latest_checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from deploy.job_server import JobServer
from deploy.submit import logs, submit
from tests.job_server import Head, token_head
from tests.test_job_resume import TINY, project  # noqa: F401

STEPS = 1_000_000
"""More than a test lasts."""
SETTINGS: dict[str, Any] = TINY | {
    "learner": {"ranks": 1, "checkpoint_every": 5, "log_every": 1},
    "stages": [{"stage": "sft", "steps": STEPS, "batch_size": 2}],
}
SETTINGS["rollout"] = {**TINY["rollout"], "node_labels": {}}

pytestmark = [pytest.mark.cluster, pytest.mark.nightly, pytest.mark.timeout(600)]


def family(process: int) -> list[int]:
    """A process and all that descend from it, by Linux' lists of the children of each thread."""
    children = []
    for each in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended meanwhile
            children += [int(word) for word in each.read_text().split()]
    return [process, *(each for child in children for each in family(child))]


def killed(head: Head) -> None:
    """End all that runs in place of the head's pod, at once: its driver is there too."""
    found = family(head.process)
    assert len(found) > 5
    for each in found:
        with suppress(ProcessLookupError):  # some end by themselves when others do
            os.kill(each, signal.SIGKILL)


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 240) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, f"waited for {what}"
        time.sleep(0.1)


def at_home(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the user of the head, who has its token."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("HOME", str(head.home))


def test_a_run_outlives_its_submitter_and_resumes_after_its_head_is_lost(
    project: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (project / "killed.yaml").write_text(yaml.safe_dump(SETTINGS))
    directory = RunDirectory(str(tmp_path / "runs"), "killed")
    words = ["killed.yaml", f"runs={directory.root}"]
    with token_head() as head:
        at_home(head, monkeypatch)
        with (tmp_path / "submitter.log").open("w") as log:
            submitter = subprocess.Popen(
                [sys.executable, "-m", "deploy", "submit", *words, "--address", head.address],
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: submitter.poll() is not None or len(read_rows(directory)) > 6, "the run")
        assert submitter.poll() is None, (tmp_path / "submitter.log").read_text()
        submitter.send_signal(signal.SIGKILL)
        submitter.wait(timeout=20)
        seen = read_rows(directory)[-1]["step"]
        wait_until(lambda: read_rows(directory)[-1]["step"] > seen + 5, "the run to go on")
        (job,) = JobServer(head.address).jobs()
        assert job.status == JobStatus.RUNNING
        said = io.StringIO()
        logs("killed", head.address, follow=False, stream=said)
        assert "run killed" in said.getvalue(), "the log is on the head, and followed again"
        killed(head)
    rows = read_rows(directory)
    kept = latest_checkpoint(directory)
    assert kept is not None
    assert rows[-1]["step"] - kept.step < 10, "what is lost: steps since the last checkpoint"
    with token_head() as head:
        at_home(head, monkeypatch)
        last = kept.step + 3
        said = io.StringIO()
        # KubeRay's next attempt: the same words on a new cluster, but for an end.
        assert submit(
            [words[0]], [words[1], f"stages.0.steps={last}"], head.address, stream=said
        ) == (EXIT_DONE), said.getvalue()
        assert len(JobServer(head.address).jobs()) == 1, "the new head knows nothing of the old one"
    assert f"goes on from step {kept.step}" in said.getvalue()
    resumed = read_rows(directory)
    assert [row["step"] for row in resumed] == list(range(1, last + 1))
    same = [row["train/loss_lm"] for row in rows if row["step"] <= kept.step]
    assert [row["train/loss_lm"] for row in resumed[: kept.step]] == same
