"""Settings of the data and of the tokenizer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.config.conversion import PreferenceColumns, RowColumns
from common.config.locations import DataSource, Location, ModelSource
from common.config.names import MOST_FOLLOW_UPS
from common.config.section import Section

Layout = Literal["block", "statement"]
"""Turns of the statements between two questions of a story: all in one, or one each."""


class DataSettings(Section):
    """Settings of one kind of data. What makes a corpus of them is a row of the table in
    `common/data/datasets/table.py`."""

    prompts: ClassVar[bool] = False
    """Whether rows are single prompts, read from files of prompts."""
    refusing: ClassVar[frozenset[str]] = frozenset()
    """Settings that only refuse data and change nothing of what is read: a run that goes on may
    have others."""

    @property
    def longest(self) -> int | None:
        """Follow-ups of the longest conversation that they let in; None where only the data
        know."""
        return None

    @property
    def shortest(self) -> int | None:
        """Follow-ups of the shortest conversation; None where only the data know."""
        return None

    @property
    def longest_prompt(self) -> int | None:
        """Tokens of the longest prompt that they let in; None where they do not say."""
        return None

    @property
    def row_columns(self) -> RowColumns:
        """Columns of files of conversations."""
        return RowColumns()

    @property
    def preference_columns(self) -> PreferenceColumns:
        """Columns of files of preferences."""
        return PreferenceColumns()


class SynthData(DataSettings):
    """Generated conversations with facts: statements, distractors, changes of mind, and questions
    about them."""

    kind: Literal["synth"] = "synth"
    """Which kind of data this is."""
    train: int = Field(4000, ge=1)
    """Conversations in the training split."""
    eval: int = Field(200, ge=1)
    """Conversations held out for evaluation. The test split has as many."""
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((5,), min_length=1)
    """Numbers of follow-ups, in equal shares."""
    strategies: tuple[Literal["single", "cumulative", "long_term"], ...] = Field(
        ("cumulative",), min_length=1
    )
    """Strategies, in equal shares."""
    subjects: int = Field(6, ge=1, le=24)
    """Number of kinds of things (dog, city, job, …) that facts are about."""
    values: int = Field(12, ge=2, le=48)
    """Number of values of each kind of thing."""
    changed_questions: float = Field(0.5, ge=0, le=1)
    """Share of questions for a fact that changed, where a conversation is long enough to have a
    change."""
    change_probability: float = Field(0.2, ge=0, le=1)
    """Probability that a turn in the middle changes a fact that was told before."""
    final_question: Literal["one", "all"] = "one"
    """Facts that the last follow-up of a cumulative conversation asks for: one, or all that were
    told."""
    distractors: float = Field(0.3, ge=0, le=1)
    """Share of turns in the middle that are small talk."""
    patterns: int = Field(0, ge=0)
    """Conversations of each pattern of change, held out in splits of their own (`engram data
    synth`)."""

    @property
    def longest(self) -> int | None:
        return max(self.steps)

    @property
    def shortest(self) -> int | None:
        return min(self.steps)


class BabiData(DataSettings):
    """The bAbI tasks (Weston et al. 2015) as cumulative conversations: statements and questions in
    separate turns."""

    kind: Literal["babi"] = "babi"
    """Which kind of data this is."""
    folder: Location
    """Folder with qa*_train.txt and qa*_test.txt."""
    tasks: tuple[int, ...] = (1,)
    """Numbers of the tasks (1–20) to train on. Each needs its training file."""
    layout: Layout = "block"
    """Turns of the statements between two questions: all in one (`block`), or one each
    (`statement`)."""
    max_questions: int = Field(5, ge=1, le=5)
    """Questions kept per story."""
    eval_fraction: float = Field(0.02, gt=0, lt=0.5)
    """Share of training stories held out for tuning. Runs do not evaluate on the test files."""

    @property
    def longest(self) -> int | None:
        return 2 * self.max_questions - 1 if self.layout == "block" else None


class SgdData(DataSettings):
    """Schema-Guided Dialogue (Rastogi et al. 2020), compact files: recall points are the turns that
    confirm slots told earlier."""

    kind: Literal["sgd"] = "sgd"
    """Which kind of data this is."""
    folder: Location
    """Folder with sgd_compact_train.jsonl.gz and sgd_compact_dev.jsonl.gz."""
    max_follow_ups: int = Field(8, ge=1)
    """Longer conversations are left out and counted."""
    eval_fraction: float = Field(0.02, gt=0, lt=0.5)
    """Share of training dialogues held out for tuning. Runs do not evaluate on the dev file."""

    @property
    def longest(self) -> int | None:
        return self.max_follow_ups


class RowsData(DataSettings):
    """Your own conversations: MRL rows in files (JSON lines, Parquet, JSON, CSV), or names of
    `datasets`."""

    refusing = frozenset({"max_follow_ups"})

    kind: Literal["rows"] = "rows"
    """Which kind of data this is."""
    train: tuple[DataSource, ...]
    """Conversations to train on."""
    eval: tuple[DataSource, ...]
    """Conversations to evaluate on. Keep them apart from those to train on."""
    texts: tuple[DataSource, ...] = ()
    """Files of {"text"}, or .txt files with a text on each line, for joint LM pre-training; empty:
    the training conversations' interactions."""
    pairs: tuple[DataSource, ...] = ()
    """Files of {"query", "answer"} or "[Q] … [A] …" text for SFT; empty: the training
    conversations' interactions."""
    max_follow_ups: int = Field(MOST_FOLLOW_UPS, ge=1)
    """A conversation with more follow-ups is refused by file and row: one that never ends takes the
    memory of a whole batch. A run that goes on may have another limit."""
    columns: RowColumns = RowColumns()
    """Columns with other names, such as {query: instruction, answer: output}; of the files that
    have them, all other columns are passed over."""

    @property
    def row_columns(self) -> RowColumns:
        return self.columns


class PreferencesData(DataSettings):
    """Answers that people ranked, for a reward model: files of {"prompt", "chosen", "rejected",
    "margin"?}, or of {"prompt", "answers"} from best to worst, either with
    "history"?; or names of `datasets`. Stages before the reward model train on all answers
    alike."""

    kind: Literal["preferences"] = "preferences"
    """Which kind of data this is."""
    train: tuple[DataSource, ...] = Field(min_length=1)
    """Preferences to train on."""
    eval: tuple[DataSource, ...] = ()
    """Preferences held out; empty: a share of `train`."""
    eval_fraction: float = Field(0.2, gt=0, lt=0.5)
    """Share of the groups of `train` that is held out, by hash, where `eval` is empty."""
    conversations: tuple[DataSource, ...] = ()
    """Conversations (MRL rows) that the stages before the reward model train on too. Those that
    answer a prompt of the preferences are left out."""
    columns: PreferenceColumns = PreferenceColumns()
    """Columns of preferences with other names, such as {prompt: question}; of the files that have
    them, all other columns are passed over."""

    @property
    def preference_columns(self) -> PreferenceColumns:
        return self.columns


class PromptsData(DataSettings):
    """Prompts to answer, for lm_rl: files of {"prompt"} or {"query"}, either with "answer"?, a
    reference that rewards may compare with; .txt files with a prompt on each line; or names of
    `datasets`."""

    prompts = True

    kind: Literal["prompts"] = "prompts"
    """Which kind of data this is."""
    train: tuple[DataSource, ...] = Field(min_length=1)
    """Prompts to train on."""
    eval: tuple[DataSource, ...] = ()
    """Prompts held out; empty: a share of `train`."""
    eval_fraction: float = Field(0.05, gt=0, lt=0.5)
    """Share of `train` that is held out, by hash, where `eval` is empty."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Longer prompts are left out and counted. None: none are."""
    tokenizer: ModelSource | None = None
    """Model whose tokenizer counts them; None: model.causal.path."""
    texts: tuple[DataSource, ...] = ()
    """Files of {"text"}, or .txt files with a text on each line, for lm_text; empty: there are
    none."""
    pairs: tuple[DataSource, ...] = ()
    """Files of {"query", "answer"}, for lm_sft, which then trains on answers; empty: the prompts
    with an answer."""

    @property
    def longest(self) -> int | None:
        return 1

    @property
    def shortest(self) -> int | None:
        return 1

    @property
    def longest_prompt(self) -> int | None:
        return self.max_prompt_tokens


Data = Annotated[
    SynthData | BabiData | SgdData | RowsData | PreferencesData | PromptsData,
    Field(discriminator="kind"),
]


class Tokenizer(Section):
    vocab_size: int = Field(1024, ge=264)
    """Largest vocabulary, with special tokens and the 256 bytes. Small data fill less."""
    path: Location | None = None
    """Folder of a tokenizer to use; None: train one on the data."""
