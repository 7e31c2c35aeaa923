"""BABILong, LoCoMo, LongMemEval and persona chats as conversations, from records made by hand in
the published formats."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config.conversion import LongFiles, PersonaFiles
from common.data.conversations import row_from_dict, row_to_dict
from common.data.datasets import babilong, locomo, longmemeval, persona, recalled, splitting
from common.data.datasets.dialogues import Dialogue
from common.data.datasets.persona import convert_personas, persona_row, shared_run
from common.data.leftovers import Leftovers
from common.data.readers import BadRecords
from common.episode import Fact, Row
from common.failures import InputError

Reader = Callable[[list[str], LongFiles, Leftovers], list[Row]]


def read(reader: Any, path: Path, records: Any, **settings: int) -> tuple[list[Row], Counter[str]]:
    path.write_text(json.dumps(records))
    left = Leftovers()
    rows = reader([str(path)], LongFiles(**settings), left)
    for row in rows:
        assert row_from_dict(row_to_dict(row)).turns == row.turns, "a file of rows can hold it"
    return rows, Counter({entry.what: entry.number for entry in left.entries()})


def spoken(row: Row) -> list[tuple[str, str]]:
    return [(turn.query, turn.answer) for turn in row.turns]


# --- long texts -----------------------------------------------------------------------------------


def test_a_long_text_is_cut_between_sentences_and_a_long_sentence_between_words() -> None:
    left = Leftovers()
    text = "One two three. Four five! Six seven eight nine ten eleven.\nTwelve?"
    assert splitting.chunks(text, 5, "here", left) == [
        "One two three. Four five!",
        "Six seven eight nine ten",
        "eleven. Twelve?",
    ]
    assert left.entries() == [(splitting.DIVIDED, 1, "here")]
    assert splitting.chunks(text, 99, "here", left) == [text.replace("\n", " ")]


def test_a_long_interaction_is_told_in_several_and_loses_no_word() -> None:
    left = Leftovers()
    query, answer = "Here it is. It is long. Right?", "I see. Go on then. Yes."
    turns = list(splitting.told_in_turns(query, answer, 3, "here", left))
    assert turns == [
        ("Here it is.", "okay"),
        ("It is long.", "okay"),
        ("Right?", "I see."),
        ("go on", "Go on then."),
        ("go on", "Yes."),
    ]
    assert left.entries() == [(splitting.SEVERAL, 1, "here")]
    assert list(splitting.told_in_turns("a b", "c", 3, "here", left)) == [("a b", "c")]


# --- BABILong -------------------------------------------------------------------------------------

BABILONG = {
    "input": "It was a dark night. Mary went to the hall. The wind blew. Mary moved to the attic. "
    "He slept.",
    "question": "Where is Mary?",
    "target": "attic",
}


def test_babilong_tells_the_book_in_turns_and_asks_at_the_end(tmp_path: Path) -> None:
    records = [BABILONG, BABILONG | {"question": "Is Mary in the hall?", "target": "no"}]
    (row, inferred), left = read(
        babilong.babilong_rows, tmp_path / "qa1.json", records, max_words=6
    )
    assert [turn.query for turn in row.turns] == [
        "It was a dark night.",
        "Mary went to the hall.",
        "The wind blew.",
        "Mary moved to the attic.",
        "He slept.",
        "Where is Mary?",
    ]
    assert row.turns[-1].facts == (Fact("attic", 3),)
    assert {turn.role for turn in row.interactions[:-1]} == {"remember"}
    assert (inferred.turns[-1].role, inferred.turns[-1].facts) == ("act", ())
    assert left == {babilong.UNSAID: 1}


# --- LongMemEval ----------------------------------------------------------------------------------


def session(*texts: str, marked: int | None = None) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [
        {"role": roles[i % 2], "content": text} | ({"has_answer": True} if i == marked else {})
        for i, text in enumerate(texts)
    ]


LONGMEMEVAL = {
    "question_id": "q1",
    "question_type": "knowledge-update",
    "question": "Where do I live?",
    "answer": "Oslo",
    "question_date": "2023/05/30",
    "haystack_dates": ["2023/05/20", "2023/05/25"],
    "haystack_sessions": [
        session("I live in Oslo now.", "Noted.", "Thanks.", "Sure.", marked=0),
        session("Hi.", "Hello.", "Bye"),
    ],
}


def test_longmemeval_tells_all_sessions_and_then_asks(tmp_path: Path) -> None:
    records = [
        LONGMEMEVAL,
        LONGMEMEVAL | {"question_id": "q2_abs"},
        LONGMEMEVAL | {"answer": "You live in Oslo since last month, in a flat."},
        LONGMEMEVAL | {"answer": 3},
    ]
    rows, left = read(longmemeval.longmemeval_rows, tmp_path / "s.json", records)
    assert spoken(rows[0]) == [
        ("(2023/05/20) I live in Oslo now.", "Noted."),
        ("Thanks.", "Sure."),
        ("(2023/05/25) Hi.", "Hello."),
        ("(2023/05/30) Where do I live?", "Oslo"),
    ]
    assert [row.turns[-1].facts for row in rows] == [
        (Fact("Oslo", 0),), (), (), (Fact("3", 0),),
    ]  # fmt: skip
    assert left == {
        longmemeval.UNPAIRED: 4,
        longmemeval.NOT_ANSWERABLE: 1,
        recalled.NO_EVIDENCE: 1,
        recalled.LONG_ANSWER: 1,
    }


# --- LoCoMo ---------------------------------------------------------------------------------------


def message(speaker: str, number: str, text: str, **more: str) -> dict[str, str]:
    return {"speaker": speaker, "dia_id": number, "text": text, **more}


LOCOMO = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Bob",
        # The tenth session comes after the second, whatever their order in the file.
        "session_10": [message("Bob", "D10:1", "I sold the boat.")],
        "session_2_date_time": "8 May 2023",
        "session_2": [
            message("Ann", "D2:1", "Hi Bob!"),
            message("Bob", "D2:2", "I bought a red boat.", blip_caption="a boat"),
            message("Ann", "D2:3", "Nice."),
        ],
    },
    "qa": [
        {"question": "What colour was it?", "answer": "red", "evidence": ["D2:2"], "category": 4},
        {"question": "When?", "answer": "7 May", "evidence": ["D2:2; D2:3"], "category": 2},
        {"question": "Which car?", "adversarial_answer": "red", "evidence": [], "category": 5},
        {"question": "Why?", "evidence": ["D2:2"], "category": 3},
        {"question": "Who?", "answer": "Bob", "evidence": ["D9:9"], "category": 4},
    ],
}


def test_locomo_tells_its_sessions_in_order_and_then_asks_all_questions(tmp_path: Path) -> None:
    (row,), left = read(locomo.locomo_rows, tmp_path / "locomo10.json", [LOCOMO])
    assert spoken(row) == [
        ("(8 May 2023) Ann: Hi Bob!", "Bob: I bought a red boat. [a boat]"),
        ("Ann: Nice.", "okay"),
        ("Bob: I sold the boat.", "okay"),
        ("What colour was it?", "red"),
        ("When?", "7 May"),
        ("Who?", "Bob"),
    ]
    assert [turn.facts for turn in row.turns[3:]] == [(Fact("red", 0),), (Fact("7 May", 1),), ()]
    assert left == {
        locomo.IMAGES: 1,
        locomo.NEVER_SAID: 1,
        locomo.NO_ANSWER: 1,
        recalled.NO_EVIDENCE: 1,
    }


# --- bad records ----------------------------------------------------------------------------------

BROKEN = [
    (babilong.babilong_rows, {"input": "A.", "question": "Who?"}, "field target: is missing"),
    (babilong.babilong_rows, BABILONG | {"input": " "}, "field input: is empty"),
    (longmemeval.longmemeval_rows, {"question": "Who?"}, "field question_id: is missing"),
    (
        longmemeval.longmemeval_rows,
        LONGMEMEVAL | {"haystack_sessions": [[{"role": "users", "content": "a"}]]},
        r"haystack_sessions\.0\.0: should be a message with role",
    ),
    (
        longmemeval.longmemeval_rows,
        LONGMEMEVAL | {"haystack_sessions": [session("Hi")]},
        "haystack_sessions: holds no message and its answer",
    ),
    (locomo.locomo_rows, {"qa": []}, "field conversation: is missing"),
    (
        locomo.locomo_rows,
        LOCOMO | {"conversation": {"session_1": [{"speaker": "A"}]}},
        r"conversation\.session_1\.0: should be a message with speaker and text",
    ),
    (locomo.locomo_rows, LOCOMO | {"qa": [{"answer": "a"}]}, r"qa\.0\.question: is missing"),
    (locomo.locomo_rows, LOCOMO | {"qa": LOCOMO["qa"][2:4]}, "holds no question with an answer"),
]


@pytest.mark.parametrize(("reader", "record", "what"), BROKEN)
def test_a_broken_record_is_named(
    tmp_path: Path, reader: Reader, record: dict[str, Any], what: str
) -> None:
    with pytest.raises((BadRecords, InputError), match=rf"x\.json, record 1, .*{what}"):
        read(reader, tmp_path / "x.json", [record])


# --- personas -------------------------------------------------------------------------------------


def test_the_run_that_a_line_and_an_answer_share_has_a_word_that_tells() -> None:
    assert shared_run(
        "I can move objects with my mind.", "I like to move objects with my mind!"
    ) == ("move objects with my mind")
    assert shared_run("I love britney spears.", "Oh, Britney Spears, of course") == "Britney Spears"
    assert shared_run("I like to read.", "I like to bake.") is None
    assert shared_run("I am a cook.", "I cook a lot") == "cook"
    assert shared_run("I own a cat.", "A cat sat there.") is None, "three letters tell too little"


def test_an_answer_recalls_the_line_of_the_persona_that_it_uses() -> None:
    left = Leftovers()
    chat = Dialogue(
        "here",
        (
            ("Hi!", "Hello, I play the violin."),
            ("Do you ride horses?", "Yes, I ride horses."),
            ("Anything else?", "I have seven sisters and I ride horses."),
        ),
        asker=("I bake.",),
        answerer=("I play the violin.", "I ride horses daily.", "I have seven sisters.", "I bake."),
    )
    row = persona_row(chat, left)
    assert row is not None
    assert spoken(row)[:4] == [(line, "okay") for line in chat.answerer]
    assert [turn.facts for turn in row.turns[4:]] == [
        (Fact("play the violin", 0),),
        (),
        (Fact("seven sisters", 2),),
    ]
    assert {entry.what: entry.number for entry in left.entries()} == {
        persona.IN_QUERY: 1,
        persona.SAID_AGAIN: 1,
        persona.UNUSED: 2,
    }


def test_a_value_that_stands_in_two_lines_recalls_neither() -> None:
    chat = Dialogue("here", (("Hi!", "I have horses."),), (), ("I ride horses.", "I sell horses."))
    left = Leftovers()
    row = persona_row(chat, left)
    assert row is not None
    assert row.turns[-1].facts == ()
    assert persona.NO_RECALL in {entry.what for entry in left.entries()}


def test_personas_are_divided_by_hash_and_repeats_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "chats.csv"
    lines = [f'"I sing.","I play chess number{n}.","User 1: Hi {n}\nUser 2: Yo"' for n in range(40)]
    header = "user 1 personas,user 2 personas,Best Generated Conversation"
    path.write_text("\n".join([header, *lines, lines[0]]) + "\n")
    left = Leftovers()
    found = convert_personas([str(path)], PersonaFiles(eval_fraction=0.3), left)
    assert len(found.train) + len(found.eval) == 40
    assert 3 < len(found.eval) < 22
    assert (persona.REPEATED, 1) in [(entry.what, entry.number) for entry in left.entries()]
    path.write_text(f"{header}\n,,User 1: Hi\n")
    with pytest.raises(InputError, match="holds no conversation with the persona"):
        convert_personas([str(path)], PersonaFiles(), Leftovers())
