"""Settings of `engram data convert`, and the columns that files of other people have."""

from __future__ import annotations

from pydantic import Field

from common.config.section import Section

Column = str | tuple[str, ...] | None
"""A column, or several whose texts are joined by line breaks, or none (an empty list); null: the
column with the field's own name."""


class RowColumns(Section):
    """Columns that fields of conversations, pairs and texts are read from, in files that have one
    of them; their other columns are passed over. A field that is not named here is read from the
    column of its own name. A list joins the texts of several columns; an empty list passes the
    field over."""

    query: Column = None
    """Query of an opening or a pair."""
    answer: Column = None
    """Its answer."""
    think: Column = None
    """Its thought."""
    strategy: Column = None
    """Strategy of a conversation."""
    interactions: Column = None
    """Follow-ups of a conversation."""
    text: Column = None
    """A text for language modelling, or a pair as "[Q] … [A] …"."""


class PreferenceColumns(Section):
    """Columns that fields of preferences are read from, in files that have one of them; their other
    columns are passed over. A field that is not named here is read from the column of its own name.
    A list joins the texts of several columns; an empty list passes the field over."""

    prompt: Column = None
    """The query."""
    chosen: Column = None
    """The better answer."""
    rejected: Column = None
    """The worse answer."""
    answers: Column = None
    """Answers from best to worst."""
    margin: Column = None
    """How much better `chosen` is."""
    history: Column = None
    """Interactions before the prompt."""
    group: Column = None
    """Group of the record."""


class ChatColumns(Section):
    """Columns of files of conversations, where they have other names."""

    messages: Column = None
    """List of the messages of one conversation."""
    conversation: Column = None
    """Conversation that a message or a pair belongs to."""
    role: Column = None
    """Who says a message."""
    content: Column = None
    """A message."""
    query: Column = None
    """User's message of a pair."""
    answer: Column = None
    """Its answer."""
    think: Column = None
    """The thought before the answer."""
    facts: Column = None
    """Values that the answer recalls."""


class ChatFiles(Section):
    """Settings of `engram data convert chat`."""

    eval_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the conversations that is held out, by hash."""
    columns: ChatColumns = ChatColumns()
    """Columns with other names."""


class ComparedColumns(Section):
    """Columns of files of compared answers, where they have other names."""

    prompt: Column = None
    """The query, or the dialogue before the answers."""
    chosen: Column = None
    """The better answer, or a dialogue that ends with it."""
    rejected: Column = None
    """The worse answer, or a dialogue that ends with it."""
    chosen_rating: Column = None
    """Rating of the better answer."""
    rejected_rating: Column = None
    """Rating of the worse answer."""
    margin: Column = None
    """How much better the better one is."""
    group: Column = None
    """Group of the record."""


class ComparedFiles(Section):
    """Settings of `engram data convert preferences`."""

    eval_fraction: float = Field(0.2, ge=0, lt=1)
    """Share of the groups that is held out, by hash."""
    columns: ComparedColumns = ComparedColumns()
    """Columns with other names."""


class LongFiles(Section):
    """Settings of `engram data convert babilong`, `locomo` and `longmemeval`."""

    max_words: int = Field(60, ge=2)
    """Words of a query or an answer. Longer ones are told in several turns, by sentences."""
    max_answer_words: int = Field(5, ge=1)
    """Words of an answer that is a fact. Longer ones are measured by agreement alone (locomo,
    longmemeval)."""


class PersonaFiles(Section):
    """Settings of `engram data convert persona`."""

    eval_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the conversations that is held out, by hash."""
