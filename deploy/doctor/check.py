"""A check of `engram doctor`, and all of them as a table or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "missing", "optional"]
"""ok: as tested; warning: works, with a drawback that is named; missing: runs would fail; optional:
not there, and only some settings or commands ask for it."""


@dataclass(frozen=True)
class Check:
    """The thing looked at, its state, what was found there, and the command or setting that mends
    it: empty where nothing is to be mended."""

    name: str
    state: State
    found: str
    mend: str = ""


def healthy(checks: Sequence[Check]) -> bool:
    """Whether runs can start: nothing is missing."""
    return all(check.state != "missing" for check in checks)


def checks_text(title: str, checks: Sequence[Check]) -> str:
    """The checks as a table, each with its mend on a line of its own below it."""
    name = max((len(check.name) for check in checks), default=0)
    lines = [title]
    for check in checks:
        lines.append(f"  {check.state:<8}  {check.name:<{name}}  {check.found}")
        if check.mend:
            lines.append(f"  {'':<8}  {'':<{name}}  → {check.mend}")
    return "\n".join(lines)


def verdict(checks: Sequence[Check]) -> str:
    """One sentence on all checks."""
    missing = [check.name for check in checks if check.state == "missing"]
    warnings = sum(check.state == "warning" for check in checks)
    if missing:
        return f"runs would fail here: {', '.join(missing)}"
    if warnings:
        return f"runs can start here; {warnings} warning{'s' if warnings > 1 else ''} above"
    return "runs can start here"


def checks_json(checks: Sequence[Check]) -> dict[str, Any]:
    return {"healthy": healthy(checks), "checks": [asdict(check) for check in checks]}
