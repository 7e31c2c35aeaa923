"""docs/mrl_results.md: what Memory Reinforcement Learning adds to supervision."""

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

LONGER, CARRYING = "mrl16-", "mrl_carrying-"
ARTICLES, NANO = "articles_mrl-", "mrl16_nano-"
ENDS = ("before", "mrl")
GAINS = {
    "reward_first": "reward at first",
    "reward_last": "at last",
    "recall_before": "recall before",
    "recall_after": "after",
}
COMPONENTS = ("bleu", "length", "recall", "total")
"""Components of the mix of `configs/mrl16.yaml`, and their mean."""


def page(results: Results) -> str:
    return document(
        "# Memory Reinforcement Learning: results",
        prose("""What MRL adds to supervised training of memory
            ([curriculum.md](curriculum.md)), on generated conversations. This page is made from
            `benchmarks/results/` by `python -m benchmarks.pages`; words are those of
            [results.md](results.md). Answers are decoded greedily and memory holds the model's own
            answers. Intervals hold 95 %, from a bootstrap over conversations; those of differences
            are of pairs, over the same conversations. Machine: 2 CPU cores, no GPU, beside other
            work."""),
        *_longer(_runs(results, LONGER)),
        *_nano(_runs(results, NANO)),
        *_carrying(results),
        *_articles(_runs(results, ARTICLES)),
        *_algorithms(results),
        *_game(results),
    )


def _runs(results: Results, prefix: str) -> list[Mapping[str, Any]]:
    return [result for name, result in sorted(results.items()) if name.startswith(prefix)]


# --- longer conversations -------------------------------------------------------------------------


def _longer(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Nothing where no seed was measured."""
    if not runs:
        return []
    minutes = ", ".join(f"{sum(run['seconds'].values()) / 60:.0f}" for run in runs)
    mrl = ", ".join(f"{run['seconds']['mrl']:.0f}" for run in runs)
    steps = ", ".join(str(run["steps_of_supervision"]) for run in runs)
    return [
        "## Longer than supervision",
        prose(f"""`python -m benchmarks.mrl16 SEED`, commit {_commits(runs)}: `configs/mrl16.yaml`
            supervises conversations of up to eight follow-ups; MRL plays a curriculum up to
            sixteen, paid by rewards alone. From the same weights, *supervised* trains on whole
            conversations up to sixteen with their references, for as many seconds as MRL took
            ({mrl}; {steps} steps). All stages with it: {minutes} min. Exact answers on 200 test
            conversations of each length (25 of one follow-up):"""),
        table(
            ("seed", "follow-ups", "before", "MRL", "supervised", "erased", "MRL - before",
             "MRL - supervised"),
            [_length(run, length) for run in runs for length in run["lengths"]],
        ),
        prose(_verdict(runs)),
        prose(_orders(runs)),
        prose("""By length of the curriculum, means over seeds before → after MRL: recall, and the
            mean reward of an answer by component and in all:"""),
        table(
            ("follow-ups", "recall", *COMPONENTS),
            [_step(runs, step) for step in runs[0]["curriculum"]],
        ),
    ]  # fmt: skip


def _length(run: Mapping[str, Any], length: str) -> list[str]:
    found = run["lengths"][length]
    exact = [found[name]["exact"]["all"] for name in ("before", "mrl", "supervised")]
    differences = [found["differences"][f"mrl - {other}"] for other in ("before", "supervised")]
    return [
        f"{run['seed']}",
        length,
        *map(share, exact),
        share(found["mrl"]["erased"]["all"]),
        *(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" for mean, low, high in differences),
    ]


def _verdict(runs: Sequence[Mapping[str, Any]]) -> str:
    """How often differences are beyond their intervals."""

    def beyond(other: str) -> tuple[int, int]:
        found = [
            figures["differences"][f"mrl - {other}"]
            for run in runs
            for figures in run["lengths"].values()
        ]
        return sum(low > 0 for _, low, _ in found), sum(high < 0 for _, _, high in found)

    rows = sum(len(run["lengths"]) for run in runs)
    above, below = beyond("before")
    above_more, below_more = beyond("supervised")
    sooner = "Where there are references, they teach sooner. " if below_more > above_more else ""
    return f"""In {rows} rows MRL is better than before, beyond the interval, in {above} and worse
        in {below}; it is better than more supervision in {above_more} and worse in {below_more}.
        {sooner}MRL ends with its best weights on held-out conversations, and at first these may be
        those it began with."""


def _orders(runs: Sequence[Mapping[str, Any]]) -> str:
    spreads = []
    for run in runs:
        figure = run["lengths"]["16"]["mrl"]
        counts = figure["counts"]["by_order"]
        asked = [key for key, count in counts.items() if key != "all" and count >= MANY]
        shares = [figure["by_order"][key] for key in asked]
        spreads.append(max(shares) - min(shares))
    return f"""After MRL, at sixteen follow-ups, recall by the order in which a conversation told
        its facts differs by {", ".join(map(share, spreads))} between the best and the worst
        place that is asked for {MANY} times or more."""


def _nano(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same at nine million parameters; nothing where it was not measured."""
    return [prose(_larger(run)) for run in runs]


def _larger(run: Mapping[str, Any]) -> str:
    exact = ", ".join(
        f"{' → '.join(share(found[when]['exact']['all']) for when in ENDS)} at {length}"
        for length, found in run["lengths"].items()
    )
    erased = [share(found["mrl"]["erased"]["all"]) for found in run["lengths"].values()]
    return f"""{origin(run)} In size nano, {run["parameters"]:,} parameters, with a third of the
        memory-aware steps and 20 iterations of MRL,
        {sum(run["seconds"].values()) / 60:.0f} min in all, exact answers before → after MRL are
        {exact} (erased {min(erased)} to {max(erased)}): in these steps it does not reach what the
        small model reaches in all of them."""


def _carrying(results: Results) -> list[str]:
    """Nothing where no seed was measured."""
    runs = _runs(results, CARRYING)
    if not runs:
        return []
    rows = [
        (str(run["seed"]), length, *(share(found[when][what]["all"])
                                     for what in ("exact", "carried") for when in ENDS))
        for run in runs
        for length, found in run["lengths"].items()
    ]  # fmt: skip
    sampled = ", ".join(
        f"{share(run['recall_first'])} to {share(run['recall_last'])}" for run in runs
    )
    return [
        "## Memory that another conversation left",
        prose(f"""`python -m benchmarks.mrl_carrying SEED`, commit {_commits(runs)}: supervision
            begins every conversation with fresh memory. From the same weights, 60 iterations of MRL
            up to sixteen follow-ups begin four episodes in five with the memory that another one
            left (`reset_probability: 0.2`). Recall of the answers that it samples went from
            {sampled} (five iterations each). Exact answers, decoded greedily:"""),
        table(
            ("seed", "follow-ups", "fresh: before", "after", "left by another: before", "after"),
            rows,
        ),
    ]


MANY = 50
"""Questions below which a share by order says little."""


def _step(runs: Sequence[Mapping[str, Any]], step: str) -> list[str]:
    def both(figure: str, key: str) -> str:
        ends = (
            fmean(run["curriculum"][step][when][figure][key] for run in runs)
            for when in ("before", "mrl")
        )
        return " → ".join(map(share, ends))

    return [step, both("recall", "all"), *(both("scores", name) for name in COMPONENTS)]


# --- the articles' experiment ---------------------------------------------------------------------


def _articles(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Nothing where no seed was measured."""
    if not runs:
        return []
    rows = [
        (str(run["seed"]), arm, *_ends(found), f"{run['seconds'][arm] / 60:.0f}")
        for run in runs
        for arm, found in run["arms"].items()
    ]
    return [
        "## What MRL starts from",
        prose(f"""`python -m benchmarks.articles_mrl SEED`, commit {_commits(runs)}. The articles
            report, on a scale from 0 to 10, that MRL starts at about 2.0 after all supervised
            stages, climbs from 0.6 to 0.9 without the two that train memory (3 and 4), and starts
            at 4.5 to 5.5 where the decoder reads the last interaction in place of a memory. The
            same here, with their sum of BLEU, cosine and length (at most 9), 45 iterations up to
            eight follow-ups; rewards and recall on 200 test conversations of eight:"""),
        table(
            ("seed", "start", "reward before", "after", "recall before", "after", "erased", "min"),
            rows,
        ),
    ]


def _ends(found: Mapping[str, Any]) -> list[str]:
    rewards = [f"{found[when]['scores']['total']:.2f}" for when in ENDS]
    recall = [
        f"{share(found[when]['recall']['all'])} "
        f"({interval(*found[when]['intervals']['recall']['all'])})"
        for when in ENDS
    ]
    return [*rewards, *recall, share(found["mrl"]["erased"]["all"])]


# --- other algorithms and tasks -------------------------------------------------------------------


def _algorithms(results: Results) -> list[str]:
    """Gains of each algorithm on the demo; nothing where none was measured."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for result in results.values():
        if "recall_before" in result and "algorithm" in result:
            runs.setdefault(result["algorithm"], []).append(result)
    if not runs:
        return []
    rows = [
        (f"`{name}`", f"{len(found)}", *(_over_seeds(found, at) for at in GAINS))
        for name, found in runs.items()
    ]
    every = [run for found in runs.values() for run in found]
    return [
        "## Other algorithms, and a game",
        prose(f"""`python -m benchmarks.algorithms ALGORITHM SEED`, commit {_commits(every)}: 40
            iterations of MRL, paid by recall alone, after memory-aware training that was stopped
            early, with the demo's recipe of that commit. Means over seeds, with the lowest and the
            highest; reward is the mean of five iterations."""),
        table(("algorithm", "seeds", *GAINS.values()), rows),
    ]


def _game(results: Results) -> list[str]:
    """How the reward of the game rose; nothing where it was not measured."""
    runs = _runs(results, "game-")
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


def _commits(runs: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(map(commit, runs)))
