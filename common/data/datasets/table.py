"""The kinds of data, one row each: which function makes a corpus of the settings.

A new kind is a section in `common/config/data.py`, a file beside this one, and a row here. Nothing
else asks which kind the settings of data are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.config.data import (
    BabiData,
    Data,
    PreferencesData,
    PromptsData,
    RowsData,
    SgdData,
    SynthData,
)
from common.data.corpus import Corpus
from common.data.datasets.babi import babi_corpus
from common.data.datasets.files import preferences_corpus, rows_corpus
from common.data.datasets.prompts import prompts_corpus
from common.data.datasets.sgd import sgd_corpus
from common.data.datasets.synth import synth_corpus

DATASETS: dict[type, Callable[[Any, int], Corpus]] = {
    SynthData: synth_corpus,
    BabiData: babi_corpus,
    SgdData: sgd_corpus,
    RowsData: rows_corpus,
    PreferencesData: preferences_corpus,
    PromptsData: prompts_corpus,
}


def load_corpus(data: Data, seed: int) -> Corpus:
    """Read or generate the corpus that `data` names; the same settings and seed give the same
    corpus.

    InputError names a file that is missing or wrong.
    """
    return DATASETS[type(data)](data, seed)
