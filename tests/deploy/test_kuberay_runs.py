"""The entrypoints of the manifests for KubeRay, run: on a local cluster whose nodes have the labels
and CPUs of the manifests' groups, without GPUs, and with a tiny configuration."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.failures import EXIT_DONE
from deploy.kuberay.render import FOLDER
from tests.job_server import Head, node, token_head
from tests.manifests import JOBS, cluster_spec, job_spec, of_ray
from tests.ports import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.nightly, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {
    "tokenizer": {"vocab_size": 300},
    "model": {"size": "tiny", "width": 32, "layers": 1, "heads": 2, "query_heads": 2}
    | {"kv_heads": 2, "decoder_ff": 32, "encoder_ff": 32, "slots": 4, "max_tokens": 96},
    "learner": {"gpus_per_rank": 0, "start_deadline": 120},
    # Kernels would be compiled for a model of this shape.
    "rollout": {"gpus_per_worker": 0, "sampling": {"max_new_tokens": 6}, "backend": "torch"},
    "evaluation": {"episodes": 4},
    "stages": [
        {
            "stage": "mrl",
            "episodes": 4,
            "curriculum": [{"name": "all", "iterations": 1, "max_steps": 2}],
        }
    ],
}
DATA = {"train": 40, "eval": 8, "steps": [2], "subjects": 3, "values": 5}
RUN_SECONDS = 240
ORDER = ("own-data", "gpu/job", "kind/job", "nightly")
"""The nightly evaluation is one of the demo's run, which is there last."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Nodes as the worker groups of the overlay with most groups have them."""
    groups = cluster_spec(of_ray("gpu/job"))["workerGroupSpecs"]
    with ExitStack() as stack:
        started = stack.enter_context(token_head())
        for group in groups:
            cpus = int(group["rayStartParams"]["num-cpus"])
            stack.enter_context(node(started, group["labels"]["group"], cpus))
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is / in a pod: /runs and /mine."""
    folder = tmp_path_factory.mktemp("pod")
    shutil.copytree(FOLDER / "overlays" / "own-data" / "mine", folder / "mine")
    config = folder / "mine" / "mine.yaml"
    config.write_text(config.read_text().replace("/mine/", f"{folder}/mine/"))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"data": DATA}))
    (folder / "tiny-mine.yaml").write_text(yaml.safe_dump(TINY))
    return folder


def words(overlay: str, folder: Path) -> list[str]:
    """The entrypoint without `python`, its paths in a folder that stands for a pod's."""
    job = job_spec(of_ray(overlay))
    assert job is not None
    found = shlex.split(job["entrypoint"])
    assert found[0] == "python"
    return [re.sub(r"(^|=)/(runs|mine)\b", rf"\1{folder}/\2", word) for word in found[1:]]


def run(overlay: str, folder: Path, head: Head, *more: str) -> subprocess.CompletedProcess[str]:
    """The entrypoint as it stands in the manifest, with a configuration laid over it."""
    command = words(overlay, folder)
    last = max((i for i, word in enumerate(command) if word.endswith(".yaml")), default=None)
    if last is not None:
        tiny = "tiny-mine.yaml" if overlay == "own-data" else "tiny.yaml"
        command.insert(last + 1, str(folder / tiny))
    job = job_spec(of_ray(overlay))
    assert job is not None
    given = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    own = {"HOME": str(head.home), "RAY_AUTH_MODE": "token", "RAY_ADDRESS": head.gcs}
    with (folder / "output.log").open("w+") as output:
        code = subprocess.run(
            [sys.executable, *command, *more],
            cwd=ROOT,
            env=os.environ | given | own,
            stdout=output if overlay != "nightly" else subprocess.PIPE,
            stderr=output,
            text=True,
            timeout=RUN_SECONDS,
        )
    return code


def test_the_entrypoints_are_all_there_are(folder: Path) -> None:
    commands = {tuple(words(overlay, folder)) for overlay in JOBS}
    assert commands == {tuple(words(overlay, folder)) for overlay in ORDER}


@pytest.mark.parametrize("overlay", ORDER)
def test_the_entrypoint_runs_to_its_end(overlay: str, head: Head, folder: Path) -> None:
    if overlay == "nightly":
        ended = run(overlay, folder, head)
        assert ended.returncode == EXIT_DONE, (folder / "output.log").read_text()
        assert "all" in json.loads(ended.stdout)["retention"]["exact"]
        return
    shutil.rmtree(folder / "runs", ignore_errors=True)
    (port,) = free_ports(1)
    ended = run(overlay, folder, head, f"metrics.port={port}", "metrics.host=127.0.0.1")
    assert ended.returncode == EXIT_DONE, (folder / "output.log").read_text()
    (directory,) = (folder / "runs").iterdir()
    assert directory.name == ("mine" if overlay == "own-data" else "demo")
    assert json.loads((directory / "summary.json").read_text())["status"] == "done"
    assert (directory / "report.html").is_file()
