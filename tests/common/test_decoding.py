"""Data files that are damaged, or are not quite what they should be."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.data.conversations import load_rows
from common.data.datasets.babi import stories
from common.data.datasets.ranked import INSTRUCTIONS, load_instructions, load_taskmaster
from common.data.datasets.sgd import load
from common.data.decoding import parse_json
from common.data.preferences import load_preferences
from common.data.readers import BadRecords
from common.failures import InputError

ROW = (
    '{"query": "my cat is Tom", "answer": "okay", "interactions": [{"query": "?", "answer": "T"}]}'
)
PACKED = gzip.compress((ROW + "\n").encode() * 300, mtime=0)


def refusal(read: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return caught.value


@pytest.mark.parametrize(
    "content",
    [
        PACKED[: len(PACKED) // 2],  # cut off
        PACKED[:-3],  # its check sum is cut off
        PACKED[:12] + bytes([PACKED[12] ^ 0xFF]) + PACKED[13:],  # a byte of its body
        PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:],  # another check sum
        PACKED + b"rest",
        b"plain text",
    ],
)
def test_a_damaged_gzip_file_is_refused_by_name_whoever_reads_it(
    tmp_path: Path, content: bytes
) -> None:
    rows, sgd, judged = (
        tmp_path / name
        for name in ("rows.jsonl.gz", "sgd_compact_dev.jsonl.gz", "tm3_reward_1.json.gz")
    )
    for path in (rows, sgd, judged):
        path.write_bytes(content)
    for read, path in (
        (lambda: load_rows(rows), rows),
        (lambda: load(tmp_path, "dev"), sgd),
        (lambda: load_taskmaster(tmp_path), judged),
    ):
        assert refusal(read).where == str(path)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"query": ' + '{"a":' * 50_000, "is nested too deep to be read"),
        ("[" * 100_000 + "]" * 100_000, "is nested too deep to be read"),
        (f'{{"query": -{"7" * 6000}}}', "a number of 6000 digits is too large"),
        ('{"query": 1e400}', "the number 1e400 is too large"),
        ('{"query": NaN}', "NaN is no number of JSON"),
        ('{"query": -Infinity}', "-Infinity is no number of JSON"),
        ('{"query": 1, "answer": 2, "query": 1}', "the field 'query' is written twice"),
        ('{"a": [{"facts": 1, "facts": 1}]}', "the field 'facts' is written twice"),
        (r'{"a": [{"b": "rain \uD83C"}]}', r"a.0.b holds half of a character (\ud83c)"),
        (r'{"a": "\ude00\ud83d"}', r"a holds half of a character (\ude00)"),
        (r'{"\udfff": 1}', r"the record holds half of a character (\udfff)"),
        ('{"a": tru}', "broken JSON: expecting value at column 7"),
        ('{"a": "b', "broken JSON: unterminated string starting at column 7"),
    ],
)
def test_what_json_cannot_mean_is_refused_with_the_line_that_says_it(
    tmp_path: Path, line: str, what: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{ROW}\n\n{line}\n")
    found = refusal(lambda: load_rows(path))
    assert found.where == f"{path}, line 3"
    assert found.what.startswith(what)


def test_whole_characters_are_read_however_they_are_written() -> None:
    assert parse_json(r'{"a": "\ud83d\ude00"}') == parse_json('{"a": "😀"}') == {"a": "😀"}
    # A backslash before a u that is text.
    assert parse_json(r'{"a": "\\ud83d"}') == {"a": r"\ud83d"}
    assert parse_json("[1, 2.5, -3e2]") == [1, 2.5, -300.0]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_byte_order_marks_and_windows_line_ends_are_no_part_of_a_file(
    tmp_path: Path, name: str
) -> None:
    # Two files of Windows, one after the other.
    content = f"\ufeff{ROW}\r\n\ufeff{ROW}\r\n".encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [row.answer for row in load_rows(path)] == ["okay", "okay"]


def test_public_data_sets_are_read_with_a_byte_order_mark_too(tmp_path: Path) -> None:
    record = {"instruction": "Say hi", "input": "", "chosen": "Hi.", "rejected": "No."}
    (tmp_path / INSTRUCTIONS).write_text("\ufeff" + json.dumps([record]), encoding="utf-8")
    assert [each.answers for each in load_instructions(tmp_path)] == [("Hi.", "No.")]
    story = tmp_path / "qa1_x_train.txt"
    story.write_text("\ufeff1 Mary is here.\n2 Where is Mary?\there\t1\n", encoding="utf-8")
    assert len(stories(story)) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1", "cp1252"])
def test_a_text_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.jsonl"
    text = ROW + "\n" + ROW.replace("Tom", "Zoë")
    start = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path.write_bytes(start + text.encode(encoding))
    found = refusal(lambda: load_rows(path))
    if encoding.startswith("utf-16"):
        assert found.what == "is UTF-16 text; save it as UTF-8"
    else:
        assert found.where == f"{path}, line 2"
        assert "byte 0xeb belongs to another encoding" in found.what


def text_of(*values: bytes) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_bytes_of_another_encoding_in_parquet_name_their_row(tmp_path: Path) -> None:
    path = tmp_path / "ranked.parquet"
    columns = {
        "prompt": ["a", "b", "c"],
        "chosen": text_of(b"d", b"e", b"na\xefve"),
        "rejected": ["g", "h", "i"],
    }
    pq.write_table(pa.table(columns), path)
    found = refusal(lambda: load_preferences(path))
    assert found.where == f"{path}, row 3"
    assert "UTF-8" in found.what


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    column = pa.array(["a"])
    twice = pa.StructArray.from_arrays([column, column], names=["value", "value"])
    for table, name in (
        (pa.table([column, column], names=["query", "query"]), "query"),
        (pa.table({"query": column, "facts": pa.array([[{"a": 1}]])}), None),
        (pa.table({"facts": pa.ListArray.from_arrays([0, 1], twice)}), "value is there twice"),
    ):
        path = tmp_path / "rows.parquet"
        pq.write_table(table, path)
        found = refusal(lambda path=path: load_rows(path))
        assert ("twice" in found.what) == (name is not None)
        assert name is None or name in found.what


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"query": ["some text"] * 2000}), path)
    whole = path.read_bytes()
    for content in (whole[:-20], b"", b"PAR1", whole[:10] + bytes(40) + whole[50:]):
        path.write_bytes(content)
        assert refusal(lambda: load_rows(path)).where == str(path)


@pytest.mark.parametrize("margin", ["1" + "0" * 99, "-1e300", "1e7"])
def test_a_margin_that_no_reward_can_have_is_refused(tmp_path: Path, margin: str) -> None:
    path = tmp_path / "ranked.jsonl"
    path.write_text(f'{{"prompt": "a", "chosen": "b", "rejected": "c", "margin": {margin}}}\n')
    with pytest.raises(BadRecords, match="margin: should be a number up to 1,000,000"):
        load_preferences(path)


def test_a_long_name_or_value_does_not_fill_the_screen(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    record = json.loads(ROW)
    for wrong in ({"x" * 5000: 1}, {"strategy": "y" * 5000}):
        path.write_text(json.dumps(record | wrong) + "\n")
        refusal(lambda: load_rows(path))


def test_a_conversation_of_taskmaster_that_cannot_be_read_names_its_record(tmp_path: Path) -> None:
    good = {"context": "[]", "conversation_id": "1", "reward": 1, "generation": '{"text": "Hi"}'}
    records = [good, good | {"context": "[" * 100_000}]
    path = tmp_path / "tm3_reward_1.json.gz"
    path.write_bytes(gzip.compress(json.dumps(records).encode()))
    assert refusal(lambda: load_taskmaster(tmp_path)).where == f"{path}, record 2"
