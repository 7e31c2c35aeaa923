"""Files and functions stay small enough to be read: limits over the five packages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "rollout", "reward_service", "learner", "deploy")
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 8


def above(file: str, text: str) -> Iterator[str]:
    """Names of what is above a limit, as "file" or "file: function"."""
    if len(text.splitlines()) > FILE_LINES:
        yield file
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # An intrinsic takes the operands of its instructions one by one: Numba types each, and
            # a tuple would have to be taken apart again by instructions.
            decorators = {ast.unparse(each) for each in node.decorator_list}
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args]
            bound = bool(named) and named[0].arg in ("self", "cls")
            several = sum(each is not None for each in (arguments.vararg, arguments.kwarg))
            count = len(named) - bound + len(arguments.kwonlyargs) + several
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES or (count > PARAMETERS and "intrinsic" not in decorators):
                yield f"{file}: {node.name}"


def test_no_file_and_no_function_is_above_the_limits() -> None:
    found = [
        name
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        for name in above(str(file.relative_to(ROOT)), file.read_text())
    ]
    assert found == [], "split it"


def test_each_limit_is_seen() -> None:
    long = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
    wide = f"class A:\n    def g(self, {', '.join(f'p{i}' for i in range(PARAMETERS + 1))}): ...\n"
    assert list(above("a", "x = 1\n" * (FILE_LINES + 1))) == ["a"]
    assert list(above("a", long)) == ["a: f"]
    assert list(above("a", long.removesuffix("    x = 1\n"))) == []
    assert list(above("a", wide)) == ["a: g"]
    assert list(above("a", wide.replace("p0, ", ""))) == []
    assert list(above("a", wide.replace("p0, ", "").replace("p8", "*p8, **q"))) == ["a: g"]
    assert list(above("a", wide.replace("    def", "    @intrinsic\n    def"))) == []
    assert list(above("a", "@intrinsic\n" + long)) == ["a: f"]


def test_no_docstring_begins_with_of_or_what() -> None:
    """A subject and a verb say what a thing is without being read twice."""
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        for match in re.finditer(r'"""(Of|What)\b.*', file.read_text())
    ]
    assert found == []
