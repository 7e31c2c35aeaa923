"""Opens the Ray cluster that a run computes on: one of its own on a laptop, or the one that is
already there.

Which one: the address given; else RAY_ADDRESS, which Ray sets inside a job; else a local cluster.
Ray reads several settings once, when it is imported or when its processes start, so they are set
here first and this module imports Ray late.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.actors.resources import claims, growth_cpus, namespace, total_cpus, total_gpus
from common.config.run import Run
from common.failures import InfraFailure, InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import Progress, QuietProgress
from deploy.local_ray import OBJECT_STORE_BYTES, require_short_paths, scratch
from deploy.ray_access import find_token, token_wanted
from learner.interrupts import counted
from learner.learner_thread import waits_for_learners

log = logging.getLogger(__name__)

QUIET = QuietProgress()
CONNECT_SECONDS = 15.0
"""How long the address of a cluster may take to answer at all."""

ENVIRONMENT = {
    # Ray Train's controller looks at its workers this often, and every report() waits for a look:
    # at the default of 2 s a stage with 20 checkpoints would spend 40 s waiting.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # A run sends nothing to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Actors without a GPU must not see the GPUs of others; this states Ray's coming default and
    # silences its warning.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # The driver has no claim from which Ray could derive this, and two pools of threads on the same
    # cores cost 3-10 times.
    "OMP_NUM_THREADS": "1",
    # Tokenizers warn about forks otherwise; texts are tokenised once, before training.
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set where the caller's environment does not say otherwise. Worker processes of a local cluster
inherit it; a submitted job carries it in its runtime environment."""

LOCAL_ENVIRONMENT = {
    # An actor of Ray Train's that asks whether the cloud takes a node away; this machine stays.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""The same for a local cluster only."""

_RAY_HEADERS = (":job_id:", ":actor_name:", ":task_name:")
"""Lines that Ray writes into workers' output to know whose it is."""


def settle(address: str | None = None) -> str:
    """The cluster that `connect` will open: an address that answers, or "local". Sets the
    environment that Ray and torch read when they are imported.

    Raises as `connect` does; for callers that have work to do before a cluster starts.
    """
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    for key, value in (ENVIRONMENT | (LOCAL_ENVIRONMENT if where == "local" else {})).items():
        os.environ.setdefault(key, value)
    if where.startswith(("http://", "https://", "ray://")):
        raise InputError(
            where,
            "a job server or Ray Client address cannot hold a run's driver; use engram submit",
        )
    if where == "local":
        require_short_paths()
    elif ":" in where:
        _require_answer(where)
    return where


@contextmanager
def connect(run: Run, address: str | None = None, progress: Progress = QUIET) -> Iterator[None]:
    """A cluster with room for `run`, for as long as the block lasts. SIGTERM arrives as
    KeyboardInterrupt from the first moment on, so that an orderly stop (a drained node, a stopped
    job) leaves a checkpoint like Ctrl-C does. progress: is told what it waits for.

    Raises InputError for an address that is not a cluster's, InfraFailure where none answers or it
    is too small.
    """
    where = settle(address)

    import ray

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\..*")
    session = None
    with counted() as interrupts:
        try:
            with interrupts.at_once():
                session = start_ray(run, where)
                patience = 0.0 if where == "local" else run.learner.start_deadline
                require_room(run, where, patience, progress)
                yield
        finally:
            if not waits_for_learners():  # else the process's end disconnects it
                ray.shutdown()
            target = RunDirectory(run.runs, run.name).local
            if session is not None and where == "local" and target is not None:
                keep_actor_logs(Path(session) / "logs", target / "logs")


def start_ray(run: Run, where: str) -> str:
    """Connect to the cluster at `where`, or start a local one; returns its session's folder."""
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    hint = _hint(where)
    try:
        if where == "local":
            context: Any = _start_here(run)
        else:
            context = ray.init(
                address=where,
                namespace=namespace(run),
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
    # Ray raises even a plain Exception, where its node takes long on a busy machine.
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
            folder, variable = scratch()
            raise InputError(
                variable,
                f"Ray cannot keep its files in {folder}: {error.strerror or error}; set "
                "RAY_TMPDIR to a folder of yours with a short path",
            ) from error
        place = "on this machine" if where == "local" else f"at {where}"
        raise InfraFailure(f"Ray did not start {place}: {str(error).rstrip('.')}{hint}") from error
    except SystemExit as ended:
        # How Ray's own handler of SIGTERM, which it sets while it starts, ends a process.
        raise KeyboardInterrupt from ended
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    return str(context.address_info["session_dir"])


def _start_here(run: Run) -> Any:
    """A cluster on this machine, and a second try where the first takes longer than Ray waits for
    it, as on a busy machine."""
    import ray

    for tries_left in (1, 0):
        try:
            return ray.init(
                address="local",
                namespace=namespace(run),
                num_cpus=local_cpus(run),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:
            if not tries_left or "timed out" not in str(error):
                raise
            log.warning("Ray did not start in its time; once more: %s", error)
    raise AssertionError("the last try returns or raises")


def _hint(where: str) -> str:
    """Why a cluster that answers may refuse, as the end of a sentence."""
    if where == "local":
        return "; on a machine that is busy, try again later"
    token = find_token()
    if token is None:
        return f"; perhaps it {token_wanted()}"
    return f"; if it asks for a token, the one from {token[1]} is not its own"


def local_cpus(run: Run) -> int:
    """Logical CPUs of a local cluster: all claims, those that may come too, and two to spare (Ray
    Train's own actors).

    At least the cores there are.
    """
    return max(math.ceil(total_cpus(run) + growth_cpus(run)) + 2, os.cpu_count() or 1)


def keep_actor_logs(session_logs: Path, target: Path) -> None:
    """Copy what actors printed from Ray's session folder, which Ray deletes sooner or later, into
    the run's own.

    One file per role in the run and stream (`rollout-worker-1.err`), of processes that said
    anything; one that took another's place adds to its file.
    """
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted(session_logs.glob("worker-*")):
        lines = source.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        names = [
            line.removeprefix(":actor_name:").strip()
            for line in lines
            if line.startswith(":actor_name:")
        ]
        said = [line for line in lines if not line.startswith(_RAY_HEADERS)]
        if said:
            # Ray names an actor after its class, and then, once it has been made, as it names
            # itself.
            name = re.sub(r"[^\w.-]+", "-", names[-1]) if names else "worker"
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
            with (target / f"{name}{source.suffix}").open("a", encoding="utf-8") as file:
                file.writelines(said)


def _require_answer(address: str) -> None:
    # Ray itself tries for a minute, with a page of output, before it says that nobody is there.
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise InputError(address, "is not HOST:PORT of a Ray cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise InfraFailure(f"no Ray cluster answers at {address}: {error}") from error


def require_room(run: Run, where: str, patience: float, progress: Progress = QUIET) -> None:
    """Wait up to `patience` seconds until the nodes have what the run claims: they may still be
    pulling images.

    Raises InfraFailure that says what is missing.
    """
    import ray

    short = lacking(run, ray.nodes())
    if short and patience:
        waits = f"waiting at most {patience:g} s for room (learner.start_deadline)"
        with progress.doing(f"{waits}: {'; '.join(short)}"):
            deadline = time.monotonic() + patience
            while short and time.monotonic() < deadline:
                time.sleep(1.0)
                short = lacking(run, ray.nodes())
    if short:
        raise InfraFailure(
            f"the cluster at {where} is too small for this run: {'; '.join(short)}; add nodes, "
            "start them with more logical CPUs (ray start --num-cpus), or lower learner.ranks, "
            "rollout.workers and their threads"
        )


def lacking(run: Run, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Claims of `run` that nodes do not meet, in words: in all, and of roles that want nodes with
    labels. nodes: as `ray.nodes()` gives them."""
    needs: list[tuple[str, dict[str, str], float, float]] = [
        ("", {}, total_cpus(run), total_gpus(run))
    ]
    for claim in claims(run):
        if claim.labels:
            words = ", ".join(f"{key}={value}" for key, value in claim.labels.items())
            of_role = claim.count * claim.cpus, claim.count * claim.gpus
            needs.append((f" on nodes with {words} ({claim.role})", dict(claim.labels), *of_role))
    short = []
    for where, labels, cpus, gpus in needs:
        fitting = [
            node["Resources"]
            for node in nodes
            if node["Alive"] and labels.items() <= node["Labels"].items()
        ]
        for name, need in (("CPU", cpus), ("GPU", gpus)):
            has = sum(node.get(name, 0.0) for node in fitting)
            if need > has:
                short.append(f"{name} {need:g} needed{where}, {has:g} there")
    return short
