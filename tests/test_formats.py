"""A run that another version of engram wrote is refused in one sentence, before anything of it is
touched."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from common.config.data import SynthData
from common.config.loader import load_run
from common.config.run import Run
from common.config.stages import SFT
from common.episode import Episode
from common.episode_arrow import from_table, to_table
from common.failures import InputError
from common.storage.checkpoint import damage_after, open_checkpoint, save_checkpoint
from common.storage.run_directory import RunDirectory
from rollout.journal.journal import Journal, require_whole
from rollout.journal.reader import find_episode

RUN = Run(name="one", data=SynthData(), stages=(SFT(stage="sft"),))
EPISODE = Episode("e", "t", 3, (), 40, iteration=2, batch_index=5)
OTHER = "by another version of engram, and this one reads format"


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(str(tmp_path), "one")
    directory.write_config(RUN)
    return directory


def refused(path: str, written: str, known: int) -> str:
    return (
        rf"{path}: was written {written} {OTHER} {known}: use the version that wrote it, or begin"
    )


@pytest.mark.parametrize(
    ("found", "written"), [(None, "without a format number"), (0, "in format 0")]
)
def test_a_configuration_of_another_format_is_refused(
    directory: RunDirectory, found: int | None, written: str
) -> None:
    assert directory.run() == RUN
    settings = yaml.safe_load(directory.read_text("config.yaml"))
    assert settings["format"] == 1
    del settings["format"]
    # What a newer version has more, or has renamed, must not be what is complained of.
    settings |= {"surprise": 1} | ({} if found is None else {"format": found})
    directory.write_text("config.yaml", yaml.safe_dump(settings))
    with pytest.raises(InputError, match=refused(r"config\.yaml", written, 1)):
        directory.run()


def test_a_configuration_of_a_user_needs_no_format_and_may_not_have_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: one\ndata: {kind: synth}\nstages: [{stage: sft}]\n")
    assert load_run([path]).format == 1
    with pytest.raises(InputError, match="format is 2, but should be 1"):
        load_run([path], ["format=2"])


def test_a_checkpoint_of_another_format_is_refused_by_its_number(directory: RunDirectory) -> None:
    where = save_checkpoint(directory, 10, lambda folder: None, {})
    name = "checkpoints/step_00000010/manifest.json"
    manifest = json.loads(directory.read_text(name))
    directory.write_text(name, json.dumps(manifest | {"format": 1}))
    for named in (where, directory.path()):
        with pytest.raises(InputError, match=refused("step_00000010", "in format 1", 3)):
            open_checkpoint(named)
    (damage,) = damage_after(directory, None)
    assert "in format 1" in str(damage)


def test_episodes_say_their_format_in_memory_in_a_segment_and_in_parquet(
    directory: RunDirectory,
) -> None:
    assert directory.local is not None
    journal = Journal(directory.local)
    journal.dealt(2, ["t"])
    journal.arrived(2, [EPISODE])
    require_whole(directory.local)
    assert find_episode(directory, "e").episode == EPISODE
    part = journal.seal()
    assert part is not None
    assert pq.read_schema(part).metadata[b"engram.format"] == b"2"
    assert find_episode(directory, "e").episode == EPISODE
    require_whole(directory.local)


@pytest.mark.parametrize(
    ("metadata", "written"),
    [({}, "without a format number"), ({"engram.format": "7"}, "in format 7")],
)
def test_episodes_of_another_format_are_refused(
    directory: RunDirectory, metadata: dict[str, str], written: str
) -> None:
    assert directory.local is not None
    older = to_table([EPISODE]).replace_schema_metadata(metadata)
    with pytest.raises(InputError, match=refused("the table of episodes", written, 2)):
        from_table(older)
    Journal(directory.local).close()
    part = directory.local / "episodes" / "part-00000000.parquet"
    pq.write_table(older.drop_columns(["batch_index"]), part)
    sentence = refused(r"part-00000000\.parquet", written, 2)
    with pytest.raises(InputError, match=sentence):
        find_episode(directory, "e")
    with pytest.raises(InputError, match=sentence):
        require_whole(directory.local)
    part.write_bytes(b"damaged")
    require_whole(directory.local)


def test_an_open_segment_of_another_format_is_refused_before_a_resume_seals_it(
    directory: RunDirectory,
) -> None:
    assert directory.local is not None
    Journal(directory.local).close()
    sink = pa.BufferOutputStream()
    table = to_table([EPISODE]).replace_schema_metadata({})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    payload = sink.getvalue().to_pybytes()
    header = struct.pack("<4sII", b"EGE1", len(payload), zlib.crc32(payload))
    (directory.local / "episodes" / "_open-00000000.log").write_bytes(header + payload)
    sentence = refused(r"_open-00000000\.log", "without a format number", 2)
    with pytest.raises(InputError, match=sentence):
        require_whole(directory.local)
    with pytest.raises(InputError, match=sentence):
        find_episode(directory, "e")
