"""MRL on longer conversations than supervision had, against the same minutes of more supervision.

    python -m benchmarks.mrl16 SEED [OUT]

trains the supervised stages of `configs/mrl16.yaml` in OUT (default: `runs`). From their weights it
trains the curriculum of MRL, and for as many seconds memory-aware training on conversations as
long. All three answer the same test conversations of 8 to 64 follow-ups, and of every length of the
curriculum, and once from memory that another conversation left. Writes
benchmarks/results/mrl16-SEED.json. Started again, it goes on from where it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from benchmarks.training import CONFIGS, TrainedRun, train
from common.config.data import SynthData
from common.config.loader import load_run
from common.config.run import Run
from common.data.conversations import value_counts
from common.data.datasets.synth import generate
from common.data.datasets.table import load_corpus
from common.episode import Row
from common.seeding import derive
from common.storage.checkpoint import open_checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress
from learner.evaluation.evaluate import carried_figures, evaluate
from learner.evaluation.figures import Evaluation, Figure, figures_json
from learner.evaluation.intervals import bootstrap
from learner.evaluation.scoring_player import ScoringPlayer

CONFIG = CONFIGS / "mrl16.yaml"
LENGTHS = (8, 16, 32, 64)
CARRIED = (16, 64)
"""Lengths at which memory is carried from one test conversation to the next, too."""
STEPS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)
CONVERSATIONS = 200
"""Test conversations of each length."""
SHORTEST = 25
"""The same of one follow-up, of which the world has few that differ."""
TIMED = 40
"""Steps that tell how long a step of memory-aware training on whole conversations takes."""


def trained(
    name: str, seed: int, out: Path, *overrides: str, files: Sequence[Path] = (CONFIG,)
) -> tuple[Path, dict[str, Any]]:
    """The run's directory and summary, trained where that is not done."""
    done = train(files, [f"seed={seed}", f"name={name}", f"runs={out}", *overrides])
    return done.where, done.summary


def seconds(summary: Mapping[str, Any]) -> float:
    """Seconds of the last stage."""
    return float(summary["stages"][-1]["wall_seconds"])


def run(seed: int, out: Path) -> dict[str, Any]:
    """Everything that is measured with one seed."""
    settings = load_run([str(CONFIG)], [f"seed={seed}"])
    stages = settings.model_dump(mode="json")["stages"]
    supervised, mrl = stages[:-1], stages[-1]
    before, first = trained(f"mrl16-{seed}-before", seed, out, f"stages={json.dumps(supervised)}")
    from_there = f"model={{checkpoint: {before}}}"
    after, learnt = trained(
        f"mrl16-{seed}-mrl", seed, out, from_there, f"stages={json.dumps([mrl])}"
    )
    longer = supervised[-1] | {
        "max_follow_ups": None, "first_follow_ups": None, "gate_penalty_from": 0.0,
    }  # fmt: skip
    longer["optimizer"] = longer["optimizer"] | {"learning_rate": 1e-3}

    def more(name: str, steps: int) -> tuple[Path, dict[str, Any]]:
        stage = json.dumps([longer | {"steps": steps}])
        return trained(f"mrl16-{seed}-{name}", seed, out, from_there, f"stages={stage}")

    # The start of a group of ranks is a part of both stages' seconds.
    where, timed = more("timed", TIMED)
    step = TrainedRun(where).seconds_of_a_step()
    start = seconds(timed) - TIMED * step
    control, taught = more("supervised", max(1, round((seconds(learnt) - start) / step)))
    policies = {"before": before, "mrl": after, "supervised": control}
    return {
        "seed": seed,
        "environment": json.loads((after / "environment.json").read_text()),
        "seconds": {stage["name"]: stage["wall_seconds"] for stage in first["stages"]}
        | {"mrl": seconds(learnt), "supervised further": seconds(taught)},
        "steps_of_supervision": taught["stages"][-1]["steps"],
        "lengths": {str(n): compared(settings, n, policies, carried=n in CARRIED) for n in LENGTHS},
        "curriculum": {
            str(n): compared(settings, n, {"before": before, "mrl": after}) for n in STEPS
        },
    }


def conversations(settings: Run, follow_ups: int) -> list[Row]:
    """Test conversations of one length, of the same world as those of the run."""
    data = settings.data
    assert isinstance(data, SynthData)
    count = CONVERSATIONS if follow_ups > 1 else SHORTEST
    own = data.model_copy(update={"steps": (follow_ups,), "train": 1, "eval": count, "patterns": 0})
    return generate(own, derive(settings.seed, "length", follow_ups))["test"]


def compared(
    settings: Run, follow_ups: int, policies: Mapping[str, Path], carried: bool = False
) -> dict[str, Any]:
    """Figures of each policy on conversations of a length, and paired differences of exact answers
    from those of "before"."""
    rows = conversations(settings, follow_ups)
    values = value_counts(load_corpus(settings.data, settings.seed).train)
    found: dict[str, Any] = {}
    kept: dict[str, Evaluation] = {}
    for name, where in policies.items():
        checkpoint = open_checkpoint(str(where))
        own = RunDirectory(str(where.parent), where.name).run()
        run = settings.model_copy(update={"stages": own.stages})
        player = ScoringPlayer(checkpoint, run, None, list(values), len(rows), QuietProgress())
        kept[name] = evaluate(player, rows, settings.seed, values)
        figures = kept[name].figures
        chosen = {key: figures[key] for key in ("exact", "recall", "by_order", "scores")}
        chosen["erased"] = kept[name].erased["exact"]
        if carried:
            chosen["carried"] = carried_figures(player, rows, settings.seed, values)["exact"]
        found[name] = figures_json(chosen)
    pairs = [(a, b) for a, b in (("mrl", "before"), ("mrl", "supervised")) if b in kept]
    found["differences"] = {
        f"{a} - {b}": difference(kept[a].figures["exact"], kept[b].figures["exact"])
        for a, b in pairs
    }
    return found


def difference(one: Figure, other: Figure) -> Sequence[float]:
    """(difference of the shares over all, low and high end of its 95 % interval), over the same
    conversations."""
    hits, counts = one.hits["all"] - other.hits["all"], one.counts["all"]
    (low,), (high,) = bootstrap(hits[None], counts[None].astype(np.float64))
    return float(hits.sum() / counts.sum()), low, high


if __name__ == "__main__":
    number = int(sys.argv[1])
    result = run(number, Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve())
    record(f"mrl16-{number}", f"python -m benchmarks.mrl16 {number}", result)
    for length, figures in result["lengths"].items():
        shares = {name: figures[name]["exact"]["all"] for name in ("before", "mrl", "supervised")}
        print(length, {name: round(share, 3) for name, share in shares.items()})
