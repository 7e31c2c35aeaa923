"""Reward components are lines of one table: what each mix may hold is there, and no other file asks
which component it has."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from common.config import components as settings
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Turn
from reward_service.components import table
from reward_service.components.component import RewardComponent
from reward_service.components.table import TABLE, parts, range_of
from reward_service.compose import score_episodes
from reward_service.copies import copy_gains
from reward_service.monitor import columns

ROOT = Path(__file__).parent.parent.parent
KINDS = {
    name
    for name, value in vars(settings).items()
    if isinstance(value, type) and issubclass(value, settings.Component)
} - {"Component", "NamedComponent"}


def test_every_key_of_a_mix_has_its_line_in_the_same_order() -> None:
    assert list(TABLE) == list(RewardMix.model_fields)
    for key, component in TABLE.items():
        inside = get_args(RewardMix.model_fields[key].annotation)
        assert component.section in inside, f"{key} holds settings of another component"
    assert {component.section.__name__ for component in TABLE.values()} == KINDS


def test_every_component_file_has_its_line() -> None:
    files = (ROOT / "reward_service" / "components").glob("*.py")
    defining = {file.stem for file in files if "= RewardComponent(" in file.read_text()}
    imported = {name for name, value in vars(table).items() if hasattr(value, "RewardComponent")}
    assert defining == imported


def test_no_file_outside_the_table_asks_for_a_component() -> None:
    inside = {
        *(ROOT / "reward_service" / "components").glob("*.py"),
        *(ROOT / "reward_service" / "reward_models").glob("*.py"),
        *(ROOT / "common" / "config").glob("*.py"),
    }
    asking = []
    for package in ("common", "rollout", "reward_service", "learner", "deploy"):
        for file in sorted({*(ROOT / package).rglob("*.py")} - inside):
            for node in ast.walk(ast.parse(file.read_text())):
                names = (
                    {alias.name for alias in getattr(node, "names", ()) if alias}
                    if isinstance(node, ast.ImportFrom)
                    else set()
                )
                keys = {node.attr} if isinstance(node, ast.Attribute) else set()
                of_mix = keys & set(TABLE) if _is_mix(node) else set()
                asking += [f"{file.relative_to(ROOT)}: {name}" for name in names & KINDS | of_mix]
    assert not asking


def _is_mix(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("mix", "rewards")
    )


class Shout(settings.Component):
    """A component of the test's own."""

    loud: float = 0.25


SHOUT = RewardComponent(
    Shout,
    lambda section, compared: np.array(
        [1.0 if turn.answer.isupper() else section.loud for turn in compared.turns]
    ),
    range=(0.25, 1.0),
)


class LoudMix(RewardMix):
    shout: Shout | None = None


def test_a_new_component_is_its_settings_a_function_and_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table, "TABLE", TABLE | {"shout": SHOUT})
    monkeypatch.setattr(table, "_BY_SECTION", table._BY_SECTION | {Shout: SHOUT})
    mix = LoudMix(bleu=None, cosine=None, length=None, recall=None, shout=Shout(weight=2.0))
    assert [part.name for part in parts(mix)] == ["shout"]
    turns = tuple(
        Turn([8], [9], [], [9], query="q", answer=answer, reference="r", teacher_forced=i == 0)
        for i, answer in enumerate(("", "HELLO", "hello"))
    )
    rewards = Rewards(cumulative=mix)
    (scored,) = score_episodes(
        [Episode("e", "t", 0, turns, 0)], rewards, np.eye(16, dtype=np.float32), range(8)
    )
    assert [turn.rewards for turn in scored.answered] == [{"shout": 1.0}, {"shout": 0.25}]
    assert [turn.reward for turn in scored.answered] == [1.0, 0.25]
    assert columns(scored.answered)["shout"].saturated() == {"low": 0.5, "high": 0.5}
    gains = copy_gains([scored], rewards, np.eye(16, dtype=np.float32), ())
    assert [gain.turns for gain in gains] == [1], "a component that is computed here is compared"
    assert range_of("a_function_of_mine") is None
