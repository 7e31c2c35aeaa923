"""How many facts memory holds: n keys get a value each, some of them another one later, then every
key is asked for once, in an order of its own.

Chance is one of `values`, and a conversation that is recalled whole holds n · log2(values) bits.
Facts per slot of memory are n divided by the slots of the model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from common.config.generation import Capacity
from common.data.datasets.synth import ACKNOWLEDGE, SPLITS, TRIES
from common.data.datasets.world import made_up
from common.data.splits import conversation_hash, fraction
from common.episode import Fact, Interaction, Row
from common.failures import InputError
from common.seeding import derive

OWNERS = (
    "Anna", "Peter", "Maria", "Thomas", "Julia", "David", "Emma", "Paul",
    "Laura", "Martin", "Sophie", "Oscar", "Clara", "Henry", "Ruth", "Victor",
)  # fmt: skip
THINGS = (
    "dog", "cat", "horse", "boat", "house", "garden", "street", "school",
    "doll", "song", "ship", "farm", "shop", "team", "clock", "island",
)  # fmt: skip
SAID = {
    "tell": "the {thing} of {owner} is called {value}",
    "change": "the {thing} of {owner} is now called {value}",
    "ask": "what is the {thing} of {owner} called?",
}


def capacity_rows(settings: Capacity, seed: int) -> dict[str, list[Row]]:
    """Conversations by the name of their file: `train_4`, `eval_4`, …

    Raises InputError where there are too few values for the most facts.
    """
    most = max(settings.facts) + _changes(settings, max(settings.facts))
    if settings.values < most:
        raise InputError(
            "values",
            f"is {settings.values}, but {max(settings.facts)} facts of which "
            f"{_changes(settings, max(settings.facts))} change take {most} different values",
        )
    counts = {"train": settings.train, "eval": settings.eval}
    return {
        f"{split}_{facts}": list(_rows(settings, facts, split, count, seed))
        for facts in settings.facts
        for split, count in counts.items()
        if count
    }


def _changes(settings: Capacity, facts: int) -> int:
    return round(settings.overwritten * facts)


def _rows(settings: Capacity, facts: int, split: str, count: int, seed: int) -> Iterator[Row]:
    """The conversations whose hash names their split, each different."""
    known: set[str] = set()
    for index in range(count):
        for attempt in range(TRIES):
            rng = random.Random(derive(seed, "capacity", split, facts, index, attempt))
            row = conversation(settings, facts, rng)
            digest = conversation_hash(row)
            own = next(name for name, bound in SPLITS.items() if fraction(digest) < bound)
            if own == split and digest not in known:
                break
        else:
            raise InputError(
                split, f"there are only {index} different conversations of {facts} facts"
            )
        known.add(digest)
        yield row


def conversation(settings: Capacity, facts: int, rng: random.Random) -> Row:
    """All that is told, then all that is asked."""
    keys = rng.sample([(owner, thing) for owner in OWNERS for thing in THINGS], facts)
    changing = rng.sample(keys, _changes(settings, facts))
    new = iter(rng.sample(range(settings.values), facts + len(changing)))
    told = [(key, "tell") for key in keys]
    for key in changing:
        # Anywhere after it was told, before the questions begin.
        told.insert(rng.randint(told.index((key, "tell")) + 1, len(told)), (key, "change"))
    held: dict[tuple[str, str], Fact] = {}
    turns = []
    for number, (key, how) in enumerate(told):
        value, old = made_up(next(new)), held.get(key)
        held[key] = Fact(value, number, () if old is None else (*old.outdated, old.value))
        turns.append(Interaction(_said(how, key, value), ACKNOWLEDGE, role="remember"))
    for key in rng.sample(keys, facts):
        fact = held[key]
        turns.append(Interaction(_said("ask", key), fact.value, role="recall", facts=(fact,)))
    opening, *follow_ups = turns
    return Row(opening.query, opening.answer, tuple(follow_ups))


def _said(how: str, key: tuple[str, str], value: str = "") -> str:
    return SAID[how].format(owner=key[0], thing=key[1], value=value)
