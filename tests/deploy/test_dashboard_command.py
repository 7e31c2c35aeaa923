"""`engram dashboard`: Prometheus finds a run and follows it to another port, all children end with
the command, and the compose file brings the same things."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.failures import InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics
from common.telemetry.prometheus import PrometheusExporter
from deploy.cli import run_command
from deploy.monitoring.__main__ import FOLDER, files
from deploy.monitoring.provisioning import target, targets_text
from deploy.monitoring.server import Ports, dashboard
from deploy.pages.command import PORT
from learner.recorder import ENDPOINT_FILE
from tests.local_source import tiny_run
from tests.ports import free_ports
from tests.prometheus_tools import ask, require, run_tool, until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(str(tmp_path), "watched")
    directory.write_config(tiny_run(tmp_path, name="watched"))
    return directory


@contextmanager
def exporter(run: RunDirectory, step: int) -> Iterator[None]:
    """The exporter of a run that has done `step` steps, as its recorder announces it."""
    metrics = Metrics()
    metrics.record("run/progress", 0.5)
    metrics.flush(step, "sft")
    serving = PrometheusExporter("127.0.0.1", 0, run.name)
    serving.publish(metrics)
    run.write_text(ENDPOINT_FILE, serving.url + "\n")
    try:
        yield
    finally:
        serving.close()


@contextmanager
def command(run: RunDirectory, path: str | None = None) -> Iterator[tuple[Any, str, int]]:
    """`engram dashboard` in a process of its own; with Prometheus' address and Grafana's port."""
    port, grafana = free_ports(2)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "deploy", "dashboard", run.path()),
            *("--port", str(port), "--grafana-port", str(grafana)),
        ],
        cwd=ROOT,
        env=os.environ | ({"PATH": path} if path else {}),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, f"http://127.0.0.1:{port}", grafana
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=20)


def read_until(process: Any, word: str) -> str:
    """Its lines up to the one with `word`."""
    text = ""
    for line in process.stderr:
        text += line
        if word in line:
            return text
    raise AssertionError(f"it ended before it said {word!r}: {text}")


def step_at(address: str) -> float | None:
    found = ask(address, "query", query="engram_run_step")["result"]
    assert all(each["metric"]["run"] == "watched" for each in found)
    return float(found[0]["value"][1]) if found else None


def test_it_scrapes_a_run_follows_it_to_another_port_and_ends_what_it_started(
    run: RunDirectory,
) -> None:
    require("prometheus")
    with command(run) as (process, address, _):
        with exporter(run, step=7):
            said = read_until(process, "Ctrl-C")
            assert address in said
            assert f"engram view {run.path()}" in said or shutil.which("grafana")
            until(lambda: step_at(address) == 7, "the first exporter to be scraped")
        with exporter(run, step=9):
            until(lambda: step_at(address) == 9, "the resumed run to be scraped")
        rules = ask(address, "rules")["groups"][0]["rules"]
        assert len(rules) > 15
        assert all(rule["health"] in ("ok", "unknown") for rule in rules)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        with pytest.raises(OSError, match="refused"):
            ask(address, "rules")
    with command(run) as (process, address, _):  # what was scraped is there again
        read_until(process, "Ctrl-C")
        found = ask(address, "query", query="max_over_time(engram_run_step[10m])")["result"]
        assert [float(each["value"][1]) for each in found] == [9], "one line over the resume"
        process.kill()

        def is_gone() -> bool:
            try:
                return not ask(address, "rules")
            except OSError:
                return True

        until(is_gone, "Prometheus to end with the command that was killed")


GRAFANA = """#!{python}
import http.server, json, os, sys
port = int(os.environ["GF_SERVER_HTTP_PORT"])
with open({log!r}, "w") as log:
    names = {{k: v for k, v in os.environ.items() if k.startswith("GF_")}}
    json.dump({{"words": sys.argv[1:], "pid": os.getpid(), "settings": names}}, log)
handler = type("Healthy", (http.server.BaseHTTPRequestHandler,), {{
    "do_GET": lambda self: self.send_response(200) or self.end_headers()}})
http.server.HTTPServer((os.environ["GF_SERVER_HTTP_ADDR"], port), handler).serve_forever()
"""
"""Listens where Grafana would, and writes down how it was started: Debian has no Grafana."""


def test_grafana_is_started_where_it_is_installed_with_everything_provisioned(
    run: RunDirectory, tmp_path: Path
) -> None:
    require("prometheus")
    programs, log = tmp_path / "bin", tmp_path / "grafana.json"
    programs.mkdir()
    (programs / "grafana").write_text(GRAFANA.format(python=sys.executable, log=str(log)))
    (programs / "grafana").chmod(0o755)
    with command(run, f"{programs}:{os.environ['PATH']}") as (process, address, port):
        assert f"http://127.0.0.1:{port}/d/engram-overview" in read_until(process, "Ctrl-C")
        started = json.loads(log.read_text())
        settings = started["settings"]
        assert started["words"][0] == "server"
        provisioning = Path(settings["GF_PATHS_PROVISIONING"])
        source = yaml.safe_load((provisioning / "datasources/engram.yml").read_text())
        assert source["datasources"][0]["url"] == address
        provider = yaml.safe_load((provisioning / "dashboards/engram.yml").read_text())
        shown = Path(provider["providers"][0]["options"]["path"])
        assert len(list(shown.glob("*.json"))) == 5
        assert Path(settings["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).is_file()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(started["pid"], 0)


def test_a_program_that_ends_by_itself_ends_the_command_with_its_last_line(
    run: RunDirectory, tmp_path: Path
) -> None:
    (tmp_path / "prometheus").write_text("#!/bin/sh\necho 'no room' >&2\nexit 3\n")
    (tmp_path / "prometheus").chmod(0o755)
    with command(run, f"{tmp_path}:{os.environ['PATH']}") as (process, _, _):
        assert "Prometheus ended with 3: no room; see " in process.communicate(timeout=30)[1]
        assert process.returncode == 1


@contextmanager
def viewer(run: RunDirectory, command: str, path: Path) -> Iterator[tuple[Any, str]]:
    """`engram COMMAND RUN` with `path` as its only folder of programs; with the page's address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy", command, run.path()],
        cwd=ROOT,
        env=os.environ | {"PATH": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        link = process.stdout.readline() if process.stdout else ""
        found = re.fullmatch(r"watched: (http://localhost:\d+/) \(Ctrl-C ends it\)\n", link)
        assert found is not None, link
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=20)


def test_without_prometheus_it_says_what_to_install_and_shows_the_run(
    run: RunDirectory, tmp_path: Path
) -> None:
    """As `engram view` does: at its port or, where that is taken, a free one, and it ends alike."""
    programs = tmp_path / "none"
    programs.mkdir()
    ended = []
    with (
        viewer(run, "view", programs) as (view, page),
        viewer(run, "dashboard", programs) as (
            dashboard,
            beside,
        ),
    ):
        assert page != beside
        for address in (page, beside):
            with urllib.request.urlopen(f"{address}api/runs", timeout=20) as answer:
                assert json.load(answer)[0]["label"] == "watched"
        for process in (view, dashboard):
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=20)[1]
            ended.append(process.returncode)
        assert "apt-get install prometheus" in said
        assert f"http://localhost:{PORT}/" in (page, beside) or port_is_taken(PORT)
    assert ended == [130, 130]


def port_is_taken(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def test_a_run_that_is_none_is_bad_input_without_prometheus_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_command(["dashboard", str(tmp_path / "none")]) == 2
    assert "so it is no run" in capsys.readouterr().err


def test_bad_input_is_told_in_a_sentence(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run directory"):
        dashboard("prometheus", [str(tmp_path / "none")], Ports(), print)
    with pytest.raises(InputError, match="two runs have the same name"):
        dashboard("prometheus", [run.path(), run.path()], Ports(), print)


def test_a_port_that_is_taken_is_told(run: RunDirectory) -> None:
    require("prometheus")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} cannot be had"):
            dashboard("prometheus", [run.path()], Ports(prometheus=port), print)


def test_targets_are_addresses_that_this_machine_reaches() -> None:
    for url, address in (
        ("http://127.0.0.1:9000/metrics\n", "127.0.0.1:9000"),
        ("http://0.0.0.0:9000/metrics", "127.0.0.1:9000"),
        ("http://[::]:9000/metrics", "[::1]:9000"),
        ("http://head.example:9000/metrics", "head.example:9000"),
    ):
        assert target("a", url) == {"targets": [address], "labels": {"run": "a"}}
    for wrong in ("", "nothing", "http://host/metrics", "http://host:port/metrics"):
        with pytest.raises(InputError, match="no address of metrics"):
            target("a", wrong)
    text = targets_text({"b": "http://b:1/metrics", "a": "http://a:1/metrics"})
    assert [each["labels"]["run"] for each in json.loads(text)] == ["a", "b"]


# --- compose --------------------------------------------------------------------------------------

COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())


def mounts(service: str) -> dict[str, str]:
    """What is mounted from the folder of the compose file, by place in the container."""
    found = {}
    for volume in COMPOSE["services"][service]["volumes"]:
        source, place = re.sub(r"\$\{[^}]*\}", "env", volume).split(":")[:2]
        if source.startswith("./"):
            found[place] = source[2:]
    return found


def test_compose_mounts_files_that_are_there_and_named_volumes_that_it_declares() -> None:
    assert COMPOSE.keys() == {"name", "services", "volumes"}
    for name, service in COMPOSE["services"].items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), "pinned"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "loopback only"
        for source in mounts(name).values():
            assert (FOLDER / source).exists(), source
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source.startswith(("./", "${")) or source in COMPOSE["volumes"]


def test_what_the_mounted_files_name_is_mounted() -> None:
    prometheus, grafana = mounts("prometheus"), mounts("grafana")
    config = yaml.safe_load((FOLDER / prometheus["/etc/prometheus/prometheus.yml"]).read_text())
    assert config["rule_files"] == ["/etc/prometheus/rules.yml"]
    assert prometheus["/etc/prometheus/rules.yml"] in files()
    (targets,) = config["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert targets.rpartition("/")[0] in prometheus
    provisioning = FOLDER / grafana["/etc/grafana/provisioning"]
    provider = yaml.safe_load((provisioning / "dashboards/engram.yml").read_text())
    shown = FOLDER / grafana[provider["providers"][0]["options"]["path"]]
    assert len(list(shown.glob("*.json"))) == 5
    source = yaml.safe_load((provisioning / "datasources/engram.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_prometheus_takes_the_configuration_of_compose(tmp_path: Path) -> None:
    text = (FOLDER / "prometheus/prometheus.yml").read_text()
    shutil.copytree(FOLDER / "targets", tmp_path / "targets")
    shutil.copy(FOLDER / "prometheus/rules.yml", tmp_path / "rules.yml")
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/", f"{tmp_path}/"))
    assert "SUCCESS" in run_tool("check", "config", tmp_path / "prometheus.yml")
