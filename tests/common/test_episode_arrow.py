import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.actions import MemoryWrite
from common.episode import Episode, Fact, Interaction, Memory, Row, Task, Turn
from common.episode_arrow import SCHEMA, from_table, to_table

ids = st.lists(st.integers(0, 2**31 - 1), max_size=4)
numbers = st.floats(allow_nan=False)
singles = st.floats(allow_nan=False, width=32)
text = st.text(max_size=5)
memory = st.none() | st.builds(Memory, text, st.binary(max_size=8))
turns = st.builds(
    Turn,
    query_ids=ids,
    answer_ids=ids,
    log_probs=st.lists(numbers, max_size=4),
    reference_ids=ids,
    role=st.sampled_from(["remember", "distract", "recall", "act"]),
    facts=st.lists(st.builds(Fact, text, st.integers(0, 20)), max_size=2).map(tuple),
    done=st.booleans(),
    teacher_forced=st.booleans(),
    query=text,
    answer=text,
    reference=text,
    rewards=st.dictionaries(text, numbers, max_size=3),
    reward=st.none() | numbers,
    failure=st.none() | text,
)
writes = st.builds(
    MemoryWrite,
    turn=st.integers(0, 20),
    prompt_ids=ids,
    ids=ids,
    log_probs=st.lists(numbers, max_size=4),
    unfiltered_log_probs=st.lists(numbers, max_size=2),
    text=text,
    cut=st.booleans(),
)
episodes = st.builds(
    Episode,
    id=text,
    task=text,
    seed=st.integers(0, 2**63 - 1),
    turns=st.lists(turns, max_size=3).map(tuple),
    weights_version=st.integers(0, 2**40),
    step=text,
    strategy=st.sampled_from(["single", "cumulative", "long_term"]),
    status=st.sampled_from(["generated", "scored", "unscored", "failed"]),
    worker=text,
    initial_memory=memory,
    final_memory=memory,
    memory_hash=text,
    memory_change=st.lists(st.lists(st.lists(singles, max_size=3), max_size=2), max_size=3),
    writes=st.lists(writes, max_size=3).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(episodes, max_size=3))
def test_round_trip_is_exact(records: list[Episode]) -> None:
    assert from_table(to_table(records)) == records
    assert pickle.loads(pickle.dumps(records)) == records


def test_a_task_comes_out_of_a_pickle_as_it_went_in() -> None:
    told = Interaction(
        "what?", "Rex", "so", "recall", (Fact("Rex", 0, ("Max", "Bo")), Fact("dog", 1))
    )
    row = Row("My dog is Rex", "Nice", (told, Interaction("and?", "dog")), "hm", "long_term")
    task = Task("t", row, 7, "2", True, True, True, Memory("stm", b"\x00"), True)
    assert pickle.loads(pickle.dumps([task, row])) == [task, row]


def example() -> Episode:
    opening = Turn(
        [1, 2], [], [], [3], role="remember", query="My dog is Rex", answer="", reference="Nice"
    )
    answer = Turn(
        [1],
        [4, 5],
        [-0.1, -1e-30],
        [4],
        "recall",
        (Fact("Rex", 0),),
        True,
        rewards={"bleu": 0.5},
        reward=0.25,
    )
    carried = Memory("stm", b"\x00\x01")
    return Episode(
        "e",
        "t",
        2**63 - 1,
        (opening, answer),
        7,
        initial_memory=carried,
        memory_hash="ab",
        figures={"score": 0.5},
    )


def test_parquet_is_read_by_pyarrow_and_by_datasets(tmp_path: Path) -> None:
    from datasets import load_dataset

    table = to_table([example()])
    pyarrow.parquet.write_table(table.append_column("stage", [[3]]), tmp_path / "part-0.parquet")
    assert from_table(pyarrow.dataset.dataset(tmp_path).to_table()) == [example()]
    rows = load_dataset(
        "parquet",
        data_files=str(tmp_path / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert rows[0]["turns"][1]["rewards"] == [{"name": "bleu", "value": 0.5}]
    assert rows[0]["stage"] == 3


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("memory_change", [[[0.5, 1.0]], [[0.0, 0.25]]]),
        ("writes", (MemoryWrite(0, [1, 2], [4, 0], [-0.5, -0.25], text="Rex"),)),
    ],
)
def test_a_table_without_a_later_column_is_read(tmp_path: Path, column: str, values: Any) -> None:
    changed = dataclasses.replace(example(), **{column: values})
    table = to_table([changed])
    earlier = table.drop_columns([column])
    assert from_table(earlier) == [example()]
    joined = pa.concat_tables([earlier, table], promote_options="default")
    pyarrow.parquet.write_table(joined, tmp_path / "part-0.parquet")
    assert from_table(pyarrow.dataset.dataset(tmp_path).to_table()) == [example(), changed]


def test_schema_covers_every_field_of_the_records() -> None:
    assert set(SCHEMA.names) == set(Episode.__dataclass_fields__)
    assert {field.name for field in SCHEMA.field("turns").type.value_type} == set(
        Turn.__dataclass_fields__
    )
    assert {field.name for field in SCHEMA.field("writes").type.value_type} == set(
        MemoryWrite.__dataclass_fields__
    )
