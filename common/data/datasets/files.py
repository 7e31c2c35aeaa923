"""Conversations and preferences in files of the user's own, or under names of `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from common.config.data import PreferencesData, RowsData
from common.config.names import MOST_FOLLOW_UPS
from common.data.columns import columns_of
from common.data.conversations import load_pairs, load_rows, load_texts
from common.data.corpus import Corpus, corpus_of
from common.data.fingerprint import Source
from common.data.preferences import Preference, load_preferences, without_answers_to
from common.data.splits import fraction, text_hash
from common.episode import Row
from common.failures import InputError


def rows_corpus(data: RowsData, seed: int) -> Corpus:
    columns = columns_of(data.columns)
    load = partial(
        load_rows,
        columns=columns,
        max_follow_ups=data.max_follow_ups,
        setting="data.max_follow_ups",
    )
    train, held = _read("train", data.train, load), _read("eval", data.eval, load)
    texts = _read("texts", data.texts, partial(load_texts, columns=columns), "texts")
    pairs = _read("pairs", data.pairs, partial(load_pairs, columns=columns), "pairs")
    corpus = corpus_of(_named(train), _named(held), [], _all(texts), _all(pairs))
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


def _named(sources: Iterable[Source]) -> list[Row]:
    """Conversations that know which source they are from."""
    return [replace(row, source=source.name) for source in sources for row in source.records]


def preferences_corpus(data: PreferencesData, seed: int) -> Corpus:
    load = partial(load_preferences, columns=columns_of(data.columns))
    train_files = _read("train", data.train, load, "preferences")
    eval_files = _read("eval", data.eval, load, "preferences")
    load_bounded = partial(load_rows, max_follow_ups=MOST_FOLLOW_UPS)
    conversations = _read("conversations", data.conversations, load_bounded)
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
    corpus = corpus_of(rows, held_rows, [], texts, pairs)
    files = (*train_files, *eval_files, *conversations)
    return replace(corpus, preferences=train, held_preferences=held, files=files)
