"""Fixtures of the tests of leases (tests/leases.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.storage import lease
from common.storage.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path), "one")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules at a tenth of the times and less."""
    for name, seconds in (("BEAT_SECONDS", 0.2), ("STALE_SECONDS", 1.5), ("WATCH_SECONDS", 0.1)):
        monkeypatch.setattr(lease, name, seconds)
