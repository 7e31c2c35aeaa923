"""The same run, on a cluster, through Ray Jobs: the driver becomes a job's entry point and survives
this terminal.

The working directory travels with the job, so the cluster runs this code and needs only the
dependencies in its image. Runs land where the config's `runs` points, seen from the cluster: a
shared volume or a URI, since the job's own folder vanishes with it. Submitted again under the same
name, a run resumes; a submission's id therefore counts its attempts.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from common.config.loader import load_run
from common.failures import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_DRAINED,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    InfraFailure,
)
from deploy.cluster import ENVIRONMENT
from learner.interrupts import counted

EXCLUDES = [
    ".git/",
    ".venv/",
    "runs/",
    "data/",
    "shared/",
    "*.egg-info/",
    "**/__pycache__/",
    ".*_cache/",
    "*.safetensors",
]
"""Files that the job does not need, in .gitignore notation: Ray refuses packages past a few hundred
megabytes."""
JOB_ENVIRONMENT = {
    **ENVIRONMENT,
    # A stopped job has this long to leave a checkpoint before Ray kills it; the default is 3 s.
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
}
POLL_SECONDS = 1.0
START_SECONDS = 300.0
"""How long a job may stay pending: its nodes may still be starting."""


def submit(
    configs: Sequence[str],
    overrides: Sequence[str],
    address: str,
    *,
    working_dir: str = ".",
    take_over: bool = False,
    follow: bool = True,
    stream: TextIO | None = None,
) -> int:
    """Submit `train` with these configs to the job server at `address` (http://HOST:PORT) and
    return its exit code.

    Configs are read here first, so that a mistake in them costs no cluster time, and must lie below
    `working_dir`. With `follow`, the job's output is copied to `stream` until it ends; without, the
    answer is 0 once it is submitted. An interrupt ends the following, not the job, and the answer
    is then 130.
    Raises InputError for a bad config, InfraFailure where the job server does not answer or the job
    does not start.
    """
    run = load_run(list(configs), list(overrides))
    out = stream or sys.stdout
    try:
        client = JobSubmissionClient(address)
        taken = [job.submission_id for job in client.list_jobs() if job.submission_id]
        submission = client.submit_job(
            entrypoint=entrypoint(configs, overrides, take_over),
            submission_id=next_submission_id(run.name, taken),
            runtime_env={
                "working_dir": working_dir,
                "excludes": EXCLUDES,
                "env_vars": JOB_ENVIRONMENT,
            },
            metadata={"run": run.name},
        )
    except (ConnectionError, AuthenticationError) as error:
        raise InfraFailure(f"no Ray job server answers at {address}: {error}") from error
    out.write(f"submitted {submission} to {address}\n")
    if Path(run.runs).is_relative_to(Path(working_dir).absolute()):
        out.write(
            f"{run.runs} lies in the working directory, which Ray removes after the job: set "
            "runs to a shared folder or a URI\n"
        )
    if not follow:
        return EXIT_DONE
    try:
        with counted() as interrupts, interrupts.at_once():
            return _follow(client, submission, address, out)
    except KeyboardInterrupt:
        out.write(
            f"no longer following {submission}, which goes on; to stop it: ray job stop "
            f"--address {address} {submission}\n"
        )
        return EXIT_INTERRUPTED


def _follow(client: JobSubmissionClient, submission: str, address: str, out: TextIO) -> int:
    """Copy the job's output until it ends; its exit code."""
    _wait_for_start(client, submission)
    try:
        asyncio.run(_copy_output(client, submission, out))
    except RuntimeError as error:
        # Only the connection that carries the output broke; the job does not depend on it.
        out.write(f"{submission}: no more output here ({error}); waiting for its end\n")
    try:
        return exit_code(_wait_for_end(client, submission))
    except ConnectionError as error:
        raise InfraFailure(
            f"the cluster at {address} stopped answering while {submission} ran: {error}"
        ) from error


def entrypoint(configs: Sequence[str], overrides: Sequence[str], take_over: bool = False) -> str:
    """The command that the job runs; the KubeRay manifest's `entrypoint` is the same."""
    return shlex.join(
        [
            "python",
            "-m",
            "deploy",
            "train",
            *(["--take-over"] if take_over else []),
            *configs,
            *overrides,
        ]
    )


def next_submission_id(name: str, taken: Sequence[str]) -> str:
    """`NAME-1` and up: Ray never takes an id twice, and a resumed run needs a new one."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    attempts = [
        int(match[1]) for one in taken if (match := re.fullmatch(re.escape(stem) + r"-(\d+)", one))
    ]
    return f"{stem}-{max(attempts, default=0) + 1}"


def exit_code(job: JobDetails) -> int:
    """The driver's own exit code where it is one of engram's, so that 2 and 75 mean on a cluster
    what they mean here.

    Of a job that somebody stopped Ray keeps no exit code; submitted again it goes on from its last
    checkpoint, which is what 75 says.
    """
    if job.status == JobStatus.SUCCEEDED:
        return EXIT_DONE
    if job.status == JobStatus.STOPPED:
        return EXIT_DRAINED
    if job.driver_exit_code in (EXIT_BAD_INPUT, EXIT_DRAINED):
        return int(job.driver_exit_code)
    return EXIT_FAILED


def _wait_for_start(client: JobSubmissionClient, submission: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while client.get_job_status(submission) == JobStatus.PENDING:
        if time.monotonic() > deadline:
            raise InfraFailure(
                f"job {submission} has not started in {START_SECONDS:.0f} s: "
                f"{client.get_job_info(submission).message}"
            )
        time.sleep(POLL_SECONDS)


async def _copy_output(client: JobSubmissionClient, submission: str, out: TextIO) -> None:
    async for piece in client.tail_job_logs(submission):
        out.write(piece)
        out.flush()


def _wait_for_end(client: JobSubmissionClient, submission: str) -> JobDetails:
    # Without a deadline on purpose: a run may take days, and its own waits have theirs.
    while not (job := client.get_job_info(submission)).status.is_terminal():
        time.sleep(POLL_SECONDS)
    return job
