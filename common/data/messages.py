"""Conversations as other programs write them: messages with a role and a content.

A record is one of

* a conversation: `{"messages": [{"role", "content"}, …]}` as of OpenAI, or `{"conversations":
  [{"from", "value"}, …]}` as of ShareGPT. The list may be written as JSON in a text, as in CSV;
* one message of a conversation: `{"conversation", "role", "content"}`;
* one pair of it: `{"query", "answer", "conversation"?}`.

Other fields are passed over. A content is a text, null, or a list of parts, of which those with
text are read. A message may have `facts`, and a conversation too (common/data/datasets/chat.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from common.data.checks import CHATS, Fault, kind_of, one_fact_faults
from common.data.decoding import parse_json
from common.data.leftovers import Leftovers
from common.failures import nearest

Speaker = Literal["user", "assistant", "system", "tool"]
ROLES: dict[str, Speaker] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("tool", "function", "function_call", "function_response", "observation"), "tool"
    ),
}
"""Names of roles in files, in any capitals."""
ID = ("conversation", "conversation_id")
FIELDS = dict.fromkeys(
    ("messages", "conversation", "role", "content", "query", "answer", "think", "facts"), str
)
"""Fields that `columns` may name. A text of any may hold JSON, which is read here."""
_ROLE, _CONTENT = ("role", "from"), ("content", "value")
_CALLS = ("tool_calls", "function_call")
_IMAGES = ("image", "image_url", "input_image")


class Mention(NamedTuple):
    """A fact as a file gives it."""

    value: str
    said_in: int | None = None
    """The pair that last said it, from 0; None: the file does not say."""
    outdated: tuple[str, ...] = ()


class Message(NamedTuple):
    role: Speaker
    text: str
    """Empty where the message has none."""
    where: str
    """File and line."""
    think: str | None = None
    facts: tuple[Mention, ...] = ()


@dataclass
class Chat:
    """One conversation of a file."""

    where: str
    messages: list[Message] = field(default_factory=list)
    facts: tuple[Mention, ...] = ()
    """Facts of the whole conversation."""


def chats(records: Iterable[tuple[str, Mapping[str, Any]]], left: Leftovers) -> list[Chat]:
    """Conversations in the order in which they begin. Messages and pairs of one conversation need
    not stand together.

    records: (where, record) of one file, without `chat_faults`. left: is told of what is no text.
    """
    found: dict[Any, Chat] = {}
    for number, (where, record) in enumerate(records):
        given = _list_of(record)
        key = _value(record, ID) if given is None else None
        # A conversation that no name keeps together is one record.
        chat = found.setdefault(
            ("alone", number) if key is None else ("named", str(key)), Chat(where)
        )
        if given is not None:
            items, chat.facts = given, facts_of(record)
        elif _layout(record) == "pair":
            items = [
                {"role": "user", "content": record.get("query")},
                {
                    "role": "assistant",
                    "content": record.get("answer"),
                    "think": record.get("think"),
                    "facts": record.get("facts"),
                },
            ]
        else:
            items = [record]
        chat.messages += messages(items, where, left)
    return list(found.values())


def messages(items: Sequence[Any], where: str, left: Leftovers) -> list[Message]:
    """Messages of a list without `message_faults`."""
    found = []
    for item in items:
        role = ROLES[str(_value(item, _ROLE)).lower()]
        if any(item.get(name) for name in _CALLS):
            left.add("tool calls", where)
        think = item.get("think") or item.get("reasoning_content")
        text = _text(_value(item, _CONTENT), where, left).strip()
        found.append(Message(role, text, where, think or None, facts_of(item)))
    return found


def _text(content: Any, where: str, left: Leftovers) -> str:
    if not isinstance(content, list):
        return content or ""
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text")
        if isinstance(text, str):
            texts.append(text)
        else:
            kind = part.get("type")
            left.add("images" if kind in _IMAGES else f"parts of type {kind!r}", where)
    return "\n".join(texts)


def facts_of(record: Mapping[str, Any]) -> tuple[Mention, ...]:
    """`facts` of a message or a conversation."""
    return tuple(
        Mention(fact["value"], fact.get("said_in"), tuple(fact.get("outdated") or ()))
        for fact in _facts(record)
    )


def _facts(record: Mapping[str, Any]) -> Any:
    """The same as objects: a list, a list as JSON, or one value; a text is a value."""
    given = as_list(record.get("facts"))
    if given is None:
        return []
    return [
        {"value": fact} if isinstance(fact, str) else fact
        for fact in (given if isinstance(given, list) else [given])
    ]


def as_list(value: Any) -> Any:
    """The list that a text holds as JSON; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return parse_json(value)
    except ValueError:
        return value


# --- faults ---------------------------------------------------------------------------------------


def chat_faults(record: Any) -> Iterator[Fault]:
    """Faults of one record of a file of conversations."""
    if not isinstance(record, dict):
        yield "record", f"should be an object with messages or conversations, not {kind_of(record)}"
        return
    layout = _layout(record)
    if layout == "list":
        given = _list_of(record)
        there = [name for name in CHATS if name in record]
        named = next((name for name in there if record[name] is not None), there[0])
        if given is None:
            yield named, f"should be a list of messages, not {kind_of(record[named])}"
            return
        for i, item in enumerate(given):
            yield from message_faults(item, f"{named}.{i}.")
        yield from _facts_faults(record, "")
    elif layout == "pair":
        for name in ("query", "answer", "think"):
            if not isinstance(record.get(name), str | None):
                yield name, f"should be text, not {kind_of(record[name])}"
            elif name not in record and name != "think":
                yield name, _missing(record)
        yield from _facts_faults(record, "")
    elif layout == "message":
        yield from message_faults(record, "")
        if _value(record, ID) is None:
            yield (
                "conversation",
                "is missing: which conversation does the message belong to? "
                f"{_has(record)}; columns.conversation=NAME names the one that says it",
            )
    else:
        names = (*CHATS, "role", "content", "query", "answer")
        unknown = next(iter(record), "")
        yield unknown or "messages", f"is no conversation; {nearest(str(unknown), names)}"


def message_faults(item: Any, at: str) -> Iterator[Fault]:
    """Faults of one message; `at` stands before the names of its fields."""
    if not isinstance(item, dict):
        yield (
            at.rstrip(".") or "record",
            f"should be an object with role and content, not {kind_of(item)}",
        )
        return
    role, content = _value(item, _ROLE), _value(item, _CONTENT)
    role_name = next((name for name in _ROLE if name in item), "role")
    content_name = next((name for name in _CONTENT if name in item), "content")
    if role is None:
        yield f"{at}{role_name}", _missing(item)
    elif not isinstance(role, str) or role.lower() not in ROLES:
        yield f"{at}{role_name}", f"is {role!r}; {nearest(str(role).lower(), ROLES)}"
    if content_name not in item and not any(item.get(name) for name in _CALLS):
        yield f"{at}{content_name}", _missing(item)
    elif isinstance(content, list):
        for i, part in enumerate(content):
            if not isinstance(part, dict | str):
                yield (
                    f"{at}{content_name}.{i}",
                    f"should be a part with type and text, not {kind_of(part)}",
                )
    elif not isinstance(content, str | None):
        yield (
            f"{at}{content_name}",
            f"should be text or a list of parts, not {kind_of(content)}",
        )
    think = item.get("think")
    if not isinstance(think, str | None):
        yield f"{at}think", f"should be text, not {kind_of(think)}"
    yield from _facts_faults(item, at)


def _layout(record: Mapping[str, Any]) -> Literal["list", "pair", "message"] | None:
    """How a record holds a conversation. Fields with a value count before those that are null:
    Parquet gives every record all of them."""
    layouts: dict[Literal["list", "pair", "message"], Sequence[str]] = {
        "list": CHATS,
        "pair": ("query", "answer"),
        "message": (*_ROLE, *_CONTENT),
    }
    for there in (lambda name: record.get(name) is not None, lambda name: name in record):
        for layout, names in layouts.items():
            if any(map(there, names)):
                return layout
    return None


def _facts_faults(record: Mapping[str, Any], at: str) -> Iterator[Fault]:
    for i, fact in enumerate(_facts(record)):
        # Where it was said is known when pairs are.
        there = {"said_in": 0} | fact if isinstance(fact, dict) else fact
        if isinstance(there, dict) and there["said_in"] is None:
            there["said_in"] = 0
        yield from one_fact_faults(there, sys.maxsize, f"{at}facts.{i}.")


def _list_of(record: Mapping[str, Any]) -> list[Any] | None:
    """The list of messages of a conversation in one record."""
    given = as_list(_value(record, CHATS))
    return given if isinstance(given, list) else None


def _value(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of the fields that is not null. Parquet writes absent fields as null."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def _missing(record: Mapping[str, Any]) -> str:
    return f"is missing; {_has(record)}"


def _has(record: Mapping[str, Any]) -> str:
    return f"the record has {', '.join(map(str, record)) or 'no fields'}"
