"""From the `data` section of a configuration to the conversations of a run.

Whatever the source, no conversation stands in two splits: what is held out to tune on is chosen by
hash, and what a test file repeats is taken out of training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from common.config.data import BabiData, Data, PreferencesData, RowsData, SgdData, SynthData
from common.data.conversations import load_pairs, load_rows, load_texts
from common.data.datasets import babi, sgd, synth
from common.data.fingerprint import Source
from common.data.preferences import Preference, load_preferences, without_answers_to
from common.data.splits import conversation_hash, fraction, text_hash
from common.episode import Interaction, Row
from common.failures import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Corpus:
    """All text of a run."""

    train: list[Row]
    eval: list[Row]
    """To tune on, and for the figures during a run."""
    test: list[Row]
    """For the final figure only; empty where the source has none."""
    texts: list[str]
    """For joint LM pre-training and for training the tokenizer."""
    pairs: list[Interaction]
    """For SFT."""
    preferences: list[Preference] = field(default_factory=list)
    """For a reward model."""
    held_preferences: list[Preference] = field(default_factory=list)
    patterns: dict[str, list[Row]] = field(default_factory=dict)
    """Splits of one pattern of change each (common/data/datasets/synth.py)."""
    files: tuple[Source, ...] = ()
    """Where the data came from, one by one, if the configuration names them so."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that decides what the run learns from and is measured on, for `fingerprint`."""
        return self.files or tuple(
            Source("data", f"split {name}", "conversations", rows)
            for name, rows in (("train", self.train), ("eval", self.eval))
        )


def load_corpus(data: Data, seed: int) -> Corpus:
    """Read or generate the corpus that `data` names; the same settings and seed give the same
    corpus.

    InputError names a file that is missing or wrong.
    """
    match data:
        case SynthData():
            splits = synth.generate(data, seed)
            corpus = _corpus(splits["train"], splits["eval"], splits["test"])
            return replace(
                corpus, patterns={name: splits[name] for name in synth.PATTERNS if name in splits}
            )
        case BabiData():
            told = [
                story
                for task in data.tasks
                for story in babi.load(data.folder, task, "train", data.max_questions)
            ]
            test = [
                story.row
                for task in data.tasks
                for story in babi.load(data.folder, task, "test", data.max_questions)
            ]
            corpus = _carved(
                [(conversation_hash(story.row), story.row) for story in told],
                test,
                data.eval_fraction,
            )
            learnt = set(corpus.train)
            stories = [story for story in told if story.row in learnt]
            read = [pair for story in stories for pair in babi.reading_pairs(story)]
            held = {conversation_hash(row) for row in corpus.eval + corpus.test}
            parts = [
                part
                for story in stories
                for part in babi.windows(story)
                if conversation_hash(part) not in held
            ]
            return replace(
                corpus,
                train=corpus.train + parts,
                pairs=corpus.pairs + read,
                texts=corpus.texts + [f"{pair.query} {pair.answer}" for pair in read],
            )
        case SgdData():
            train = _short(sgd.load(data.folder, "train"), data.max_follow_ups, "train")
            test = [
                confirmation.row
                for confirmation in _short(sgd.load(data.folder, "dev"), data.max_follow_ups, "dev")
            ]
            return _carved(
                [(text_hash(each.dialogue), each.row) for each in train], test, data.eval_fraction
            )
        case PreferencesData():
            return _preferences(data)
        case RowsData():
            return _rows(data)


def _rows(data: RowsData) -> Corpus:
    train, held = _read("train", data.train, load_rows), _read("eval", data.eval, load_rows)
    texts, pairs = (
        _read("texts", data.texts, load_texts, "texts"),
        _read("pairs", data.pairs, load_pairs, "pairs"),
    )
    held_rows = [replace(row, source=source.name) for source in held for row in source.records]
    corpus = _corpus(_all(train), held_rows, [], _all(texts), _all(pairs))
    return replace(corpus, files=(*train, *held, *texts, *pairs))


def _read(
    key: str,
    names: Sequence[str],
    load: Callable[[str], Sequence[Any]],
    unit: str = "conversations",
) -> list[Source]:
    """The sources that the setting `data.KEY` names, read one after another. unit: what their
    records are."""
    return [Source(f"data.{key}", name, unit, load(name)) for name in names]


def _all(sources: Iterable[Source]) -> list[Any]:
    return [record for source in sources for record in source.records]


def _preferences(data: PreferencesData) -> Corpus:
    train_files = _read("train", data.train, load_preferences, "preferences")
    eval_files = _read("eval", data.eval, load_preferences, "preferences")
    conversations = _read("conversations", data.conversations, load_rows)
    told: list[Preference] = _all(train_files)
    held: list[Preference] = _all(eval_files)
    if held:
        groups = {preference.group for preference in held}
        train = [preference for preference in told if preference.group not in groups]
    else:
        train = [
            preference
            for preference in told
            if fraction(text_hash(preference.group)) >= data.eval_fraction
        ]
        held = [
            preference
            for preference in told
            if fraction(text_hash(preference.group)) < data.eval_fraction
        ]
    if not train or not held:
        raise InputError(
            "data",
            f"{len(told)} preferences leave {len(train)} to train on and {len(held)} held out; "
            "both need some",
        )
    # The stages before learn from all answers alike. A policy that has seen the better ones alone
    # would make a reward model that knows them by that, and is lost where it has seen neither.
    rows, held_rows = ([row for each in part for row in each.rows] for part in (train, held))
    rows += without_answers_to(_all(conversations), [*train, *held])
    turns = [turn for each in train for turn in (*each.earlier, *each.answered)] + [
        turn for row in rows for turn in row.turns
    ]
    pairs = list(dict.fromkeys(turns))
    texts = list(dict.fromkeys([part for pair in pairs for part in (pair.query, pair.answer)]))
    corpus = _corpus(rows, held_rows, [], texts, pairs)
    files = (*train_files, *eval_files, *conversations)
    return replace(corpus, preferences=train, held_preferences=held, files=files)


def _corpus(
    train: list[Row],
    eval_rows: list[Row],
    test: list[Row],
    texts: Sequence[str] = (),
    pairs: Sequence[Interaction] = (),
) -> Corpus:
    """A corpus whose texts and pairs are the interactions of its training conversations where none
    are given."""
    told = [turn for row in train for turn in row.turns]
    lines = texts or [part for turn in told for part in (turn.query, turn.answer)]
    return Corpus(train, eval_rows, test, list(lines), list(pairs or told))


def _carved(keyed: list[tuple[str, Row]], test: list[Row], eval_fraction: float) -> Corpus:
    """Held-out rows carved from training rows by the hash of what must not be divided."""
    known = {conversation_hash(row) for row in test}
    new = [(key, row) for key, row in keyed if conversation_hash(row) not in known]
    held = [row for key, row in new if fraction(key) < eval_fraction]
    if not held:
        raise InputError(
            "data.eval_fraction",
            f"{eval_fraction} of {len(new)} conversations leaves none to tune on",
        )
    return _corpus([row for key, row in new if fraction(key) >= eval_fraction], held, test)


def _short(found: list[sgd.Confirmation], max_follow_ups: int, part: str) -> list[sgd.Confirmation]:
    kept = [
        confirmation
        for confirmation in found
        if len(confirmation.row.interactions) <= max_follow_ups
    ]
    left_out = len(found) - len(kept)
    log.info(
        "SGD %s: %d of %d conversations left out for more than %d follow-ups",
        part,
        left_out,
        len(found),
        max_follow_ups,
    )
    return kept
