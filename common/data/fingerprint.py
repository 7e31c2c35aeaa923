"""Fingerprint of a run's data, in counts and hashes: a run that goes on must do so with the data it
was started with.

Hashes are of what was read, in its order, not of files: the same conversations in another file, or
in another format, are the same data. Fields that hold their default do not count, so that a field
added to the records changes no hash of data without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, NamedTuple, Self

from common.failures import InputError
from common.text.counted import counted

_DIGEST_BYTES = 16


class Source(NamedTuple):
    """Records that came from one place."""

    setting: str
    """Key of the configuration that names it."""
    name: str
    """The file or data set, or which part of the data it is."""
    unit: str
    """Name of its records, in the plural."""
    records: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Part:
    """The fingerprint of a source."""

    setting: str
    name: str
    unit: str
    count: int
    digest: str
    unordered: str
    """The same for any order of the records."""

    @classmethod
    def of(cls, source: Source) -> Self:
        ordered, total = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0
        for record in source.records:
            text = json.dumps(plain(record), ensure_ascii=False, separators=(",", ":"))
            digest = hashlib.blake2b(
                text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES
            ).digest()
            ordered.update(digest)
            total += int.from_bytes(digest, "big")
        unordered = (total % 2 ** (8 * _DIGEST_BYTES)).to_bytes(_DIGEST_BYTES, "big").hex()
        return cls(
            source.setting,
            source.name,
            source.unit,
            len(source.records),
            ordered.hexdigest(),
            unordered,
        )

    @property
    def amount(self) -> str:
        return counted(self.count, self.unit)


def fingerprint(sources: Iterable[Source]) -> list[Part]:
    """One part for each source that has records, in order."""
    return [Part.of(source) for source in sources if source.records]


def to_json(parts: Sequence[Part]) -> dict[str, Any]:
    return {"format": 1, "parts": [asdict(part) for part in parts]}


def from_json(value: Any) -> list[Part]:
    """Raises ValueError where `value` is not what `to_json` gave."""
    try:
        return [Part(**part) for part in value["parts"]]
    except (TypeError, KeyError) as wrong:
        raise ValueError(f"lacks what a fingerprint has: {wrong}") from wrong


def require_same_data(
    now: Sequence[Part], then: Sequence[Part], run: str, otherwise: str = "choose another name"
) -> None:
    """Raises InputError naming the first source whose records are not those that `run` was started
    with.

    otherwise: what the user may do instead of putting them back.
    """
    remedy = f"put the data of {run} back, or {otherwise}"
    for old, new in zip(then, now, strict=False):
        if (old.setting, old.digest) != (new.setting, new.digest):
            _refuse(new.setting, f"{new.name} {_difference(old, new)}", remedy)
    if len(now) != len(then):
        part, verb = (
            (now[len(then)], "was not among")
            if len(now) > len(then)
            else (then[len(now)], "is missing from")
        )
        _refuse(
            part.setting,
            f"{part.name} ({part.amount}) {verb} the data that the run was started with",
            remedy,
        )


def _difference(old: Part, new: Part) -> str:
    moved = "" if old.name == new.name else f" in {old.name}"
    if old.count != new.count:
        return f"has {new.amount}, the run was started with {old.count}{moved}"
    if old.unordered == new.unordered:
        return f"has the {new.amount} that the run was started with in another order"
    return f"has {new.amount}, but not those that the run was started with{moved}"


def _refuse(setting: str, what: str, remedy: str) -> None:
    raise InputError(setting, f"{what}; {remedy}")


def plain(value: Any) -> Any:
    """A record as JSON has it, without fields that hold their default."""
    if is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name))
            for field in fields(value)
            if field.default is MISSING or getattr(value, field.name) != field.default
        }
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value
