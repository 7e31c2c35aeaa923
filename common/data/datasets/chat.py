"""Conversations of other programs as SFT pairs and MRL rows.

The messages of a role that follow one another are one. A user's message and the assistant's after
it are a pair; the first pair of a conversation is the opening of a row, the others its
interactions. System messages, tools, images and whatever is no pair are left out and counted.

A fact is a value, or `{"value", "said_in"?, "outdated"?}`. Facts in a message belong to its pair.
Facts beside `messages` belong to every pair whose answer says the value without the query doing so.
Either counts from the second pair on, and only where a pair before says the value; `said_in` is the
last one that does, unless it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

from common.config.conversion import ChatFiles
from common.data.columns import Layout, columns_of
from common.data.facts import turns_that_say
from common.data.leftovers import Leftovers
from common.data.messages import FIELDS, Chat, Mention, Message, chat_faults, chats
from common.data.readers import checked_records
from common.data.splits import conversation_hash, fraction
from common.episode import Fact, Interaction, Role, Row
from common.failures import InputError
from common.text.values import contains_value

UNANSWERED = "user's messages without an answer"
UNASKED = "assistant's messages that follow no user's"
NO_TEXT = "pairs with a message without text"
JOINED = "messages of one role in a row, joined"
SYSTEM = "system messages"
TOOLS = "tool results"
NO_PAIR = "conversations without a pair"
SINGLE = "conversations of one pair: for SFT only"
REPEATED = "conversations that repeat another"
UNSAID = "facts that no pair before says"
UNRECALLED = "facts of a conversation that no later answer recalls"
OPENING = "facts in the opening"


@dataclass(frozen=True)
class Pair:
    """A user's message and its answer."""

    query: str
    answer: str
    where: str
    think: str | None = None
    facts: tuple[Mention, ...] = ()

    @property
    def interaction(self) -> Interaction:
        return Interaction(self.query, self.answer, self.think)


class Converted(NamedTuple):
    train: list[Row]
    eval: list[Row]
    pairs: list[Interaction]
    """The pairs of `train`, and those of conversations too short for a row."""


def convert_chats(sources: Sequence[str], settings: ChatFiles, left: Leftovers) -> Converted:
    """Conversations of files, divided by the hash of their words.

    left: is told of what is left out. Raises InputError where a file is damaged, and where no pair
    is left.
    """
    rows: list[Row] = []
    alone: list[Interaction] = []
    seen: set[str] = set()
    for source in sources:
        for row, pair in _of_file(source, settings, left, seen):
            if row is not None:
                rows.append(row)
            if pair is not None:
                alone.append(pair)
    if not rows and not alone:
        reasons = ", ".join(f"{entry.number} {entry.what}" for entry in left.entries())
        raise InputError(", ".join(sources), f"no pair of query and answer is left: {reasons}")
    train, held = _divided(rows, settings.eval_fraction)
    taught = [replace(turn, role="act", facts=()) for row in train for turn in row.turns]
    return Converted(train, held, [*taught, *alone])


def _of_file(
    source: str, settings: ChatFiles, left: Leftovers, seen: set[str]
) -> Iterator[tuple[Row | None, Interaction | None]]:
    """The row of each conversation, or its only pair."""
    found: list[tuple[str, Any]] = []
    checked_records(
        source,
        chat_faults,
        lambda where, record: found.append((where, record)),
        Layout((FIELDS,), columns_of(settings.columns), keep=True),
    )
    for chat in chats(found, left):
        pairs = pairs_of(chat.messages, left)
        if not pairs:
            left.add(NO_PAIR, chat.where)
            continue
        digest = conversation_hash(
            Row(pairs[0].query, pairs[0].answer, tuple(pair.interaction for pair in pairs[1:]))
        )
        if digest in seen:
            left.add(REPEATED, chat.where)
            continue
        seen.add(digest)
        if len(pairs) == 1:
            left.add(SINGLE, chat.where)
            yield None, pairs[0].interaction
            continue
        yield row_of(chat, pairs, left), None


def pairs_of(messages: Sequence[Message], left: Leftovers) -> list[Pair]:
    """The pairs of one conversation, in order."""
    for message in messages:
        if message.role in ("system", "tool"):
            left.add(SYSTEM if message.role == "system" else TOOLS, message.where)
    spoken = [message for message in messages if message.role in ("user", "assistant")]
    merged = [_merged(list(block), left) for _, block in groupby(spoken, lambda each: each.role)]
    pairs: list[Pair] = []
    asked: Message | None = None
    for message in merged:
        if message.role == "user":
            asked = message
        elif asked is None:
            left.add(UNASKED, message.where)
        elif not asked.text or not message.text:
            left.add(NO_TEXT, message.where)
            asked = None
        else:
            facts = (*asked.facts, *message.facts)
            pairs.append(Pair(asked.text, message.text, asked.where, message.think, facts))
            asked = None
    if asked is not None:
        left.add(UNANSWERED, asked.where)
    return pairs


def _merged(block: Sequence[Message], left: Leftovers) -> Message:
    """One message of those that a speaker sent in a row."""
    written = [message for message in block if message.text]
    if len(written) > 1:
        left.add(JOINED, written[1].where, len(written) - 1)
    return Message(
        block[0].role,
        "\n".join(message.text for message in written),
        block[0].where,
        "\n".join(message.think for message in block if message.think) or None,
        tuple(fact for message in block for fact in message.facts),
    )


# --- facts ----------------------------------------------------------------------------------------


def row_of(chat: Chat, pairs: Sequence[Pair], left: Leftovers) -> Row:
    """Two pairs or more as a row. Raises InputError where a fact was said in no pair before it."""
    for _ in pairs[0].facts:
        left.add(OPENING, pairs[0].where)
    known = [fact.value for fact in chat.facts]
    known += [fact.value for pair in pairs for fact in pair.facts]
    unused = dict.fromkeys(fact.value for fact in chat.facts)
    interactions = []
    for turn, pair in enumerate(pairs[1:], 1):
        own = [_placed(fact, pairs[:turn], pair.where, known) for fact in pair.facts]
        for _ in range(own.count(None)):
            left.add(UNSAID, pair.where)
        shared = [
            _placed(fact, pairs[:turn], chat.where, known)
            for fact in chat.facts
            if contains_value(pair.answer, fact.value)
            and not contains_value(pair.query, fact.value)
            and fact.value not in [each.value for each in pair.facts]
        ]
        facts = tuple(fact for fact in (*own, *shared) if fact is not None)
        for fact in facts:
            unused.pop(fact.value, None)
        role: Role = "recall" if facts else "act"
        interactions.append(replace(pair.interaction, role=role, facts=facts))
    for _ in unused:
        left.add(UNRECALLED, chat.where)
    return Row(pairs[0].query, pairs[0].answer, tuple(interactions), pairs[0].think)


def _placed(
    mention: Mention, before: Sequence[Pair], where: str, known: Sequence[str]
) -> Fact | None:
    """The fact with the pair that last said it; None where no pair did."""
    if mention.said_in is None:
        spoken = [(pair.query, pair.answer) for pair in before]
        saying, surely = turns_that_say(mention.value, spoken, known)
        last = (surely or saying)[-1:]
        return Fact(mention.value, last[0], mention.outdated) if last else None
    if mention.said_in >= len(before):
        raise InputError(
            f"{where}, field facts",
            f"said_in of {mention.value!r} is {mention.said_in}, but should be 0 to "
            f"{len(before) - 1}: it counts the pairs before the answer",
        )
    return Fact(mention.value, mention.said_in, mention.outdated)


# --- splits ---------------------------------------------------------------------------------------


def _divided(rows: Sequence[Row], eval_fraction: float) -> tuple[list[Row], list[Row]]:
    """Rows to train on and held-out ones, in their order. A row's hash decides, so that no row
    moves when others are added; of few rows, the one with the least hash is held out."""
    placed = [(fraction(conversation_hash(row)), row) for row in rows]
    limit = eval_fraction
    if eval_fraction and len(rows) > 1 and min(place for place, _ in placed) >= limit:
        limit = sorted(place for place, _ in placed)[1]
    return (
        [row for place, row in placed if place >= limit],
        [row for place, row in placed if place < limit],
    )
