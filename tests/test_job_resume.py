"""A run through Ray Jobs on a cluster of two nodes whose driver is killed: submitted again it
resumes, and two drivers never run."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.failures import EXIT_BAD_INPUT, EXIT_DONE
from common.storage.checkpoint import latest_checkpoint
from common.storage.lease_records import newest
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from deploy.job_server import JobServer
from deploy.submit import submit
from deploy.working_directory import pack
from tests.job_server import Head, node, token_head

ROOT = Path(__file__).resolve().parent.parent
PACKAGE_BYTES = 10 * 2**20
TINY: dict[str, Any] = {
    "name": "killed",
    "data": {"kind": "synth", "train": 40, "eval": 8, "steps": [2], "subjects": 3, "values": 5},
    "tokenizer": {"vocab_size": 350},
    "model": {"size": "tiny", "width": 32, "layers": 1, "heads": 2, "query_heads": 2}
    | {"kv_heads": 2, "decoder_ff": 32, "encoder_ff": 32, "slots": 4, "max_tokens": 48},
    "learner": {"ranks": 1, "checkpoint_every": 2, "log_every": 1},
    # Kernels would be compiled anew in the package that travels.
    "rollout": {"workers": 1, "slots": 4, "sampling": {"max_new_tokens": 6}, "backend": "torch"}
    | {"node_labels": {"group": "rollout"}},
    "evaluation": {"episodes": 2},
    "stages": [
        {
            "stage": "mrl",
            "episodes": 5,
            "curriculum": [{"name": "all", "iterations": 100_000, "max_steps": 2}],
        }
    ],
}


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    with token_head() as started:
        monkeypatch.delenv("RAY_AUTH_MODE")
        monkeypatch.setenv("HOME", str(started.home))
        with node(started, "rollout"):
            yield started


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    for package in ("common", "rollout", "reward_service", "learner", "deploy"):
        shutil.copytree(ROOT / package, folder / package)
    (folder / "killed.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(folder)
    return folder


@contextmanager
def jobs_stopped(server: JobServer) -> Iterator[None]:
    """Where the block fails, stop its jobs, which threads follow that would never end."""
    try:
        yield
    except BaseException:
        for job in server.jobs():
            server.client.stop_job(str(job.submission_id))
        raise


def train_runs(head: Head) -> list[dict[str, Any]]:
    """The runs on the Train page of Ray's dashboard."""
    token = (head.home / ".ray" / "auth_token").read_text().strip()
    request = urllib.request.Request(
        f"{head.address}/api/train/v2/runs/v1", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: list[dict[str, Any]] = json.load(answer)["train_runs"]
        return found


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_run_whose_driver_is_killed_resumes_when_it_is_submitted_again(
    head: Head, project: Path, tmp_path: Path
) -> None:
    server, directory = JobServer(head.address), RunDirectory(str(tmp_path / "runs"), "killed")
    until = time.monotonic() + 60
    while sum(node["state"] == "ALIVE" for node in server.nodes()) < 2:
        assert time.monotonic() < until, (head.home / "second.log").read_text()
        time.sleep(0.5)
    words = [f"runs={directory.root}"]
    said = [io.StringIO() for _ in range(3)]

    def submitted(number: int, *more: str) -> int:
        return submit(["killed.yaml"], [*words, *more], head.address, stream=said[number])

    with ThreadPoolExecutor() as pool, jobs_stopped(server):
        first = pool.submit(submitted, 0)
        wait_until(lambda: len(read_rows(directory)) >= 3, first, said[0])
        second = pool.submit(submitted, 1)
        assert second.result(timeout=120) == EXIT_BAD_INPUT, said[1].getvalue()
        assert "is being driven by process" in said[1].getvalue()
        (shown,) = [(run["name"][:4], run["status"]) for run in train_runs(head)]
        assert shown == ("mrl-", "RUNNING")
        held = newest(directory)
        assert held is not None
        os.kill(held.process.pid, signal.SIGKILL)
        assert first.result(timeout=120) != EXIT_DONE
        held_back = latest_checkpoint(directory)
        assert held_back is not None
        # It would train for days; the second attempt ends after two iterations more.
        last = held_back.step + 2
        more = f"stages.0.curriculum.all.iterations={last}"
        assert submitted(2, more) == EXIT_DONE, said[2].getvalue()
    assert f"run killed (killed) goes on from step {held_back.step}" in said[2].getvalue()
    assert [row["step"] for row in read_rows(directory)] == list(range(1, last + 1))
    finished = latest_checkpoint(directory)
    assert finished is not None
    assert finished.step == last
    assert json.loads(directory.read_text("summary.json"))["status"] == "done"
    assert "FINISHED" in [run["status"] for run in train_runs(head)]


def wait_until(holds: Callable[[], bool], job: Future[int], output: io.StringIO) -> None:
    # On two slow cores that others use too, a cluster, a job and its actors take minutes to start.
    deadline = time.monotonic() + 300
    while not holds():
        if job.done():
            pytest.fail(f"the job ended first: {job.exception()!r}\n{output.getvalue()}")
        assert time.monotonic() < deadline, output.getvalue()
        time.sleep(0.1)


def test_the_package_of_this_checkout_is_small_and_has_all_the_code(tmp_path: Path) -> None:
    archive = tmp_path / "package.zip"
    pack(ROOT, {}, archive)
    assert archive.stat().st_size < PACKAGE_BYTES
    with zipfile.ZipFile(archive) as package:
        sent = set(package.namelist())
    code = {
        str(file.relative_to(ROOT))
        for name in ("common", "rollout", "reward_service", "learner", "deploy", "configs")
        for file in (ROOT / name).rglob("*")
        if file.suffix in (".py", ".yaml")
    }
    assert code - sent == set()
