"""Versions of the models that rewards name, and the pinned paths that stand for them: `PATH@HASH`
with the hash of a checkpoint's manifest or of the weights in a folder, `NAME@COMMIT` on a hub."""

from __future__ import annotations

import hashlib
from functools import lru_cache, partial
from pathlib import Path

from common.config.locations import split_pin
from common.failures import InputError
from common.storage.checkpoint import FOLDER, LATEST, MANIFEST, open_checkpoint

COMMIT_DIGITS = 40


def is_ours(path: str) -> bool:
    """Whether a path is a run or a checkpoint of a run, and not a folder or a name that only
    transformers knows."""
    path, _ = split_pin(path)
    folder = Path(path)
    return (
        "://" in path
        or (folder / MANIFEST).is_file()
        or (folder / FOLDER).is_dir()
        or (folder.name == LATEST and folder.parent.name == FOLDER)
    )


@lru_cache(maxsize=16)
def weights_digest(path: str) -> str:
    """A text that changes with a model's weights: hash of the manifest of a checkpoint, or of the
    weights in a folder. For a hub name: its commit where it is pinned, or a hash of the name."""
    place, version = split_pin(path)
    if is_ours(place):
        with open_checkpoint(place).folder() as checkpoint:
            return hashlib.blake2b((checkpoint / MANIFEST).read_bytes(), digest_size=8).hexdigest()
    if not Path(place).is_dir():
        return version or hashlib.blake2b(place.encode(), digest_size=8).hexdigest()
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(place).rglob("*.safetensors")):
        with file.open("rb") as stream:
            for part in iter(partial(stream.read, 1 << 20), b""):
                digest.update(part)
    return digest.hexdigest()


def pin_model(path: str) -> str:
    """The path of a model with its version. A hub name stays as it is where its commit is not
    known. Raises InputError where no whole checkpoint is there, or not the pinned version."""
    place, version = split_pin(path)
    if version is not None:
        require_version(path)
        return path
    if is_ours(place):
        place = open_checkpoint(place).where
    elif not Path(place).is_dir():
        commit = _commit(place)
        return f"{place}@{commit}" if commit else place
    return f"{place}@{weights_digest(place)}"


def require_version(path: str) -> str:
    """The path as transformers opens it: without the hash of its weights, which is compared here. A
    commit stays. Raises InputError where other weights are there."""
    place, version = split_pin(path)
    there = is_ours(place) or Path(place).is_dir()
    if version is None or (not there and len(version) == COMMIT_DIGITS):
        return path
    if not there:
        raise InputError(place, f"is gone, and version {version} of it is pinned")
    found = weights_digest(place)
    if found != version:
        raise InputError(
            place,
            f"holds other weights than those that are pinned (version {found}, not {version}); put "
            "them back, or name the model anew under `rewards`",
        )
    return place


def _commit(name: str) -> str | None:
    """The commit of a hub name, by one small file of it; None where that cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        file = Path(hf_hub_download(name, "config.json"))
    except (OSError, ValueError):
        return None
    return file.parent.name if file.parent.parent.name == "snapshots" else None
