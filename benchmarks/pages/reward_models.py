"""docs/reward_models.md: how often reward models are right on held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages import reinforce_scores, rlhf
from benchmarks.pages.text import Results, document, interval, origin, points, prose, share, table

NAMES = ("reward_instructions", "reward_taskmaster", "reward_hh", "reward_memory")


def page(results: Results) -> str:
    found = [results[name] for name in NAMES if name in results]
    rows = [
        (
            f"{result['name']}: {kind}",
            f"{report['pairs']}",
            f"{share(report['accuracy'])} ({_bounds(report, 'accuracy')})",
            f"{share(report['loss'])} ({_bounds(report, 'loss')})",
            share(report["constant_loss"]),
        )
        for result in found
        for kind, report in result["reports"].items()
    ]
    return document(
        "# Accuracy of reward models",
        prose("""How often reward models prefer the better answer, on pairs that they were not
            trained on. This page is made from `benchmarks/results/` by `python -m
            benchmarks.pages`; what was tried is in [benchmarks/LOG.md](../benchmarks/LOG.md).
            The [README](../README.md#choose-and-write-rewards) explains how to train and use
            one."""),
        prose("""Accuracy is the share of held-out pairs whose better answer has the higher
            reward. Loss is -log of the probability that it wins; `constant` is the loss of the
            best constant answer. Intervals hold 95 %, from a bootstrap over groups of pairs."""),
        table(("", "pairs", "accuracy", "loss", "constant"), rows),
        prose("""Tone is easy to learn. The quality of an agent's actions is not, from 639 pairs:
            accuracy is better than chance, and the loss is not clearly better than constant. The
            reward model with memory tells right from wrong values only by what it was told
            before."""),
        "## Sources",
        points(*map(origin, found)),
        *reinforce_scores.section(results),
        *rlhf.section(results),
    )


def _bounds(report: Mapping[str, Any], name: str) -> str:
    return interval(report[f"{name}_low"], report[f"{name}_high"])
