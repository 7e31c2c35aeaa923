"""Retries that look at no exit code, as a RayJob's: after a refusal, and after a run that was
drained."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config.loader import load_run
from common.failures import EXIT_BAD_INPUT, InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress
from deploy.refusal import REFUSED, fingerprint, remembered, require_not_refused
from tests.terminal import sentences

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {
    "name": "again",
    "data": {"kind": "synth", "train": 40, "eval": 8, "steps": [2], "subjects": 3, "values": 5},
    "tokenizer": {"vocab_size": 350},
    "model": {"size": "tiny", "width": 32, "layers": 1, "heads": 2, "query_heads": 2}
    | {"kv_heads": 2, "decoder_ff": 32, "encoder_ff": 32, "slots": 4, "max_tokens": 48},
    "stages": [{"stage": "sft", "steps": 2}],
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"runs": str(tmp_path / "runs")}))
    return path


def train(config: Path, *words: str) -> tuple[int, list[str], float]:
    """Exit code, sentences and seconds of `engram train`, as a job's entrypoint runs it."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "train", str(config), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, sentences(done.stderr), time.monotonic() - begun


def test_a_retry_of_what_was_refused_before_a_cluster_says_the_same(config: Path) -> None:
    code, said, _ = train(config, "data.steps=[2]", "tokenizer.vocab_size=3")
    assert code == EXIT_BAD_INPUT
    assert train(config, "data.steps=[2]", "tokenizer.vocab_size=3")[:2] == (code, said)


def test_a_retry_of_what_was_refused_on_a_cluster_ends_before_one_starts(
    config: Path, tmp_path: Path
) -> None:
    directory = RunDirectory(str(tmp_path / "runs"), "again")
    run = load_run([config])
    with pytest.raises(InputError), remembered(directory, fingerprint(run, {})):
        raise InputError("row 7", "is longer than the model reads")
    code, said, _ = train(config)
    assert code == EXIT_BAD_INPUT
    assert said[-1] == "engram: row 7: is longer than the model reads"
    assert any(
        "was refused before, and neither its settings nor its files" in each for each in said
    )
    assert not any("starting Ray" in each for each in said)
    assert not (tmp_path / "runs" / "again" / "summary.json").exists()


def test_a_refusal_holds_until_settings_or_files_change(tmp_path: Path) -> None:
    directory, progress = RunDirectory(str(tmp_path), "again"), QuietProgress()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("1\n")
    run = load_run_of(tmp_path)
    places = {"rows.jsonl": str(rows), "runs": run.runs}
    mark = fingerprint(run, places)
    require_not_refused(directory, mark, progress)
    with pytest.raises(InputError), remembered(directory, mark):
        raise InputError("rows.jsonl", "is wrong")
    with pytest.raises(InputError, match=r"^rows\.jsonl: is wrong$"):
        require_not_refused(directory, fingerprint(run, places), progress)
    rows.write_text("1\n2\n")
    assert fingerprint(run, places) != mark
    require_not_refused(directory, fingerprint(run, places), progress)
    assert not directory.exists(REFUSED)
    other = run.model_copy(update={"seed": 1})
    assert fingerprint(other, places) != fingerprint(run, places)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"mark": "m", "where": 1, "what": ""}'])
def test_a_damaged_refusal_refuses_nothing(tmp_path: Path, text: str) -> None:
    directory = RunDirectory(str(tmp_path), "again")
    directory.write_text(REFUSED, text)
    require_not_refused(directory, "m", QuietProgress())
    assert not directory.exists(REFUSED)


def test_only_bad_input_is_kept(tmp_path: Path) -> None:
    directory = RunDirectory(str(tmp_path), "again")
    with pytest.raises(RuntimeError), remembered(directory, "m"):
        raise RuntimeError("a node is gone")
    assert not directory.exists(REFUSED)
    with pytest.raises(InputError), remembered(directory, "m"):
        raise InputError("a", "b")
    assert json.loads(directory.read_text(REFUSED)) == {"mark": "m", "where": "a", "what": "b"}


def load_run_of(folder: Path) -> Any:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"runs": str(folder)}))
    return load_run([path])
