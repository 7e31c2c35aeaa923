"""Runs through Ray Jobs, on a real cluster of this test's own."""

from __future__ import annotations

import io
import json
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from ray.job_submission import JobDetails, JobStatus, JobType

from common.failures import EXIT_DONE, EXIT_DRAINED, InfraFailure, InputError
from common.storage.checkpoint import latest_checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from deploy.job_server import JobServer, exit_code
from deploy.submit import entrypoint, logs, next_submission_id, stop, submit
from tests.job_server import Head, token_head

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with token_head() as started:
        yield started


@pytest.fixture
def job_server(head: Head, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of a job server that asks for a token, which this user has."""
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("HOME", str(head.home))
    return head.address


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder whose `python -m deploy train` says where it runs and ends with the code
    that its config names."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "__init__.py").write_text("")
    (tmp_path / "deploy" / "__main__.py").write_text(
        "import os, sys\n"
        "print('words', sys.argv[1:], os.environ['RAY_JOB_STOP_WAIT_TIME_S'], "
        "os.path.exists('runs'), os.listdir('data'))\n"
        "sys.exit(int(sys.argv[-1].rpartition('=')[2]))\n"
    )
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "old").write_text("stays here")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("named")
    (tmp_path / "data" / "other.jsonl").write_text("not named")
    config = {
        "name": "far away",
        "runs": "/shared/runs",
        "data": {"kind": "rows", "train": ["data/rows.jsonl"], "eval": ["data/rows.jsonl"]},
        "stages": [{"stage": "sft"}],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.cluster
def test_the_drivers_own_exit_code_comes_back_with_its_output(
    job_server: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    for attempt, (seed, code) in enumerate(((0, 0), (75, 75), (3, 1)), start=1):
        out = io.StringIO()
        assert submit(["run.yaml"], [f"seed={seed}"], job_server, stream=out) == code
        assert f"submitted far-away-{attempt} to {job_server}" in out.getvalue()
        assert f"words ['train', 'run.yaml', 'seed={seed}'] 60 False ['rows.jsonl']" in (
            out.getvalue()
        )
        assert "sent because the configuration names them: data/rows.jsonl" in out.getvalue()


TINY = {
    "name": "tiny",
    "data": {"kind": "synth", "train": 200, "eval": 20, "steps": [3], "subjects": 4, "values": 6},
    "tokenizer": {"vocab_size": 400},
    "model": {"size": "tiny", "slots": 4, "max_tokens": 48},
    "learner": {"ranks": 1, "log_every": 1},
    "rollout": {"workers": 1, "slots": 8, "sampling": {"max_new_tokens": 8}},
    "evaluation": {"episodes": 4},
    "stages": [
        {"stage": "sft", "steps": 100_000, "batch_size": 8},
        {
            "stage": "mrl",
            "episodes": 8,
            "curriculum": [{"name": "all", "iterations": 3, "max_steps": 3}],
        },
    ],
}


@pytest.mark.cluster
@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_stopped_run_leaves_a_checkpoint_and_submitted_again_it_finishes(
    job_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, directory = tmp_path / "project", RunDirectory(str(tmp_path / "runs"), "tiny")
    for package in ("common", "rollout", "reward_service", "learner", "deploy"):
        shutil.copytree(
            ROOT / package, project / package
        )  # compiled kernels too, which would take each process ten seconds
    (project / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(project)
    output = {1: io.StringIO(), 2: io.StringIO()}
    with ThreadPoolExecutor() as pool:
        # The first submission would train for hours; it is stopped once it has trained a little.
        first = pool.submit(
            submit, ["tiny.yaml"], [f"runs={directory.root}"], job_server, stream=output[1]
        )
        wait_until(lambda: len(read_rows(directory)) >= 3, first, output[1])
        said = io.StringIO()
        assert stop("runs/tiny", job_server, stream=said) == EXIT_DONE
        assert "tiny-1 has ended: stopped; the same engram submit resumes it" in said.getvalue()
        assert first.result(timeout=150) == EXIT_DRAINED
        trained = latest_checkpoint(directory)
        assert trained is not None, output[1].getvalue()
        assert trained.step >= 3
        assert json.loads(directory.read_text("summary.json"))["status"] == "stopped"

        again = pool.submit(
            submit,
            ["tiny.yaml"],
            [f"runs={directory.root}", "stages.0.steps=3"],
            job_server,
            stream=output[2],
        )
        wait_until(lambda: "engram_objective_scores" in scrape(directory), again, output[2])
        assert again.result(timeout=400) == EXIT_DONE, output[2].getvalue()
    assert json.loads(directory.read_text("summary.json"))["status"] == "done"
    finished = latest_checkpoint(directory)
    assert finished is not None
    assert finished.step == trained.step + 3
    assert "Recall by turns" in output[2].getvalue()


def wait_until(holds: Callable[[], bool], job: Future[int], output: io.StringIO) -> None:
    # A run starts Ray Train for each stage, which takes half a minute on two slow cores.
    deadline = time.monotonic() + 240
    while not holds():
        if job.done():
            pytest.fail(f"the job ended first: {job.exception()!r}\n{output.getvalue()}")
        assert time.monotonic() < deadline, output.getvalue()
        time.sleep(0.1)


def scrape(directory: RunDirectory) -> str:
    """What Prometheus would read of the run now; nothing where no endpoint answers."""
    try:
        with urllib.request.urlopen(
            directory.read_text("metrics_endpoint").strip(), timeout=5
        ) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@pytest.mark.cluster
def test_without_following_submit_returns_at_once_and_says_how_to_go_on(
    job_server: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    out = io.StringIO()
    words = ["name=left", "seed=1"]
    assert submit(["run.yaml"], words, job_server, follow=False, stream=out) == 0
    assert f"engram logs left --address {job_server}\n" in out.getvalue()
    again = io.StringIO()
    assert logs("left", job_server, stream=again) == 1
    assert "words ['train', 'run.yaml', 'name=left', 'seed=1']" in again.getvalue()
    once = io.StringIO()
    assert logs("left-1", job_server, follow=False, stream=once) == 0
    assert "seed=1" in once.getvalue()
    over = io.StringIO()
    assert stop("left", job_server, stream=over) == 0
    assert over.getvalue() == "left-1 has ended before: failed\n"
    with pytest.raises(InputError, match=r"lefd: .* has no job of such a run; did you mean 'left'"):
        logs("lefd", job_server)


@pytest.mark.cluster
def test_a_job_that_is_gone_is_one_sentence(job_server: str) -> None:
    server = JobServer(job_server)
    for ask in (server.job, server.output, server.stop):
        with pytest.raises(InputError, match=r"gone-7: is no job of http\S+ any more"):
            ask("gone-7")


@pytest.mark.cluster
@pytest.mark.parametrize("mode", ["unset", "token"])
def test_a_token_that_is_not_the_heads_is_one_sentence(
    head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    if mode == "token":
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="asks for a token and there is none here"):
        JobServer(head.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with pytest.raises(InputError, match="does not take the token from RAY_AUTH_TOKEN"):
        JobServer(head.address)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", (head.home / ".ray" / "auth_token").read_text())
    assert JobServer(head.address).jobs() is not None, "the address that was given counts"


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_following_and_not_the_job(
    job_server: str, project: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    (project / "deploy" / "__main__.py").write_text(
        "import time\nprint('at work', flush=True)\ntime.sleep(12)\n"
    )
    monkeypatch.chdir(project)
    out, driver = io.StringIO(), threading.get_ident()
    interrupter = threading.Timer(0.0, lambda: None)

    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            nonlocal interrupter
            if "at work" in text:
                interrupter = threading.Timer(0.5, signal.pthread_kill, (driver, number))
                interrupter.start()
            return out.write(text)

    assert (
        submit(["run.yaml"], [f"name=followed-{number.name}"], job_server, stream=Interrupting())
        == 130
    )
    interrupter.join()
    job = f"followed-{number.name}-1"
    assert (
        f"no longer following {job}, which goes on\n"
        f"to follow it: engram logs followed-{number.name} --address {job_server}\n"
        f"to stop it, resumably: engram stop followed-{number.name} --address {job_server}\n"
    ) in out.getvalue()
    assert JobServer(job_server).job(job).status == JobStatus.RUNNING


def test_a_wrong_config_is_found_before_a_cluster_is_asked(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(InputError, match="sed"):
        submit(["run.yaml"], ["sed=1"], "http://127.0.0.1:1")


def test_a_job_server_that_does_not_answer_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(InfraFailure, match=r"no Ray job server answers at http://127\.0\.0\.1:1"):
        submit(["run.yaml"], [], "http://127.0.0.1:1")


def test_a_submission_is_named_after_the_run_and_its_attempt() -> None:
    assert next_submission_id("demo", []) == "demo-1"
    assert next_submission_id("demo", ["demo-1", "demo-2", "demo-long-7", "other-9"]) == "demo-3"
    assert next_submission_id("a b/c", ["a-b-c-9"]) == "a-b-c-10"


def test_words_with_spaces_reach_the_driver_as_one() -> None:
    assert (
        entrypoint(["my run.yaml"], ["name=a b"])
        == "python -m deploy train 'my run.yaml' 'name=a b'"
    )
    assert (
        entrypoint(["run.yaml"], [], take_over=True)
        == "python -m deploy train --take-over run.yaml"
    )


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 75, 75),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 75),
    ],
)
def test_exit_code_is_the_drivers_where_ray_knows_it(
    status: JobStatus, driver: int | None, code: int
) -> None:
    assert (
        exit_code(
            JobDetails(
                type=JobType.SUBMISSION, status=status, entrypoint="python", driver_exit_code=driver
            )
        )
        == code
    )
