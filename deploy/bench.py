"""`engram bench`: the programs in benchmarks/, by name."""

from __future__ import annotations

from importlib import import_module

from common.failures import InputError, nearest

BENCHMARKS = ("rollout", "rewards", "reward_chaos")


def run_bench(what: str) -> dict[str, float]:
    """The figures of one benchmark, flat. Raises InputError for a name that is none."""
    if what not in BENCHMARKS:
        raise InputError(what, f"is no benchmark; {nearest(what, BENCHMARKS)}")
    figures: dict[str, float] = import_module(f"benchmarks.{what}").run()
    return figures
