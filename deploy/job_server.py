"""Ray's job server: how it is reached, which jobs it has, and how one is followed and stopped.

A cluster that asks for a token gets the one that Ray's own tools use. Whatever goes wrong on the
way is one sentence: what answers there, or that nothing does, and what to do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any, TextIO

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from common.failures import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_DRAINED,
    EXIT_FAILED,
    DeadlineExceeded,
    InfraFailure,
    InputError,
    nearest,
)
from common.text.printable import printable
from deploy.ray_access import ADDRESS_VARIABLES, DEFAULT_ADDRESS, find_token, token_wanted

# Ray's client tells of each connection that ends as it should; its module sets its own level.
logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)

ANSWER_SECONDS = 15.0
"""How long a job server may take to say that it is one."""
CALL_SECONDS = 60.0
"""How long it may be silent in a call."""
POLL_SECONDS = 1.0
LOOK_SECONDS = 15.0
"""How often a job that is followed is looked at while it says nothing."""
NOT_YET = "No available agent to submit job"
"""The answer of a head of which some processes have yet to start."""
START_SECONDS = 300.0
"""How long a job may stay pending: its nodes may still be starting."""
STOP_SECONDS = 60.0
"""How long Ray waits for the checkpoint of a stopped job before it kills it; its default is 3 s."""


class JobServer:
    """The job server at `address` (http://HOST:PORT).

    Raises InputError where the address is not a job server's or the token not its own, InfraFailure
    where nothing answers; so does every method.
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise InputError(
                address,
                f"is no job server's address; it reads http://HOST:PORT, on the head by default "
                f"{DEFAULT_ADDRESS}",
            )
        headers, self._ray_version = _require_job_server(self.address)
        with _without_variables(), self._answering():
            self.client = _Client(self.address, headers=headers)

    def ray_version(self) -> str:
        """Version of the cluster's Ray."""
        return self._ray_version

    def nodes(self) -> list[dict[str, Any]]:
        """The cluster's nodes, as Ray's state API describes them: `state`, `resources_total`."""
        with self._answering():
            answer = self.client._do_request("GET", "/api/v0/nodes", params={"limit": 10_000})
            answer.raise_for_status()
            nodes: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
            return nodes

    def jobs(self) -> list[JobDetails]:
        with self._answering():
            return [job for job in self.client.list_jobs() if job.submission_id]

    def job_of(self, run: str) -> JobDetails:
        """The latest job of a run, by the run's name, its folder or the job's own id."""
        jobs = sorted(self.jobs(), key=lambda job: (_is_active(job), job.start_time or 0))
        name = run.rstrip("/").rpartition("/")[2]
        for wanted in (run, name):
            for job in reversed(jobs):
                if wanted in (job.submission_id, (job.metadata or {}).get("run")):
                    return job
        known = {(job.metadata or {}).get("run") or job.submission_id for job in jobs}
        near = nearest(name, known) if known else "it has no jobs"
        raise InputError(run, f"{self.address} has no job of such a run; {near}")

    def job(self, submission: str) -> JobDetails:
        """The job's present state. A server that does not answer is asked again for a while: a run
        is followed for days, over restarts of what lies between."""
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            try:
                with self._answering(submission):
                    return self.client.get_job_info(submission)
            except InfraFailure:
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def output(self, submission: str) -> str:
        """All that the job has printed."""
        with self._answering(submission):
            return self.client.get_job_logs(submission)

    def submit(self, **job: Any) -> str:
        """Submit a job, as Ray's client takes it; returns its id. A head that has just been started
        is waited for."""
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            try:
                with self._answering():
                    return self.client.submit_job(**job)
            except InfraFailure as early:
                if NOT_YET not in str(early) or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def stop(self, submission: str) -> JobDetails:
        """Ask a job to stop and wait for its end."""
        with self._answering(submission):
            self.client.stop_job(submission)
        patience = STOP_SECONDS + CALL_SECONDS
        deadline = time.monotonic() + patience
        while not (job := self.job(submission)).status.is_terminal():
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"job {submission} to stop", patience)
            time.sleep(POLL_SECONDS)
        return job

    def follow(self, submission: str, out: TextIO) -> int:
        """Copy the job's output until it ends; its exit code."""
        self._wait_for_start(submission)
        try:
            asyncio.run(self._copy_output(submission, out))
        except (RuntimeError, aiohttp.ClientError) as error:
            # Only the connection that carries the output broke; the job does not depend on it.
            out.write(f"{submission}: no more output here ({error}); waiting for its end\n")
        # Without a deadline on purpose: a run may take days, and its own waits have theirs.
        while not (job := self.job(submission)).status.is_terminal():
            time.sleep(POLL_SECONDS)
        if job.status == JobStatus.FAILED and job.driver_exit_code is None:
            reason = " ".join((job.message or "").split())
            raise InfraFailure(f"job {submission} failed on the cluster: {reason[:500]}")
        return exit_code(job)

    def _wait_for_start(self, submission: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while (job := self.job(submission)).status == JobStatus.PENDING:
            if time.monotonic() > deadline:
                raise InfraFailure(
                    f"job {submission} has not started in {START_SECONDS:.0f} s: {job.message}"
                )
            time.sleep(POLL_SECONDS)

    async def _copy_output(self, submission: str, out: TextIO) -> None:
        async def copy() -> None:
            async for piece in self.client.tail_job_logs(submission):
                out.write(printable(piece))
                out.flush()

        copying = asyncio.create_task(copy())
        # A connection that broke unseen says nothing for ever, as a job that has nothing to say.
        while not (await asyncio.wait({copying}, timeout=LOOK_SECONDS))[0]:
            job = await asyncio.to_thread(self.job, submission)
            if job.status.is_terminal():
                await asyncio.wait({copying}, timeout=LOOK_SECONDS)
                copying.cancel()
                return
        copying.result()

    @contextmanager
    def _answering(self, submission: str = "") -> Iterator[None]:
        """Turns what Ray's client raises into one sentence."""
        try:
            yield
        except AuthenticationError as refused:
            raise InputError(self.address, "no longer takes the token") from refused
        except OSError as away:
            raise InfraFailure(
                f"the job server at {self.address} stopped answering: {_reason(away)}"
            ) from away
        except RuntimeError as refused:
            if submission and "does not exist" in str(refused):
                raise InputError(
                    submission,
                    f"is no job of {self.address} any more; its head may have been started anew",
                ) from refused
            raise InfraFailure(
                f"the job server at {self.address} failed: {' '.join(str(refused).split())[:500]}"
            ) from refused


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


class _Client(JobSubmissionClient):
    """Ray's client, whose requests have no deadline of their own."""

    def _do_request(self, *args: Any, **kwargs: Any) -> Any:
        return super()._do_request(*args, **{"timeout": CALL_SECONDS, **kwargs})


def _is_active(job: JobDetails) -> bool:
    return not job.status.is_terminal()


def _require_job_server(address: str) -> tuple[dict[str, str], str]:
    """The headers that the job server at `address` is asked with, and its version of Ray."""
    found = find_token()
    headers = {"Authorization": f"Bearer {found[0]}"} if found else {}
    request = urllib.request.Request(f"{address}/api/version", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            version = json.load(answer)
        if isinstance(version, dict) and "ray_version" in version:
            return headers, str(version["ray_version"])
        said = "something else"
    except urllib.error.HTTPError as refused:
        if refused.code == 401:
            raise InputError(address, token_wanted()) from None
        if refused.code == 403 and found:
            raise InputError(
                address, f"does not take the token from {found[1]}; it wants its head's own"
            ) from None
        said = f"HTTP status {refused.code}"
    except (ValueError, HTTPException):
        said = "something else"
    except OSError as away:
        raise InfraFailure(f"no Ray job server answers at {address}: {_reason(away)}") from away
    raise InputError(
        address,
        f"answers with {said} and is no Ray job server; that is the dashboard of a cluster's head, "
        f"by default {DEFAULT_ADDRESS}",
    )


def _reason(error: BaseException) -> str:
    """The innermost cause, which is the one that says something."""
    reason = getattr(error, "reason", None)
    return " ".join(str(reason if reason is not None else error).split())[:300]


@contextmanager
def _without_variables() -> Iterator[None]:
    """Without the variables that would override an address that was given: in Ray's client they
    do."""
    kept = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
