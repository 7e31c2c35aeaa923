"""Writes Grafana's dashboards, Prometheus' rules, and what `compose.yaml` mounts beside them.

    python -m deploy.monitoring [--runbook URL] [FOLDER]

FOLDER: where to; without it deploy/monitoring, whose files a test compares with what this writes.
--runbook: where docs/runbook.md is published; panels and alerts then link to it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from deploy.monitoring.alerts import rules
from deploy.monitoring.dashboards import DASHBOARDS
from deploy.monitoring.grafana import dashboard_json
from deploy.monitoring.provisioning import compose_files
from deploy.monitoring.runbook import BASE
from deploy.output import echo

FOLDER = Path(__file__).resolve().parent
RULES = "prometheus/rules.yml"
OPERATOR_RULES = "kubernetes/prometheus_rule.yaml"
"""The same for the Prometheus Operator; `deploy/kuberay/components/monitoring` takes it."""
DASHBOARD_FOLDER = "grafana/dashboards"
HEAD = "# Written by `python -m deploy.monitoring` from deploy/monitoring/alerts.py.\n"


def files(runbook: str = BASE) -> dict[str, str]:
    """The text of each file, by its path below the folder. Raises InputError for a name that the
    registry or the runbook does not have."""
    written = {
        f"{DASHBOARD_FOLDER}/{each.uid}.json": json.dumps(
            dashboard_json(each, DASHBOARDS, runbook), indent=2, ensure_ascii=False
        )
        + "\n"
        for each in DASHBOARDS
    }
    found = rules(runbook)
    operator = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "engram", "labels": {"app.kubernetes.io/name": "engram"}},
        "spec": found,
    }
    for name, content in ((RULES, found), (OPERATOR_RULES, operator)):
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        written[name] = HEAD + text
    return written


def write(folder: Path, runbook: str = BASE) -> list[Path]:
    """Write every file below `folder`; their paths."""
    return _write(folder, files(runbook))


def _write(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    paths = []
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.monitoring", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--runbook", default=BASE)
    given = parser.parse_args(words)
    for path in _write(given.folder, files(given.runbook) | compose_files()):
        echo(str(path))


if __name__ == "__main__":
    main()
