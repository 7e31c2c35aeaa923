"""Two answers that were compared, from files of other programs, as preferences.

`chosen` and `rejected` are answers to `prompt`, or whole dialogues: transcripts (`Human: …
Assistant: …`) or lists of messages. Dialogues agree up to their last answer; what they say before
it is the history. `prompt` may be any of the three as well, and comes before `chosen` and
`rejected` unless they begin with a user. Of two ratings, the margin is the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from common.config.conversion import ComparedFiles
from common.data.checks import NUMBER, Fault, kind_of
from common.data.columns import Layout, columns_of
from common.data.datasets.chat import Pair, pairs_of
from common.data.leftovers import Leftovers
from common.data.messages import Message, as_list, message_faults, messages
from common.data.preferences import LARGEST_MARGIN, Preference, group_of
from common.data.readers import checked_records
from common.data.splits import fraction, text_hash
from common.data.transcripts import is_transcript, transcript_messages
from common.failures import InputError

RATINGS = {
    "chosen": ("chosen_rating", "score_chosen", "chosen_score"),
    "rejected": ("rejected_rating", "score_rejected", "rejected_score"),
}
"""Fields with a rating of an answer."""
FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("prompt", "chosen", "rejected", "group"), str),
    **dict.fromkeys((name for names in RATINGS.values() for name in names), NUMBER),
    "margin": NUMBER,
}
UNASKED = "answers to no prompt"
UNANSWERED = "dialogues that do not end with an answer"
PARTED = "dialogues that part before their last answer"
ALIKE = "answers that are alike"
REVERSED = "rejected answers that are rated better"
TIED = "answers that are rated alike"
UNRATED = "ratings without one of the other answer: no margin"
REPEATED = "preferences that repeat another"


class Compared(NamedTuple):
    train: list[Preference]
    eval: list[Preference]


def convert_preferences(
    sources: Sequence[str], settings: ComparedFiles, left: Leftovers
) -> Compared:
    """Preferences of files, divided by the hash of their groups.

    left: is told of what is left out. Raises InputError where a file is damaged, and where no
    preference is left.
    """
    layout = Layout((FIELDS,), columns_of(settings.columns), keep=True)
    found: dict[tuple[Any, ...], Preference] = {}
    for source in sources:
        records: list[tuple[str, Any]] = []
        checked_records(source, compared_faults, lambda *each, to=records: to.append(each), layout)
        for where, record in records:
            preference = preference_of(record, where, left)
            if preference is None:
                continue
            key = (preference.history, preference.prompt, *preference.answers)
            if key in found:
                left.add(REPEATED, where)
            found.setdefault(key, preference)
    if not found:
        reasons = ", ".join(f"{entry.number} {entry.what}" for entry in left.entries())
        raise InputError(", ".join(sources), f"no preference is left: {reasons}")
    placed = [(fraction(text_hash(each.group)), each) for each in found.values()]
    limit = settings.eval_fraction
    return Compared(
        [each for place, each in placed if place >= limit],
        [each for place, each in placed if place < limit],
    )


def preference_of(record: Mapping[str, Any], where: str, left: Leftovers) -> Preference | None:
    """The preference of a record without `compared_faults`; None where it is left out."""
    prompt = _dialogue(record.get("prompt"), "user", where, left)
    # What one of the sides leaves out, the other does too, and is counted once.
    chosen = _pairs(prompt, record["chosen"], where, left)
    rejected = _pairs(prompt, record["rejected"], where, Leftovers())
    if isinstance(chosen, str) or isinstance(rejected, str):
        left.add(chosen if isinstance(chosen, str) else str(rejected), where)
        return None
    margin = _margin(record, where, left)
    if margin is None:
        return None
    (*history, better), (*other_history, worse) = chosen, rejected
    before = tuple((pair.query, pair.answer) for pair in history)
    if better.query != worse.query or before != tuple(
        (pair.query, pair.answer) for pair in other_history
    ):
        left.add(PARTED, where)
        return None
    if better.answer == worse.answer:
        left.add(ALIKE, where)
        return None
    return Preference(
        better.query,
        (better.answer, worse.answer),
        margin,
        before,
        record.get("group") or group_of(before, better.query),
    )


def _pairs(prompt: Sequence[Message], side: Any, where: str, left: Leftovers) -> list[Pair] | str:
    """The pairs of one side's dialogue, its last answer included; or why there is none."""
    said = _dialogue(side, "assistant", where, left)
    whole = said if any(each.role == "user" for each in said) else [*prompt, *said]
    spoken = [each for each in whole if each.role in ("user", "assistant") and each.text]
    if not any(each.role == "user" for each in spoken):
        return UNASKED
    if spoken[-1].role == "user":
        return UNANSWERED
    return pairs_of(whole, left)


def _dialogue(given: Any, speaker: str, where: str, left: Leftovers) -> list[Message]:
    """Messages of a list or a transcript, or the one message that a text is."""
    if given is None:
        return []
    items = as_list(given)
    if isinstance(items, str) or not _is_messages(items):
        items = (
            transcript_messages(given)
            if is_transcript(given)
            else [{"role": speaker, "content": given}]
        )
    return messages(items, where, left)


def _margin(record: Mapping[str, Any], where: str, left: Leftovers) -> float | None:
    """By how much `chosen` is rated better, 0 where nothing is rated; None where it is not."""
    if record.get("margin") is not None:
        margin = float(record["margin"])
    else:
        better, worse = (
            next((record[name] for name in names if record.get(name) is not None), None)
            for names in RATINGS.values()
        )
        if better is None or worse is None:
            if (better, worse) != (None, None):
                left.add(UNRATED, where)
            return 0.0
        margin = float(better - worse)
        if margin == 0:
            left.add(TIED, where)
            return None
    if margin < 0:
        left.add(REVERSED, where)
        return None
    return margin


# --- faults ---------------------------------------------------------------------------------------


def compared_faults(record: Any) -> Iterator[Fault]:
    """Faults of one record of a file of compared answers. Other fields are passed over."""
    if not isinstance(record, dict):
        yield "record", f"should be an object with chosen and rejected, not {kind_of(record)}"
        return
    for name in ("chosen", "rejected", "prompt"):
        given = record.get(name)
        if given is None:
            if name != "prompt":
                has = ", ".join(record) or "no fields"
                yield name, f"is missing; the record has {has}"
        elif isinstance(given, str):
            if not given.strip():
                yield name, "is empty"
            items = as_list(given)
            if _is_messages(items):
                yield from _messages_faults(items, name)
        elif isinstance(given, list) and given:
            yield from _messages_faults(given, name)
        else:
            yield name, f"should be text or a list of messages, not {kind_of(given)}"
    for name, kind in FIELDS.items():
        value = record.get(name)
        if kind is NUMBER and value is not None:
            if isinstance(value, bool) or not isinstance(value, NUMBER):
                yield name, f"should be a number, not {kind_of(value)}"
            elif not abs(value) <= LARGEST_MARGIN:
                yield name, f"should be a number up to {LARGEST_MARGIN:,}"
    if not isinstance(record.get("group"), str | None):
        yield "group", f"should be text, not {kind_of(record['group'])}"


def _messages_faults(items: Sequence[Any], name: str) -> Iterator[Fault]:
    for i, item in enumerate(items):
        yield from message_faults(item, f"{name}.{i}.")


def _is_messages(items: Any) -> bool:
    return isinstance(items, list) and bool(items) and all(isinstance(i, dict) for i in items)
