"""The part of docs/causal_results.md on a reward that invites collapse (benchmarks/letters.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.text import Results, commit, points, prose, table

PREFIX = "letters-"


def section(results: Results) -> list[str]:
    """Nothing where no coefficient was measured."""
    found = [result for name, result in results.items() if name.startswith(PREFIX)]
    if not found:
        return []
    runs = sorted(found, key=_settings)
    settings = runs[0]["settings"]
    commits = ", ".join(dict.fromkeys(map(commit, runs)))
    return [
        "## Too little and too much KL",
        prose(f"""PPO of the same model, paid 0.1 for each letter e in an answer of twenty tokens,
            {settings["iterations"]} iterations of {settings["batch"]} answers to each coefficient.
            *Top word* is the share of an answer's words that are its most frequent one. *Alarms*
            are those of training ([watching.md](watching.md)). KL in the reward is 0 on average at
            the reference, so a large coefficient alone only keeps the policy there. It empties
            answers where a large rate makes the policy wander: the shortest answer wanders
            least."""),
        table(
            (
                "KL coefficient, rate",
                "reward",
                "KL",
                "tokens",
                "distinct",
                "top word",
                "empty",
                "alarms",
            ),
            [_row("before", runs[0]["before"], {}), *(_after(run) for run in runs)],
        ),
        points(f"`python -m benchmarks.letters COEFFICIENT FOLDER`, commit {commits}."),
    ]


def _settings(run: Mapping[str, Any]) -> tuple[float, float]:
    return run["settings"]["learning_rate"], run["coefficient"]


def _after(run: Mapping[str, Any]) -> tuple[str, ...]:
    rate, coefficient = _settings(run)
    return _row(f"{coefficient:g}, {rate:g}", run["after"], run["alarms"])


def _row(name: str, figures: Mapping[str, Any], alarms: Mapping[str, float]) -> tuple[str, ...]:
    raised = ", ".join(sorted(kind for kind, number in alarms.items() if number))
    return (
        name,
        f"{figures['score']['mean']:.2f}",
        f"{figures['kl']:.1f}" if "kl" in figures else "–",
        f"{figures['length']:.1f}",
        f"{figures['distinct']['2']:.2f}",
        f"{figures['repeated']['mean']:.2f}",
        f"{figures['empty']['mean']:.2f}",
        raised or "–",
    )
