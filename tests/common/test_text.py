"""How a value stands in a text: the table of common/text/values.py, and what no table lists."""

from __future__ import annotations

import itertools
import random
import sys
import unicodedata

import pytest

import common.text.values
from common.data.tokenizer import train_tokenizer
from common.text.characters import folded
from common.text.values import contains_value, place, replaced, taken_out, value_words, words


def table() -> list[tuple[str, str, bool]]:
    """(text, value, whether it stands there) of the lines of the module's docstring."""
    lines = [
        line for line in (common.text.values.__doc__ or "").splitlines() if line.startswith("| ")
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    assert {stands for _, _, stands, _ in cells} == {"yes", "no"}
    return [(text, value, stands == "yes") for text, value, stands, _ in cells]


# fmt: off
STANDS = [
    # signs
    ("my grade is B+.", "B+"), ("is it F#?", "F#"), ("F#, then", "F#"), ("(B-)", "B-"),
    ("B+'s", "B+"),
    ("B+/B-", "B-"), ("B+/B-", "B+"), ("C++!", "C++"), ("**C++**", "C++"), ("grade:B+", "B+"),
    ("blood AB+", "ab+"),
    ("(-7)", "-7"), ("−7", "-7"), ("it is –7 now", "-7"), ("-7°.", "-7°"), ("it is 7, not 8", "7"),
    ("7-8", "7-8"),
    ("$7.", "$7"), ("$ 7", "$7"), ("7%.", "7 %"), ("7 %", "7%"), ("7€", "7 €"),
    ("100% sure", "100%"), ("x=7", "7"),
    ("I use .NET.", ".NET"), ("@luna!", "@luna"), ("#7", "#7"), ("n/a, sorry", "N/A"),
    ("R&B", "r&b"), ("C♯", "C♯"),
    ("luna@mail.org.", "luna@mail.org"), ("(555) 123-4567.", "(555) 123-4567"), ("1,000.", "1,000"),
    ("3/4", "3/4"),
    ("C/C++", "C++"), ("D#/D-", "D-"),
    # values without any letter or digit
    ("I feel 🐱🐶", "🐶"), ("❤️", "❤"), ("👨‍👩‍👧!", "👨‍👩‍👧"), ("🇮🇹🇫🇷", "🇫🇷"),
    ("use ++ there", "++"), ("it is ?!", "?!"),
    # punctuation and what is glued on
    ("Luna!", "luna"), ("“Luna”", "Luna"), ("Luna", "“Luna”"), ("«Luna»", "Luna"),
    ("'Luna'", "Luna"), ("_Luna_", "Luna"),
    ("**Luna**", "Luna"), ("*B*", "B"), ("<b>Luna</b>", "Luna"), ("[Luna]", "Luna"),
    ("Luna;Tom", "Tom"), ("Luna,Tom", "Luna"),
    ("Luna…", "Luna"), ("Luna...She", "Luna"), ("Luna—my cat", "Luna"), ("Luna- my cat", "Luna"),
    ("-Luna", "Luna"),
    ("LUNA'S", "Luna"), ("the Coopers' cat", "Coopers"), ("Luna’ll come", "Luna"),
    ("Ankara'dan geldim", "Ankara"),
    ("l’Italie", "Italie"), ("à l'Étoile", "étoile"), ("in Rome.I like it", "Rome"),
    ("in the USA.They", "USA"),
    ("No.7", "7"), ("room 7.Then", "7"), ("Dr.Jones", "Jones"), ("the U.S., yes", "U.S."),
    ("at 7 p.m.", "7 p.m"),
    ("St Ives", "St. Ives"), ("New\nDelhi", "New  Delhi"), ("5 मई.मैं", "मई"),
    # forms of the same text
    ("cafe\u0301", "café"), ("ＬＵＮＡ", "Luna"), ("Ｃ＋＋", "C++"), ("ﬁg", "fig"),
    ("STRASSE", "Straße"), ("ISTANBUL", "İstanbul"),
    ("New\u00a0Delhi", "New Delhi"), ("Jean‑Paul", "Jean-Paul"), ("O’Hara", "O'Hara"),
    ("Lu\u00adna", "Luna"), ("ﾀﾏです", "タマ"),
    ("১২ টা", "১২"), ("𝐋una", "Luna"), ("ΟΔΟΣ", "οδός".replace("ό", "ο")), ("各位", "各位"),
    ("12：45", "12:45"), ("ﷲ", "الله"),
    # scripts
    ("मेरी बिल्ली का नाम चीनी है।", "चीनी"), ("नाम:चीनी।", "चीनी"), ("தமிழ்!", "தமிழ்"),
    ("می‌خواهم", "می‌خواهم"), ("مُحَمَّد", "مُحَمَّد"),
    ("我住在Rome的", "Rome"), ("我有7只", "7"), ("气温-7度", "-7"), ("“小红”", "小红"),
    ("二〇二六年", "二〇二六"), ("クロ・タマ", "タマ"),
    ("お茶が好き", "お茶"), ("ຂ້ອຍມັກແມວ", "ແມວ"), ("ขอชาเย็นค่ะ", "ชาเย็น"),
    ("ខ្ញុំចូលចិត្តឆ្មា", "ឆ្មា"), ("ကျွန်တော်ကြောင်ကြိုက်", "ကြောင်"),
    ("부산에서는", "부산"), ("차를 마셔요", "차"), ("나비랍니다", "나비"),
    ("수진이라고 해요", "수진"),
    ("7번", "7"), ("Luna는", "Luna"), ("בפריז", "פריז"),
]
ABSENT = [
    ("B-", "B+"), ("B+", "B"), ("B-", "B"), ("B++", "B+"), ("F#", "F"), ("F♯", "F"), ("D++", "D"),
    ("D++", "D+"), ("A*", "A"),
    ("-7", "7"), ("+7", "7"), ("±7", "7"), ("−7", "7"), ("3-7", "-7"), ("3-7", "7"), ("3-7", "3"),
    ("17", "7"), ("71", "7"),
    ("7.5", "7"), ("7.5", "5"), ("7,5", "5"), (".7", "7"), ("-.7", ".7"), ("7:15", "7"),
    ("7,000", "7"), ("7,000", "000"),
    ("7²", "72"), ("7²", "7"), ("½", "1"), ("3½", "3"), ("1/2", "1"), ("7%", "7"), ("7 %", "7"),
    ("$7", "7"), ("7 €", "7"),
    ("US$7", "$7"), ("-$7", "$7"), ("7°", "7"), ("24/7", "24"), ("AC/DC", "AC"), ("AT&T", "T"),
    ("m/s", "m"), ("v1.7", "7"),
    ("thirty-one", "one"), ("e-mail", "e"), ("O'Hara", "Hara"), ("don't", "don"),
    ("ASP.NET", ".NET"), ("U.S.", "U"), ("a.m.", "a"),
    ("@luna", "luna"), ("luna@mail.org", "luna"), ("www.luna.org", "luna"), ("luna_1", "luna"),
    ("Luna™", "Lunatm"), ("№7", "no7"),
    ("7km", "7"), ("H₂O", "H"), ("H2O", "H"), ("café", "cafe"), ("cafe\u0301", "cafe"),
    ("Übung", "ubung"), ("kısa", "kisa"),
    ("चीना", "चीन"), ("चीन", "चीना"), ("दिन", "दीन"), ("কলা", "কল"), ("می‌روم", "روم"),
    ("مُحَمَّد", "محمد"), ("كلب", "لب"),
    ("タマゴ", "タマ"), ("アタマ", "タマ"), ("コーラ", "コ"), ("바나나", "나"), ("김치", "김"),
    ("부산역", "부산"), ("十五", "五"),
    ("五十", "五"), ("十二月", "二月"), ("１７", "7"), ("เมา", "มา"), ("ကန်", "က"), ("ខ្មែរ", "ម"),
    ("ខ្មោច", "មោច"), ("དགའ", "ད"),
    ("👍🏿", "👍"), ("👨‍👩‍👧", "👩"), ("🇮🇹🇫🇷", "🇹🇫"), ("7️⃣", "7"), ("", "Luna"), ("Luna", ""),
    ("Luna", " \u200b"),
]
# fmt: on


@pytest.mark.parametrize(("text", "value", "stands"), table())
def test_the_table_of_the_module_holds(text: str, value: str, stands: bool) -> None:
    assert contains_value(text, value) == stands


@pytest.mark.parametrize(("text", "value"), STANDS)
def test_a_value_stands_whatever_is_around_it(text: str, value: str) -> None:
    for around in (
        text,
        f"it is {text}",
        f"{text} indeed",
        f"({text})",
        f"so:\n{text}\nyes",
        f"“{text}”",
    ):
        for form in ("NFC", "NFD"):
            assert contains_value(unicodedata.normalize(form, around), value), (around, form)
            assert contains_value(around, unicodedata.normalize(form, value)), (around, form)


@pytest.mark.parametrize(("text", "value"), ABSENT)
def test_another_value_is_not_that_value(text: str, value: str) -> None:
    for around in (text, f"it is {text}", f"{text} indeed", f"({text})", f"“{text}”"):
        assert not contains_value(around, value), around
        assert not contains_value(unicodedata.normalize("NFD", around), value), around


def test_every_character_has_one_form() -> None:
    for character in map(chr, itertools.chain(range(0xD800), range(0xE000, sys.maxunicode + 1))):
        if unicodedata.decomposition(character) or character.casefold() != character:
            text = f"x {character} y"
            form = folded(text)
            assert folded(form) == form == folded(unicodedata.normalize("NFD", text)), hex(
                ord(character)
            )


def test_values_of_one_text_are_equal_and_of_others_are_not() -> None:
    assert value_words("New\u00a0York,") == value_words("new york") == ("new", "york")
    assert value_words("“Ｂ＋”") == value_words("b+") == ("b+",)
    assert (
        len(
            {
                value_words(value)
                for value in ("5", "-5", "+5", "$5", "5%", ".5", "C", "C#", "C++", "कमल", "कमला")
            }
        )
        == 11
    )
    assert value_words(" \u200b ") == ()


def test_words_of_a_text() -> None:
    assert (
        "|".join(words("At 11:30, twenty-one of us; it's 4.5 km..."))
        == "at|11:30|twenty-one|of|us|it's|4.5|km"
    )
    assert (
        "|".join(words("I got a B+ - not C#, (-5)! 👍🏽 “चीनी।”"))
        == "i|got|a|b+|not|c#|-5|👍🏽|चीनी"
    )
    assert words("我叫小红。 부산에서") == [*"我叫小红", "부산에서"]
    assert len({tuple(words(text)) for text in ("B+", "B-", "B", "b")}) == 3


def test_what_stands_in_a_text_are_words_of_it_and_can_be_taken_out() -> None:
    draw = random.Random(1)
    pieces = [*"abAé红十_.-:,+#$%🐶", "का", "ab", "12", "12:30", " ", " ", " ", " "]
    found = 0
    for _ in range(20000):
        text = "".join(draw.choices(pieces, k=draw.randrange(1, 12)))
        value = "".join(draw.choices(pieces, k=draw.randrange(1, 4)))
        own, needle = words(text), words(value)
        if needle and contains_value(text, value):
            found += 1
            assert any(own[i : i + len(needle)] == needle for i in range(len(own))), (text, value)
            assert place(taken_out(folded(text), value_words(value)), value_words(value)) is None, (
                text,
                value,
            )
    assert found > 500


def test_a_value_is_replaced_where_it_stands_as_written() -> None:
    assert replaced("A or A+, not A.", "A", "B-") == "B- or A+, not B-."
    assert replaced("Rex's Rexford", "Rex", "New York") == "New York's Rexford"
    assert replaced("rex", "Rex", "Max") == "rex"


def test_an_answer_read_from_its_own_tokens_keeps_its_value() -> None:
    tokenizer = train_tokenizer(["my cat is called Luna"], 300)
    for text, value in STANDS:
        answer = tokenizer.decode(tokenizer.answer(text))
        assert contains_value(answer, value), text
