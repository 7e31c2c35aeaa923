"""Settings of the data and of the tokenizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from common.config.locations import DataSource, Location
from common.config.section import Section


class SynthData(Section):
    """Generated conversations with facts: statements, distractors, changes of mind, and questions
    about them."""

    kind: Literal["synth"] = "synth"
    """Which kind of data this is."""
    train: int = Field(4000, ge=1)
    """Conversations in the training split."""
    eval: int = Field(200, ge=1)
    """Conversations held out for evaluation; as many again are kept for the final figure."""
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((5,), min_length=1)
    """Numbers of follow-ups; conversations are spread evenly over them."""
    strategies: tuple[Literal["single", "cumulative", "long_term"], ...] = Field(
        ("cumulative",), min_length=1
    )
    """Spread evenly over conversations."""
    subjects: int = Field(6, ge=1, le=24)
    """How many kinds of things (dog, city, job, …) facts can be about."""
    values: int = Field(12, ge=2, le=48)
    """How many values each kind of thing can have."""
    changed_questions: float = Field(0.5, ge=0, le=1)
    """Share of questions that ask for a fact that changed, as far as the length of a conversation
    leaves room for a change."""
    change_probability: float = Field(0.2, ge=0, le=1)
    """Probability that a turn in the middle changes a fact told before."""
    distractors: float = Field(0.3, ge=0, le=1)
    """Share of middle turns that are small talk."""
    patterns: int = Field(0, ge=0)
    """Conversations of each pattern of change, held out in splits of their own (`engram data
    synth`)."""


class BabiData(Section):
    """The bAbI tasks (Weston et al. 2015) as cumulative conversations: statements and questions in
    separate turns."""

    kind: Literal["babi"] = "babi"
    """Which kind of data this is."""
    folder: Location
    """Folder with qa*_train.txt and qa*_test.txt."""
    tasks: tuple[int, ...] = (1,)
    """Task numbers 1–20 to train on; each needs its train file."""
    max_questions: int = Field(5, ge=1, le=5)
    """Questions kept per story."""
    eval_fraction: float = Field(0.02, gt=0, lt=0.5)
    """Share of training stories held out to tune on; the test files are for the final figure
    only."""


class SgdData(Section):
    """Schema-Guided Dialogue (Rastogi et al. 2020), compact files: recall points are the turns that
    confirm slots told earlier."""

    kind: Literal["sgd"] = "sgd"
    """Which kind of data this is."""
    folder: Location
    """Folder with sgd_compact_train.jsonl.gz and sgd_compact_dev.jsonl.gz."""
    max_follow_ups: int = Field(8, ge=1)
    """Longer conversations are left out, and counted."""
    eval_fraction: float = Field(0.02, gt=0, lt=0.5)
    """Share of training dialogues held out to tune on; the dev file is for the final figure
    only."""


class RowsData(Section):
    """Your own conversations: MRL rows as JSONL or Parquet files, or names of `datasets`."""

    kind: Literal["rows"] = "rows"
    """Which kind of data this is."""
    train: tuple[DataSource, ...]
    """Conversations to train on."""
    eval: tuple[DataSource, ...]
    """Conversations to evaluate on during and after the run; keep them apart from those to train
    on."""
    texts: tuple[DataSource, ...] = ()
    """Files of {"text"} for joint LM pre-training; empty: the training conversations'
    interactions."""
    pairs: tuple[DataSource, ...] = ()
    """Files of {"query", "answer"} or "[Q] … [A] …" text for SFT; empty: the training
    conversations' interactions."""


class PreferencesData(Section):
    """Answers that people ranked, for a reward model: JSONL or Parquet files of {"prompt",
    "chosen", "rejected", "margin"?}, or of {"prompt", "answers"} from best to worst, either with
    "history"?; or names of `datasets`. Stages before the reward model train on all answers
    alike."""

    kind: Literal["preferences"] = "preferences"
    """Which kind of data this is."""
    train: tuple[DataSource, ...] = Field(min_length=1)
    """To train on."""
    eval: tuple[DataSource, ...] = ()
    """Held out; empty: a share of `train`."""
    eval_fraction: float = Field(0.2, gt=0, lt=0.5)
    """Share of `train` that is held out where `eval` is empty, by hash of the group, so that no
    group is divided."""
    conversations: tuple[DataSource, ...] = ()
    """Files of conversations (MRL rows) that the stages before the reward model train on as well,
    without those that answer a prompt of the preferences."""


Data = Annotated[
    SynthData | BabiData | SgdData | RowsData | PreferencesData, Field(discriminator="kind")
]


class Tokenizer(Section):
    vocab_size: int = Field(1024, ge=264)
    """Upper bound, special tokens and the 256 bytes included; small data fills less."""
    path: Location | None = None
    """A tokenizer folder to use instead of training one on the data."""
