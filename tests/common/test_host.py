"""Memory and disk of the host, as metrics."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from common.storage.run_directory import RunDirectory
from common.telemetry.host import memory_used, record_disk, record_memory
from common.telemetry.metrics import Metrics

MEMINFO = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nHugePages_Total: 0\n"


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def group(folder: Path, limit: str, used: int, files: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - files}\ninactive_file {files}\n")
    return folder


def test_what_is_available_is_not_in_use(meminfo: Path, tmp_path: Path) -> None:
    assert memory_used(meminfo, tmp_path / "none") == pytest.approx(0.6)


def test_a_container_near_its_limit_counts_before_its_host(meminfo: Path, tmp_path: Path) -> None:
    assert memory_used(meminfo, group(tmp_path / "a", "1000", 900)) == pytest.approx(0.9)
    assert memory_used(meminfo, group(tmp_path / "b", "1000", 100)) == pytest.approx(0.6)
    assert memory_used(meminfo, group(tmp_path / "c", "max", 900)) == pytest.approx(0.6)


def test_files_that_memory_only_keeps_do_not_count(meminfo: Path, tmp_path: Path) -> None:
    folder = group(tmp_path / "a", "1000", 900, files=200)
    assert memory_used(meminfo, folder) == pytest.approx(0.7)


def test_where_nothing_can_be_read_nothing_is_recorded(tmp_path: Path) -> None:
    assert memory_used(tmp_path / "none", tmp_path) is None


def test_this_host_is_recorded_by_role_and_the_fullest_counts() -> None:
    metrics, other = Metrics(), Metrics()
    record_memory(metrics, "learner")
    other.record("host/memory_used", 0.99, role="learner")
    metrics.merge(other.drain())
    row = metrics.flush(1, "mrl")
    assert row["host/memory_used{role=learner}"] == 0.99
    record_memory(metrics, "driver")
    assert 0 < metrics.flush(2, "mrl")["host/memory_used{role=driver}"] < 1


def test_the_disk_is_that_of_the_run(tmp_path: Path) -> None:
    metrics, run = Metrics(), RunDirectory(str(tmp_path), "run")
    record_disk(metrics, run)
    assert "host/disk_free" not in metrics.flush(1, "sft"), "there is no such folder yet"
    run.write_text("config.yaml", "")
    record_disk(metrics, run)
    row, usage = metrics.flush(2, "sft"), shutil.disk_usage(tmp_path)
    assert row["host/disk_free_bytes"] == pytest.approx(usage.free, rel=0.1)
    assert row["host/disk_free"] == pytest.approx(usage.free / usage.total, abs=0.05)
    record_disk(metrics, RunDirectory("memory://somewhere", "run"))
    assert "host/disk_free" not in metrics.flush(3, "sft")
