"""The same run, on a cluster, through Ray Jobs: the driver becomes a job's entry point and survives
this terminal.

The current folder travels with the job, so the cluster runs this code and needs only the
dependencies in its image. Runs land where the config's `runs` points, seen from the cluster: a
shared volume or a URI, since the job's own folder vanishes with it. Submitted again under the same
name, a run resumes; a submission's id therefore counts its attempts.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from common.config.loader import load_run
from common.failures import EXIT_DONE, EXIT_INTERRUPTED, InputError
from common.text.printable import printable
from deploy.cluster import ENVIRONMENT
from deploy.job_server import STOP_SECONDS, JobServer
from deploy.progress import doing
from deploy.working_directory import inside, megabytes, pack
from learner.interrupts import counted
from learner.requirements import require_possible

JOB_ENVIRONMENT = {
    **ENVIRONMENT,
    "RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_SECONDS:.0f}",
    # The learner group then stands on the Train page of Ray's dashboard.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
}


def submit(
    configs: Sequence[str],
    overrides: Sequence[str],
    address: str,
    *,
    take_over: bool = False,
    follow: bool = True,
    stream: TextIO | None = None,
) -> int:
    """Submit `train` with these configs to the job server at `address` (http://HOST:PORT) and
    return its exit code.

    Configs and the files that they name are looked at here first, so that a mistake in them costs
    no cluster time. With `follow`, the job's output is copied to `stream` until it ends; without,
    the answer is 0 once it is submitted. An interrupt ends the following, not the job, and the
    answer is then 130.
    Raises InputError for a bad config or address, and for files that cannot travel; InfraFailure
    where the job server does not answer or the job does not start.
    """
    folder, out, places = Path.cwd(), stream or sys.stdout, dict[str, str]()
    run = load_run(list(configs), list(overrides), places)
    require_possible(run)
    places = {written: place for written, place in places.items() if place != run.runs}
    if Path(run.runs).is_relative_to(folder):
        raise InputError(
            "runs",
            f"{run.runs} lies in the folder that travels with the job, and Ray removes that after "
            "the job; name a folder that every node reaches, or a URI, such as runs=/shared/runs",
        )
    words = [inside(config, folder) for config in configs]
    named = {config: str(Path(config).absolute()) for config in configs}
    named |= {written: place for written, place in places.items() if not _is_absolute(written)}
    with (
        doing(f"submitting {run.name} to {address}"),
        tempfile.TemporaryDirectory(prefix="engram-submit-") as scratch,
    ):
        archive = Path(scratch, "working_directory.zip")
        added = pack(folder, named, archive)
        server = JobServer(address)
        taken = [str(job.submission_id) for job in server.jobs()]
        submission = server.submit(
            entrypoint=entrypoint(words, overrides, take_over),
            submission_id=next_submission_id(run.name, taken),
            runtime_env={"working_dir": str(archive), "env_vars": JOB_ENVIRONMENT},
            metadata={"run": run.name},
        )
        size = archive.stat().st_size
    out.write(f"submitted {submission} to {server.address}, with {folder} ({megabytes(size)})\n")
    if added:
        out.write(f"sent because the configuration names them: {', '.join(added)}\n")
    if expected := sorted(written for written in places if _is_absolute(written)):
        out.write(f"every node must have: {', '.join(expected)}\n")
    if not follow:
        out.write(ways_on(run.name, server))
        return EXIT_DONE
    return followed(server, submission, run.name, out)


def logs(run: str, address: str, *, follow: bool = True, stream: TextIO | None = None) -> int:
    """Copy the output of a run's latest job to `stream` until it ends and return its exit code;
    without `follow`, copy what there is and return 0.

    run: the run's name, its folder, or the job's id. Raises InputError for a run that the cluster
    does not know, and what `JobServer` raises.
    """
    out = stream or sys.stdout
    with doing(f"asking {address} for the job of {run}"):
        server = JobServer(address)
        job = server.job_of(run)
    if not follow:
        out.write(printable(server.output(str(job.submission_id))))
        return EXIT_DONE
    return followed(server, str(job.submission_id), run, out)


def stop(run: str, address: str, *, stream: TextIO | None = None) -> int:
    """Ask a run's latest job to stop and wait until it has: its ranks leave a checkpoint, and the
    same submission resumes the run. Returns 0, also where the job had ended before.

    Raises InputError for a run that the cluster does not know, DeadlineExceeded where it does not
    stop, and what `JobServer` raises.
    """
    out = stream or sys.stdout
    with doing(f"asking {address} for the job of {run}"):
        server = JobServer(address)
        job = server.job_of(run)
    if job.status.is_terminal():
        out.write(f"{job.submission_id} has ended before: {job.status.value.lower()}\n")
        return EXIT_DONE
    out.write(f"stopping {job.submission_id}, which leaves a checkpoint\n")
    out.flush()
    with doing(f"waiting for the end of {job.submission_id}"):
        ended = server.stop(str(job.submission_id))
    out.write(
        f"{job.submission_id} has ended: {ended.status.value.lower()}; the same engram submit "
        "resumes it from its last checkpoint\n"
    )
    return EXIT_DONE


def followed(server: JobServer, submission: str, run: str, out: TextIO) -> int:
    """Follow a job; at an interrupt, say how to go on."""
    try:
        with counted() as interrupts, interrupts.at_once():
            return server.follow(submission, out)
    except KeyboardInterrupt:
        out.write(f"no longer following {submission}, which goes on\n{ways_on(run, server)}")
        return EXIT_INTERRUPTED


def ways_on(run: str, server: JobServer) -> str:
    """How to follow and stop a submitted run."""
    words = shlex.join([run, "--address", server.address])
    return f"to follow it: engram logs {words}\nto stop it, resumably: engram stop {words}\n"


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


def _is_absolute(written: str) -> bool:
    return written.startswith(("/", "~"))
