"""Conversations of other programs as rows and pairs: every format, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.config.conversion import ChatColumns, ChatFiles
from common.data.conversations import save_rows
from common.data.datasets import chat
from common.data.datasets.chat import Converted, convert_chats
from common.data.leftovers import Leftovers
from common.data.readers import BadRecords
from common.data.validate import validate_rows
from common.episode import Fact, Interaction, Row
from common.failures import InputError
from tests.common.test_file_formats import ENDINGS, save

TALK = [
    ("user", "My robot Zib eats copper."),
    ("assistant", "Copper for Zib, noted."),
    ("user", "It is raining."),
    ("assistant", "Stay dry."),
    ("user", "What does Zib eat?"),
    ("assistant", "Zib eats copper."),
]
OTHER = [("user", "Hallo 🎈"), ("assistant", "Hi."), ("user", "Čau"), ("assistant", "Bye.")]
ROW = Row(
    "My robot Zib eats copper.",
    "Copper for Zib, noted.",
    (
        Interaction("It is raining.", "Stay dry."),
        Interaction(
            "What does Zib eat?", "Zib eats copper.", role="recall", facts=(Fact("copper", 0),)
        ),
    ),
)
OTHER_ROW = Row("Hallo 🎈", "Hi.", (Interaction("Čau", "Bye."),))


def openai(talk: Sequence[tuple[str, Any]], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": said} for role, said in talk], **more}


def sharegpt(talk: Sequence[tuple[str, Any]], **more: Any) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names.get(role, role), "value": text} for role, text in talk]
    return {"id": "same", "conversations": said, **more}


def by_message(talks: Sequence[Sequence[tuple[str, Any]]], facts: str) -> list[dict[str, Any]]:
    """Messages of all conversations by turns, as a log has them."""
    return [
        {"conversation_id": str(n), "role": talk[k][0], "content": talk[k][1], "facts": facts}
        if n == 0 and k == 5
        else {"conversation_id": str(n), "role": talk[k][0], "content": talk[k][1], "facts": ""}
        for k in range(max(map(len, talks)))
        for n, talk in enumerate(talks)
        if k < len(talk)
    ]


def by_pair(talks: Sequence[Sequence[tuple[str, Any]]], facts: str) -> list[dict[str, Any]]:
    return [
        {
            "conversation": str(n),
            "query": talk[k][1],
            "answer": talk[k + 1][1],
            "facts": facts if n == 0 and k == 4 else "",
        }
        for n, talk in enumerate(talks)
        for k in range(0, len(talk), 2)
    ]


def convert(*paths: Path, **settings: Any) -> tuple[Converted, dict[str, tuple[int, str]]]:
    left = Leftovers()
    found = convert_chats([str(path) for path in paths], ChatFiles(**settings), left)
    return found, {what: (count, first) for what, count, first in left.entries()}


def of_records(tmp_path: Path, *records: Any) -> tuple[list[Row], dict[str, int]]:
    """All rows of records, and the number of what was left out."""
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found, left = convert(path, eval_fraction=0)
    return found.train, {what: count for what, (count, _) in left.items()}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", ["openai", "sharegpt", "by_message", "by_pair"])
def test_every_shape_in_every_format_gives_the_same_rows(
    tmp_path: Path, shape: str, ending: str
) -> None:
    talks = [TALK, OTHER]
    records = {
        "openai": [openai(TALK, facts=["copper"]), openai(OTHER, facts=[])],
        "sharegpt": [sharegpt(TALK, facts=["copper"]), sharegpt(OTHER, facts=[])],
        "by_message": by_message(talks, "copper"),
        "by_pair": by_pair(talks, '[{"value": "copper"}]'),
    }[shape]
    if ending.startswith(("json", "parquet")) and shape.startswith("by"):
        records = [{**each, "facts": each["facts"] or None} for each in records]
    found, left = convert(save(tmp_path / f"chats.{ending}", records), eval_fraction=0)
    assert found.train == [ROW, OTHER_ROW]
    assert found.pairs == [
        Interaction(turn.query, turn.answer) for row in (ROW, OTHER_ROW) for turn in row.turns
    ]
    assert left == {}
    save_rows(found.train, tmp_path / "rows.jsonl")
    assert validate_rows(tmp_path / "rows.jsonl").warnings == []


def test_shapes_may_be_mixed_in_one_file(tmp_path: Path) -> None:
    rows, left = of_records(tmp_path, sharegpt(OTHER), openai(TALK, facts=["copper"]))
    assert (rows, left) == ([OTHER_ROW, ROW], {})


def test_what_is_no_pair_is_left_out_and_counted(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    calls = [{"id": "1", "function": {"name": "weather"}}]
    rows, left = of_records(
        tmp_path,
        {
            "messages": [
                {"role": "System", "content": "Be kind."},
                {"role": "developer", "content": "Be brief."},
                {"role": "assistant", "content": "How can I help?"},
                {"role": "user", "content": "One"},
                {"role": "user", "content": [{"type": "text", "text": "two"}, image, "three"]},
                {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "content": "rain", "tool_call_id": "1"},
                {"role": "assistant", "content": "first"},
                {"role": "assistant", "content": "second", "reasoning_content": "Hm."},
                {"role": "user", "content": [image]},
                {"role": "assistant", "content": "A dog."},
                {"role": "user", "content": "Said"},
                {"role": "assistant", "content": "Answered"},
                {"role": "user", "content": "Bye"},
            ]
        },
    )
    assert rows == [
        Row("One\ntwo\nthree", "first\nsecond", (Interaction("Said", "Answered"),), "Hm.")
    ]
    assert left == {
        "tool calls": 1,
        "images": 2,
        chat.SYSTEM: 2,
        chat.TOOLS: 1,
        chat.JOINED: 2,
        chat.UNASKED: 1,
        chat.NO_TEXT: 1,
        chat.UNANSWERED: 1,
    }


@pytest.mark.parametrize(
    ("talk", "what"),
    [
        ([("user", "Hello?")], chat.UNANSWERED),
        ([("assistant", "Hello!")], chat.UNASKED),
        ([("user", "Hello?"), ("assistant", None)], chat.NO_TEXT),
        ([("user", " "), ("assistant", "Yes?")], chat.NO_TEXT),
        ([("system", "Be kind.")], chat.SYSTEM),
    ],
)
def test_conversations_without_a_pair_are_left_out(
    tmp_path: Path, talk: list[tuple[str, Any]], what: str
) -> None:
    rows, left = of_records(tmp_path, openai(OTHER), openai(talk), openai(talk))
    assert rows == [OTHER_ROW]
    assert left == {what: 2, chat.NO_PAIR: 2}
    with pytest.raises(InputError, match="no pair of query and answer is left: 1 "):
        of_records(tmp_path, openai(talk))


def test_a_conversation_of_one_pair_is_for_sft_only(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (openai(TALK[:2]), openai(OTHER))))
    found, left = convert(path, eval_fraction=0)
    assert found.train == [OTHER_ROW]
    assert found.pairs[-1] == Interaction(TALK[0][1], TALK[1][1])
    assert left == {chat.SINGLE: (1, f"{path}, line 1")}


def test_repeated_conversations_count_once_over_all_files(tmp_path: Path) -> None:
    one = save(tmp_path / "one.jsonl", [openai(TALK), openai(TALK)])
    two = save(tmp_path / "two.csv", by_message([TALK], ""))
    found, left = convert(one, two, eval_fraction=0)
    assert len(found.train) == 1
    assert left == {chat.REPEATED: (2, f"{one}, line 2")}


# --- facts ----------------------------------------------------------------------------------------


def with_facts(*facts: Any, at: int = 5) -> dict[str, Any]:
    record = openai(TALK)
    record["messages"][at]["facts"] = list(facts)
    return record


def test_facts_of_a_message_belong_to_its_pair(tmp_path: Path) -> None:
    for at in (4, 5):
        assert of_records(tmp_path, with_facts("copper", at=at)) == ([ROW], {})
    rows, _ = of_records(tmp_path, with_facts({"value": "yes", "said_in": 1, "outdated": ["no"]}))
    assert rows[0].interactions[1].facts == (Fact("yes", 1, ("no",)),)


def test_a_fact_was_said_in_the_last_pair_that_says_it(tmp_path: Path) -> None:
    again = [*TALK, ("user", "What again?"), ("assistant", "Copper.")]
    rows, _ = of_records(tmp_path, openai(again, facts=["copper", "Zib"]))
    # The question for what Zib eats names Zib itself.
    facts = [turn.facts for turn in rows[0].interactions]
    assert facts == [(), (Fact("copper", 0),), (Fact("copper", 2),)]


def test_facts_that_no_pair_before_says_are_left_out(tmp_path: Path) -> None:
    rows, left = of_records(tmp_path, with_facts("iron"), {**openai(OTHER), "facts": ["iron"]})
    assert not any(turn.facts for row in rows for turn in row.interactions)
    assert left == {chat.UNSAID: 1, chat.UNRECALLED: 1}
    _, left = of_records(tmp_path, with_facts("copper", at=1))
    assert left == {chat.OPENING: 1}


def test_a_fact_of_a_later_pair_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1, field facts: said_in of 'copper' is 2.*0 to 1"):
        of_records(tmp_path, with_facts({"value": "copper", "said_in": 2}))


# --- splits ---------------------------------------------------------------------------------------


def test_a_share_is_held_out_whatever_else_is_there(tmp_path: Path) -> None:
    talks = [
        openai([("user", f"a{i}"), ("assistant", "b"), ("user", "c"), ("assistant", "d")])
        for i in range(300)
    ]
    all_of_them, _ = convert(save(tmp_path / "all.jsonl", talks))
    assert 15 <= len(all_of_them.eval) <= 45
    some, _ = convert(save(tmp_path / "some.jsonl", talks[100:]))
    assert {row.query for row in some.eval} <= {row.query for row in all_of_them.eval}
    taught = {(pair.query, pair.answer) for pair in all_of_them.pairs}
    assert not taught & {(row.query, row.answer) for row in all_of_them.eval}


def test_of_few_conversations_one_is_held_out(tmp_path: Path) -> None:
    found, _ = convert(save(tmp_path / "two.jsonl", [openai(TALK), openai(OTHER)]))
    assert (len(found.train), len(found.eval)) == (1, 1)
    found, _ = convert(save(tmp_path / "one.jsonl", [openai(TALK)]))
    assert len(found.train) + len(found.eval) == 1


# --- damaged files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "field", "what"),
    [
        (7, "record", "should be an object with messages or conversations"),
        ({}, "messages", "is no conversation"),
        ({"mesages": []}, "mesages", "did you mean 'messages'"),
        ({"messages": "hello"}, "messages", "should be a list of messages, not text"),
        ({"messages": {"role": "user"}}, "messages", "should be a list of messages, not an object"),
        ({"messages": ["hello"]}, "messages.0", "should be an object with role and content"),
        ({"messages": [{"content": "a"}]}, "messages.0.role", "the record has content"),
        (openai([("usr", "a")]), "messages.0.role", "did you mean 'user'"),
        (openai([(3, "a")]), "messages.0.role", "is 3"),  # type: ignore[list-item]
        ({"messages": [{"role": "user", "contnet": "a"}]}, "messages.0.content", "is missing"),
        (openai([("user", 3)]), "messages.0.content", "should be text or a list of parts"),
        (openai([("user", [3])]), "messages.0.content.0", "should be a part with type and text"),
        (sharegpt([("alien", "a")]), "conversations.0.from", "is 'alien'"),
        (sharegpt([("user", 3)]), "conversations.0.value", "should be text or a list of parts"),
        (with_facts(3), "messages.5.facts.0", "should be an object"),
        (with_facts({"vlaue": "a"}), "messages.5.facts.0.vlaue", "did you mean 'value'"),
        (openai(TALK, facts=[" "]), "facts.0.value", "is empty"),
        ({"role": "user", "content": "a"}, "conversation", "columns.conversation=NAME"),
        ({"query": "a"}, "answer", "is missing"),
        ({"query": "a", "answer": 3}, "answer", "should be text"),
    ],
)
def test_damage_is_named_by_line_and_field(
    tmp_path: Path, record: Any, field: str, what: str
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(openai(OTHER)) + "\n\n" + json.dumps(record) + "\n")
    with pytest.raises(BadRecords) as caught:
        convert(path)
    assert caught.value.where == f"{path}, line 3, field {field}"
    assert what in caught.value.what


def test_an_empty_file_and_an_empty_conversation(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="is empty"):
        convert(tmp_path / "empty.jsonl")
    rows, left = of_records(tmp_path, openai([]), openai(OTHER))
    assert (rows, left) == ([OTHER_ROW], {chat.NO_PAIR: 1})


def test_a_huge_conversation_is_one_row(tmp_path: Path) -> None:
    huge = [
        message
        for i in range(2_000)
        for message in (("user", f"{i} {'x' * 50}"), ("assistant", "ok"))
    ]
    rows, _ = of_records(tmp_path, openai(huge))
    assert len(rows[0].interactions) == 1_999


def test_columns_with_other_names(tmp_path: Path) -> None:
    named = {"conversation_id": "dialogue", "role": "speaker", "content": "text"}
    records = [
        {named.get(key, key): value for key, value in each.items()} | {"mood": "good"}
        for each in by_message([TALK, OTHER], "copper")
    ]
    path = save(tmp_path / "chats.csv", records)
    with pytest.raises(InputError, match="line 2, field dialogue: is no conversation"):
        convert(path)
    columns = ChatColumns(conversation="dialogue", role="speaker", content="text")
    found, left = convert(path, eval_fraction=0, columns=columns)
    assert (found.train, left) == ([ROW, OTHER_ROW], {})
    with pytest.raises(InputError, match=r"no column 'speeker'.*did you mean 'speaker'"):
        convert(path, columns=ChatColumns(conversation="dialogue", role="speeker", content="text"))
