"""docs/results.md: what trained models recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.pages import babi_all, real_talk
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
SPANS = ((1, 5), (6, 8), (9, 16))
"""Distances that are taken together."""
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
        *_babi(results),
        *real_talk.section(results),
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
            {times[-1]:.0f} min. `training` is recall on conversations of the training
            data.{_older(demos)}"""),
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
        prose(f"""Supervision took conversations of up to eight follow-ups, MRL all of them, up to
            sixteen. Exact answers before and after MRL by distance, means over seeds:
            {"; ".join(_by_distance(every, *span) for span in SPANS)}. MRL has ten iterations and
            ends with its best weights on held-out conversations; so few add next to nothing. The
            controls show that recall comes from memory."""),
    ]


def _older(demos: Results) -> str:
    """A sentence on seeds that were trained without stages that the demo has."""
    older = [seed for seed, one in demos.items() if "sft" not in one["stages"]]
    return f" Without the stages `sft` and `memory_pretrain`: {', '.join(older)}." if older else ""


def _by_distance(demos: Sequence[Mapping[str, Any]], first: int, last: int) -> str:
    """Exact answers at the distances from `first` to `last`, of all questions asked there."""

    def mean(one: Mapping[str, Any], when: str) -> float:
        shares = one["retention"]["exact"][when]
        counts = one["retention"]["counts"]["exact"][when]
        asked = [str(d) for d in range(first, last + 1) if str(d) in shares]
        total = sum(counts[distance] for distance in asked)
        return sum(shares[distance] * counts[distance] for distance in asked) / total

    before, after = (
        share(fmean(mean(one, when) for one in demos)) for when in ("before_mrl", "after_mrl")
    )
    return f"{first} to {last}: {before}, {after}"


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


# --- public data sets -----------------------------------------------------------------------------


def _babi(results: Results) -> list[str]:
    distances = ("1", "2", "3", "all")
    return [
        "## bAbI",
        *_babi_seeds(_by_seed(results, "babi-"), distances),
        *_babi_parts(results, distances),
        *(babi_all.section(results) or _babi_six(results["babi_six"], distances)),
    ]


def _babi_six(six: Mapping[str, Any], distances: Sequence[str]) -> list[str]:
    return [
        prose(f"""{origin(six)} Recall on the test files of six tasks in one model, by older code;
            not trained out."""),
        table(
            ("task", *distances, "erased", "most frequent"),
            [(task["name"], *_recall_row(task["retention"], distances)) for task in six["tasks"]],
        ),
    ]


def _babi_seeds(seeds: Mapping[int, Mapping[str, Any]], distances: Sequence[str]) -> list[str]:
    """Task 1 by itself; nothing where it was not measured."""
    if not seeds:
        return []
    rows = [_babi_row(f"{seed}", one, distances) for seed, one in seeds.items()]
    minutes = ", ".join(f"{one['wall_seconds'] / 60:.0f}" for one in seeds.values())
    return [
        prose(f"""`python -m benchmarks.babi SEED FOLDER`, commit {_commits(seeds)}: task 1 from
            nothing, `configs/babi.yaml`. Exact answers to the 1,000 questions of the test file by
            distance, with intervals; most frequent is the commonest answer of the training
            file. Minutes: {minutes}."""),
        table(("seed", *distances, "erased, most frequent"), rows),
    ]


def _babi_row(name: str, one: Mapping[str, Any], distances: Sequence[str]) -> list[str]:
    retention = one["retention"]
    bounds = retention["intervals"]["exact"]
    exact = [f"{share(retention['exact'][d])} ({interval(*bounds[d])})" for d in distances]
    controls = [share(retention[name]["all"]) for name in ("erased", "most_frequent")]
    return [name, *exact, ", ".join(controls)]


def _babi_parts(results: Results, distances: Sequence[str]) -> list[str]:
    """What each part contributes; nothing where it was not measured."""
    found = [one for name, one in results.items() if name.startswith("babi_with")]
    if not found:
        return []
    rows = []
    for one in found:
        name, *by_distance, over_all, controls = _babi_row(
            one["change"].replace("_", " "), one, distances
        )
        # Without their intervals: a row has at most 100 columns.
        shares = [each.partition(" ")[0] for each in by_distance]
        rows.append([name, *shares, over_all, controls])
    return [
        prose("The same with one part left out or added (`--change CHANGE`), one seed each:"),
        table(("change", *distances, "erased, most frequent"), rows),
    ]


def _recall_row(retention: Mapping[str, Any], distances: Sequence[str]) -> list[str]:
    controls = [share(retention[control]["all"]) for control in ("erased", "most_frequent")]
    return [*_distances(retention["memory"], distances), *controls]


def _by_seed(results: Results, prefix: str) -> dict[int, Mapping[str, Any]]:
    found = {name: one for name, one in results.items() if name.startswith(prefix)}
    return dict(sorted((int(name.removeprefix(prefix)), one) for name, one in found.items()))


def _commits(seeds: Mapping[int, Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(map(commit, seeds.values())))


def _distances(shares: Mapping[str, float], distances: Sequence[str]) -> list[str]:
    return [share(shares[distance]) if distance in shares else "" for distance in distances]
