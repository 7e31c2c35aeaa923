"""CPU time of metrics and of a page that watches, as a share of the CPU time of a run of
`configs/demo.yaml`.

    python -m benchmarks.metrics               prints, and writes benchmarks/results/metrics.json

Measured one by one, in this process: one observation, one row of metrics (merging what two ranks
sent, `metrics.jsonl` with its sync, showing it to Prometheus), one look at the host, and one scrape
of everything in the registry; for the page what `benchmarks.watching` says. Multiplied by how often
a run does each. The run's own CPU time is its wall time on two busy cores
(benchmarks/results/demo-*.json). The browser of the page is not counted.
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
from typing import Any

from benchmarks import watching
from benchmarks.record import RESULTS, record
from common.config.data import SynthData
from common.config.loader import load_run
from common.config.mrl import MRL
from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics
from common.telemetry.registry import REGISTRY
from deploy.view.server import LOOK_SECONDS
from learner.recorder import SAMPLE_SECONDS, Recorder

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
REPEATS = 30
RANKS, CORES = 2, 2
VALUES = {"cohort": ("all", "trained"), "kind": ("constant", "copies_pay")}
OTHER_VALUES = ("0", "1", "2")
"""Of any other label: more series than a run has."""
SCRAPE_SECONDS = 5.0
REFRESH_SECONDS = 2.0
"""Between two refreshes of a page, at least (`REFRESH` of deploy/view/static/view.js)."""
OBSERVATIONS = 20
"""For each answered turn, and for each step of a rank: more than are made."""


def seconds_of(
    act: Callable[[], object], repeats: int = REPEATS, before: Callable[[], object] = lambda: None
) -> float:
    """Least CPU seconds of the process, all threads: what else the machine does only adds to them.
    before: called each time, and not counted."""
    taken = []
    for _ in range(repeats):
        before()
        began = time.process_time()
        act()
        taken.append(time.process_time() - began)
    return min(taken)


def everything() -> dict[str, object]:
    """What a process would send that recorded every series once."""
    metrics = Metrics()
    for metric in REGISTRY.values():
        choices = [VALUES.get(label, OTHER_VALUES) for label in metric.labels]
        for values in itertools.product(*choices):
            labels: dict[str, Any] = dict(zip(metric.labels, values, strict=True))
            metrics.record(metric.name, 0.5, **labels)
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
    assert isinstance(run.data, SynthData), "the demo's conversations are generated"
    supervised = sum(each.total_steps for each in run.stages if not each.needs_rollout)
    mrl = next(each for each in run.stages if isinstance(each, MRL))
    turns = mrl.total_steps * mrl.episodes * statistics.mean(run.data.steps)
    rows = supervised / run.learner.log_every + mrl.total_steps
    amounts = {
        "observation": OBSERVATIONS * (turns + supervised * RANKS),
        "row": rows,
        "look": wall / SAMPLE_SECONDS,
        "scrape": wall / SCRAPE_SECONDS,
        "page_look": wall / LOOK_SECONDS,
        "page_row": supervised / run.learner.log_every,
        "page_iteration": mrl.total_steps,
        "page_section": min(supervised / run.learner.log_every, wall / REFRESH_SECONDS),
        "page_section_iteration": mrl.total_steps,
    }
    shares = {name: cost[name] * amounts[name] / (wall * CORES) for name in cost}
    page = sum(share for name, share in shares.items() if name.startswith("page_"))
    total = sum(shares.values())
    return shares | {"metrics": total - page, "page": page, "all": total}


def main() -> None:
    cost = parts() | watching.parts(str(DEMO), everything(), seconds_of)
    shares = share_of_a_run(cost)
    figures = {f"{name}_ms": 1e3 * seconds for name, seconds in cost.items()}
    figures |= {f"{name}_share": share for name, share in shares.items()}
    record("metrics", "python -m benchmarks.metrics", {"figures": figures})
    for name, share in shares.items():
        each = f"{cost[name] * 1e3:9.4f} ms each" if name in cost else " " * 17
        print(f"{name:12s} {each}  {share:8.4%} of the CPU time of a demo")


if __name__ == "__main__":
    main()
