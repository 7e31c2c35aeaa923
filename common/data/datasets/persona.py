"""Persona chats (Zhang et al. 2018; Synthetic-Persona-Chat, Jandaghi et al. 2023) as conversations
that recall who the answering side is.

The lines of the answerer's persona are told first, a turn each ("I have a dog."), answered with
"okay"; then the chat follows. An answer recalls a line where both have a run of words in common:

* the longest run, without function words at its ends, of a line and the answer, in any case;
* with a word of four letters or more that is no function word;
* that stands in no other line, so that it tells which one is recalled;
* that stands neither in the query (no memory is needed then) nor in the answer to an earlier one.

The run is the fact's value, as the answer writes it; its line said it. Conversations without any
are kept: they have no facts, and are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from common.config.conversion import PersonaFiles
from common.data.datasets.dialogues import Dialogue, load_dialogues
from common.data.datasets.synth import ACKNOWLEDGE
from common.data.leftovers import Leftovers
from common.data.splits import conversation_hash, fraction
from common.episode import Fact, Interaction, Row
from common.failures import InputError
from common.text.values import contains_value

NO_PERSONA = "conversations without a persona or an answer"
NO_RECALL = "conversations in which no answer uses a line of the persona"
UNUSED = "lines of a persona that no answer uses"
IN_QUERY = "uses of a line that the query gives away"
SAID_AGAIN = "uses of a line that an earlier turn of the chat says too"
REPEATED = "conversations that repeat another"
LEAST = 4
"""Letters of a word that can tell one line from another."""
_FUNCTION = """
a about after all also am an and any are as at be because been but by can could did do does for
from get go got had has have he her here him his how i i'm i've if in into is it it's its just
know like lot love lots me more most much my no not now of on one or our out over really she so
some than that that's the their them then there they this time to too up us very want was we
well were what when where which who will with would you your yes enjoy favorite thing things
make made people think good great
work works worked working year years
"""
FUNCTION_WORDS = frozenset(_FUNCTION.split())
"""Some content words among them stand in every other line of a persona: love, favorite, people."""


class Converted(NamedTuple):
    train: list[Row]
    eval: list[Row]


def convert_personas(sources: Sequence[str], settings: PersonaFiles, left: Leftovers) -> Converted:
    """Conversations of files, divided by the hash of their words. Raises InputError where a file is
    damaged, and where no conversation is left."""
    rows: dict[str, Row] = {}
    for source in sources:
        for dialogue in load_dialogues(source, left):
            row = persona_row(dialogue, left)
            if row is None:
                left.add(NO_PERSONA, dialogue.where)
                continue
            digest = conversation_hash(row)
            if digest in rows:
                left.add(REPEATED, dialogue.where)
            rows.setdefault(digest, row)
    if not rows:
        raise InputError(
            ", ".join(sources), "holds no conversation with the persona of who answers"
        )
    held = {digest for digest in rows if fraction(digest) < settings.eval_fraction}
    return Converted(
        [row for digest, row in rows.items() if digest not in held],
        [row for digest, row in rows.items() if digest in held],
    )


def persona_row(dialogue: Dialogue, left: Leftovers) -> Row | None:
    """The row of a dialogue; None where it has no persona or no pair."""
    lines = dialogue.answerer
    if not lines or not dialogue.pairs:
        return None
    turns = [Interaction(line, ACKNOWLEDGE, role="remember") for line in lines]
    said: list[str] = []
    used: set[int] = set()
    for query, answer in dialogue.pairs:
        facts: dict[str, Fact] = {}
        for number, line in enumerate(lines):
            value = shared_run(line, answer)
            others = (other for i, other in enumerate(lines) if i != number)
            if value is None or any(contains_value(other, value) for other in others):
                continue
            if contains_value(query, value):
                left.add(IN_QUERY, dialogue.where)
            elif any(contains_value(text, value) for text in said):
                left.add(SAID_AGAIN, dialogue.where)
            else:
                used.add(number)
                facts[value.casefold()] = Fact(value, number)
        said += [query, answer]
        recalled = tuple(facts.values())
        turns.append(
            Interaction(query, answer, role="recall" if recalled else "act", facts=recalled)
        )
    if not used:
        left.add(NO_RECALL, dialogue.where)
    if len(used) < len(lines):
        left.add(UNUSED, dialogue.where, len(lines) - len(used))
    return Row(turns[0].query, turns[0].answer, tuple(turns[1:]), source=dialogue.where)


def shared_run(line: str, answer: str) -> str | None:
    """The longest run of words that a line and an answer share, as the answer writes it; None where
    it has no word that tells one line from another."""
    written = answer.split()
    told, spoken = ([_bare(word) for word in text.split()] for text in (line, answer))
    best: list[str] = []
    for start in range(len(spoken)):
        for other in range(len(told)):
            length = 0
            while (
                start + length < len(spoken)
                and other + length < len(told)
                and spoken[start + length] == told[other + length]
                and spoken[start + length]
            ):
                length += 1
            run = _trimmed(written[start : start + length])
            if len(run) > len(best):
                best = run
    telling = [word for word in map(_bare, best) if len(word) >= LEAST]
    if not any(word not in FUNCTION_WORDS for word in telling):
        return None
    return " ".join(best).strip(".,!?;:\"'()")


def _trimmed(run: Sequence[str]) -> list[str]:
    """A run without the function words at its ends."""
    kept = list(run)
    while kept and _bare(kept[0]) in FUNCTION_WORDS:
        kept.pop(0)
    while kept and _bare(kept[-1]) in FUNCTION_WORDS:
        kept.pop()
    return kept


def _bare(word: str) -> str:
    return word.casefold().strip(".,!?;:\"'()")
