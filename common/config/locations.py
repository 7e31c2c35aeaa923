"""Settings that name a file, a folder or a URI, and what makes them mean the same in every process
of a run.

A relative path is relative to the folder that the command was given in. Actors work in other
folders, so `loader.py` makes every such setting absolute at the door: it validates with
`context=here()`, and the types below resolve what they hold against it. A setting that is read back
from a run's own config.yaml is left as it stands.

Each of these types is a text. A setting that names a place has one of them as its type, and needs
nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

WRITTEN_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
"""Endings of data files that engram writes."""
DATA_SUFFIXES = (
    *WRITTEN_SUFFIXES,
    *(f"{ending}{more}" for ending in (".json", ".csv", ".txt") for more in ("", ".gz")),
)
"""Endings of data files that it reads."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PINNED = re.compile(r"(.+)@([0-9a-f]{16}|[0-9a-f]{40})")
_FOLDER = "folder"
_PLACES = "places"
_SHIPPED = re.compile(r".*/_ray_pkg_[^/]+/")
"""Where Ray unpacks the working directory of a submitted job: another folder each time that a file
in it has changed."""


def here(places: dict[str, str] | None = None) -> dict[str, Any]:
    """The context of a validation that resolves relative paths: the current folder.

    places: takes the paths on disk that the validation meets, as written, each with its absolute
    path.
    """
    return {_FOLDER: os.getcwd(), _PLACES: places}


def absolute(path: str, folder: str) -> str:
    """A path as seen from `folder`, with `~` expanded; a URI as it is."""
    return (
        path if "://" in path else os.path.normpath(os.path.join(folder, os.path.expanduser(path)))
    )


def is_data_file(source: str, folder: str = "") -> bool:
    """Whether a source of data is a file, there or not, and no name of `datasets`."""
    looks_like_one = (
        source.endswith(DATA_SUFFIXES) or source.startswith((".", "/", "~")) or "://" in source
    )
    return looks_like_one or os.path.exists(os.path.join(folder, source))


def split_pin(model: str) -> tuple[str, str | None]:
    """The folder, URI or hub name of a model, and the version that is pinned after an `@`: a hash
    of weights (16 digits), or a commit of a hub (40). None: the setting names no version."""
    match = _PINNED.fullmatch(model)
    return (match[1], match[2]) if match else (model, None)


def is_folder(model: str, folder: str = "") -> bool:
    """Whether what names a model is a folder or a URI, there or not, and no name on a hub."""
    model, _ = split_pin(model)
    looks_like_one = (
        model.startswith((".", "/", "~")) or "://" in model or not _HUB_NAME.fullmatch(model)
    )
    return looks_like_one or os.path.exists(os.path.join(folder, model))


def same_place(one: str, other: str) -> bool:
    """Whether two settings of one run may name the same place: equal; one of them relative, as
    older configurations hold it, and the other's end; or both in a job's working directory, which
    Ray unpacks somewhere else when it is submitted again."""
    one, other = (_SHIPPED.sub("", os.path.expanduser(each)) for each in (one, other))
    if one == other:
        return True
    relative, full = (one, other) if other.startswith("/") else (other, one)
    tail = re.sub(r"^(\.\./)+", "", os.path.normpath(relative))
    return (
        full.startswith("/")
        and not tail.startswith("/")
        and "://" not in relative
        and full.endswith(f"/{tail}")
    )


def named_alike(before: Any, now: Any, same: Callable[[str, str], bool] = same_place) -> Any:
    """The dumped configuration `before` with the places that may be the same named as `now` names
    them."""
    if isinstance(before, dict) and isinstance(now, dict):
        return {key: named_alike(value, now.get(key), same) for key, value in before.items()}
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [named_alike(old, new, same) for old, new in zip(before, now, strict=True)]
    return now if isinstance(before, str) and isinstance(now, str) and same(before, now) else before


def _resolving(is_place: Callable[[str, str], bool]) -> AfterValidator:
    def resolve(value: str, info: ValidationInfo) -> str:
        if not info.context or not is_place(value, info.context[_FOLDER]):
            return value
        return _resolved(value, info.context)

    return AfterValidator(resolve)


def _resolved(path: str, context: dict[str, Any]) -> str:
    resolved = absolute(path, context[_FOLDER])
    if context[_PLACES] is not None and "://" not in path:
        context[_PLACES][split_pin(path)[0]] = split_pin(resolved)[0]
    return resolved


def _function(value: str, info: ValidationInfo) -> str:
    file, colon, name = value.rpartition(":")
    return (
        _resolved(file, info.context) + colon + name
        if info.context and file.endswith(".py")
        else value
    )


Location = Annotated[str, _resolving(lambda _value, _folder: True)]
"""A file, a folder or a URI. Pydantic validates a default only with `Field(…,
validate_default=True)`."""
DataSource = Annotated[str, _resolving(is_data_file)]
"""A data file, or a name of `datasets` as "name", "name:subset", "name:subset:split" or
"name::split"."""
ModelSource = Annotated[str, _resolving(is_folder)]
"""A run, a checkpoint, a folder or a URI of one, or a name on a hub; with `@VERSION` after it where
it is pinned (`split_pin`)."""
FunctionSource = Annotated[str, AfterValidator(_function)]
"""FILE.py:NAME, or package.module:NAME."""
