"""From YAML text to the values that settings have: mappings, lists, texts, numbers, true, false and
null. Whatever else a text holds is one `InputError`."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from common.failures import InputError

_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
_DATE = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """YAML in which a key written twice is an error, where the library would silently keep the
    last, and in which a date is the text that it is written as: no setting is a date."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the library declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node.value, Hashable):
                template = isinstance(key_node, yaml.MappingNode) and value_node.value == ""
                raise yaml.MarkedYAMLError(
                    problem="a mapping or a list cannot be a key"
                    + ("; was a template not filled in?" if template else ""),
                    problem_mark=key_node.start_mark,
                )
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f"key {key_node.value!r} is written twice",
                    problem_mark=key_node.start_mark,
                )
            seen.add(str(key_node.value))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a text; InputError names `where` it stands and, where it can, the line."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as broken:
        line = f" in line {broken.problem_mark.line + 1}" if broken.problem_mark else ""
        raise InputError(where, f"broken YAML{line}: {broken.problem}") from None
    except yaml.YAMLError as broken:
        raise InputError(where, f"broken YAML: {' '.join(str(broken).split())}") from None
    except RecursionError:
        raise InputError(where, "broken YAML: it is nested too deep") from None
    except (ValueError, TypeError, OverflowError, LookupError) as broken:
        # What looks like a number and is none, such as 0b_, or one of thousands of digits.
        raise InputError(
            where, f"broken YAML: {broken}; put what is meant as text in quotes"
        ) from None
    _require_values(value, where)
    return value


def _require_values(value: Any, where: str) -> None:
    """Raises InputError for a value that contains itself, and for text that no file can hold."""
    waiting: list[tuple[Any, frozenset[int]]] = [(value, frozenset())]
    while waiting:
        each, around = waiting.pop()
        if isinstance(each, str):
            if _NO_TEXT.search(each):
                raise InputError(where, f"holds characters that are no text: {each[:40]!r}")
        elif isinstance(each, dict | list):
            if id(each) in around:
                raise InputError(where, "broken YAML: a value contains itself")
            below = [*each, *each.values()] if isinstance(each, dict) else each
            waiting += [(item, around | {id(each)}) for item in below]
        elif not isinstance(each, int | float | None):
            raise InputError(
                where,
                f"holds a {type(each).__name__} ({str(each)[:40]!r}), and settings are texts, "
                "numbers, true, false, null, lists and mappings of them",
            )
