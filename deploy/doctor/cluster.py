"""A running cluster: whether it answers and takes the token, its versions, and what its nodes have.
Starts nothing there; an address HOST:PORT is connected to as a driver is."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from common.failures import EngramError, InfraFailure
from deploy.doctor.check import Check

KINDS = {"CPU": "CPUs", "GPU": "GPUs"}


def cluster_address(address: str | None) -> str | None:
    """The cluster that is looked at: the address given, or the one that the environment names."""
    return address or os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_API_SERVER_ADDRESS")


def cluster_checks(address: str) -> list[Check]:
    """Checks of the cluster at http://HOST:PORT (its job server) or HOST:PORT (its state)."""
    try:
        if address.startswith(("http://", "https://")):
            return _through_jobs(address)
        return _as_driver(address)
    except EngramError as failure:
        return [
            Check(
                "cluster",
                "missing",
                " ".join(str(failure).split()),
                "ray start --head, or another --address",
            )
        ]


def _through_jobs(address: str) -> list[Check]:
    from deploy.job_server import JobServer

    server = JobServer(address)
    nodes = [node for node in server.nodes() if node.get("state") == "ALIVE"]
    return [
        Check("cluster", "ok", f"{address}, {len(nodes)} nodes"),
        version_check(server.ray_version()),
        room_check([node.get("resources_total") or {} for node in nodes]),
    ]


def _as_driver(address: str) -> list[Check]:
    from deploy.cluster import settle

    where = settle(address)
    import ray

    try:
        ray.init(
            address=where,
            namespace="engram-doctor",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    # Ray raises RuntimeError for other versions, ConnectionError and ValueError for addresses.
    except Exception as error:
        raise InfraFailure(f"{where}: {error}") from error
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        return [
            Check("cluster", "ok", f"{where}, {len(nodes)} nodes"),
            # Ray refuses a driver of another version of Ray or of Python.
            Check(
                "its versions",
                "ok",
                f"ray {ray.__version__}, Python {platform.python_version()}, as here",
            ),
            room_check([node["Resources"] for node in nodes]),
        ]
    finally:
        ray.shutdown()


def version_check(theirs: str) -> Check:
    """theirs: version of the cluster's Ray."""
    here = metadata.version("ray")
    if theirs != here:
        return Check(
            "its versions",
            "missing",
            f"ray {theirs} there, {here} here",
            f"an image with ray {here}, or python -m pip install 'ray[default]=={theirs}' here",
        )
    return Check("its versions", "ok", f"ray {theirs}, as here")


def room_check(nodes: Sequence[Mapping[str, Any]]) -> Check:
    """nodes: total resources of each node that is alive."""
    amounts = {kind: [float(node.get(kind, 0.0)) for node in nodes] for kind in KINDS}
    words = ", ".join(
        f"{sum(amounts[kind]):g} {name} (at most {max(amounts[kind]):g} on a node)"
        for kind, name in KINDS.items()
        if any(amounts[kind])
    )
    if not words:
        return Check(
            "its room",
            "missing",
            "no node has a CPU for actors",
            "start workers: ray start --address HOST:6379, or replicas of a worker group",
        )
    return Check("its room", "ok", f"{words}; engram plan --full says what a run claims")
