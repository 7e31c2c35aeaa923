"""The part of docs/memory_results.md on conversations of thousands of turns
(benchmarks/long_memory.py) and on how many facts memory holds (benchmarks/capacity.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.text import Results, interval, origin, points, prose, runs_of, share, table

LONG, CAPACITY = "long_memory_", "capacity_"
GATES = {"per_number": "gate per number", "linear": "the articles' gate"}


def sections(results: Results) -> list[str]:
    """Nothing where nothing was measured."""
    return [*_long(runs_of(results, LONG)), *_capacity(runs_of(results, CAPACITY))]


def _long(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not runs:
        return []
    turns = list(dict.fromkeys(turns for run in runs for turns in run["recall"]))
    rows = [
        (f"{int(number):,}", *(cell for run in runs for cell in _at(run["recall"].get(number))))
        for number in turns
    ]
    header = [cell for run in runs for cell in (GATES[run["gate"]], "erased")]
    costs = [
        f"{GATES[run['gate']]} {run['cost']['ratio']:.3f} "
        f"({1000 * run['cost']['conversations'][0]['late']:.1f} ms a turn)"
        for run in runs
    ]
    return [
        "## Thousands of turns",
        prose("""Who is where (task 1 of bAbI, its test file) is told and asked between turns of
            real talk (Topical-Chat). `configs/long_context.yaml` learns it from conversations of 16
            and 32 turns, `benchmarks/long_memory.py` asks in conversations of up to 2,048. Recall
            over all questions by the number of turns, with its 95 % interval; *erased* is without
            memory."""),
        table(("turns", *header), rows),
        prose(f"""Cost of a turn, median of turns 1,900 to 2,048 over the median of turns 50 to 200
            in one process, median of three conversations: {", ".join(costs)}."""),
        points(*map(origin, runs)),
    ]


def _at(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "–", "–"
    low, high = found["intervals"]["recall"]["all"]
    return f"{share(found['recall']['all'])} ({interval(low, high)})", share(found["erased"]["all"])


def _capacity(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not runs:
        return []
    slots, learnt = runs[0]["slots"], runs[0]["learnt"]
    rows = [
        (
            facts,
            f"{int(facts) / slots:.2f}",
            *(cell for run in runs for cell in _held(run["facts"][facts])),
        )
        for facts in runs[0]["facts"]
    ]
    header = [cell for run in runs for cell in (GATES[run["gate"]], "changed", "erased")]
    return [
        "## How many facts memory holds",
        prose(f"""`python -m benchmarks.capacity GATE`: a conversation tells n facts (whose thing
            has which of 64 names), tells a quarter of them anew, and asks for all. Exact answers on
            held-out conversations with 95 % intervals, by n and by facts for each of the {slots}
            slots of a layer; *changed* is recall of facts that were told anew. Trained on
            {", ".join(map(str, learnt))} facts."""),
        table(("facts", "a slot", *header), rows),
        points(*map(origin, runs)),
    ]


def _held(found: Mapping[str, Any]) -> tuple[str, str, str]:
    low, high = found["interval"]
    changed = found["changed"]
    return (
        f"{share(found['exact'])} ({interval(low, high)})",
        "–" if changed is None else share(changed),
        share(found["erased"]),
    )
