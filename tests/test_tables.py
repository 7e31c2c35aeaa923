"""Stages and kinds of data stand in one table each, and nothing else asks for a kind."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

import common.config
from common.config.data import Data
from common.config.run import Stage
from common.config.section import Section
from common.data.corpus import Corpus
from common.data.datasets.table import DATASETS
from common.failures import InputError
from learner.requirements import require_data
from learner.stages.stage import STAGES
from tests.local_source import tiny_corpus, tiny_run

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "rollout", "reward_service", "learner", "deploy")


def settings_classes() -> set[str]:
    """Names of all sections of a configuration."""
    for module in pkgutil.iter_modules(common.config.__path__, "common.config."):
        importlib.import_module(module.name)
    names: set[str] = set()
    left = [Section]
    while left:
        section = left.pop()
        names.add(section.__name__)
        left += section.__subclasses__()
    return names


def questions(source: str, settings: set[str]) -> Iterator[str]:
    """Places in a program that ask which kind of settings they have."""
    tags = {tag for union in (Stage, Data) for tag in tags_of(union)}
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name("isinstance" | "issubclass"), args=[_, kinds]):
                asked = names_in(kinds) & settings
            case ast.MatchClass(cls=kinds):
                asked = names_in(kinds) & settings
            case ast.Compare(left=ast.Attribute(attr="kind" | "stage"), comparators=values):
                asked = texts_in(*values) & tags
            case ast.Match(subject=ast.Attribute(attr="kind" | "stage"), cases=cases):
                asked = texts_in(*(case.pattern for case in cases)) & tags
            case _:
                continue
        if asked:
            yield f"line {getattr(node, 'lineno', 0)}: asks for {', '.join(sorted(asked))}"


def names_in(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} | {
        each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)
    }


def texts_in(*nodes: ast.AST) -> set[str]:
    constants = [
        each.value for node in nodes for each in ast.walk(node) if isinstance(each, ast.Constant)
    ]
    return {value for value in constants if isinstance(value, str)}


def tags_of(union: object) -> Iterator[str]:
    for section in get_args(get_args(union)[0]):
        for tag in {"kind", "stage"} & section.model_fields.keys():
            yield from get_args(section.model_fields[tag].annotation)


def test_no_module_asks_which_kind_of_settings_it_has() -> None:
    settings = settings_classes()
    found = [
        f"{path.relative_to(ROOT)}, {question}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for question in questions(path.read_text(), settings)
    ]
    assert not found, "ask the row of the table instead:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(stage, MRL)",
        "isinstance(stage, (str, stages.SFT))",
        "match data:\n case SynthData():\n  pass",
        "if run.data.kind == 'synth': pass",
        "if stage.stage in ('sft', 'mrl'): pass",
        "match run.data.kind:\n case 'babi':\n  pass",
    ],
)
def test_a_new_question_is_found(source: str) -> None:
    assert list(questions(source, settings_classes()))


def test_every_stage_and_every_kind_of_data_that_a_config_can_name_has_a_row() -> None:
    assert set(STAGES) == set(get_args(get_args(Stage)[0]))
    assert set(DATASETS) == set(get_args(get_args(Data)[0]))
    parts = {field.name for field in fields(Corpus)}
    for settings, row in STAGES.items():
        assert set(row.data) <= parts
        assert (row.objective is None) == settings.needs_rollout


def test_a_stage_that_the_data_have_nothing_for_is_named_before_the_run_begins() -> None:
    run, corpus = tiny_run("unused", "joint_lm", "sft"), tiny_corpus()
    require_data(run, corpus)
    corpus.pairs.clear()
    with pytest.raises(InputError, match=r"stages.sft: learns from 'pairs', and the data have no"):
        require_data(run, corpus)
