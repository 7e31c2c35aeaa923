"""Settings of what `engram data synth` generates to be looked at over many turns."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from common.config.data import Layout
from common.config.locations import DataSource, Location
from common.config.section import Section


class LongContext(Section):
    """Settings of `engram data synth long_context`."""

    turns: tuple[Annotated[int, Field(ge=4)], ...] = Field((16, 32, 128, 512, 2048), min_length=1)
    """Numbers of follow-ups. Each has files of its own."""
    train: int = Field(0, ge=0)
    """Conversations to train on, of each number of turns."""
    eval: int = Field(50, ge=0)
    """Conversations to evaluate on, of each number of turns."""
    facts: tuple[Location, ...] = ()
    """bAbI files (qa*.txt) with the stories that are spread; empty: generated ones."""
    eval_facts: tuple[Location, ...] = ()
    """The same of the conversations to evaluate on; empty: a tenth of the stories of `facts`, by
    hash."""
    layout: Layout = "block"
    """Turns of the statements of a bAbI file between two questions: all in one, or one each."""
    max_questions: int = Field(5, ge=1, le=5)
    """Questions kept of a bAbI story."""
    story_turns: int = Field(12, ge=1, le=64)
    """Follow-ups of a generated story that tell, change or ask, at most."""
    subjects: int = Field(12, ge=1, le=24)
    """Kinds of things that generated stories are about."""
    values: int = Field(12, ge=2, le=48)
    """Values of each kind of thing."""
    talk: tuple[DataSource, ...] = ()
    """Files of other talk, which stands between; empty: generated small talk."""
    max_words: int = Field(40, ge=2)
    """Words of a turn of other talk, query and answer together. Longer ones are left out."""


class Capacity(Section):
    """Settings of `engram data synth capacity`."""

    facts: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(
        (4, 8, 16, 32, 64, 128), min_length=1
    )
    """Facts that a conversation holds. Each number has files of its own."""
    overwritten: float = Field(0.25, ge=0, le=1)
    """Share of the facts that get another value before the questions begin."""
    values: int = Field(512, ge=2, le=4096)
    """Different values. No two facts of a conversation ever have the same one."""
    train: int = Field(0, ge=0)
    """Conversations to train on, of each number of facts."""
    eval: int = Field(100, ge=0)
    """Conversations to evaluate on, of each number of facts."""
