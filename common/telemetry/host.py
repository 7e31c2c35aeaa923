"""Memory of the host that this process runs on, and free space of the disk that a folder is on.

Linux only. In a container the limit of its control group counts where it is below the host's
memory: it is what ends a process there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics

PROC_MEMORY = Path("/proc/meminfo")
GROUP_FOLDER = Path("/sys/fs/cgroup")
"""Version 2 of control groups; a container sees its own group there."""


def memory_used(meminfo: Path = PROC_MEMORY, group: Path = GROUP_FOLDER) -> float | None:
    """Share of memory in use, by the host or by the container, whichever is nearer to its limit;
    None where neither can be read."""
    shares = [share for share in (_host_share(meminfo), _group_share(group)) if share is not None]
    return max(shares, default=None)


def _host_share(meminfo: Path) -> float | None:
    if not meminfo.is_file():
        return None
    lines = (line.split() for line in meminfo.read_text().splitlines())
    kilobytes = {fields[0]: int(fields[1]) for fields in lines if len(fields) >= 2}
    total, available = kilobytes.get("MemTotal:"), kilobytes.get("MemAvailable:")
    return 1 - available / total if total and available is not None else None


def _group_share(group: Path) -> float | None:
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        # Files that were read stay in memory until it is needed; they are no reason for alarm.
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None  # no such group: the host's own, or version 1
    if limit == "max" or int(limit) == 0:
        return None
    return (used - int(statistics.get("inactive_file", 0))) / int(limit)


def record_memory(metrics: Metrics, role: str) -> None:
    used = memory_used()
    if used is not None:
        metrics.record("host/memory_used", used, role=role)


def record_disk(metrics: Metrics, directory: RunDirectory) -> None:
    """Free space under the run's folder, where that is on a local disk."""
    if directory.local is not None and directory.local.is_dir():
        usage = shutil.disk_usage(directory.local)
        metrics.record("host/disk_free_bytes", usage.free)
        metrics.record("host/disk_free", usage.free / usage.total)
