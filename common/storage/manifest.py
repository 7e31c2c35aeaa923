"""Manifests of checkpoints: which files belong to one, and whether they are still those that were
saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import fsspec

from common.failures import InputError
from common.storage.formats import CHECKPOINT, require_format

FOLDER, MANIFEST = "checkpoints", "manifest.json"
_CHUNK = 1 << 20


def described(path: Path, folder: Path) -> dict[str, Any]:
    """A file as a manifest lists it: its path relative to `folder`, its size and its hash."""
    with path.open("rb") as stream:
        size, digest = _digest(stream)
    return {"path": path.relative_to(folder).as_posix(), "bytes": size, "blake2b": digest}


def compare(where: str, entry: Mapping[str, Any], named: str = "") -> None:
    """Raises InputError where the file at `where` (path or URI) is not what a manifest says of it.

    named: where the file came from, for the message; empty: `where`.
    """
    named = named or where
    files, inner = fsspec.core.url_to_fs(where)
    if not files.exists(inner):
        raise InputError(
            named, f"is missing, though the manifest lists it with {entry['bytes']} bytes"
        )
    try:
        with files.open(inner, "rb") as stream:
            size, digest = _digest(stream)
    except OSError as unreadable:
        raise InputError(named, f"cannot be read: {unreadable}") from unreadable
    if size != entry["bytes"]:
        raise InputError(
            named,
            f"is not the file that was saved: {size} bytes here, {entry['bytes']} in the manifest",
        )
    if digest != entry["blake2b"]:
        raise InputError(
            named,
            f"is not the file that was saved: hash {digest} here, {entry['blake2b']} in the "
            "manifest",
        )


def manifest_in(where: str) -> dict[str, Any] | None:
    """The manifest in a folder; None where there is no readable one of ours."""
    manifest = _content(where)
    return manifest if _is_manifest(manifest) else None


def require_known_format(where: str) -> None:
    """Raises InputError where the folder holds a checkpoint of another format."""
    manifest = _content(where)
    if isinstance(manifest, dict) and isinstance(manifest.get("format"), int):
        require_format(where, manifest["format"], CHECKPOINT)


def _content(where: str) -> Any:
    """The JSON of the manifest in a folder; None where it cannot be read."""
    files, inner = fsspec.core.url_to_fs(f"{where}/{MANIFEST}")
    try:
        return json.loads(files.cat_file(inner))
    except (OSError, ValueError):
        return None


def _is_manifest(value: Any) -> bool:
    kinds = {"format": int, "step": int, "serial": int, "state": dict, "files": list}
    if not isinstance(value, dict) or not all(
        isinstance(value.get(key), kind) for key, kind in kinds.items()
    ):
        return False
    frozen = [] if value.get("frozen") is None else [value["frozen"]]
    return value["format"] == CHECKPOINT and all(map(_is_file, [*value["files"], *frozen]))


def _is_file(value: Any) -> bool:
    kinds = {"path": str, "bytes": int, "blake2b": str}
    return isinstance(value, dict) and all(
        isinstance(value.get(key), kind) for key, kind in kinds.items()
    )


def _digest(stream: IO[bytes]) -> tuple[int, str]:
    size, digest = 0, hashlib.blake2b(digest_size=16)
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        digest.update(chunk)
    return size, digest.hexdigest()
