"""Kill -9 of the processes of a run on the local Ray of a test session."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import ray

from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows


def processes_of_this_ray() -> dict[int, str]:
    """Titles of the worker processes under this test session's own raylet, by process id."""
    session = ray._private.worker._global_node.get_session_dir_path()  # type: ignore[attr-defined]
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            titles[int(entry.name)] = (
                (entry / "cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
                .strip()
            )
        except OSError:  # it ended while we looked
            continue
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    raylets = {
        pid for pid, title in titles.items() if "raylet" in title.split(" ")[0] and session in title
    }

    def ours(pid: int) -> bool:
        while pid in parents:
            if pid in raylets:
                return True
            pid = parents[pid]
        return False

    return {pid: title for pid, title in titles.items() if title.startswith("ray::") and ours(pid)}


class Killer(threading.Thread):
    """Sends each victim a SIGKILL once the run has come to its step; `killed` says whom and when.
    victims: the beginnings of the titles of processes, by step."""

    def __init__(self, directory: RunDirectory, victims: Mapping[int, str]):
        super().__init__()
        self.victims = victims
        self.directory, self.killed, self.over = directory, dict[int, str](), threading.Event()

    def run(self) -> None:
        for step, title in self.victims.items():
            while not self.reached(step):
                if self.over.wait(0.02):
                    return
            victims: list[int] = []
            while not victims and not self.over.wait(0.02):
                victims = sorted(
                    pid for pid, name in processes_of_this_ray().items() if name.startswith(title)
                )
            if victims:
                os.kill(victims[0], signal.SIGKILL)
                self.killed[step] = title

    def reached(self, step: int) -> bool:
        rows = read_rows(self.directory)
        return bool(rows) and rows[-1]["step"] >= step
