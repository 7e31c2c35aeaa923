"""docs/results.md: what trained models recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.pages.text import (
    Results,
    commit,
    document,
    interval,
    origin,
    prose,
    share,
    table,
)  # fmt: skip
from common.data.datasets.synth import PATTERNS

SHARES = {
    "memory": "memory",
    "erased": "erased",
    "most_frequent": "most frequent",
    "precision": "precision of values named",
}
DEMO = (
    "seed",
    "before MRL",
    "after MRL",
    "exact",
    "changed",
    "outdated",
    "training",
    "erased",
    "most frequent",
)
GAINS = {
    "reward_first": "reward at first",
    "reward_last": "at last",
    "recall_before": "recall before",
    "recall_after": "after",
}
ORDERS = (("1", "first"), ("2", "second"), ("3", "third"), ("4", "fourth"))


def page(results: Results) -> str:
    demos = {
        name.removeprefix("demo-"): result
        for name, result in results.items()
        if name.startswith("demo-")
    }
    demos = dict(sorted(demos.items(), key=lambda item: int(item[0])))
    return document(
        "# Results",
        prose("""What models trained with engram recall, on conversations that they were not
            trained on. This page is made from `benchmarks/results/` by `python -m
            benchmarks.pages`; earlier runs and what was tried are in
            [benchmarks/LOG.md](../benchmarks/LOG.md). Accuracy of reward models is on a
            [page of its own](reward_models.md). Answers are decoded greedily, and memory is
            written with the model's own answers.
            *Recall* is the share of asked facts whose value the answer names. An answer is *exact*
            if it names every value asked for and no wrong one. *Changed* is recall of facts that
            replaced an earlier value; *outdated* is the share of answers that still name the
            replaced value. The *distance* is the number of turns since the value was last said.
            *Erased* puts memory back to its start before every question. *Most frequent* always
            names the value that training conversations ask for most. Intervals hold 95 %, from a
            bootstrap over conversations. Machines: 2 CPU cores, 24 GB, no GPU, beside other work.
            Seed 7 where none is given."""),
        *_demo(demos),
        *_algorithms(results),
        *_game(results),
        *_babi(results["babi"], results["babi_six"]),
        *_sgd(results["sgd"]),
    )


# --- demo -----------------------------------------------------------------------------------------


def _demo(demos: Results) -> list[str]:
    every = list(demos.values())
    times = sorted(one["wall_seconds"] / 60 for one in every)
    measured_at = ", ".join(dict.fromkeys(commit(one) for one in every))
    return [
        "## Demo: generated conversations",
        prose(f"""`python -m benchmarks.demo SEED`: `configs/demo.yaml`, then 1,000 held-out
            conversations and 1,000 of each pattern of change
            ([data.md](data.md#generated-conversations)). Commit {measured_at}; {times[0]:.0f} to
            {times[-1]:.0f} min. `training` is recall on conversations of the training data."""),
        table(
            (
                "seed",
                "before MRL",
                "after MRL",
                "exact",
                "changed",
                "outdated",
                "training",
                "erased",
                "most frequent",
            ),
            [_demo_row(seed, one["retention"]) for seed, one in demos.items()],
        ),
        prose(f"""After MRL by the order in which a conversation told its facts, means over seeds:
            {", ".join(_by_order(every, *order) for order in ORDERS)}. By what happened to the
            fact; no training conversation contains the patterns with a star:"""),
        table(
            ("pattern", "changed, mean", "lowest", "outdated, mean", "highest"),
            [_pattern_row(name, every) for name in PATTERNS],
        ),
        prose("""The controls show that recall comes from memory. The supervised stages leave MRL
            little to gain on conversations this short."""),
    ]


def _demo_row(seed: str, retention: Mapping[str, Any]) -> tuple[str, ...]:
    after = [retention[name]["after_mrl"]["all"] for name in ("exact", "changed", "outdated")]
    bounds = retention["intervals"]
    recall = [
        f"{share(retention[when]['all'])} ({interval(*bounds[when]['all'])})"
        for when in ("before_mrl", "after_mrl")
    ]
    rest = [retention[name]["all"] for name in ("training", "erased", "most_frequent")]
    return (seed, *recall, *map(share, after), *map(share, rest))


def _by_order(demos: Sequence[Mapping[str, Any]], order: str, what: str) -> str:
    found = [one["retention"]["by_order"]["after_mrl"] for one in demos]
    return f"{what} {share(fmean(shares[order] for shares in found if order in shares))}"


def _pattern_row(name: str, demos: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    found = [one["patterns"][name] for one in demos]
    # A result that does not say which patterns were unseen counts as one that saw them all.
    unseen = all(name in one.get("unseen", ()) for one in demos)
    changed, outdated = (
        [retention[figure]["all"] for retention in found] for figure in ("changed", "outdated")
    )
    figures = (fmean(changed), min(changed), fmean(outdated), max(outdated))
    return (f"`{name}`{' *' * unseen}", *map(share, figures))


def _algorithms(results: Results) -> list[str]:
    """What each algorithm gained on the demo; nothing where none was measured."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for result in results.values():
        if "algorithm" in result:
            runs.setdefault(result["algorithm"], []).append(result)
    if not runs:
        return []
    rows = [
        (f"`{name}`", f"{len(found)}", *(_over_seeds(found, figure) for figure in GAINS))
        for name, found in runs.items()
    ]
    return [
        prose("""`python -m benchmarks.algorithms ALGORITHM SEED`: 40 iterations of MRL, paid by
            recall alone, after memory-aware training that was stopped early. Means over seeds,
            with the lowest and the highest; reward is the mean of five iterations."""),
        table(("algorithm", "seeds", *GAINS.values()), rows),
    ]


def _game(results: Results) -> list[str]:
    """How the reward of the game rose; nothing where it was not measured."""
    runs = [result for name, result in results.items() if name.startswith("game-")]
    if not runs:
        return []
    first, last = (_over_seeds(runs, figure) for figure in ("first", "last"))
    return [
        prose(f"""`python -m benchmarks.game SEED`: in the game of `configs/game.yaml`, which asks
            for a number that was told, the share of games won rises from {first} in the first
            iterations to {last} in the last ones, over {len(runs)} seeds.""")
    ]


def _over_seeds(runs: Sequence[Mapping[str, Any]], figure: str) -> str:
    found = [run[figure] for run in runs]
    return f"{share(fmean(found))} ({interval(min(found), max(found))})"


# --- public data sets -----------------------------------------------------------------------------


def _babi(one: Mapping[str, Any], six: Mapping[str, Any]) -> list[str]:
    distances = ("1", "3", "5", "all")
    rows = [
        (
            task["name"],
            *_distances(task["retention"]["memory"], distances),
            *(share(task["retention"][control]["all"]) for control in ("erased", "most_frequent")),
        )
        for task in ({"name": "1, a model of its own", **one}, *six["tasks"])
    ]
    return [
        "## bAbI",
        prose(f"""{origin(one)} {origin(six)} Recall on the test files by distance, 1,000
            questions a task. Most frequent is the commonest answer of the task's training file.
            One model of a million parameters is not trained out on six tasks after 5,000 steps.
            Publications on bAbI report exact answers; these figures are recall."""),
        table(("task", *distances, "erased", "most frequent"), rows),
    ]


def _sgd(result: Mapping[str, Any]) -> list[str]:
    distances = ("1", "2", "3", "4", "all")
    rows = [
        (what, *_distances(result["retention"][name], distances)) for name, what in SHARES.items()
    ]
    return [
        "## Schema-Guided Dialogue",
        prose(f"""{origin(result)} By distance, on {result["conversations"]:,} conversations of the
            dev file: memory is used, but a model of a million parameters, trained for minutes,
            writes these answers poorly, and most values that it names are wrong."""),
        table(("", *distances), rows),
    ]


def _distances(shares: Mapping[str, float], distances: Sequence[str]) -> list[str]:
    return [share(shares[distance]) if distance in shares else "" for distance in distances]
