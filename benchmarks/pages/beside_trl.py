"""The part of docs/causal_results.md that sets PPO beside TRL's (benchmarks/beside_trl.py)."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.pages.text import Results, commit, points, prose, runs_of, table

PREFIX = "beside_trl-"


def section(results: Results) -> list[str]:
    """Nothing where no seed was measured."""
    runs = runs_of(results, PREFIX)
    if not runs:
        return []
    first = runs[0]
    commits = "commit " + ", ".join(dict.fromkeys(map(commit, runs)))
    return [
        "## Beside TRL",
        prose(f"""`python -m benchmarks.beside_trl` trains one model by PPO with engram and with TRL
            1.12.0 (the last version that has PPO): the same weights, prompts, reward (VADER),
            {first["episodes"]:,} episodes in batches of {first["settings"]["batch"]},
            {first["settings"]["epochs"]} epochs, learning rate and KL coefficient, one after the
            other on the same two cores. One script scores both on held-out prompts; the score at
            the start is {first["start"]:.3f}. *At TRL's KL* is ours between the two checkpoints
            around the KL of TRL's last model. Seconds are those of training without the start of
            processes."""),
        table(
            (
                "seed",
                "TRL: score",
                "KL",
                "seconds",
                "engram: score",
                "KL",
                "at TRL's KL",
                "seconds",
            ),
            [_row(run) for run in runs],
        ),
        prose(f"""Over what TRL gained, engram gained, by the median of {len(runs)} seeds:
            {_ratio(runs, "at_kl"):.2f} at TRL's KL, {_ratio(runs, "episodes"):.2f} with as many
            episodes, {_ratio(runs, "minute"):.2f} a minute."""),
        points(f"`python -m benchmarks.beside_trl SEED MODEL --peer PYTHON SCRIPT`, {commits}."),
    ]


def _row(run: Mapping[str, Any]) -> tuple[str, ...]:
    theirs, ours = run["trl"], run["engram"]
    level = ours["score_at_trls_kl"]
    return (
        str(run["seed"]),
        f"{theirs['score']:.3f}",
        f"{theirs['kl']:.1f}",
        f"{theirs['seconds']:.0f}",
        f"{ours['score']:.3f}",
        f"{ours['kl']:.1f}",
        "not reached" if level is None else f"{level:.3f}",
        f"{ours['seconds']:.0f}",
    )


def _ratio(runs: list[Mapping[str, Any]], by: str) -> float:
    """Median over seeds of our gain over TRL's. by: what both had the same of."""
    found = []
    for run in runs:
        theirs, ours = run["trl"], run["engram"]
        gained = theirs["score"] - run["start"]
        if by == "at_kl":
            level = ours["score_at_trls_kl"]
            found.append((level - run["start"]) / gained if level is not None else float("nan"))
        elif by == "episodes":
            found.append((ours["score"] - run["start"]) / gained)
        else:
            found.append(ours["gain_a_minute"] / theirs["gain_a_minute"])
    return median(found)
