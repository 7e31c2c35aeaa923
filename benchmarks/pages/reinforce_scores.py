"""The part of docs/reward_models.md on REINFORCE by three reward models
(benchmarks/reinforce_scores.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.pages.text import Results, commit, points, prose, runs_of, share, spread, table

PREFIX = "reinforce_scores-"
NAMES = {
    "scalar": "a scalar, as a probability",
    "scores": "ten scores, the expected one",
    "doubt": "the same, advantages over 1 + σ",
}


def section(results: Results) -> list[str]:
    """Nothing where no seed was measured."""
    runs = runs_of(results, PREFIX)
    if not runs:
        return []
    settings, models = runs[0]["settings"], runs[0]["models"]
    told = ", ".join(f"{name} {share(models[name]['accuracy'])}" for name in models)
    commits = ", ".join(dict.fromkeys(map(commit, runs)))
    return [
        "## REINFORCE by three rewards",
        prose(f"""`configs/reinforce_smollm*.yaml` on a small GPT-2 that goes on with openings of
            film reviews: {settings["iterations"]} iterations of {settings["batch"]} answers, paid
            by reward models of which of two answers has the better mood (VADER; one pair of twenty
            the other way round). Accuracy on held-out pairs: {told}; *judge* pays no policy. Mean
            rewards of answers to {runs[0]["policies"]["scalar"]["wins"]["prompts"]} held-out
            prompts, sampled with the same random numbers; ± is half of a seed's 95 % interval.
            *Wins* is the share that the judge prefers to those before. Means over
            {len(runs)} seeds, of wins with the lowest and the highest."""),
        table(
            ("paid by", "reward", "mood", "KL", "wins"),
            [_row(runs, kind) for kind in NAMES],
        ),
        points(f"`python -m benchmarks.reinforce_scores SEED FOLDER`, commit {commits}."),
    ]


def _row(runs: Sequence[Mapping[str, Any]], kind: str) -> tuple[str, ...]:
    found = [run["policies"][kind] for run in runs]
    own = found[0]["paid_by"]
    error = max(1.96 * each["after"][own]["error"] for each in found)
    before, after = (
        {name: fmean(each[when][name]["mean"] for each in found) for name in (own, "mood")}
        for when in ("before", "after")
    )
    return (
        NAMES[kind],
        f"{before[own]:.3f} → {after[own]:.3f} ± {error:.3f}",
        f"{before['mood']:.3f} → {after['mood']:.3f}",
        f"{fmean(each['after']['kl'] for each in found):.1f}",
        spread([each["wins"]["share"] for each in found], 2),
    )
