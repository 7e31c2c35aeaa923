"""What every test may ask for. Real parts throughout: a real local Ray, real files, small models
made here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports torch or ray: two actors on two cores must not fight over threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the local Ray."""
    for item in items:
        if "ray_local" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)


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
