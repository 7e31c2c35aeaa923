"""CPU time of metrics, as a share of the CPU time of a run of `configs/demo.yaml`.

    python -m benchmarks.metrics

Measured one by one, in this process: one observation, one row of metrics (merging what two ranks
sent, `metrics.jsonl` with its sync, showing it to Prometheus), one look at the host, and one scrape
of everything in the registry. Multiplied by how often a run does each. The run's own CPU time is
its wall time on two busy cores (benchmarks/results/demo-*.json).
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from benchmarks.record import RESULTS
from common.config.loader import load_run
from common.config.mrl import MRL
from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics
from common.telemetry.registry import REGISTRY
from learner.recorder import SAMPLE_SECONDS, Recorder

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
REPEATS = 30
RANKS, CORES = 2, 2
VALUES = {"cohort": ("all", "trained"), "kind": ("constant", "copies_pay")}
OTHER_VALUES = ("0", "1", "2")
"""Of any other label: more series than a run has."""
SCRAPE_SECONDS = 5.0
OBSERVATIONS = 20
"""For each answered turn, and for each step of a rank: more than are made."""


def seconds_of(act: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median CPU seconds of the process, all threads."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        act()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def everything() -> dict[str, object]:
    """What a process would send that recorded every series once."""
    metrics = Metrics()
    for metric in REGISTRY.values():
        choices = [VALUES.get(label, OTHER_VALUES) for label in metric.labels]
        for values in itertools.product(*choices):
            metrics.record(metric.name, 0.5, **dict(zip(metric.labels, values, strict=True)))
    return metrics.drain()


def parts() -> dict[str, float]:
    """CPU seconds of each."""
    metrics, state = Metrics(), everything()

    def observe() -> None:
        for _ in range(1000):
            metrics.record("reward/component", 0.5, component="bleu", cohort="trained")

    with tempfile.TemporaryDirectory() as folder:
        run = load_run([str(DEMO)], [f"runs={folder}"])
        directory = RunDirectory(run.runs, run.name)
        recorder = Recorder(run, directory, None)
        recorder.begin(0, 0, 0, None)
        steps = itertools.count(1)

        def row() -> None:
            step = next(steps)
            for rank in range(RANKS):
                recorder.record(rank, RANKS, step, step, dict(state))

        def look() -> None:
            for _ in range(100):
                recorder._show()

        def scrape() -> None:
            with urllib.request.urlopen(recorder.url(), timeout=10) as answer:
                answer.read()

        try:
            return {
                "observation": seconds_of(observe) / 1000,
                "row": seconds_of(row),
                "look": seconds_of(look) / 100,
                "scrape": seconds_of(scrape),
            }
        finally:
            recorder.close()


def share_of_a_run(cost: dict[str, float]) -> dict[str, float]:
    """Share of the demo's CPU seconds, by part: the most steps that it may take, in the least time
    that it took."""
    results = [json.loads(path.read_text()) for path in RESULTS.glob("demo-*.json")]
    wall = min(each["wall_seconds"] for each in results)
    run = load_run([str(DEMO)], [])
    supervised = sum(each.total_steps for each in run.stages if not each.needs_rollout)
    mrl = next(each for each in run.stages if isinstance(each, MRL))
    turns = mrl.total_steps * mrl.episodes * statistics.mean(run.data.steps)
    rows = supervised / run.learner.log_every + mrl.total_steps
    amounts = {
        "observation": OBSERVATIONS * (turns + supervised * RANKS),
        "row": rows,
        "look": wall / SAMPLE_SECONDS,
        "scrape": wall / SCRAPE_SECONDS,
    }
    shares = {name: cost[name] * amounts[name] / (wall * CORES) for name in cost}
    return shares | {"all": sum(shares.values())}


def main() -> None:
    cost = parts()
    for name, share in share_of_a_run(cost).items():
        each = f"{cost[name] * 1e3:9.4f} ms each" if name in cost else " " * 17
        print(f"{name:12s} {each}  {share:8.4%} of the CPU time of a demo")


if __name__ == "__main__":
    main()
