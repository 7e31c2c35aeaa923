"""Memory over thousands of turns: recall against turns, and whether a late turn costs more than an
early one.

    python -m benchmarks.long_memory CHECKPOINT [--facts FILE …] [--talk FILE …] [--turns N …]
        [--conversations N] [--name NAME]

Recall is measured on conversations of each number of turns, in which a story of FILE (bAbI;
without one, generated) is spread among other talk. The cost is that of one conversation of 2,048
turns, three times: the median of turns 1,900 to 2,048 over the median of turns 50 to 200, which ask
the same queries. Writes benchmarks/results/long_memory_NAME.json.

    python -m benchmarks.long_memory --untrained [--turns N …]

tries all of it on a tiny model with random weights and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.record import record
from common.config.generation import LongContext
from common.config.rollout import Sampling
from common.data.conversations import value_counts
from common.data.datasets.long_context import long_contexts
from common.data.datasets.world import long_talk
from common.data.leftovers import Leftovers
from common.data.tokenizer import train_tokenizer
from common.episode import Row
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.storage.checkpoint import open_checkpoint
from common.telemetry.progress import QuietProgress
from learner.evaluation.evaluate import evaluate
from learner.evaluation.figures import figures_json
from learner.evaluation.measure import run_of, training_values
from learner.evaluation.parts import Player
from learner.evaluation.scoring_player import ScoringPlayer
from learner.policies.table import open_policy
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.reactive.session import Session
from rollout.protocols import Session as AnySession

TURNS = (16, 32, 128, 512, 2048)
EARLY, LATE = (50, 200), (1900, 2048)
"""The turns whose medians are compared; both hold about as many."""
REPEATS = 3


def turn_seconds(session: AnySession, queries: Sequence[str], turns: int) -> list[float]:
    """Seconds of each turn of a conversation, answer and write, whose queries come again and
    again."""
    session.reset()
    seconds = []
    for number in range(turns):
        started = time.perf_counter()
        for _ in session.respond(queries[number % len(queries)]):
            pass
        seconds.append(time.perf_counter() - started)
    return seconds


def growth(
    seconds: Sequence[float], early: tuple[int, int] = EARLY, late: tuple[int, int] = LATE
) -> dict[str, float]:
    """Medians of early and late turns, counted from 1, and the ratio of late to early."""
    medians = [statistics.median(seconds[first - 1 : last]) for first, last in (early, late)]
    return {"early": medians[0], "late": medians[1], "ratio": medians[1] / medians[0]}


def cost(
    open_session: Callable[[], AnySession], fits: Callable[[str], bool], turns: int = LATE[1]
) -> dict[str, Any]:
    """`growth` of each of three conversations, and the median of their ratios. fits: whether a
    query leaves room for an answer."""
    queries = [query for query, _ in long_talk() if fits(query)][: EARLY[1] - EARLY[0]]
    late = (turns - (LATE[1] - LATE[0]), turns)
    found = [
        growth(turn_seconds(open_session(), queries, turns), late=late) for _ in range(REPEATS)
    ]
    ratios = [each["ratio"] for each in found]
    return {"conversations": found, "ratio": statistics.median(ratios), "turns": turns}


def recall(
    player: Callable[[int], Player], rows: dict[str, list[Row]], values: Sequence[str]
) -> dict[str, Any]:
    """Recall by distance with memory kept and erased, and exact answers, by number of turns.
    player: of so many conversations."""
    found = {}
    for name, part in rows.items():
        each = evaluate(player(len(part)), part, 0, values)
        chosen = {
            "recall": each.figures["recall"],
            "erased": each.erased["recall"],
            "exact": each.figures["exact"],
        }
        found[name.removeprefix("eval_")] = figures_json(chosen)
    return found


def conversations(settings: LongContext) -> dict[str, list[Row]]:
    """Conversations by the name of their file."""
    return long_contexts(settings, 0, Leftovers())


def measured(where: str, settings: LongContext) -> dict[str, Any]:
    """Recall and cost of a checkpoint."""
    rows, checkpoint = conversations(settings), open_checkpoint(where)
    directory = run_of(checkpoint.where)
    run = directory.run() if directory else None
    every = [row for part in rows.values() for row in part]
    values = list(training_values(directory) if directory else value_counts(every))

    def player(count: int) -> ScoringPlayer:
        return ScoringPlayer(checkpoint, run, None, values, count, QuietProgress())

    one, opened = player(1), open_policy(checkpoint)
    one.require_fitting(every, "conversations of all numbers of turns")
    policy = opened.playing(one.rollout)

    def fits(query: str) -> bool:
        return len(opened.tokenizer.prompt(query)) < opened.max_tokens

    told = {"seed": run.seed, "gate": run.model.residual_gate} if run else {}
    return told | {
        "recall": recall(player, rows, values),
        "cost": cost(lambda: policy.session(0), fits),
    }


def untrained(settings: LongContext) -> dict[str, Any]:
    """The same of a tiny model with random weights; the cost over as many turns as recall has at
    most, from 400 on."""
    rows = conversations(settings)
    told = [turn for part in rows.values() for row in part for turn in row.turns]
    texts = [text for turn in told for text in (turn.query, turn.answer)]
    tokenizer = train_tokenizer([*texts, *(query for query, _ in long_talk())], 512)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "query_heads": 2, "kv_heads": 2}
    shape |= {"decoder_ff": 48, "encoder_ff": 48, "slots": 8, "max_tokens": 96}
    model = ReactiveTransformer(RxTConfig(vocab_size=tokenizer.vocab_size, **shape)).eval()
    sampling = Sampling(max_new_tokens=2)
    engine = ReactiveEngine(model, tokenizer, 8, sampling)
    session = Session(model, tokenizer, 0, sampling, greedy=True)
    turns = max(400, *settings.turns)
    return {
        "recall": recall(lambda _: engine.run, rows, ()),
        "cost": cost(lambda: session, lambda _: True, turns),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--facts", nargs="*", default=[])
    parser.add_argument("--talk", nargs="*", default=[])
    parser.add_argument("--turns", nargs="*", type=int, default=TURNS)
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--name", default="run")
    given = parser.parse_args()
    if bool(given.checkpoint) == given.untrained:
        parser.error("give a checkpoint, or --untrained")
    chosen = LongContext(
        turns=tuple(given.turns),
        eval=given.conversations,
        facts=tuple(given.facts),
        eval_facts=tuple(given.facts),
        talk=tuple(given.talk),
    )
    if given.untrained:
        result = untrained(chosen)
    else:
        result = measured(given.checkpoint, chosen)
        command = f"python -m benchmarks.long_memory CHECKPOINT --conversations {chosen.eval}"
        record(f"long_memory_{given.name}", command, result)
    for turns, figures in result["recall"].items():
        print(turns, "turns: recall", figures["recall"], "of", figures["counts"]["recall"]["all"])
    print("late over early turns:", round(result["cost"]["ratio"], 3))
