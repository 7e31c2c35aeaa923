"""Finding Prometheus for tests: Debian's package `prometheus`, which brings promtool."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

DEADLINE = 30.0


def require(program: str) -> str:
    """Path of `prometheus` or `promtool`. Where it is not installed the test is skipped; in
    continuous integration (CI=true) it fails."""
    found = shutil.which(program)
    if found is not None:
        return found
    missing = f"{program} is not installed: apt-get install prometheus"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


def run_tool(*words: str | Path) -> str:
    """Output of promtool, which must succeed."""
    done = subprocess.run(
        [require("promtool"), *map(str, words)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def serving(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """A Prometheus on a free port of the loopback; its address."""
    program = require("prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = (folder / "prometheus.log").open("w")
    process = subprocess.Popen(
        [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--web.listen-address=127.0.0.1:0",
            "--log.level=info",
        ],
        stdout=log,
        stderr=log,
    )
    try:
        address = f"http://{_address(folder / 'prometheus.log', process)}"
        until(lambda: _is_ready(address), "Prometheus to be ready")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)
        log.close()


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    def listening() -> str | None:
        assert process.poll() is None, log.read_text()
        for line in log.read_text().splitlines():
            if 'msg="Listening on" address=' in line:
                return line.split("address=")[1].split()[0]
        return None

    return until(listening, "Prometheus to listen")


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/-/ready", timeout=10):
            return True
    except OSError:  # refused, or an HTTP error until it has read its storage
        return False


def until(look: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """The first result of `look` that is true."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {deadline:.0f} s for {what}")


def ask(address: str, path: str, **parameters: str) -> Any:
    """`data` of an answer of Prometheus' HTTP interface."""
    words = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{address}/api/v1/{path}?{words}", timeout=10) as answer:
        found = json.load(answer)
    assert found["status"] == "success", found
    return found["data"]
