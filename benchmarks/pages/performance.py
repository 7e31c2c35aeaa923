"""docs/performance.md: rates of the rollout engine and of the reward service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.text import Results, document, measured, number, points, prose, table

ROLLOUT = {
    "tokens_per_second_1_thread_16": "generation, tokens/s, one thread, 16 episodes at once",
    "tokens_per_second_1_thread_64": "the same, 64 episodes at once",
    "tokens_per_second_1_thread_16_with_writes": "with memory writes, 16 episodes at once",
    "tokens_per_second_1_thread_64_with_writes": "with memory writes, 64 episodes at once",
    "two_workers_over_one": "two workers over one, 32 episodes each",
    "two_workers_over_one_64": "two workers over one, 64 episodes each",
    "interactions_per_second_2_cores": "interactions/s, two workers, memory writes and rewards",
    "continuous_over_lockstep": "continuous batching over lock-step, generation",
    "continuous_over_lockstep_with_writes": "the same with memory writes",
    "continuous_over_lockstep_4_follow_ups": "conversations of 4 follow-ups, generation",
    "continuous_over_lockstep_4_follow_ups_with_writes": "the same with memory writes",
    "slot_occupancy": "slot occupancy",
    "turn_32_over_turn_2": "time of turn 32 over time of turn 2",
    "turn_32_over_turn_2_memory": "peak memory at turn 32 over peak memory at turn 2",
}
REWARDS = {
    "bleu_turns_per_second_256": "two BLEU-4 scores a turn, batches of 256, turns/s",
    "bleu_turns_per_second_16": "the same, batches of 16",
    "composed_turns_per_second_256": "all components and their metrics, batches of 256, turns/s",
    "two_workers_over_one": "two workers over one, under Ray",
}
AIMS = {
    "tokens_per_second_1_thread_16": "4,500",
    "tokens_per_second_1_thread_64": "8,000",
    "two_workers_over_one": "1.8",
    "interactions_per_second_2_cores": "130",
    "continuous_over_lockstep": "2.5",
    "slot_occupancy": "0.9",
    "turn_32_over_turn_2": "≤ 1.05",
    "turn_32_over_turn_2_memory": "≤ 1.05",
    "bleu_turns_per_second_256": "30,000",
    "bleu_turns_per_second_16": "10,000",
    "composed_turns_per_second_256": "15,000",
}
PHASES = {
    "decode": "decoding",
    "write": "memory writes",
    "sample": "sampling",
    "prefill": "prompts",
    "sync": "waiting",
    "other": "bookkeeping",
}
WATCHING = {
    "observation": "one observation of a metric",
    "row": "one row: merged over two ranks, written and shown to Prometheus",
    "scrape": "one scrape, every 5 s",
    "metrics": "metrics, all of it",
    "page_look": "page: one look at the files, every second",
    "page_iteration": "page: one row and the episodes of an iteration read",
    "page_section": "page: the dearest section, after a row",
    "page_section_iteration": "page: the dearest section, after an iteration",
    "page": "page, all of it",
    "all": "all together",
}
NOT_MEASURED = "not measured"


def page(results: Results) -> str:
    rollout, rewards = results["rollout"], results["rewards"]
    return document(
        "# Performance",
        prose("""How fast engram plays conversations and computes rewards, and what watching it
            costs. This page is made from `benchmarks/results/` by `python -m benchmarks.pages`;
            earlier measurements and what was tried are in
            [benchmarks/LOG.md](../benchmarks/LOG.md)."""),
        prose("""Figures are medians of at least five repeats; compared programs run in turn. Rates
            depend on the machine, and on virtual machines they vary by a third within an hour.
            Ratios vary less. `aim` is the lowest acceptable value on two cores. Measure your
            machine with `engram bench rollout` and `engram bench rewards`; `--record
            benchmarks/results` writes what this page is made from."""),
        "## Rollout",
        measured(rollout),
        prose("""Model: width 128, 4 layers, 8 heads, 64 memory slots, vocabulary 4,096, float32,
            random weights. Queries have 15 tokens, answers 48. *Generation* counts new tokens
            over all time except memory writes."""),
        _figures(rollout["figures"], ROLLOUT),
        "For a user:",
        points(
            """Continuous batching makes the time of a batch independent of its longest answer:
            a free slot takes the next query or the next conversation at once.""",
            """The cost of a turn does not grow with the conversation: memory has a fixed size, so
            turn 32 takes the time and the memory of turn 2.""",
            """On a CPU, 16 episodes at once per worker (`rollout.slots`) are enough: 64 are not
            faster. A second worker on a second core nearly doubles the rate.""",
        ),
        "Share of one thread's time (*waiting*: for the device):",
        _shares(rollout["figures"]),
        "## GPU",
        _gpu(rollout["figures"]),
        "## Rewards",
        measured(rewards),
        prose("""A turn has 40 to 64 tokens in its answer and in its reference, and asks for one
            value. Rates are those of one thread."""),
        _figures(rewards["figures"], REWARDS),
        prose("""For a user: one reward worker scores far more turns than the rollout workers of
            the same machine produce. More workers pay off with reward models, slow functions or
            endpoints, which these figures leave out."""),
        *_watching(results["metrics"]),
    )


def _watching(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What metrics and an open page cost a run."""
    figures = result["figures"]
    rows = [
        (what, f"{figures[f'{name}_ms']:.3g}" if f"{name}_ms" in figures else "",
         f"{figures[f'{name}_share']:.2%}")
        for name, what in WATCHING.items()
    ]  # fmt: skip
    return (
        "## Metrics and the page",
        measured(result),
        prose("""CPU time of the run's side: recording, `metrics.jsonl`, Prometheus, and the server
            of an `engram view` whose dearest section is open from the first step to the last. The
            browser is not counted. Each is measured alone, the least of its repeats, with every
            series of the registry, and multiplied by how often a run of `configs/demo.yaml` does
            it; shares are of that run's CPU time. Together they may be 1 % of it."""),
        table(("part", "ms each", "share of a demo's CPU time"), rows),
    )


def _figures(figures: Mapping[str, Any], names: Mapping[str, str]) -> str:
    rows = [
        (what, number(figures[name]), AIMS.get(name, "")) for name, what in names.items()
        if name in figures
    ]  # fmt: skip
    return table(("figure", "measured", "aim"), rows)


def _shares(figures: Mapping[str, Any]) -> str:
    rows = [
        (f"{slots}", *(f"{figures[f'share_{phase}_{slots}']:.0%}" for phase in PHASES))
        for slots in (16, 64)
    ]
    return table(("episodes at once", *PHASES.values()), rows)


def _gpu(figures: Mapping[str, Any]) -> str:
    """Rates by size and slots, where the benchmark ran on a machine with a GPU."""
    rows = []
    for name, rate in figures.items():
        if name.startswith("gpu_") and name.endswith("_tokens_per_second"):
            which = name.removesuffix("_tokens_per_second")
            _, size, slots = which.split("_")
            bandwidth = figures[f"{which}_bandwidth_share"]
            rows.append((size, slots, number(rate), f"{bandwidth:.0%}"))
    if not rows:
        return prose(f"""{NOT_MEASURED.capitalize()}. `engram bench rollout` measures decoding on
            a GPU where there is one, in bfloat16 with CUDA graphs.""")
    return table(("size", "slots", "tokens/s", "share of memory bandwidth"), rows)
