"""From YAML files and `key=value` words to a checked `Run`, and back.

Files are composed left to right: mappings merge, everything else is replaced. An empty mapping
takes away what is there, so that `until={}` leaves a stage without its rule. A mapping that
changes its tag (`kind`, `stage`) is replaced too: the keys of one kind mean nothing to another.
The `arguments` of a class or function of the user's are one value, and go with its `path`.
Overrides follow, in order. In a list they name an item by its number, or by the tag or `name` that
only this item has: `stages.mrl.ppo.kl`. Relative paths, wherever they come from, are relative to
the current folder, and absolute from here on. Whatever is wrong comes out as one `InputError` that
names the file or the override, the dotted key and the nearest valid one. The loader knows no
setting by name: what is valid is read from `run.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from common.config.errors import (
    Place,
    discriminators,
    dotted,
    names_of,
    sentence,
    shown,
    under_defaults,
)
from common.config.locations import here
from common.config.run import Run
from common.config.yaml_values import parse_yaml
from common.failures import InputError, nearest, no_such_file

_TAGS = discriminators(Run)
LONGEST_SOURCE = 120
"""Characters of an override that a message repeats."""
Settings = TypeVar("Settings", bound=BaseModel)


def load_run(
    paths: Sequence[str | Path],
    overrides: Sequence[str] = (),
    places: dict[str, str] | None = None,
) -> Run:
    """Compose files and overrides into a `Run`; InputError for anything that is not as the schema
    says. places: takes the paths on disk that settings name, each with its absolute path."""
    return load_section(Run, {}, paths, overrides, places)


def load_section(
    section: type[Settings],
    given: Mapping[str, Any],
    paths: Sequence[str | Path],
    overrides: Sequence[str],
    places: dict[str, str] | None = None,
) -> Settings:
    """The same for any section, such as the settings of one command. given: settings that come
    before the files."""
    for word in (*map(str, paths), *overrides):
        if not word.isprintable() and any("\ud800" <= each <= "\udfff" for each in word):
            raise InputError(word, "is no text in the encoding of this terminal")
    tree: Any = dict(given)
    origins: dict[Place, str] = {}
    for path in paths:
        tree = _put(tree, (), _read(Path(path)), (), str(path), origins)
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = tuple(key.strip().split("."))
        source = override if len(override) <= LONGEST_SOURCE else f"{override[:LONGEST_SOURCE]}…"
        if not equals or not all(parts):
            raise InputError(
                source, "an override reads key=value, with dots between the parts of the key"
            )
        tree = _put(tree, parts, parse_yaml(text, source), (), source, origins)
    try:
        return section.model_validate(under_defaults(section, tree), context=here(places))
    except ValidationError as invalid:
        everywhere = ", ".join(str(path) for path in paths) or "configuration"
        raise sentence(section, invalid, tree, origins, everywhere) from None


def dump_run(run: Run) -> str:
    """YAML of every setting, defaults included; `load_run` reads it back to an equal run."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise no_such_file(path) from None
    except (OSError, UnicodeDecodeError) as unreadable:
        raise InputError(str(path), f"cannot be read as a text file: {unreadable}") from None
    settings = parse_yaml(text, str(path))
    if not isinstance(settings, dict):
        raise InputError(
            str(path), f"should hold a mapping of settings, but holds {shown(settings)}"
        )
    return settings


def _kept(node: Any, value: dict[str, Any]) -> dict[str, Any]:
    """The part of `node` that stays where the mapping `value` is merged into it. Another kind has
    other settings, and another class or function of the user's (`path`) has other arguments."""
    if not isinstance(node, dict):
        return {}
    changed = {
        key for key in (*_TAGS, "path") if key in node and node[key] != value.get(key, node[key])
    }
    if changed - {"path"}:
        return {}
    return {key: below for key, below in node.items() if not (changed and key == "arguments")}


def _put(
    node: Any,
    parts: tuple[str, ...],
    value: Any,
    place: Place,
    source: str,
    origins: dict[Place, str],
) -> Any:
    """`node` with `value` merged in at `parts` below it; notes in `origins` that `source` set what
    it set."""
    if parts and isinstance(node, list):
        index = _index(node, parts[0], place, source)
        item = _put(node[index], parts[1:], value, (*place, index), source, origins)
        return [item if i == index else old for i, old in enumerate(node)]
    if parts and node is not None and not isinstance(node, dict):
        raise InputError(
            source,
            f"{dotted(place)} is {shown(node)} and has no settings below it, such as {parts[0]!r}",
        )
    if len(parts) > 1:
        below = {} if node is None else node
        return {
            **below,
            parts[0]: _put(
                below.get(parts[0]), parts[1:], value, (*place, parts[0]), source, origins
            ),
        }
    if parts:
        value = {parts[0]: value}
    if not isinstance(value, dict) or not value:
        for stale in [known for known in origins if known[: len(place)] == place]:
            del origins[stale]
        origins[place] = source
        return value
    origins[place] = source
    merged = _kept(node, value) if parts or place[-1:] != ("arguments",) else {}
    for key, below in value.items():
        merged[str(key)] = _put(
            merged.get(str(key)), (), below, (*place, str(key)), source, origins
        )
    return merged


def _index(items: list[Any], part: str, place: Place, source: str) -> int:
    """Index of the item that `part` names: by number, or by the tag or `name` that only it has."""
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    named = [names_of(item, _TAGS) for item in items]
    found = [index for index, names in enumerate(named) if part in names]
    if len(found) == 1:
        return found[0]
    if found:
        numbers = " or ".join(dotted((*place, index)) for index in found)
        what = f"{dotted(place)} holds {len(found)} items named {part!r}: write {numbers}"
    else:
        what = f"{dotted(place)} holds {len(items)} items and none is {part!r}"
        names = sorted({name for each in named for name in each})
        what += f"; {nearest(part, names)}" if names else f": write a number below {len(items)}"
    raise InputError(source, what)
