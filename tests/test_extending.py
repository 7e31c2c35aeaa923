"""docs/extending.md: its examples, as they stand there, added to a copy of the code, tested and
trained."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "extending.md"
COPIED = ("common", "rollout", "reward_service", "learner", "deploy", "pyproject.toml")
BLOCK = re.compile(r"^```(python|diff|yaml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    kind: str
    file: str
    text: str


def blocks() -> Iterator[Block]:
    """The code on the page, with the file that each block names in its first line."""
    for kind, file, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        yield Block(kind, file, text)


def changed(source: str, change: str, file: str) -> str:
    """The source with a block of `+` and `-` lines applied, at the one place that it fits."""
    lines = change.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if not line.startswith("+"))
    after = "".join(line[1:] for line in lines if not line.startswith("-"))
    places = source.count(before)
    assert places == 1, (
        f"{file} has {places} places like this, so the page is out of date:\n{before}"
    )
    return source.replace(before, after)


def apply(block: Block, folder: Path) -> None:
    path = folder / block.file
    if block.kind == "diff":
        path.write_text(changed(path.read_text(encoding="utf-8"), block.text, block.file))
        return
    assert not path.exists(), f"{block.file} is there already"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with every example of the page."""
    folder = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    for block in blocks():
        apply(block, folder)
    return folder


def python(folder: Path, *words: str, seconds: float) -> str:
    """Output of a Python module run on the copy."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_page_has_an_example_of_each_kind() -> None:
    new = {block.file for block in blocks() if block.kind == "python"}
    for folder in (
        "rollout/environments",
        "learner/rl/algorithms",
        "reward_service/components",
        "learner/stages",
    ):
        assert [file for file in new if file.startswith(f"{folder}/")], folder


def test_the_tests_on_the_page_pass(extended: Path) -> None:
    tests = [block.file for block in blocks() if block.file.startswith("tests/")]
    said = python(extended, "pytest", "-q", "-p", "no:cacheprovider", *tests, seconds=150)
    assert f"{len(tests)} passed" in said


def test_the_examples_are_formatted_and_linted(extended: Path) -> None:
    files = [block.file for block in blocks() if block.kind != "yaml"]
    python(extended, "ruff", "check", "--no-cache", *files, seconds=60)
    python(extended, "ruff", "format", "--no-cache", "--check", *files, seconds=60)


@pytest.mark.cluster
@pytest.mark.nightly
@pytest.mark.timeout(400)
def test_the_run_on_the_page_trains_all_four(extended: Path) -> None:
    (config,) = (block.file for block in blocks() if block.kind == "yaml")
    python(extended, "deploy", "train", config, "runs=runs", "learner.ranks=1", seconds=360)
    episodes = pq.read_table(extended / "runs" / "extended" / "episodes").to_pylist()
    assert len(episodes) == 16
    answered = [turn for episode in episodes for turn in episode["turns"][1:]]
    named = {reward["name"] for turn in answered for reward in turn["rewards"]}
    assert named == {"environment", "ending"}


def test_a_change_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"table.py has 0 places"):
        changed("a\nb\n", " a\n+c\n d\n", "table.py")
    assert changed("a\nb\n", " a\n+c\n-b\n", "table.py") == "a\nc\n"
