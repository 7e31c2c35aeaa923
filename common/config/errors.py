"""The schema as a tree of places: which keys are valid where, and a pydantic fault as one sentence
about one place."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from common.failures import InputError, nearest

Place = tuple[str | int, ...]
"""Keys and list indices from the root to a setting."""


def dotted(place: Place) -> str:
    return ".".join(str(part) for part in place)


def names_of(item: Any, tags: frozenset[str]) -> list[str]:
    """Names by which a setting of a list can be called: its tag, and its `name`."""
    keys = (*sorted(tags), "name")
    return [str(item[key]) for key in keys if key in item] if isinstance(item, dict) else []


def named(place: Place, tree: Any, tags: frozenset[str]) -> Place:
    """The place with names for numbers, as a user writes it, where no other item has the name."""
    found: Place = ()
    for part in place:
        called: str | int = part
        if isinstance(tree, (list, tuple)) and isinstance(part, int):
            known = [names_of(item, tags) for item in tree]
            unique = [name for name in known[part] if sum(name in each for each in known) == 1]
            called = unique[0] if unique else part
        found, tree = (*found, called), _below(tree, part)
    return found


def _below(tree: Any, part: str | int) -> Any:
    if isinstance(tree, dict):
        return tree.get(part)
    return tree[part] if isinstance(tree, (list, tuple)) and isinstance(part, int) else None


class Choice(NamedTuple):
    """Values that a setting may hold: sections, the field that tells them apart, and the annotation
    of its items if it is a list, or a mapping of sections."""

    sections: tuple[type[BaseModel], ...] = ()
    discriminator: str | None = None
    item: Any = None

    def section(self, tag: Any) -> type[BaseModel] | None:
        """The section that holds the keys: the only one, or the one that `tag` names."""
        if self.discriminator is None:
            return self.sections[0] if len(self.sections) == 1 else None
        return next((section for section in self.sections if tag in self._tags(section)), None)

    def tags(self) -> list[str]:
        return [str(tag) for section in self.sections for tag in self._tags(section)]

    def _tags(self, section: type[BaseModel]) -> tuple[Any, ...]:
        return (
            get_args(section.model_fields[self.discriminator].annotation)
            if self.discriminator
            else ()
        )


def choice_of(annotation: Any, discriminator: Any = None) -> Choice:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *notes = get_args(annotation)
        noted = [
            note.discriminator
            for note in notes
            if isinstance(note, FieldInfo) and note.discriminator
        ]
        return choice_of(inner, noted[0] if noted else discriminator)
    members = get_args(annotation) if origin in (Union, types.UnionType) else (annotation,)
    if origin in (tuple, list):
        return Choice(item=get_args(annotation)[0])
    if origin is dict and choice_of(get_args(annotation)[1]).sections:
        return Choice(item=get_args(annotation)[1])
    return Choice(
        tuple(
            member
            for member in members
            if isinstance(member, type) and issubclass(member, BaseModel)
        ),
        discriminator,
    )


def choices(section: type[BaseModel]) -> dict[str, Choice]:
    """Each setting of a section with what it may hold."""
    return {
        name: choice_of(field.annotation, field.discriminator)
        for name, field in section.model_fields.items()
    }


def discriminators(section: type[BaseModel]) -> frozenset[str]:
    """Names of all settings, at any depth, that tell one section from another."""
    found: set[str] = set()
    for choice in choices(section).values():
        while choice.item is not None:
            choice = choice_of(choice.item)
        found |= {choice.discriminator} if choice.discriminator else set()
        found = found.union(*(discriminators(below) for below in choice.sections))
    return frozenset(found)


def under_defaults(section: type[BaseModel], settings: dict[str, Any]) -> dict[str, Any]:
    """A copy with a section's own default filled in below mappings that set only some of its keys.

    MRL's optimizer has another default rate than `Optimizer` by itself: to give only its weight
    decay must not change its rate.
    """
    filled = dict(settings)
    for name, choice in choices(section).items():
        if name in settings:
            default = section.model_fields[name].default
            given = settings[name]
            if isinstance(default, BaseModel) and isinstance(given, dict):
                given = _over(default.model_dump(exclude_unset=True), given)
            filled[name] = _descend(choice, given)
    return filled


def _descend(choice: Choice, value: Any) -> Any:
    if isinstance(value, dict) and choice.item is not None:
        return {name: _descend(choice_of(choice.item), item) for name, item in value.items()}
    if isinstance(value, list) and choice.item is not None:
        return [_descend(choice_of(choice.item), item) for item in value]
    below = choice.section(value.get(choice.discriminator)) if isinstance(value, dict) else None
    return under_defaults(below, value) if below else value


def _over(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    both = [
        key
        for key in default
        if isinstance(default[key], dict) and isinstance(given.get(key), dict)
    ]
    return {**default, **given, **{key: _over(default[key], given[key]) for key in both}}


def locate(
    root: type[BaseModel], loc: tuple[int | str, ...]
) -> tuple[Place, Choice, type[BaseModel]]:
    """Place of a pydantic location, what it may hold, and the section whose key it is.

    Pydantic's locations also name the tag of a union between the keys, and the member it tried at
    the end; a place has neither.
    """
    place: Place = ()
    choice, around = Choice((root,)), root
    for part in loc:
        if choice.item is not None:
            place, choice = (*place, part), choice_of(choice.item)
            continue
        tagged = choice.section(part) if choice.discriminator else None
        if tagged is not None:
            choice = Choice((tagged,))
            continue
        section = choice.section(None)
        if section is None:
            break
        place, around = (*place, part), section
        choice = choices(section).get(str(part), Choice())
    return place, choice, around


def _unknown(key: str, section: type[BaseModel]) -> str:
    """The key that took the place of one that a section does not have, or the nearest."""
    now = getattr(section, "replaced", {}).get(key)
    return f"{now} took its place" if now else nearest(key, section.model_fields)


def sentence(
    root: type[BaseModel],
    invalid: ValidationError,
    tree: Mapping[str, Any],
    origins: Mapping[Place, str],
    everywhere: str,
) -> InputError:
    """The first fault as one sentence; unknown keys come first, since a misspelt key often makes
    another one missing.

    tree: the settings that were validated. origins: which file or override gave the setting at a
    place; `everywhere` stands for them all.
    """
    faults = sorted(
        invalid.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden"
    )
    fault = faults[0]
    place, choice, section = locate(root, fault["loc"])
    where = dotted(named(place, tree, discriminators(root)))
    match fault["type"]:
        case "extra_forbidden":
            what = f"unknown key {where}; {_unknown(str(place[-1]), section)}"
        case "missing":
            what = f"{where} is missing"
        case "union_tag_not_found":
            what = (
                f"{where}.{choice.discriminator} is missing; valid are {', '.join(choice.tags())}"
            )
        case "union_tag_invalid":
            tag = fault["ctx"]["tag"]
            known = nearest(str(tag), choice.tags())
            what = f"{dotted(place)}.{choice.discriminator} is {tag!r}; {known}"
        case _:
            message = (
                fault["msg"]
                .removeprefix("Value error, ")
                .removeprefix("Input ")
                .replace("tuple", "list")
                .replace("dictionary", "mapping")
            )
            what = f"{where} is {shown(fault['input'])}, but {message[:1].lower()}{message[1:]}"
            if fault["type"] == "string_type" and isinstance(fault["input"], int | float):
                what += "; put it in quotes"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InputError(_origin(place, origins) or everywhere, what + more)


def shown(value: Any) -> str:
    """A value for an error message, short enough for one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _origin(place: Place, origins: Mapping[Place, str]) -> str | None:
    """Who set the place, or its innermost part that anyone set."""
    known = (
        origins[place[:depth]] for depth in range(len(place), 0, -1) if place[:depth] in origins
    )
    return next(known, None)
