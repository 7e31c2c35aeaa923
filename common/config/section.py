"""Base of every section of a configuration: keys are known, values are fixed, docstrings under keys
are their meaning."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, LiteralString, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

LARGEST_NUMBER = 2**63 - 1
"""The largest whole number that files and tensors hold."""


class Section(BaseModel):
    replaced: ClassVar[dict[str, str]] = {}
    """Settings of earlier versions, with the one that took the place of each: named to whoever
    still gives them."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _of_their_kind(cls, settings: Any) -> Any:
        """Raises ValidationError for true and false as numbers, for numbers as true and false, and
        for whole numbers that no computer word holds: pydantic takes them all."""
        faults = [
            InitErrorDetails(type=PydanticCustomError("kind", what), loc=(name,), input=value)
            for name, value in (settings.items() if isinstance(settings, dict) else ())
            if name in cls.model_fields
            for what in _faults(value, _kinds(cls.model_fields[name].annotation))
        ]
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return settings


def _faults(value: Any, kinds: set[Any]) -> Iterator[LiteralString]:
    """Sentences on a value, or on items of a list. kinds: types that the setting may have."""
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, bool):
            if bool not in kinds and kinds & {int, float}:
                yield "should be a number"
        elif isinstance(each, int | float) and bool in kinds and not kinds & {int, float}:
            yield "should be true or false"
        elif isinstance(each, int) and abs(each) > LARGEST_NUMBER:
            yield "should be smaller than 2 to the power of 63"


def _kinds(annotation: Any) -> set[Any]:
    """Types that a setting, or an item of it, may have."""
    if annotation is None or get_origin(annotation) is None:
        return {annotation}
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _kinds(inner[0])
    if get_origin(annotation) in (Union, types.UnionType, tuple, list):
        return set().union(*map(_kinds, inner))
    return set()
