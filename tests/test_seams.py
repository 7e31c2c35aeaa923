"""Modules that ask a policy for what they need import no model: a policy of another kind is one
more line of a table."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ASKING = (
    *sorted((ROOT / "rollout").glob("*.py")),
    ROOT / "rollout/policies/play.py",
    *sorted((ROOT / "learner/rl").rglob("*.py")),
    *sorted((ROOT / "learner/evaluation").glob("*.py")),
    ROOT / "learner/stages/rl.py",
    ROOT / "learner/rollout_group.py",
    ROOT / "deploy/chat.py",
)
MODELS = ("common.models.reactive", "rollout.policies.reactive", "learner.policies.reactive")


@pytest.mark.parametrize("path", ASKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_imports_no_model(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    named += [each.name for node in nodes if isinstance(node, ast.Import) for each in node.names]
    assert [name for name in named if name.startswith(MODELS)] == []
