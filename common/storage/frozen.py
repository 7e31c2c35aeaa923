"""Weights that a whole stage leaves as they are, such as its reference policy: one file in a run,
which the manifests of the stage's checkpoints name.

Invariants: a file is named after its content, so another content never takes its place; it is
durable before the manifest of a checkpoint names it; it is removed when no checkpoint of the run
names it any more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from common.storage.manifest import FOLDER, described
from common.storage.placement import UNFINISHED
from common.storage.run_directory import RunDirectory, sync

FROZEN = "frozen"
"""Folder of these files, beside the checkpoints."""


@dataclass(frozen=True)
class FrozenFile:
    """A file of frozen weights, as a manifest names it."""

    path: str
    """Relative to the folder of the checkpoints: a run that was moved or copied finds it."""
    bytes: int
    blake2b: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(record["path"], record["bytes"], record["blake2b"])

    def is_in(self, run: RunDirectory) -> bool:
        """Whether the run holds a file of this name and size. Its hash is compared by readers."""
        where, files = run.inner(f"{FOLDER}/{self.path}"), run.filesystem
        files.invalidate_cache()
        return bool(files.exists(where)) and files.info(where)["size"] == self.bytes


def write_frozen(run: RunDirectory, name: str, write: Callable[[Path], None]) -> FrozenFile:
    """Put what `write` writes to the path that it is given into the run, and wait until it is
    durable. name: of what it is for, at the front of the file's name."""
    run.require_lease()
    if run.local is None:
        with tempfile.TemporaryDirectory(prefix="engram-frozen-") as folder:
            made, entry = _made(Path(folder), name, write)
            target = run.inner(f"{FOLDER}/{entry.path}")
            run.filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
            run.filesystem.put_file(str(made), target)
        return entry
    local = run.local / FOLDER / FROZEN
    local.mkdir(parents=True, exist_ok=True)
    for unfinished in local.glob(f"{UNFINISHED}*"):  # of a save that was killed
        unfinished.unlink()
    made, entry = _made(local, name, write)
    sync(made)
    os.replace(made, run.local / FOLDER / entry.path)
    sync(local)
    sync(local.parent)
    return entry


def _made(folder: Path, name: str, write: Callable[[Path], None]) -> tuple[Path, FrozenFile]:
    """The written file under a name of its own, and the entry that it gets."""
    made = folder / f"{UNFINISHED}{name}"
    write(made)
    entry = described(made, folder)
    path = f"{FROZEN}/{name}-{entry['blake2b']}.safetensors"
    return made, FrozenFile(path, entry["bytes"], entry["blake2b"])


def remove_unnamed(run: RunDirectory, named: Collection[str]) -> None:
    """Remove every file of frozen weights whose path no checkpoint names."""
    for file in run.names(f"{FOLDER}/{FROZEN}"):
        if f"{FROZEN}/{file}" not in named:
            run.remove(f"{FOLDER}/{FROZEN}/{file}")
