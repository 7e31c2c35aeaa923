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

import hashlib
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from common.failures import InputError
from common.storage.formats import CHECKPOINT, require_format
from common.storage.run_directory import RunDirectory, package_versions, run_near, sync

log = logging.getLogger(__name__)

FOLDER, MANIFEST, LATEST, BEST = "checkpoints", "manifest.json", "latest", "best"
_UNFINISHED = ".unfinished-"
_STEP_FOLDER = re.compile(r"step_\d{8,}")
_CHUNK = 1 << 20


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

    def verify(self) -> None:
        """Compare every file with the manifest; InputError naming the first that differs."""
        files, folder = fsspec.core.url_to_fs(self.where)
        for entry in self.manifest["files"]:
            where, inner = f"{self.where}/{entry['path']}", f"{folder}/{entry['path']}"
            if not files.exists(inner):
                raise InputError(
                    where, f"is missing, though the manifest lists it with {entry['bytes']} bytes"
                )
            try:
                with files.open(inner, "rb") as stream:
                    size, digest = _digest(stream)
            except OSError as unreadable:
                raise InputError(where, f"cannot be read: {unreadable}") from unreadable
            if size != entry["bytes"]:
                raise InputError(
                    where,
                    f"is not the file that was saved: {size} bytes here, {entry['bytes']} in "
                    "the manifest",
                )
            if digest != entry["blake2b"]:
                raise InputError(
                    where,
                    f"is not the file that was saved: hash {digest} here, {entry['blake2b']} in "
                    "the manifest",
                )

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """The files on local disk: the folder itself, or a copy of a remote one that is removed on
        leaving."""
        files, folder = fsspec.core.url_to_fs(self.where)
        if isinstance(files, LocalFileSystem):
            yield Path(folder)
            return
        with tempfile.TemporaryDirectory(prefix="engram-checkpoint-") as copy:
            for path in (MANIFEST, *(entry["path"] for entry in self.manifest["files"])):
                target = Path(copy, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(f"{folder}/{path}", str(target))
            yield Path(copy)


def save_checkpoint(
    run: RunDirectory,
    step: int,
    write: Callable[[Path], None],
    state: Mapping[str, Any],
    keep: int = 2,
) -> str:
    """Save what `write` puts into the folder it is given, with `state` (JSON) in the manifest; path
    or URI of the checkpoint.

    step: steps finished over the whole run; a checkpoint of the same step is replaced. The newest
    `keep` stay, this one included.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    # What cannot be saved must fail before minutes go into writing tensors.
    json.dumps(state, allow_nan=False)
    name = checkpoint_name(step)
    run.require_lease()
    with _workshop(run) as workshop:
        folder = workshop / f"{_UNFINISHED}{name}"
        folder.mkdir()
        write(folder)
        described = [
            _describe(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()
        ]
        manifest = {
            "format": CHECKPOINT,
            "step": step,
            "serial": 1 + max((each.serial for each in _all(run.path(FOLDER))), default=0),
            "saved_at": time.time(),
            "state": state,
            "versions": package_versions(),
            "files": described,
        }
        (folder / MANIFEST).write_text(
            json.dumps(manifest, indent=2, allow_nan=False), encoding="utf-8"
        )
        run.require_lease()  # writing may have taken minutes
        if run.local is not None:
            _move_into_place(folder, run.local / FOLDER / name)
        else:
            _upload(folder, run, name, [file["path"] for file in described])
    run.write_text(f"{FOLDER}/{LATEST}", name + "\n")
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
                _require_known_format(where)
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
        checkpoint.verify()
        return checkpoint
    found = _newest_whole(f"{where}/{FOLDER}")
    if found is None:
        for name in _step_folders(f"{where}/{FOLDER}"):
            _require_known_format(f"{where}/{FOLDER}/{name}")
        _require_known_format(where)
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
    manifest = _manifest(where)
    return Checkpoint(where, manifest) if _is_manifest(manifest) else None


def _manifest(where: str) -> Any:
    """The content of the manifest in a folder; None where it cannot be read."""
    files, inner = fsspec.core.url_to_fs(f"{where}/{MANIFEST}")
    try:
        return json.loads(files.cat_file(inner))
    except (OSError, ValueError):
        return None


def _require_known_format(where: str) -> None:
    """Raises InputError where the folder holds a checkpoint of another format."""
    manifest = _manifest(where)
    if isinstance(manifest, dict) and isinstance(manifest.get("format"), int):
        require_format(where, manifest["format"], CHECKPOINT)


def _is_manifest(value: Any) -> bool:
    kinds = {"format": int, "step": int, "serial": int, "state": dict, "files": list}
    if not isinstance(value, dict) or not all(
        isinstance(value.get(key), kind) for key, kind in kinds.items()
    ):
        return False
    described = {"path": str, "bytes": int, "blake2b": str}
    return value["format"] == CHECKPOINT and all(
        isinstance(file, dict)
        and all(isinstance(file.get(key), kind) for key, kind in described.items())
        for file in value["files"]
    )


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


def _newest_whole(folder: str) -> Checkpoint | None:
    named = _named(folder, LATEST)
    return next(_whole(sorted(_all(folder), key=lambda checkpoint: checkpoint.name != named)), None)


def _named(folder: str, file: str) -> str:
    """The text of `latest` or `best`; empty where there is no file."""
    files, inner = fsspec.core.url_to_fs(f"{folder}/{file}")
    return files.cat_file(inner).decode(errors="replace").strip() if files.exists(inner) else ""


def _whole(checkpoints: Iterable[Checkpoint]) -> Iterator[Checkpoint]:
    for checkpoint in checkpoints:
        try:
            checkpoint.verify()
        except InputError as broken:
            log.warning("passing over checkpoint %s: %s", checkpoint.where, broken)
        else:
            yield checkpoint


@contextmanager
def _workshop(run: RunDirectory) -> Iterator[Path]:
    """A local folder to build a checkpoint in: on the run's own disk where it has one, because a
    rename cannot cross disks."""
    if run.local is None:
        with tempfile.TemporaryDirectory(prefix="engram-checkpoint-") as temporary:
            yield Path(temporary)
        return
    folder = run.local / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder)
    try:
        yield folder
    finally:
        _remove_unfinished(folder)


def _remove_unfinished(folder: Path) -> None:
    """Remove what a failed or killed save left behind."""
    for unfinished in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(unfinished)


def _move_into_place(folder: Path, target: Path) -> None:
    """Make every byte durable, then give the folder its name."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)
    if target.exists():
        target.rename(target.with_name(f"{_UNFINISHED}replaced-{target.name}"))
    folder.rename(target)
    sync(target.parent)


def _upload(folder: Path, run: RunDirectory, name: str, paths: list[str]) -> None:
    """Put the files, then the manifest; until it is there the folder is no checkpoint."""
    files, target = run.filesystem, run.inner(f"{FOLDER}/{name}")
    if files.exists(f"{target}/{MANIFEST}"):
        files.rm_file(f"{target}/{MANIFEST}")
    if files.exists(target):
        files.rm(target, recursive=True)
    for path in [*paths, MANIFEST]:
        files.makedirs(f"{target}/{path}".rpartition("/")[0], exist_ok=True)
        files.put_file(str(folder / path), f"{target}/{path}")


def _prune(run: RunDirectory, latest: str, keep: int) -> None:
    """Remove all but the newest `keep`, and folders that never became checkpoints. Whatever
    `latest` and `best` name stays."""
    folder = run.path(FOLDER)
    newest = {checkpoint.name for checkpoint in _all(folder)[:keep]}
    kept = newest | {latest, _named(folder, BEST)}
    for name in _step_folders(folder):
        if name not in kept:
            run.remove(f"{FOLDER}/{name}")


def _describe(path: Path, folder: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        size, digest = _digest(stream)
    return {"path": path.relative_to(folder).as_posix(), "bytes": size, "blake2b": digest}


def _digest(stream: IO[bytes]) -> tuple[int, str]:
    size, digest = 0, hashlib.blake2b(digest_size=16)
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        digest.update(chunk)
    return size, digest.hexdigest()
