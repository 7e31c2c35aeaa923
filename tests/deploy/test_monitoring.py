"""Dashboards and rules: generated, complete, and only of what the registry has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.failures import InputError
from common.telemetry.prometheus import prometheus_name
from common.telemetry.registry import REGISTRY
from deploy.monitoring.__main__ import FOLDER, files, main
from deploy.monitoring.alerts import ALERTS, rules
from deploy.monitoring.dashboards import DASHBOARDS
from deploy.monitoring.grafana import dashboard_json
from deploy.monitoring.panels import Dashboard, Panel, Row, query
from deploy.monitoring.provisioning import compose_files
from deploy.monitoring.queries import expand, grown, metrics_of, require_legend
from deploy.monitoring.runbook import PAGE, anchor, section_url, sections

PANELS = [
    pytest.param(panel, id=f"{each.uid}: {panel.question}")
    for each in DASHBOARDS
    for panel in each.panels
]


def with_panel(panel: Panel) -> Dashboard:
    return Dashboard("one", "One", "One panel.", (Row("Row", (panel,)),))


def good_panel(**changes: Any) -> Panel:
    panel = Panel(
        "Is it?", "none", "Yes.", "Do it.", "Disk", (query("<train/loss_lm>", "{{run}}"),)
    )
    return replace(panel, **changes)


# --- what is committed ----------------------------------------------------------------------------


WRITTEN = files() | compose_files()


@pytest.mark.parametrize("name", WRITTEN)
def test_the_committed_file_is_what_the_command_writes(name: str) -> None:
    written = (FOLDER / name).read_text(encoding="utf-8")
    assert written == WRITTEN[name], "write it anew: python -m deploy.monitoring"


def test_no_dashboard_is_left_over() -> None:
    found = {str(path.relative_to(FOLDER)) for path in FOLDER.glob("grafana/dashboards/*")}
    assert found == {name for name in files() if name.startswith("grafana/dashboards/")}


def test_the_command_writes_into_a_folder_with_links_to_a_published_runbook(tmp_path: Path) -> None:
    main(["--runbook", "https://docs.example.org/runbook", str(tmp_path)])
    for name in files():
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "https://docs.example.org/runbook#" in text
        assert "docs/runbook.md#" not in text


# --- dashboards -----------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_a_question_and_says_what_is_healthy_and_what_to_do(panel: Panel) -> None:
    assert panel.question.endswith("?")
    assert panel.question[0].isupper()
    for sentence in (panel.healthy, panel.action):
        assert sentence.endswith("."), sentence
        assert len(sentence) > 3
    assert panel.runbook in sections()
    assert panel.queries


def test_titles_are_unique_on_a_dashboard_and_uids_everywhere() -> None:
    assert len({each.uid for each in DASHBOARDS}) == len(DASHBOARDS) == 5
    for each in DASHBOARDS:
        titles = [panel.question for panel in each.panels]
        assert len(set(titles)) == len(titles)


def expressions(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "expr":
                yield inner
            else:
                yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.uid)
def test_the_model_is_the_classic_schema_with_variables_for_source_and_run(
    dashboard: Dashboard,
) -> None:
    model = json.loads(json.dumps(dashboard_json(dashboard, DASHBOARDS)))
    assert model["schemaVersion"] >= 39
    assert [each["name"] for each in model["templating"]["list"]] == ["datasource", "run"]
    ids = [panel["id"] for panel in model["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(model["links"]) == len(DASHBOARDS) - 1
    for panel in model["panels"]:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
        assert panel["type"] == "row" or "Healthy" in panel["description"]
    for expression in expressions(model):
        series = re.findall(r"engram_\w+(?:\{[^}]*\})?", expression)
        assert series, expression
        assert all('run=~"$run"' in each for each in series), expression


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.uid)
def test_panels_lie_within_24_columns_and_none_covers_another(dashboard: Dashboard) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard_json(dashboard)["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} covers {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_every_registered_family_is_on_a_dashboard() -> None:
    shown = {
        metric.name
        for each in DASHBOARDS
        for panel in each.panels
        for asked in panel.queries
        for metric in metrics_of("here", asked.expression)
    }
    families = {name.partition("/")[0] for name in REGISTRY}
    assert families == {name.partition("/")[0] for name in shown}


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        (good_panel(question="Loss"), "the title of a panel is a question"),
        (good_panel(runbook="Disc"), "docs/runbook.md has no 'Disc'; did you mean 'Disk'"),
        (good_panel(queries=(query("<train/los_lm>"),)), "did you mean 'train/loss_lm'"),
        (good_panel(queries=(query("<train/loss_lm>", "{{stage}}"),)), "no label 'stage'"),
        (good_panel(queries=(query("sum(up)"),)), "names no metric"),
    ],
)
def test_a_panel_that_is_wrong_is_not_written(panel: Panel, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        dashboard_json(with_panel(panel))


# --- expressions ----------------------------------------------------------------------------------


def test_an_expression_gets_prometheus_names_and_the_scope() -> None:
    assert (
        expand("here", 'rate(<reward/failed_turns reason=~"a|b">[5m]) < 1', 'run="x"')
        == 'rate(engram_reward_failed_turns_total{run="x",reason=~"a|b"}[5m]) < 1'
    )
    assert expand("here", "<reward/value:bucket> > <run/step>") == (
        "engram_reward_value_bucket > engram_run_step"
    )


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("<run/stpe>", "no metric 'run/stpe'; did you mean 'run/step'"),
        ('<run/step pool="a">', "run/step: no label 'pool'"),
        ("sum by (worker) (<run/step>)", "run/step: no label 'worker'"),
        ("<run/step> and on(pol) <fleet/restarts>", "no label 'pol'; did you mean 'pool'"),
        ("<reward/value>", "is a histogram: take reward/value:bucket"),
        ("<reward/value:sums>", "is a histogram"),
        ("<reward/value:count>", "reward/value is a histogram: take reward/value:bucket"),
        ("<run/step:sum>", "run/step is no histogram"),
    ],
)
def test_a_wrong_name_label_or_part_is_an_error(expression: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        expand("here", expression)


def test_legends_show_labels_that_are_there() -> None:
    require_legend("here", "<fleet/restarts>", "{{run}} {{pool}}")
    with pytest.raises(InputError, match="no label 'poll'; did you mean 'pool'"):
        require_legend("here", "<fleet/restarts>", "{{ poll }}")


def test_growth_is_of_whole_sums() -> None:
    assert metrics_of("here", grown("<reward/turns>", "15m"))[0].name == "reward/turns"


# --- rules and the runbook ------------------------------------------------------------------------


def test_every_rule_has_severity_sentence_and_section() -> None:
    for alert, rule in zip(ALERTS, rules()["groups"][0]["rules"], strict=True):
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")
        assert "$labels.run" in rule["annotations"]["summary"]
        assert rule["annotations"]["runbook_url"] == section_url("here", alert.runbook)
        assert re.search(rf"`{alert.name}`", PAGE.read_text()), "the runbook names its alerts"
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)


def test_the_runbook_names_no_alert_that_is_gone() -> None:
    named = set(re.findall(r"`(Engram[A-Z]\w+)`", PAGE.read_text()))
    assert named == {alert.name for alert in ALERTS}


def test_every_section_of_the_runbook_is_pointed_at() -> None:
    used = {alert.runbook for alert in ALERTS}
    used |= {panel.runbook for each in DASHBOARDS for panel in each.panels}
    assert used == set(sections())


def test_anchors_are_those_of_markdown_pages() -> None:
    assert anchor("Recall falls while reward rises") == "recall-falls-while-reward-rises"
    assert anchor("What? It's (odd)") == "what-its-odd"


def test_the_rules_file_is_yaml_of_the_rules() -> None:
    assert yaml.safe_load(files()["prometheus/rules.yml"]) == rules()


def test_names_in_rules_are_those_of_the_exporter() -> None:
    known = {prometheus_name(metric) for metric in REGISTRY.values()}
    for expression in expressions(rules()):
        named = set(re.findall(r"engram_\w+", expression))
        assert named
        assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= known
