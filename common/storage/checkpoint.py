"""Checkpoints that are whole or not there: files first, the manifest last, the folder's name by
rename, `latest` after that.

Invariants: a folder without a manifest that matches its files byte for byte is no checkpoint; the
newest whole one is always found, whatever moment a kill -9 came at; those that `latest` and `best`
name are never deleted. One process writes a run's checkpoints (rank 0 of the learner). "Newest" is
by the manifest's serial number, not by step: a run that went back to an earlier step and took
another course must not resume from its abandoned future.

Nothing is pickled: state is JSON, tensors are what `write` makes of them (safetensors). There is no
state of random number generators: every draw is a function of its purpose (`common/seeding.py`).
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from common.failures import InputError
from common.storage.formats import CHECKPOINT
from common.storage.frozen import FrozenFile, remove_unnamed
from common.storage.manifest import (
    FOLDER,
    MANIFEST,
    compare,
    described,
    manifest_in,
    require_known_format,
)
from common.storage.placement import UNFINISHED, move_into_place, upload, workshop_of
from common.storage.run_directory import RunDirectory, package_versions, run_near

log = logging.getLogger(__name__)

LATEST, BEST = "latest", "best"
_STEP_FOLDER = re.compile(r"step_\d{8,}")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, known by its manifest."""

    where: str
    """Local path or URI of its folder."""
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.where.rpartition("/")[2]

    @property
    def step(self) -> int:
        """Steps finished over the whole run."""
        return int(self.manifest["step"])

    @property
    def state(self) -> dict[str, Any]:
        """The `state` that was saved: stage, position in the data, weights version, …"""
        return dict(self.manifest["state"])

    @property
    def serial(self) -> int:
        """1 for the first checkpoint that a run saved; later saved, higher."""
        return int(self.manifest["serial"])

    @property
    def frozen(self) -> FrozenFile | None:
        """Weights of the stage that lie beside the checkpoints; None where it has none."""
        entry = self.manifest.get("frozen")
        return None if entry is None else FrozenFile.from_json(entry)

    def verify(self) -> None:
        """Compare everything that a resume reads with the manifest; InputError naming the first
        file that differs. A file of the newest checkpoint alone may be missing."""
        self.verify_folder()
        if self.frozen is not None:
            compare(self._frozen_at, self.frozen.to_json())

    def verify_folder(self) -> None:
        """The same without the weights that lie beside the checkpoints: enough to open the
        model."""
        files, _ = fsspec.core.url_to_fs(self.where)
        for entry in self.manifest["files"]:
            where = f"{self.where}/{entry['path']}"
            try:
                compare(where, entry)
            except InputError:
                if not _is_of_newest(entry) or files.exists(fsspec.core.url_to_fs(where)[1]):
                    raise

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """The files on local disk: the folder itself, or a copy of a remote one that is removed on
        leaving."""
        files, folder = fsspec.core.url_to_fs(self.where)
        if isinstance(files, LocalFileSystem):
            yield Path(folder)
            return
        with tempfile.TemporaryDirectory(prefix="engram-checkpoint-") as copy:
            for entry in ({"path": MANIFEST}, *self.manifest["files"]):
                target = Path(copy, entry["path"])
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    files.get_file(f"{folder}/{entry['path']}", str(target))
                except FileNotFoundError:
                    if not _is_of_newest(entry):
                        raise
            yield Path(copy)

    @contextmanager
    def frozen_file(self) -> Iterator[Path | None]:
        """The weights that lie beside the checkpoints on local disk, verified: the file itself, or
        a copy of a remote one that is removed on leaving. None where the checkpoint names none.
        InputError where they are missing, or not those that were saved."""
        if self.frozen is None:
            yield None
            return
        files, inner = fsspec.core.url_to_fs(self._frozen_at)
        if not files.exists(inner):
            raise InputError(
                self._frozen_at,
                f"is missing: weights that the stage of {self.where} left as they are; copy the "
                "run's folder checkpoints/frozen beside the checkpoint",
            )
        if isinstance(files, LocalFileSystem):
            compare(self._frozen_at, self.frozen.to_json())
            yield Path(inner)
            return
        with tempfile.TemporaryDirectory(prefix="engram-frozen-") as folder:
            copy = Path(folder, Path(inner).name)
            files.get_file(inner, str(copy))
            compare(str(copy), self.frozen.to_json(), self._frozen_at)
            yield copy

    @property
    def _frozen_at(self) -> str:
        assert self.frozen is not None, "only a checkpoint that names frozen weights is asked"
        return f"{self.where.rpartition('/')[0]}/{self.frozen.path}"


def save_checkpoint(
    run: RunDirectory,
    step: int,
    write: Callable[[Path], None],
    state: Mapping[str, Any],
    keep: int = 2,
    newest_only: Collection[str] = (),
    frozen: FrozenFile | None = None,
) -> str:
    """Save what `write` puts into the folder it is given, with `state` (JSON) in the manifest; path
    or URI of the checkpoint.

    step: steps finished over the whole run; a checkpoint of the same step is replaced. The newest
    `keep` stay, this one included. newest_only: files of the folder that are removed when a newer
    checkpoint is there. frozen: weights that `write_frozen` put into the run for it.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    # What cannot be saved must fail before minutes go into writing tensors.
    json.dumps(state, allow_nan=False)
    name = checkpoint_name(step)
    run.require_lease()
    with workshop_of(run) as workshop:
        folder = workshop / f"{UNFINISHED}{name}"
        folder.mkdir()
        write(folder)
        listed = [described(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        for entry in listed:
            if entry["path"] in newest_only:
                entry["newest_only"] = True
        manifest = {
            "format": CHECKPOINT,
            "step": step,
            "serial": 1 + max((each.serial for each in _all(run.path(FOLDER))), default=0),
            "saved_at": time.time(),
            "state": state,
            "versions": package_versions(),
            "files": listed,
            "frozen": None if frozen is None else frozen.to_json(),
        }
        (folder / MANIFEST).write_text(
            json.dumps(manifest, indent=2, allow_nan=False), encoding="utf-8"
        )
        run.require_lease()  # writing may have taken minutes
        if run.local is not None:
            move_into_place(folder, run.local / FOLDER / name)
        else:
            upload(folder, run, name, [entry["path"] for entry in listed])
    run.write_text(f"{FOLDER}/{LATEST}", name + "\n")
    # Not before: until `latest` names this one, a run that is killed resumes from the one before.
    _prune(run, name, keep)
    return run.path(f"{FOLDER}/{name}")


def mark_best(run: RunDirectory, checkpoint: str) -> None:
    """Let `best` name the checkpoint (the name of its folder), which keeps it."""
    run.write_text(f"{FOLDER}/{BEST}", checkpoint + "\n")


def latest_checkpoint(run: RunDirectory) -> Checkpoint | None:
    """The checkpoint to resume from: the one `latest` names where it is whole, else the newest
    whole one, else None."""
    return _newest_whole(run.path(FOLDER))


def whole_checkpoints(run: RunDirectory) -> list[Checkpoint]:
    """Every checkpoint of a run whose files are what its manifest says, newest first."""
    return list(_whole(_all(run.path(FOLDER))))


def damage_after(run: RunDirectory, checkpoint: Checkpoint | None) -> list[InputError]:
    """The damage of each folder of a checkpoint newer than `checkpoint` (None: with each there is),
    newest first."""
    folder = run.path(FOLDER)
    found: list[tuple[int, InputError]] = []
    for name in _step_folders(folder):
        where, each = f"{folder}/{name}", _read(f"{folder}/{name}")
        if checkpoint is not None and (
            each.serial <= checkpoint.serial if each else step_of(name) <= checkpoint.step
        ):
            continue
        try:
            if each is None:
                require_known_format(where)
                raise InputError(
                    f"{where}/{MANIFEST}",
                    "is missing, or is not what a checkpoint's manifest should be",
                )
            each.verify()
        except InputError as broken:
            found.append((step_of(name), broken))
    return [broken for _, broken in sorted(found, key=lambda each: -each[0])]


def checkpoint_name(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step_{step:08d}"


def step_of(name: str) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(name.rpartition("_")[2])


def has_saved(run: RunDirectory) -> bool:
    """Whether a checkpoint after the first step was ever saved, whatever became of it: there is a
    folder of one, or `latest` names one."""
    named = _named(run.path(FOLDER), LATEST)
    names = [*_step_folders(run.path(FOLDER)), *([named] if _STEP_FOLDER.fullmatch(named) else [])]
    return any(step_of(name) > 0 for name in names)


def open_checkpoint(where: str) -> Checkpoint:
    """The checkpoint that a user named: its folder, or a run directory for its latest, also by its
    `checkpoints` or `checkpoints/latest`, or `checkpoints/best`. InputError where it is none of
    these, or broken."""
    in_run, asked, _ = where.rstrip("/").partition(f"/{FOLDER}/{BEST}")
    if asked:
        best = _named(f"{in_run}/{FOLDER}", BEST)
        if not best:
            raise InputError(where, "no best checkpoint was chosen: stages.mrl.evaluate_every is 0")
        where = f"{in_run}/{FOLDER}/{best}"
    where = re.sub(rf"/{FOLDER}(/{LATEST})?/?$", "", where)
    files, inner = fsspec.core.url_to_fs(where)
    where = inner if isinstance(files, LocalFileSystem) else where.rstrip("/")
    checkpoint = _read(where)
    if checkpoint is not None:
        checkpoint.verify_folder()
        return checkpoint
    found = _newest_whole(f"{where}/{FOLDER}", Checkpoint.verify_folder)
    if found is None:
        for name in _step_folders(f"{where}/{FOLDER}"):
            require_known_format(f"{where}/{FOLDER}/{name}")
        require_known_format(where)
        what = f"does not exist{run_near(where)}"
        if files.exists(inner):
            runs = sorted(files.glob(f"{inner}/*/config.yaml"))[:3]
            named = ", ".join(f"{where}/{run.split('/')[-2]}" for run in runs)
            what = f"is not a checkpoint: it has no readable {MANIFEST}"
            what += f"; it holds runs, such as {named}" if runs else ""
        raise InputError(where, what)
    return found


# --- how it is done -------------------------------------------------------------------------------


def _read(where: str) -> Checkpoint | None:
    """The checkpoint in a folder, unverified; None where there is no readable manifest of ours."""
    manifest = manifest_in(where)
    return None if manifest is None else Checkpoint(where, manifest)


def _is_of_newest(entry: Mapping[str, Any]) -> bool:
    """Whether a file of a manifest is removed when a newer checkpoint is there."""
    return bool(entry.get("newest_only", False))


def _step_folders(folder: str) -> list[str]:
    files, inner = fsspec.core.url_to_fs(folder)
    files.invalidate_cache()
    if not files.isdir(inner):
        return []
    names = (entry.rstrip("/").rpartition("/")[2] for entry in files.ls(inner, detail=False))
    return sorted(name for name in names if _STEP_FOLDER.fullmatch(name))


def _all(folder: str) -> list[Checkpoint]:
    """Every checkpoint with a manifest in a `checkpoints` folder, unverified, newest first."""
    found = (_read(f"{folder}/{name}") for name in _step_folders(folder))
    return sorted(
        (checkpoint for checkpoint in found if checkpoint is not None),
        key=lambda checkpoint: -checkpoint.serial,
    )


def _newest_whole(
    folder: str, verify: Callable[[Checkpoint], None] = Checkpoint.verify
) -> Checkpoint | None:
    named = _named(folder, LATEST)
    ordered = sorted(_all(folder), key=lambda checkpoint: checkpoint.name != named)
    return next(_whole(ordered, verify), None)


def _named(folder: str, file: str) -> str:
    """The text of `latest` or `best`; empty where there is no file."""
    files, inner = fsspec.core.url_to_fs(f"{folder}/{file}")
    return files.cat_file(inner).decode(errors="replace").strip() if files.exists(inner) else ""


def _whole(
    checkpoints: Iterable[Checkpoint], verify: Callable[[Checkpoint], None] = Checkpoint.verify
) -> Iterator[Checkpoint]:
    for checkpoint in checkpoints:
        try:
            verify(checkpoint)
        except InputError as broken:
            log.warning("passing over checkpoint %s: %s", checkpoint.where, broken)
        else:
            yield checkpoint


def _prune(run: RunDirectory, latest: str, keep: int) -> None:
    """Remove all but the newest `keep`, and folders that never became checkpoints. Whatever
    `latest` and `best` name stays. Of those that stay, remove what only `latest` needs; and of
    frozen weights, those that none of them names."""
    folder = run.path(FOLDER)
    newest = {checkpoint.name for checkpoint in _all(folder)[:keep]}
    kept = newest | {latest, _named(folder, BEST)}
    for name in _step_folders(folder):
        if name not in kept:
            run.remove(f"{FOLDER}/{name}")
    left = _all(folder)
    for checkpoint in left:
        if checkpoint.name != latest:
            for entry in filter(_is_of_newest, checkpoint.manifest["files"]):
                if run.exists(where := f"{FOLDER}/{checkpoint.name}/{entry['path']}"):
                    run.remove(where)
    remove_unnamed(run, {each.frozen.path for each in left if each.frozen is not None})
