"""`engram bench`: the programs in benchmarks/, by name."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from common.failures import InputError, nearest
from common.telemetry.progress import Progress
from deploy.progress import duration

if TYPE_CHECKING:
    from benchmarks.parts import Part

BENCHMARKS = ("rollout", "rewards", "reward_chaos")


def run_bench(
    what: str, progress: Progress, quick: bool = False, folder: Path | None = None
) -> dict[str, float]:
    """The figures of one benchmark, flat; each is noted as soon as it is known.

    quick: fewer repeats of less. folder: where to record them as NAME.json, if anywhere.
    Raises InputError for a name that is none.
    """
    if what not in BENCHMARKS:
        raise InputError(what, f"is no benchmark; {nearest(what, BENCHMARKS)}")
    progress.note(f"bench {what}{', quick' if quick else ''}: loading")
    parts: list[Part] = import_module(f"benchmarks.{what}").parts(quick)
    progress.stage(f"bench {what}", len(parts), "parts")
    figures: dict[str, float] = {}
    for done, part in enumerate(parts):
        progress.note(f"{part.name} …")
        began = time.monotonic()
        measured = {name: round(value, 4) for name, value in part.measure().items()}
        figures |= measured
        progress.update(done + 1)
        for name, value in measured.items():
            progress.note(f"  {name} {value:,.4g}")
        progress.note(f"{part.name}: {duration(time.monotonic() - began)}")
    if folder is not None:
        recorder = import_module("benchmarks.record")
        command = f"engram bench {what}{' --quick' if quick else ''}"
        recorder.record(what, command, {"figures": figures}, folder)
    return figures
