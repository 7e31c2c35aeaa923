"""The parts that a benchmark of `engram bench` consists of, so that its reader sees figures as they
come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import ray


class Part(NamedTuple):
    name: str
    measure: Callable[[], Mapping[str, float]]
    """Flat figures by name."""


@contextmanager
def local_ray(cpus: int, megabytes: int = 200) -> Iterator[None]:
    """A local Ray for the block where none is connected, with an object store of so many MiB."""
    started = not ray.is_initialized()
    if started:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=megabytes * 2**20,
            log_to_driver=False,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
    try:
        yield
    finally:
        if started:
            ray.shutdown()
