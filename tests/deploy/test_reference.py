"""The reference pages: they say what the code says, and all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from common.config import data, model, rewards, rollout, run, stages
from common.failures import InputError
from common.telemetry.registry import REGISTRY
from deploy.reference import PAGES, configuration_reference, main, metrics_reference

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECTIONS = {
    name: found
    for module in (data, model, rewards, rollout, run, stages)
    for name, found in vars(module).items()
    if isinstance(found, type)
    and issubclass(found, BaseModel)
    and found.model_fields
    and name not in ("StageSettings", "SupervisedStage", "Component", "PolicyGradient")
}


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_what_the_code_says(page: str) -> None:
    written = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert written == PAGES[page](), (
        f"write it anew: python -m deploy.reference {page} > docs/{page}.md"
    )


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_stands_there_with_a_meaning(name: str) -> None:
    sections = [
        [line for line in part.replace("\n  ", " ").split("\n") if line.startswith("* `")]
        for part in configuration_reference().split("\n## ")
    ]
    mine = [
        section
        for section in sections
        if {line.split("`")[1] for line in section} == set(SECTIONS[name].model_fields)
    ]
    assert mine, f"no section holds exactly the keys of {name}"
    assert [line for line in mine[0] if line.endswith("): ")] == [], (
        "a key without a meaning: write a docstring under it in the schema"
    )


@pytest.mark.parametrize("page", PAGES)
def test_lines_have_at_most_100_columns(page: str) -> None:
    lines = PAGES[page]().splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


def test_every_metric_stands_there() -> None:
    page = metrics_reference()
    assert [name for name in REGISTRY if f"`{name}`" not in page] == []


def test_defaults_types_and_bounds_are_shown_as_yaml_has_them() -> None:
    page = " ".join(configuration_reference().split())
    assert "* `penalty` (true or false; default `true`): " in page
    assert "* `path` (text or null; default `null`): " in page
    assert "* `steps` (list of at least 1: integer ≥ 1; default `[5]`): " in page
    assert (
        "* `optimizer` (section; default `{final_fraction: 1.0, learning_rate: 0.0003, "
        "warmup_fraction: 0.0}`): " in page
    )
    assert "## `stages.*` with `stage: mrl`" in page


def test_a_page_that_is_not_there_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="did you mean 'metrics'"):
        main(["metric"])
    main(["metrics"])
    assert capsys.readouterr().out == metrics_reference()
