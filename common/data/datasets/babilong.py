"""BABILong (Kuratov et al. 2024, arXiv 2406.10149) as conversations.

A record is `{"input", "question", "target"}`, as the data card of `RMT-team/babilong` has it: a
bAbI story within a book, a question, and the answer. The input is told sentence by sentence, in
turns of at most `max_words` words; the question is the only recall. Its facts are the values of the
answer, each said in the last turn that says it. An answer that follows without being said ("yes",
a count) gives no fact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from common.config.conversion import LongFiles
from common.data.checks import Fault, shape_faults
from common.data.datasets.splitting import chunks
from common.data.datasets.synth import ACKNOWLEDGE
from common.data.facts import turns_that_say
from common.data.leftovers import Leftovers
from common.data.readers import placed_records
from common.episode import Fact, Interaction, Role, Row

FIELDS = {"input": str, "question": str, "target": str}
UNSAID = "answers that no sentence says: their questions have no facts"


def babilong_rows(sources: Sequence[str], settings: LongFiles, left: Leftovers) -> list[Row]:
    """A row for each record. Raises InputError where a file is missing or wrong."""
    rows = []
    for source in sources:
        for where, record in placed_records(source, _faults):
            told = chunks(record["input"], settings.max_words, where, left)
            turns = [Interaction(text, ACKNOWLEDGE, role="remember") for text in told]
            turns.append(_question(record, told, where, left))
            rows.append(Row(turns[0].query, turns[0].answer, tuple(turns[1:]), source=source))
    return rows


def _question(
    record: dict[str, Any], told: Sequence[str], where: str, left: Leftovers
) -> Interaction:
    values = [value.strip() for value in record["target"].split(",") if value.strip()]
    facts = []
    for value in dict.fromkeys(values):
        saying, surely = turns_that_say(value, [(text, "") for text in told], values)
        if saying:
            facts.append(Fact(value, (surely or saying)[-1]))
        else:
            left.add(UNSAID, where)
    known = facts if len(facts) == len(set(values)) else []
    role: Role = "recall" if known else "act"
    return Interaction(record["question"], ", ".join(values), None, role, tuple(known))


def _faults(record: Any) -> Iterator[Fault]:
    # Other fields are passed over, as those of any published data set.
    known = (
        {name: record[name] for name in FIELDS if name in record}
        if (isinstance(record, dict))
        else record
    )
    faults = list(shape_faults(known, FIELDS, {}, ""))
    yield from faults
    if not faults:
        yield from ((name, "is empty") for name in FIELDS if not record[name].strip())
