"""A cluster with a job server, as `ray start --head` makes it where its user has a token: it asks
for the token."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import free_ports

START_SECONDS = 90


@dataclass(frozen=True)
class Head:
    """address: of its job server; gcs: of the cluster, HOST:PORT; home: the home folder of its
    user, with the token in it; process: the parent of all its processes."""

    address: str
    gcs: str
    home: Path
    process: int


@contextlib.contextmanager
def token_head() -> Iterator[Head]:
    """A cluster with four CPUs, its processes all children of one that is ended with the block."""
    # Ray's sockets lie in it, and a socket's path has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="eg", dir="/tmp"))
    gcs, dashboard, agent, client, metrics = free_ports(5)
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    ray = Path(sys.executable).with_name("ray")
    # Jobs call `python`: it must be this one.
    environment = os.environ | {
        "PATH": f"{ray.parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        # Compiled kernels are found there, whatever the home.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
        # On a busy machine, processes start and answer late; a head that has waited ends itself.
        "RAY_agent_register_timeout_ms": "180000",
        "RAY_health_check_failure_threshold": "30",
    }
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    command = [
        str(ray), "start", "--head", "--block", "--num-cpus=4",
        f"--object-store-memory={200 * 2**20}", "--disable-usage-stats", f"--port={gcs}",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
        f"--temp-dir={folder}", "--include-dashboard=true",
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            wait_for_answer(f"{address}/api/version", process, output)
            yield Head(address, f"127.0.0.1:{gcs}", folder, process.pid)
        finally:
            if process.poll() is not None:
                output.seek(0)
                # Why stands at the end, and a long log is cut short where tests are reported.
                print(f"the head had ended with {process.returncode}:\n{output.read()[-2000:]}")
            end(process)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def node(head: Head, group: str, cpus: int = 2) -> Iterator[None]:
    """A node of the head's cluster with the label of a group of actors. The defaults of its ports
    are those of every node on this host."""
    agent, metrics = free_ports(2)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", f"--address={head.gcs}", "--block",
        f"--num-cpus={cpus}", f"--object-store-memory={100 * 2**20}", f"--labels=group={group}",
        f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}",
    ]  # fmt: skip
    environment = os.environ | {"HOME": str(head.home), "RAY_AUTH_MODE": "token"}
    environment.pop("RAY_ADDRESS", None)
    with (head.home / f"{group}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=head.home,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        # One after the other: nodes that start at once on a busy machine miss Ray's deadlines.
        ends = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in (head.home / f"{group}.log").read_text():
            if process.poll() is not None or time.monotonic() > ends:
                pytest.fail(f"no node started: {(head.home / f'{group}.log').read_text()}")
            time.sleep(0.2)
        yield
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """With its children; it waits for Ray Train's detached helpers, which outlive their run."""
    process.terminate()
    try:
        process.wait(timeout=8)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def wait_for_answer(url: str, process: subprocess.Popen[bytes], output: io.TextIOBase) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            pytest.fail("the head asks for no token")
        except urllib.error.HTTPError as refused:
            if refused.code != 401:
                pytest.fail(f"the head answers with {refused.code}")
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                output.seek(0)
                pytest.fail(f"ray start did not come up: {error}\n{output.read()}")
            time.sleep(0.2)
