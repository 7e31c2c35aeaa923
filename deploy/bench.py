"""`engram bench`: the programs in benchmarks/, by name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from common.failures import InputError, nearest

BENCHMARKS = ("rollout", "rewards", "reward_chaos")


def run_bench(what: str, folder: Path | None = None) -> dict[str, float]:
    """The figures of one benchmark, flat. folder: where to record them as NAME.json, if anywhere.

    Raises InputError for a name that is none.
    """
    if what not in BENCHMARKS:
        raise InputError(what, f"is no benchmark; {nearest(what, BENCHMARKS)}")
    figures: dict[str, float] = import_module(f"benchmarks.{what}").run()
    if folder is not None:
        recorder = import_module("benchmarks.record")
        recorder.record(what, f"engram bench {what}", {"figures": figures}, folder)
    return figures
