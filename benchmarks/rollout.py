"""How fast rollout workers play, and what continuous batching gains over lock-step.

The model of all figures: width 128, 4 layers each of encoder, decoder and memory attention, 8 heads with sSQA 4/4, feed-forward 384,
64 memory slots, vocabulary 4096, dense, float32, random weights; queries of 15 tokens; one thread per worker. Throughput counts
generated tokens, or interactions, over the wall time of whole `ReactiveEngine.run` calls: prefill, encoding and memory writes are in it.
Ratios within one process are of CPU time, which is the same on an idle machine and comparable on a busy one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from common.config.schema import Sampling
from common.data.tokenizer import EOS, SMALLEST_VOCABULARY, ConversationTokenizer, train_tokenizer
from common.episode import Interaction, Row, Task
from common.models.configuration import RxTConfig
from common.models.reactive import ReactiveTransformer
from common.seeding import derive
from rollout.policies.reactive import Playing, ReactiveEngine

QUERY_TOKENS, NEW_TOKENS = 15, 48
MEDIAN_TOKENS, P95_TOKENS, MOST_TOKENS = 12, 48, 200
"""Answer lengths with a long tail: log-normal, cut off."""


def run(seconds: float = 4.0) -> dict[str, float]:
    """All figures of `engram bench rollout`. seconds: about how long each throughput is measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        continuous, occupancy = long_tailed_rate(LongTailed)
        lockstep, _ = long_tailed_rate(LockstepEngine)
        figures = {
            "tokens_per_second_1_thread_16": fixed_rate(16, seconds),
            "tokens_per_second_1_thread_64": fixed_rate(64, seconds),
            "turn_32_over_turn_2": late_over_early_turn(32, 2),
            "continuous_over_lockstep": continuous / lockstep,
            "slot_occupancy": occupancy,
        }
    finally:
        torch.set_num_threads(threads)
    one, two = (workers_rate(count, seconds) for count in (1, 2))
    figures |= {"two_workers_over_one": two / one, "interactions_per_second_2_cores": two / NEW_TOKENS}
    return {name: round(value, 3) for name, value in figures.items()}


# --- what is played -----------------------------------------------------------------------------------------------------


def make_model(max_tokens: int) -> ReactiveTransformer:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 4096, "width": 128, "layers": 4, "heads": 8, "query_heads": 4, "kv_heads": 4}
    model = ReactiveTransformer(RxTConfig(**shape, decoder_ff=384, encoder_ff=384, slots=64, max_tokens=max_tokens))
    # Answers end where the benchmark says, not where random weights do.
    model.decoder.head.bias.data[EOS] = -1e9
    return model.eval().requires_grad_(False)


def make_tokenizer() -> ConversationTokenizer:
    """A byte is a token."""
    return train_tokenizer(["a b"], SMALLEST_VOCABULARY)


def make_tasks(follow_ups: Sequence[int]) -> list[Task]:
    """Conversations of so many follow-ups each; [BOS], [Q], [A] and the space before the text are part of QUERY_TOKENS."""
    query = "x" * (QUERY_TOKENS - 4)
    interaction = Interaction(query, query)
    return [Task(f"task-{i}", Row(query, query, (interaction,) * count), seed=i) for i, count in enumerate(follow_ups)]


# --- throughput with answers of one length --------------------------------------------------------------------------------


def fixed_rate(slots: int, seconds: float) -> float:
    """Tokens per second of one engine with all slots in use: the median over conversations of 8 follow-ups."""
    engine = ReactiveEngine(make_model(QUERY_TOKENS + NEW_TOKENS), make_tokenizer(), slots, Sampling(max_new_tokens=NEW_TOKENS))
    tasks = make_tasks([8] * slots)
    engine.run(make_tasks([1] * slots))
    rates: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(rates) < 3:
        rates.append(_rate(engine, lambda: engine.run(tasks)))
    return statistics.median(rates)


def workers_rate(workers: int, seconds: float) -> float:
    """Tokens per second of `workers` processes together, 32 slots each, all measured over the same stretch of time."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        # Far enough ahead that every process is up and has computed something before.
        start = time.time() + 12
        return sum(pool.map(_worker_rate, [start] * workers, [seconds] * workers))


def _worker_rate(start: float, seconds: float) -> float:
    torch.set_num_threads(1)
    engine = ReactiveEngine(make_model(QUERY_TOKENS + NEW_TOKENS), make_tokenizer(), 32, Sampling(max_new_tokens=NEW_TOKENS))
    tasks = make_tasks([2] * 32)
    engine.run(tasks)
    time.sleep(max(0.0, start - time.time()))
    until = time.perf_counter() + seconds

    def play() -> None:
        while time.perf_counter() < until:
            engine.run(tasks)

    return _rate(engine, play)


def _rate(engine: ReactiveEngine, play: Callable[[], object]) -> float:
    tokens, began = engine.tally.tokens, time.perf_counter()
    play()
    return (engine.tally.tokens - tokens) / (time.perf_counter() - began)


# --- late and early turns -------------------------------------------------------------------------------------------------


class TurnClock(ReactiveEngine):
    """Notes when turns are over; with answers of one length, all slots' turns are over at once."""

    turns: list[float]

    def _turn_over(self, *arguments: Any) -> None:
        super()._turn_over(*arguments)
        self.turns.append(time.process_time())


def late_over_early_turn(late: int, early: int, repeats: int = 5) -> float:
    """CPU time of answering turn `late` over that of turn `early`, memory write included: the median over repeats."""
    engine = TurnClock(make_model(QUERY_TOKENS + NEW_TOKENS), make_tokenizer(), 16, Sampling(max_new_tokens=NEW_TOKENS))
    tasks = make_tasks([late + 1] * 16)
    ratios = []
    for _ in range(repeats):
        engine.turns = []
        engine.run(tasks)
        took = [after - before for before, after in zip(engine.turns, engine.turns[1:], strict=False)]
        ratios.append(took[late - 1] / took[early - 1])
    return statistics.median(ratios)


# --- answers of all kinds of lengths ----------------------------------------------------------------------------------------


class LongTailed(ReactiveEngine):
    """Every answer has a length of its own, drawn for its task and turn."""

    def _room(self, playing: Playing) -> int:
        draw = random.Random(derive(playing.task.seed, "length", playing.conversation.turn))
        sigma = math.log(P95_TOKENS / MEDIAN_TOKENS) / 1.645
        return min(max(1, round(draw.lognormvariate(math.log(MEDIAN_TOKENS), sigma))), MOST_TOKENS)


class LockstepEngine(LongTailed):
    """The same, with all slots going on together: who is ready waits for the longest answer, and is computed meanwhile."""

    def _due(self, ended: list[int]) -> bool:
        return len(ended) == len(self._live)


def long_tailed_rate(kind: type[LongTailed], slots: int = 64, conversations: int = 960) -> tuple[float, float]:
    """Tokens per second of CPU time, and slot occupancy: rows that got a token over slots × steps, from the first step to the last."""
    engine = kind(make_model(QUERY_TOKENS + MOST_TOKENS), make_tokenizer(), slots, Sampling(max_new_tokens=MOST_TOKENS))
    draw = random.Random(0)
    tasks = make_tasks([draw.randint(2, 8) for _ in range(conversations)])
    engine.run(tasks[:slots])
    tally = dataclasses.replace(engine.tally)
    began = time.process_time()
    engine.run(tasks)
    seconds = time.process_time() - began
    occupancy = (engine.tally.row_steps - tally.row_steps) / (engine.tally.slot_steps - tally.slot_steps)
    return (engine.tally.tokens - tally.tokens) / seconds, occupancy


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
