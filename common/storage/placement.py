"""How a folder that was built under another name becomes a checkpoint: by rename on a local disk,
file by file with the manifest last behind a URI."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.storage.manifest import FOLDER, MANIFEST
from common.storage.run_directory import RunDirectory, sync

UNFINISHED = ".unfinished-"
"""Begins the names of what is not in its place yet."""


@contextmanager
def workshop_of(run: RunDirectory) -> Iterator[Path]:
    """A local folder to build a checkpoint in: on the run's own disk where it has one, because a
    rename cannot cross disks."""
    if run.local is None:
        with tempfile.TemporaryDirectory(prefix="engram-checkpoint-") as temporary:
            yield Path(temporary)
        return
    folder = run.local / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    try:
        yield folder
    finally:
        remove_unfinished(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove what a failed or killed save left behind."""
    for unfinished in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(unfinished)


def move_into_place(folder: Path, target: Path) -> None:
    """Make every byte of a folder of a workshop durable, then give the folder its name."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)
    if target.exists():
        target.rename(target.with_name(f"{UNFINISHED}replaced-{target.name}"))
    folder.rename(target)
    sync(target.parent)


def upload(folder: Path, run: RunDirectory, name: str, paths: list[str]) -> None:
    """Put the files of a checkpoint behind a URI, then its manifest; until that is there the folder
    is no checkpoint. paths: relative to the folder, without the manifest."""
    files, target = run.filesystem, run.inner(f"{FOLDER}/{name}")
    if files.exists(f"{target}/{MANIFEST}"):
        files.rm_file(f"{target}/{MANIFEST}")
    if files.exists(target):
        files.rm(target, recursive=True)
    for path in [*paths, MANIFEST]:
        files.makedirs(f"{target}/{path}".rpartition("/")[0], exist_ok=True)
        files.put_file(str(folder / path), f"{target}/{path}")
