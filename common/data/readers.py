"""Raw records from files and from `datasets`, checked one by one.

Every fault names the file and the 1-based line or row. All faults are collected, up to a bound,
before the first is raised.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.config.locations import DATA_SUFFIXES, WRITTEN_SUFFIXES, is_data_file
from common.data.checks import Fault, is_unknown
from common.data.columns import Layout
from common.data.decoding import read_text
from common.data.formats import csv_records, json_lines, json_records, text_records
from common.failures import InputError, nearest, no_such_file

TEXT_FORMATS = {
    ".jsonl": json_lines,
    ".json": json_records,
    ".csv": csv_records,
    ".txt": text_records,
}
"""Readers of the text of a file, by its ending; `.gz` may follow."""
REPORTED = 20
"""Faults after which a file is not read any further."""


class BadRecords(InputError):
    """Faults of a data file; reads as the first of them. `faults` holds all, up to REPORTED."""

    def __init__(self, faults: Sequence[InputError]):
        more = (
            ""
            if len(faults) == 1
            else f" (and {len(faults) - 1}{' or' if len(faults) == REPORTED else ''} more)"
        )
        super().__init__(faults[0].where, faults[0].what + more)
        self.faults = list(faults)

    def __reduce__(self) -> tuple[type[BadRecords], tuple[list[InputError]]]:
        return BadRecords, (self.faults,)


def checked_records(
    source: str | Path,
    faults_of: Callable[[Any], Iterable[Fault]],
    notice: Callable[[str, Any], None] | None = None,
    layout: Layout | None = None,
) -> list[dict[str, Any]]:
    """All records of a source; BadRecords where `faults_of` finds any, or where there are no
    records at all.

    notice: called with where each record without faults stands, and with the record.
    layout: how fields are read from columns; None: as they stand.
    source: path of a file with an ending of DATA_SUFFIXES, or a name of `datasets` as "name",
    "name:subset", "name:subset:split" or "name::split".
    """
    records: list[dict[str, Any]] = []
    seen: set[str] = set()
    faults: list[InputError] = []
    for where, record in _records(str(source)):
        if isinstance(record, InputError):
            faults.append(record)
        else:
            if layout is not None:
                seen.update(record if isinstance(record, dict) else ())
                record = layout.record(record)
            found = [
                InputError(f"{where}, field {field}", what) for field, what in faults_of(record)
            ]
            if notice is not None and not found:
                notice(where, record)
            faults += found
            records.append(record)
        if len(faults) >= REPORTED:
            break
    missing = layout.missing(seen, str(source)) if layout is not None else None
    if missing is not None:
        # Whatever else is wrong follows from it.
        raise missing
    if faults and str(source).removesuffix(".gz").endswith(".txt") and is_unknown(faults[0]):
        what = "is read as lines of plain text, by its ending: is it a .jsonl file?"
        raise BadRecords([InputError(str(source), what)])
    if faults:
        raise BadRecords(faults[:REPORTED])
    if not records:
        raise BadRecords([InputError(str(source), "is empty: no records in it")])
    return records


def placed_records(
    source: str | Path, faults_of: Callable[[Any], Iterable[Fault]]
) -> list[tuple[str, dict[str, Any]]]:
    """As `checked_records`, each record with where it stands."""
    found: list[tuple[str, dict[str, Any]]] = []
    checked_records(source, faults_of, lambda where, record: found.append((where, record)))
    return found


def write_records(
    records: Iterable[Mapping[str, Any]], path: str | Path, schema: pa.Schema
) -> None:
    """Records to a .jsonl, .jsonl.gz or .parquet file; `schema` types the Parquet columns."""
    path = Path(path)
    suffix = _suffix(path.name, WRITTEN_SUFFIXES)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".parquet":
        pq.write_table(
            pa.Table.from_pylist([dict(record) for record in records], schema=schema), path
        )
        return
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    # No time stamp in the gzip header: the same records give the same bytes.
    path.write_bytes(
        gzip.compress(text.encode(), mtime=0) if suffix == ".jsonl.gz" else text.encode()
    )


def _records(source: str) -> Iterator[tuple[str, Any]]:
    """(where, record), or (where, InputError) for a line that cannot be decoded."""
    path = Path(source)
    if not is_data_file(source):
        yield from _named(source)
        return
    if not path.is_file():
        raise no_such_file(source)
    suffix = _suffix(path.name, DATA_SUFFIXES)
    if suffix == ".parquet":
        yield from _parquet(path)
    else:
        yield from TEXT_FORMATS[suffix.removesuffix(".gz")](read_text(path), str(path))


def _suffix(name: str, valid: Sequence[str]) -> str:
    found = next((suffix for suffix in valid if name.endswith(suffix)), None)
    if found is None:
        raise InputError(
            name,
            f"has the ending {''.join(Path(name).suffixes[-2:])!r}; "
            f"{nearest(Path(name).suffix, valid)}",
        )
    return found


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            _require_single_names(path, file.schema_arrow)
            number = 0
            for batch in file.iter_batches():
                for record in _decoded(batch):
                    number += 1
                    where = f"{path}, row {number}"
                    if isinstance(record, UnicodeDecodeError):
                        record = InputError(where, f"holds text that is not UTF-8: {record}")
                    yield where, record
    except (pa.ArrowException, OSError, ValueError, OverflowError) as unreadable:
        raise InputError(
            str(path), f"cannot be read as Parquet: {' '.join(str(unreadable).split())}"
        ) from None


def _require_single_names(path: Path, schema: pa.Schema) -> None:
    """Raises InputError where two columns, or two fields of a struct, have one name."""
    levels: list[tuple[str, list[pa.Field]]] = [("", list(schema))]
    while levels:
        place, fields = levels.pop()
        names = [field.name for field in fields]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(str(path), f"the field {place}{twice} is there twice")
        levels += [
            (f"{place}{field.name}.", [field.type.field(i) for i in range(field.type.num_fields)])
            for field in fields
            if pa.types.is_nested(field.type)
        ]


def _decoded(batch: pa.RecordBatch) -> Iterator[Any]:
    """The records of a batch; in place of one whose text is not UTF-8, the error."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            try:
                yield batch.slice(row, 1).to_pylist()[0]
            except UnicodeDecodeError as other:
                yield other


def _named(source: str) -> Iterator[tuple[str, Any]]:
    import datasets  # Takes seconds to import, and only this source needs it.

    name, _, rest = source.partition(":")
    subset, _, split = rest.partition(":")
    try:
        loaded = datasets.load_dataset(name, subset or None, split=split or "train")
    except (OSError, ValueError) as unknown:
        reason = " ".join(str(unknown).split())[:200]
        raise InputError(
            source, f"is neither a file nor a data set that `datasets` can load: {reason}"
        ) from None
    for number, record in enumerate(loaded, 1):
        yield f"{source}, row {number}", dict(record)
