"""docs/text_games_results.md: what small causal models learn of text games."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.text import Results, document, origin, points, prose, runs_of, table

PREFIX = "textworld_"
GROUPS = {
    "learnt": "trained on",
    "unseen": "other simple",
    "coin": "coin",
    "cooking": "cooking",
}


HEADER = ("games", "random", "walkthroughs", "trained", "gain")


def page(results: Results) -> str:
    runs = runs_of(results, PREFIX)
    first = runs[0]
    return document(
        "# Text games: results",
        prose(f"""What small causal language models learn of text games. This page is made from
            `benchmarks/results/` by `python -m benchmarks.pages`. `python -m benchmarks.textworld
            ALGORITHM SEED GAMES` trains a model from scratch with `configs/textworld.yaml`
            ([text_games.md](text_games.md)): on the walkthroughs of seven games of TextWorld
            (tw-simple-42 to 48), then by the score of the games that it plays. *Share of the score*
            is the mean of score / highest score at the end of an episode of at most
            {first["steps_of_an_episode"]} actions, {first["episodes_of_a_game"]} episodes a game,
            with its 95 % interval; *random* plays valid actions that the prompt lists, in the same
            games, with as many steps. *Gain* is that of the trained model over random, by pairs of
            episodes. Machine: 2 CPU cores, no GPU, beside other work."""),
        *(part for run in runs for part in (_title(run), table(HEADER, _rows(run)))),
        points(*map(origin, runs)),
    )


def _title(run: Mapping[str, Any]) -> str:
    games = run["share_of_score"]["learnt"]
    before, after = (games[when]["mean"] for when in ("walkthroughs", "trained"))
    return prose(f"""`{run["algorithm"]}`, seed {run["seed"]}, {run["iterations"]} iterations of
        reinforcement learning: from {before:.2f} after the walkthroughs to {after:.2f} on the games
        that it trains on, and in all:""")


def _rows(run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for group, name in GROUPS.items():
        found = run["share_of_score"].get(group)
        if found is None:
            continue
        after_walkthroughs = found.get("walkthroughs")
        rows.append(
            (
                f"{name} ({len(found['games']['trained'])})",
                _figure(found["random"]),
                "–" if after_walkthroughs is None else _figure(after_walkthroughs),
                _figure(found["trained"]),
                _figure(found["gain_over_random"]),
            )
        )
    return rows


def _figure(figure: Mapping[str, float]) -> str:
    # No minus before zero.
    mean, low, high = (round(figure[name], 2) + 0.0 for name in ("mean", "low", "high"))
    return f"{mean:.2f} ({low:.2f}–{high:.2f})"
