"""What every test may ask for. Real parts throughout: a real local Ray, real files, small models
made here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.durations import FILE as durations_file
from tests.durations import file_of, function_of, seconds_of

# Before anything imports torch or ray: two actors on two cores must not fight over threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
SLOW, LONG = 0.8, 4.0
"""Seconds from which a test is left out of `make test-fast`, and of `make test` too."""
WHOLE_RUN = "tests/learner/test_pipeline.py"
"""The run of all stages on Ray that `make test` has, whatever it takes."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the local Ray, and what takes long by tests/durations.json."""
    durations = json.loads(durations_file.read_text()) if durations_file.is_file() else {}
    for item in items:
        if "ray_local" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)
        seconds = seconds_of(durations, item.nodeid)
        if file_of(item.nodeid) == WHOLE_RUN:
            seconds = durations.get(function_of(item.nodeid), 0.0)
        if seconds >= LONG:
            item.add_marker(pytest.mark.long)
        elif seconds >= SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def vectors() -> dict[str, dict[str, Any]]:
    """Numbers from an independent source, in float64: {group: {case: inputs and outputs}}."""
    files = (ROOT / "tests" / "vectors").glob("*.json")
    return {path.stem: json.loads(path.read_text()) for path in files}


@pytest.fixture(scope="session")
def shared() -> Path:
    """Public data sets that lie beside the project on some machines; tests that need them skip
    elsewhere."""
    for folder in (ROOT.parent / "shared", ROOT / "shared"):
        if (folder / "data").is_dir():
            return folder
    pytest.skip("the shared data folder is not on this machine")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray for the whole test session (start-up costs five seconds)."""
    import ray

    ray.init(
        address="local",
        num_cpus=32,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
