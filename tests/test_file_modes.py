"""Files of a run can be read by whom the umask lets read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.data.conversations import save_rows
from common.episode import Interaction, Row
from common.storage.checkpoint import save_checkpoint
from common.storage.run_directory import RunDirectory


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022, 0o002], indirect=True)
def test_files_have_the_modes_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    run = RunDirectory(str(tmp_path), "run")
    run.write_text("config.yaml", "a: 1\n")
    run.write_text("config.yaml", "a: 2\n")
    run.write_json("summary.json", {})
    run.append_line("metrics.jsonl", "{}")
    save_checkpoint(run, 1, lambda folder: (folder / "weights").touch(), {})
    row = Row("a", "b", (Interaction("c", "d"),))
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet"):
        save_rows([row], tmp_path / "run" / "data" / name)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) >= 9
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
    folders = [path for path in (tmp_path / "run").rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o777 & ~umask}
