"""`engram dashboard`: an installed Prometheus, and Grafana where it is installed, for some runs.

Both are children of this process and end with it. Prometheus finds a run by RUN/metrics_endpoint,
which is read again and again: a run that is resumed listens on another port. What was scraped stays
in the first run's folder, so that a later call shows it too.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.failures import InfraFailure, InputError
from common.storage.run_directory import RunDirectory, write_atomically
from deploy.monitoring.__main__ import DASHBOARD_FOLDER, RULES, write
from deploy.monitoring.dashboards import OVERVIEW
from deploy.monitoring.provisioning import (
    TARGETS,
    dashboard_provider,
    data_source,
    prometheus_config,
    targets_text,
    yaml_text,
)
from learner.interrupts import counted
from learner.recorder import ENDPOINT_FILE

HOST = "127.0.0.1"
FOLDER = "monitoring"
"""Below the run's folder."""
LOOK_SECONDS = 2.0
"""Between two looks at the runs' endpoints."""
POLL_SECONDS = 0.2
START_SECONDS = 30.0
STOP_SECONDS = 10.0
RETENTION = "60d"
PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that the kernel sends a process whose parent has died."""
INSTALL = (
    "Prometheus is not installed: `apt-get install prometheus` (Debian, Ubuntu), `brew install "
    "prometheus` (macOS), or deploy/monitoring/compose.yaml where there is Docker"
)
GRAFANA_HOMES = ("/usr/share/grafana", "/opt/homebrew/opt/grafana/share/grafana")


@dataclass(frozen=True)
class Ports:
    prometheus: int = 9090
    grafana: int = 3000


def find_prometheus() -> str | None:
    """Path of the program; None where it is not installed (`INSTALL` says how to)."""
    return shutil.which("prometheus")


def dashboard(program: str, runs: Sequence[str], ports: Ports, tell: Callable[[str], None]) -> None:
    """Serve until an interrupt. program: Prometheus; runs: their folders; tell: takes lines for the
    reader.

    Raises InputError for a run that is none and for a port that is taken; InfraFailure where one of
    the programs ends by itself."""
    directories = [RunDirectory.existing(where) for where in runs]
    names = [each.name for each in directories]
    if len(set(names)) < len(names):
        raise InputError("command line", "two runs have the same name, which tells them apart here")
    for port, option in ((ports.prometheus, "--port"), (ports.grafana, "--grafana-port")):
        require_free(port, option)
    with ExitStack() as stack, counted() as interrupts:
        folder = stack.enter_context(_folder(directories[0]))
        known = _write_targets(folder, directories, {})
        children = {"Prometheus": stack.enter_context(_prometheus(program, folder, ports))}
        tell(f"Prometheus at http://{HOST}:{ports.prometheus}, its alerts at /alerts")
        if known:
            tell(f"scraping {', '.join(f'{run} at {url}' for run, url in sorted(known.items()))}")
        else:
            tell("no run has an endpoint yet; it is found as soon as a run starts")
        grafana = _find_grafana()
        if grafana is None:
            tell(
                "Grafana is not installed, so there are no dashboards: install it from "
                "https://grafana.com/grafana/download, or see the runs with "
                f"`engram view {runs[0]}`"
            )
        else:
            children["Grafana"] = stack.enter_context(_grafana(grafana, folder, ports))
            tell(f"Grafana at http://{HOST}:{ports.grafana}/d/{OVERVIEW.uid}")
        tell("Ctrl-C ends this")
        looked = time.monotonic()
        while not interrupts.count:
            _require_running(children, folder)
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                known = _write_targets(folder, directories, known)
            time.sleep(POLL_SECONDS)


def require_free(port: int, option: str) -> None:
    """Raises InputError where nothing can listen on the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as taken:
            raise InputError(
                option,
                f"port {port} cannot be had ({taken.strerror}); choose another. Debian's package "
                "starts a Prometheus of its own: `systemctl disable --now prometheus` ends it",
            ) from taken


@contextmanager
def _folder(directory: RunDirectory) -> Iterator[Path]:
    """Where everything is written: in the run's folder, or where that is in an object store a
    temporary one."""
    if directory.local is not None:
        folder = directory.local / FOLDER
        folder.mkdir(exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="engram-monitoring-") as temporary:
        yield Path(temporary)


def _write_targets(
    folder: Path, directories: Sequence[RunDirectory], known: dict[str, str]
) -> dict[str, str]:
    """Write the targets where they have changed; the addresses by run."""
    found = {
        each.name: each.read_text(ENDPOINT_FILE).strip()
        for each in directories
        if each.exists(ENDPOINT_FILE)
    }
    if found != known or not (folder / TARGETS).exists():
        write_atomically(folder / TARGETS, targets_text(found).encode())
    return found


@contextmanager
def _prometheus(program: str, folder: Path, ports: Ports) -> Iterator[subprocess.Popen[bytes]]:
    write(folder)
    config = folder / "prometheus" / "prometheus.yml"
    text = yaml_text(prometheus_config(str(folder / TARGETS), str(folder / RULES)))
    write_atomically(config, text.encode())
    words = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'prometheus' / 'data'}",
        f"--storage.tsdb.retention.time={RETENTION}",
        f"--web.listen-address={HOST}:{ports.prometheus}",
    ]
    with _child("Prometheus", words, folder, dict(os.environ)) as child:
        _await_ready("Prometheus", child, f"http://{HOST}:{ports.prometheus}/-/ready", folder)
        yield child


def _find_grafana() -> list[str] | None:
    """The command that starts Grafana's server; its name differs between versions."""
    if program := shutil.which("grafana"):
        return [program, "server"]
    if program := shutil.which("grafana-server"):
        return [program]
    return None


@contextmanager
def _grafana(command: list[str], folder: Path, ports: Ports) -> Iterator[subprocess.Popen[bytes]]:
    """Reachable from this machine alone, so nobody has to log in to look."""
    provisioning = folder / "grafana" / "provisioning"
    source = data_source(f"http://{HOST}:{ports.prometheus}")
    provider = dashboard_provider(str(folder / DASHBOARD_FOLDER))
    write_atomically(provisioning / "datasources" / "engram.yml", yaml_text(source).encode())
    write_atomically(provisioning / "dashboards" / "engram.yml", yaml_text(provider).encode())
    settings = {
        "GF_PATHS_DATA": str(folder / "grafana" / "data"),
        "GF_PATHS_LOGS": str(folder / "grafana" / "logs"),
        "GF_PATHS_PROVISIONING": str(provisioning),
        "GF_SERVER_HTTP_ADDR": HOST,
        "GF_SERVER_HTTP_PORT": str(ports.grafana),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(
            folder / DASHBOARD_FOLDER / f"{OVERVIEW.uid}.json"
        ),
    }
    home = next((each for each in GRAFANA_HOMES if Path(each).is_dir()), None)
    words = [*command, *([f"--homepath={home}"] if home else [])]
    with _child("Grafana", words, folder, os.environ | settings) as child:
        _await_ready("Grafana", child, f"http://{HOST}:{ports.grafana}/api/health", folder)
        yield child


@contextmanager
def _child(
    name: str, words: list[str], folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that ends with the block. A session of its own: a Ctrl-C of the terminal is taken
    here alone, and passed on."""
    with _log(folder, name).open("wb") as log:
        child = subprocess.Popen(
            words,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _end_with_parent() -> None:
    """In a child, before its program starts: a command that is killed takes it along (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _await_ready(name: str, child: subprocess.Popen[bytes], url: str, folder: Path) -> None:
    """Wait until the program answers at `url`: it listens before it can be asked anything."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        _require_running({name: child}, folder)
        try:
            with urllib.request.urlopen(url, timeout=START_SECONDS):
                return
        except OSError:  # refused, or "not ready" as an HTTP error
            time.sleep(POLL_SECONDS)
    raise InfraFailure(
        f"{name} was not ready at {url} within {START_SECONDS:.0f} s; see {_log(folder, name)}"
    )


def _require_running(children: dict[str, subprocess.Popen[bytes]], folder: Path) -> None:
    for name, child in children.items():
        if child.poll() is not None:
            log = _log(folder, name)
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1] if lines else "it wrote nothing"
            raise InfraFailure(f"{name} ended with {child.returncode}: {last}; see {log}")


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name.lower()}.log"
