"""Dashboards as Grafana's JSON, in the classic schema that Grafana 11 and 12 import and provision.

Layout is made here: panels stand in rows from left to right, in 24 columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.failures import InputError
from deploy.monitoring.panels import Dashboard, Panel, Query
from deploy.monitoring.queries import expand, require_legend
from deploy.monitoring.runbook import BASE, is_url, section_url

SCHEMA_VERSION = 41
"""The schema of Grafana 12.0; Grafana 11 reads it, later ones migrate it when they load it."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCOPE = 'run=~"$run"'
COLUMNS = 24
BY_GRAFANA = ("short", "percentunit", "s", "bytes", "Bps", "none", "ops", "dateTimeFromNow")


def dashboard_json(
    dashboard: Dashboard, others: tuple[Dashboard, ...] = (), runbook: str = BASE
) -> dict[str, Any]:
    """The JSON model. others: dashboards that its head links to; runbook: address of that page.
    Raises InputError for a query, a label or a section of the runbook that is not there."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": list(dashboard.tags),
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_resumes()]},
        "templating": {"list": _variables()},
        "links": [_link(other) for other in others if other.uid != dashboard.uid],
        "panels": list(_panels(dashboard, runbook)),
    }


def _resumes() -> dict[str, Any]:
    """Marks the moments at which a driver went on from a checkpoint."""
    expression = expand("annotation", "changes(<run/resumes>[1m]) > 0", SCOPE)
    return {
        "name": "Resumes",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "orange",
        "expr": expression,
        "titleFormat": "{{run}} resumed",
        "step": "30s",
    }


def _variables() -> list[dict[str, Any]]:
    runs = f"label_values({expand('variable run', '<run/step>')}, run)"
    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "current": {},
            "refresh": 1,
        },
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": SOURCE,
            "definition": runs,
            "query": {"query": runs, "refId": "run"},
            "includeAll": True,
            "multi": True,
            "current": {"text": ["All"], "value": ["$__all"]},
            "refresh": 2,
            "sort": 1,
        },
    ]


def _link(other: Dashboard) -> dict[str, Any]:
    return {
        "title": other.title,
        "type": "link",
        "url": f"/d/{other.uid}",
        "keepTime": True,
        "includeVars": True,
    }


def _panels(dashboard: Dashboard, runbook: str) -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for row in dashboard.rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": top},
            "panels": [],
        }
        top += 1
        left, height = 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            number += 1
            place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            where = f"{dashboard.title}: {panel.question}"
            described = _described(where, panel, runbook)
            yield {"id": number, "gridPos": place} | described | _panel(where, panel)
            left, height = left + panel.width, max(height, panel.height)
        top += height


def _described(where: str, panel: Panel, runbook: str) -> dict[str, Any]:
    """A description: the healthy state, the remedy, and the section that says more."""
    url = section_url(where, panel.runbook, runbook)
    more = f"[{panel.runbook}]({url})" if is_url(url) else f"{runbook}, “{panel.runbook}”"
    return {
        "description": f"**Healthy:** {panel.healthy}\n\n**If not:** {panel.action}\n\n"
        f"**More:** {more}",
        "links": [{"title": "Runbook", "url": url, "targetBlank": True}] if is_url(url) else [],
    }


def _panel(where: str, panel: Panel) -> dict[str, Any]:
    if not panel.question.endswith("?"):
        raise InputError(where, "the title of a panel is a question")
    return {
        "type": panel.kind,
        "title": panel.question,
        "datasource": SOURCE,
        "targets": [_target(where, panel, i, each) for i, each in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _target(where: str, panel: Panel, number: int, query: Query) -> dict[str, Any]:
    require_legend(where, query.expression, query.legend)
    heatmap = panel.kind == "heatmap"
    now = panel.kind in ("stat", "bargauge", "table")
    return {
        "refId": chr(ord("A") + number),
        "datasource": SOURCE,
        "expr": expand(where, query.expression, SCOPE),
        "legendFormat": "{{le}}" if heatmap else query.legend,
        "format": "heatmap" if heatmap else "table" if panel.kind == "table" else "time_series",
        "instant": now,
        "range": not now,
        "editorMode": "code",
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit if panel.unit in BY_GRAFANA else f"suffix: {panel.unit}",
        "color": {"mode": "thresholds" if _coloured(panel) else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": _steps(panel)},
        "noValue": "no data: this run does not record it, or not yet",
    }
    if panel.low is not None:
        defaults["min"] = panel.low
    if panel.high is not None:
        defaults["max"] = panel.high
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 2,
            "fillOpacity": 40 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            # Points of a run are a step apart, which may be minutes.
            "spanNulls": True,
            "showPoints": "auto",
            "thresholdsStyle": {"mode": "off" if panel.alarm is None else "dashed"},
        }
    return defaults


def _coloured(panel: Panel) -> bool:
    return panel.kind in ("stat", "bargauge") and panel.alarm is not None


def _steps(panel: Panel) -> list[dict[str, Any]]:
    """Colours by value; the first step has no lower end."""
    warn, alarm = panel.warn, panel.alarm
    if alarm is None:
        return [{"color": "green", "value": None}]
    if warn is not None and alarm < warn:
        return [
            {"color": "red", "value": None},
            {"color": "orange", "value": alarm},
            {"color": "green", "value": warn},
        ]
    middle = [] if warn is None else [{"color": "orange", "value": warn}]
    return [{"color": "green", "value": None}, *middle, {"color": "red", "value": alarm}]


def _options(panel: Panel) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match panel.kind:
        case "timeseries":
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "stat":
            return {
                "reduceOptions": last,
                "colorMode": "value",
                "graphMode": "none",
                "textMode": "value_and_name",
            }
        case "bargauge":
            return {"reduceOptions": last, "displayMode": "gradient", "orientation": "horizontal"}
        case "heatmap":
            return {
                "calculate": False,
                "yAxis": {"unit": panel.unit},
                "color": {"mode": "scheme", "scheme": "Viridis", "steps": 64},
                "tooltip": {"mode": "single", "showColorScale": True},
            }
        case "table":
            return {"showHeader": True}
