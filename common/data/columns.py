"""Fields of records from columns with other names.

A mapping applies to records that have at least one of the columns it names. Such a record is cut to
the fields that its reader knows; any other record is read as it is, with every unknown field a
fault. So one mapping serves files of several origins, and a misspelt column is found: it is missing
where another one of the mapping is there, and unknown columns are faults where none is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config.section import Section
from common.data.decoding import parse_json
from common.failures import InputError, nearest

Columns = Mapping[str, tuple[str, ...]]
"""Columns by field."""
NO_COLUMNS: Columns = {}


def columns_of(section: Section) -> Columns:
    """The columns that settings name, by field."""
    named = {name: getattr(section, name) for name in type(section).model_fields}
    return {
        name: (column,) if isinstance(column, str) else tuple(column)
        for name, column in named.items()
        if column is not None
    }


@dataclass(frozen=True)
class Layout:
    """The shapes that records of a file may have, and the columns that their fields are read
    from."""

    shapes: tuple[Mapping[str, Any], ...]
    """Types by field. Of several shapes, a mapped record has the first whose first field it has."""
    columns: Columns
    keep: bool = False
    """Whether columns that nothing names stay in a mapped record."""

    def record(self, given: Any) -> Any:
        """A record with the fields that its columns hold, as the record itself has them where no
        column applies. Fields of another type than text are read from JSON where they are text."""
        if not isinstance(given, dict):
            return given
        record = given
        if self.applies_to(given):
            mapped = self._mapped(given)
            shape = next(
                (each for each in self.shapes if mapped.get(next(iter(each))) is not None),
                self.shapes[0],
            )
            known = mapped if self.keep else shape
            record = {name: value for name, value in mapped.items() if name in known}
        kinds = {name: kind for shape in self.shapes for name, kind in shape.items()}
        return {name: _typed(value, kinds.get(name, str)) for name, value in record.items()}

    def applies_to(self, record: Mapping[str, Any]) -> bool:
        return any(name in record for names in self.columns.values() for name in names)

    def _mapped(self, given: Mapping[str, Any]) -> dict[str, Any]:
        taken = {name for names in self.columns.values() for name in names}
        own = {
            name: value
            for name, value in given.items()
            if name not in taken and name not in self.columns
        }
        read = {
            field: _joined([given.get(name) for name in names])
            for field, names in self.columns.items()
            if any(name in given for name in names)
        }
        return own | read

    def missing(self, seen: set[str], source: str) -> InputError | None:
        """A column of the mapping that no record of the source has, if one of the others is there.

        seen: names of all columns of the records.
        """
        known = {name for shape in self.shapes for name in shape}
        wanted = {
            name: field for field, names in self.columns.items() if field in known for name in names
        }
        if seen.isdisjoint(wanted):
            return None
        for name, field in wanted.items():
            if name not in seen:
                return InputError(
                    source,
                    f"has no column {name!r}, which columns.{field} names; {nearest(name, seen)}",
                )
        return None


def _joined(values: Sequence[Any]) -> Any:
    """One value as it is; several texts with a line break between those that are not empty."""
    there = [value for value in values if value is not None and value != ""]
    if len(values) == 1 or not all(isinstance(value, str) for value in there):
        return there[0] if there else values[0]
    return "\n".join(there) if there else None


def _typed(value: Any, kind: Any) -> Any:
    """A text as the list or number that it holds as JSON, for a field of another type than text.
    CSV knows texts only."""
    if kind is str or not isinstance(value, str):
        return value
    try:
        read = parse_json(value)
    except ValueError:
        return value
    return value if isinstance(read, str) else read
