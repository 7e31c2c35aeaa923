"""Configuration of a Prometheus that scrapes runs, and of a Grafana that shows its data.

`compose.yaml` mounts committed copies of it; `engram dashboard` writes its own. Pure: texts by file
name, with paths as their reader sees them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import yaml

from common.failures import InputError

TARGETS = "targets/runs.json"
JOB = "engram"
SCRAPE_SECONDS = 5


def target(run: str, url: str) -> dict[str, Any]:
    """One run as Prometheus finds it. url: as in RUN/metrics_endpoint; InputError where it is none.

    An exporter that listens on all addresses is asked on this machine's own."""
    parts = urlsplit(url.strip())
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or port is None:
        raise InputError(f"{run}/metrics_endpoint", f"{url.strip()!r} is no address of metrics")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname, parts.hostname)
    return {
        "targets": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"],
        "labels": {"run": run},
    }


def targets_text(urls: Mapping[str, str]) -> str:
    """The file that Prometheus reads targets from, by the name of each run."""
    return json.dumps([target(run, url) for run, url in sorted(urls.items())], indent=2) + "\n"


def prometheus_config(
    targets: str, rules: str, scrape_seconds: int = SCRAPE_SECONDS
) -> dict[str, Any]:
    """targets, rules: paths, relative to the configuration's folder or absolute."""
    every = f"{scrape_seconds}s"
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [rules],
        "scrape_configs": [
            {
                "job_name": JOB,
                # The exporter labels its series with `run`; a target's label must not rename that.
                "honor_labels": True,
                "file_sd_configs": [{"files": [targets], "refresh_interval": every}],
                # Not its port: that changes when a run is resumed, and its lines would break.
                "relabel_configs": [
                    {"source_labels": ["run"], "regex": "(.+)", "target_label": "instance"}
                ],
            }
        ],
    }


def compose_files() -> dict[str, str]:
    """Files that `compose.yaml` mounts, by path below its folder. Paths in them are containers'."""
    config = prometheus_config("/etc/prometheus/targets/*.json", "/etc/prometheus/rules.yml", 15)
    config["scrape_configs"].append(
        {
            "job_name": "ray",
            "file_sd_configs": [
                {
                    "files": [f"/tmp/ray/{place}prom_metrics_service_discovery.json"],
                }
                for place in ("", "session_latest/")
            ],
        }
    )
    head = "# Written by `python -m deploy.monitoring`.\n"
    values = {
        "prometheus/prometheus.yml": config,
        "grafana/provisioning/datasources/engram.yml": data_source("http://prometheus:9090"),
        "grafana/provisioning/dashboards/engram.yml": dashboard_provider(
            "/var/lib/grafana/dashboards"
        ),
    }
    return {name: head + yaml_text(value) for name, value in values.items()}


def data_source(url: str) -> dict[str, Any]:
    """Grafana's data source. url: of Prometheus."""
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "engram",
                "uid": "engram",
                "type": "prometheus",
                "access": "proxy",
                "url": url,
                "isDefault": True,
                # Grafana takes no rate over less than four scrapes.
                "jsonData": {"timeInterval": f"{SCRAPE_SECONDS}s", "httpMethod": "POST"},
            }
        ],
    }


def dashboard_provider(folder: str) -> dict[str, Any]:
    """Where Grafana finds the dashboards. folder: as Grafana sees it."""
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "engram",
                "folder": "engram",
                "type": "file",
                "allowUiUpdates": True,
                "options": {"path": folder},
            }
        ],
    }


def yaml_text(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
