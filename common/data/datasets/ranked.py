"""Public data sets of ranked answers as preferences.

instructions: instruction-data-with-preference.json of rasbt/LLMs-from-scratch (Apache-2.0): one
polite and one rude answer each, by an LLM.
taskmaster: the rewards of Taskmaster-3 and -4 (Google, CC BY 4.0): next actions of a booking agent
that people judged good or bad. Contexts with both kinds give every pair of a good and a bad action,
and all good ones conversations to learn the language from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common.data.decoding import parse_json, read_text
from common.data.preferences import Preference, without_answers_to
from common.data.splits import fraction, text_hash
from common.episode import Interaction, Row
from common.failures import InputError

FOLDS = 4
"""A quarter of the groups is for the final figure."""
INSTRUCTIONS = "instruction-data-with-preference.json"


def load_instructions(folder: str | Path) -> list[Preference]:
    """InputError where the file is missing or is not what it should be."""
    path = Path(folder) / INSTRUCTIONS
    found = []
    for number, record in enumerate(_json(path), 1):
        try:
            prompt = "\n".join(part for part in (record["instruction"], record["input"]) if part)
            chosen, rejected = record["chosen"].strip(), record["rejected"].strip()
        except (KeyError, TypeError, AttributeError) as wrong:
            raise InputError(f"{path}, record {number}", f"lacks a field: {wrong}") from wrong
        if chosen and rejected and chosen != rejected:
            found.append(Preference(prompt, (chosen, rejected), group=text_hash(prompt)))
    return found


@dataclass(frozen=True)
class Judged:
    """Judgements of people about the agent's actions in one context."""

    conversation: str
    history: tuple[tuple[str, str], ...]
    prompt: str
    good: tuple[str, ...]
    """Without those that were judged bad too, by somebody else."""
    bad: tuple[str, ...]

    @property
    def preferences(self) -> list[Preference]:
        """Every pair of a good and a bad action."""
        return [
            Preference(self.prompt, (good, bad), history=self.history, group=self.conversation)
            for good in self.good
            for bad in self.bad
        ]

    @property
    def rows(self) -> list[Row]:
        """A conversation for each good action; none where nothing was said before."""
        if not self.history:
            return []
        opening, *rest = (Interaction(query, answer) for query, answer in self.history)
        return [
            Row(opening.query, opening.answer, (*rest, Interaction(self.prompt, good)))
            for good in self.good
        ]


def load_taskmaster(folder: str | Path) -> list[Judged]:
    """InputError where files are missing or not what they should be."""
    paths = sorted(Path(folder).glob("tm*_reward_*.json.gz"))
    if not paths:
        raise InputError(str(folder), "holds no tm*_reward_*.json.gz")
    judged: dict[str, tuple[str, dict[bool, list[str]]]] = {}
    before: dict[str, list[tuple[str, str]]] = {}
    for path in paths:
        for number, record in enumerate(_json(path), 1):
            try:
                context = record["context"]
                if context not in before:
                    before[context] = interactions(parse_json(context))
                _, actions = judged.setdefault(
                    context, (record["conversation_id"], {True: [], False: []})
                )
                actions[bool(record["reward"] > 0)].append(said(parse_json(record["generation"])))
            except (KeyError, TypeError, ValueError, AttributeError) as wrong:
                raise InputError(
                    f"{path}, record {number}",
                    f"is no judged action: {type(wrong).__name__}: {wrong}",
                ) from wrong
    found = []
    for context, (conversation, actions) in judged.items():
        *history, (prompt, _) = before[context]
        if not prompt:
            continue  # the agent's first words: nobody asked
        good, bad = (
            tuple(dict.fromkeys(each for each in actions[kind] if each not in actions[not kind]))
            for kind in (True, False)
        )
        found.append(Judged(conversation, tuple(history), prompt, good, bad))
    return found


def fold_of(group: str) -> int:
    """One of `FOLDS`, by hash."""
    return int(fraction(text_hash(f"test {group}")) * FOLDS)


class Parts(NamedTuple):
    """Data that a reward model is trained on, and data that it is evaluated on."""

    conversations: list[Row]
    """To learn the language from: all that end with a good action, but for those that answer a
    prompt of the test part."""
    train: list[Preference]
    test: list[Preference]
    """One fold, for the final figure only: another part than what a run holds out to tune on."""


def parts(preferences: Sequence[Preference], judged: Sequence[Judged] = (), fold: int = 0) -> Parts:
    """Put one fold of the groups apart. judged: where preferences came from, if there is more to
    learn from than they hold."""
    test = [preference for preference in preferences if fold_of(preference.group) == fold]
    rows = [row for each in judged if fold_of(each.conversation) != fold for row in each.rows]
    train = [preference for preference in preferences if fold_of(preference.group) != fold]
    return Parts(without_answers_to(rows, test), train, test)


def interactions(turns: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of a message to the agent (from the user, or from a program it called) and its action;
    the last one is not answered yet: (told, "")."""
    done: list[tuple[str, str]] = []
    told: list[str] = []
    did: list[str] = []
    for turn in turns:
        what = said(turn)
        if not what:
            continue  # a turn in which nothing was said
        if turn["role"] == "agent":
            did.append(what)
            continue
        if did:
            # The agent's greeting answers nobody.
            done += [(" ".join(told), " ".join(did))] if told else []
            told, did = [], []
        told.append(what)
    if did:
        done += [(" ".join(told), " ".join(did))] if told else []
        told = ["Go on."]
    return [*done, (" ".join(told), "")]


def said(turn: Mapping[str, Any]) -> str:
    """Text as it is; calls and responses as name(key: value, …)."""
    if "text" in turn:
        return str(turn["text"]).strip()
    calls = turn["api"] if "api" in turn else turn["response"]
    return " ".join(f"{name}({_values(values)})" for name, values in calls.items())


def _values(values: Any) -> str:
    if isinstance(values, Mapping):
        return ", ".join(f"{key}: {_values(value)}" for key, value in values.items())
    if isinstance(values, list):
        return "; ".join(_values(value) for value in values)
    return str(values)


def _json(path: Path) -> list[Any]:
    try:
        records = parse_json(read_text(path))
    except ValueError as unreadable:
        raise InputError(str(path), f"cannot be read as JSON: {unreadable}") from None
    if not isinstance(records, list):
        raise InputError(str(path), "should hold a list of records")
    return records
