"""From the `data` section of a configuration to the conversations of a run.

Whatever the source, no conversation stands in two splits: what is held out to tune on is chosen by hash, and what a test file
repeats is taken out of training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from common.config.schema import BabiData, Data, PreferencesData, RowsData, SgdData, SynthData
from common.data import babi, sgd, synth
from common.data.preferences import Preference, load_preferences, without_answers_to
from common.data.rows import load_pairs, load_rows, load_texts
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


def load_corpus(data: Data, seed: int) -> Corpus:
    """Read or generate the corpus that `data` names; the same settings and seed give the same corpus.

    InputError names a file that is missing or wrong.
    """
    match data:
        case SynthData():
            splits = synth.generate(data, seed)
            return _corpus(splits["train"], splits["eval"], splits["test"])
        case BabiData():
            told = [story for task in data.tasks for story in babi.load(data.folder, task, "train", data.max_questions)]
            test = [story.row for task in data.tasks for story in babi.load(data.folder, task, "test", data.max_questions)]
            corpus = _carved([(conversation_hash(story.row), story.row) for story in told], test, data.eval_fraction)
            learnt = set(corpus.train)
            stories = [story for story in told if story.row in learnt]
            read = [pair for story in stories for pair in babi.reading_pairs(story)]
            held = {conversation_hash(row) for row in corpus.eval + corpus.test}
            parts = [part for story in stories for part in babi.windows(story) if conversation_hash(part) not in held]
            return replace(
                corpus,
                train=corpus.train + parts,
                pairs=corpus.pairs + read,
                texts=corpus.texts + [f"{pair.query} {pair.answer}" for pair in read],
            )
        case SgdData():
            train = _short(sgd.load(data.folder, "train"), data.max_follow_ups, "train")
            test = [confirmation.row for confirmation in _short(sgd.load(data.folder, "dev"), data.max_follow_ups, "dev")]
            return _carved([(text_hash(each.dialogue), each.row) for each in train], test, data.eval_fraction)
        case PreferencesData():
            return _preferences(data)
        case RowsData():
            return _corpus(
                [row for source in data.train for row in load_rows(source)],
                [row for source in data.eval for row in load_rows(source)],
                [],
                [text for source in data.texts for text in load_texts(source)],
                [pair for source in data.pairs for pair in load_pairs(source)],
            )


def _preferences(data: PreferencesData) -> Corpus:
    told = [preference for source in data.train for preference in load_preferences(source)]
    held = [preference for source in data.eval for preference in load_preferences(source)]
    if held:
        groups = {preference.group for preference in held}
        train = [preference for preference in told if preference.group not in groups]
    else:
        train = [preference for preference in told if fraction(text_hash(preference.group)) >= data.eval_fraction]
        held = [preference for preference in told if fraction(text_hash(preference.group)) < data.eval_fraction]
    if not train or not held:
        raise InputError("data", f"{len(told)} preferences leave {len(train)} to train on and {len(held)} held out; both need some")
    # The stages before learn from all answers alike. A policy that has seen the better ones alone would make a reward model that knows them
    # by that, and is lost where it has seen neither.
    rows, held_rows = ([row for each in part for row in each.rows] for part in (train, held))
    rows += without_answers_to([row for source in data.conversations for row in load_rows(source)], [*train, *held])
    turns = [turn for each in train for turn in (*each.earlier, *each.answered)] + [turn for row in rows for turn in row.turns]
    pairs = list(dict.fromkeys(turns))
    texts = list(dict.fromkeys([part for pair in pairs for part in (pair.query, pair.answer)]))
    corpus = _corpus(rows, held_rows, [], texts, pairs)
    return replace(corpus, preferences=train, held_preferences=held)


def _corpus(
    train: list[Row], eval_rows: list[Row], test: list[Row], texts: Sequence[str] = (), pairs: Sequence[Interaction] = ()
) -> Corpus:
    """A corpus whose texts and pairs are the interactions of its training conversations where none are given."""
    told = [turn for row in train for turn in row.turns]
    lines = texts or [part for turn in told for part in (turn.query, turn.answer)]
    return Corpus(train, eval_rows, test, list(lines), list(pairs or told))


def _carved(keyed: list[tuple[str, Row]], test: list[Row], eval_fraction: float) -> Corpus:
    """Held-out rows carved from training rows by the hash of what must not be divided."""
    known = {conversation_hash(row) for row in test}
    new = [(key, row) for key, row in keyed if conversation_hash(row) not in known]
    held = [row for key, row in new if fraction(key) < eval_fraction]
    if not held:
        raise InputError("data.eval_fraction", f"{eval_fraction} of {len(new)} conversations leaves none to tune on")
    return _corpus([row for key, row in new if fraction(key) >= eval_fraction], held, test)


def _short(found: list[sgd.Confirmation], max_follow_ups: int, part: str) -> list[sgd.Confirmation]:
    kept = [confirmation for confirmation in found if len(confirmation.row.interactions) <= max_follow_ups]
    left_out = len(found) - len(kept)
    log.info("SGD %s: %d of %d conversations left out for more than %d follow-ups", part, left_out, len(found), max_follow_ups)
    return kept
