"""Which backend computes, and that the compiled one can be taken away."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from common.config.names import BackendName
from common.config.rollout import Rollout
from common.failures import InputError
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.backend import available, make_backend

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
FOLDER = Path("rollout", "policies", "reactive", "cpu")


def test_auto_takes_what_device_and_type_allow_whatever_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            assert available(CPU, torch.float32) == ["cpu_kernels", "torch"]
        finally:
            torch.set_num_threads(threads)
    assert available(CPU, torch.float64) == available(CPU, torch.bfloat16) == ["torch"]
    assert (
        available(GPU, torch.float32)
        == available(GPU, torch.bfloat16)
        == [
            "cuda_graphs",
            "torch",
        ]
    )


def make(wanted: BackendName) -> str:
    model = ReactiveTransformer(RxTConfig(width=16, layers=1, slots=2)).eval()
    return make_backend(wanted, model, 3, CPU).name


def test_the_log_says_what_computes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert make("auto") == "cpu_kernels"
        assert make("torch") == "torch"
    assert caplog.messages == [
        "rollout backend cpu_kernels (chosen by auto)",
        "rollout backend torch",
    ]


def test_a_backend_that_cannot_run_here_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"rollout\.backend: cuda_graphs cannot compute in float32 on cpu here; "
        "cpu_kernels, torch can",
    ):
        make("cuda_graphs")


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "cuda_graphs"},
        {"backend": "cpu_kernels", "gpus_per_worker": 1},
        {"backend": "cpu_kernels", "dtype": "bfloat16"},
        {"backend": "vllm", "gpus_per_worker": 2},
        {"backend": "vllm", "sampling": {"top_k": 3}},
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="backend"):
        Rollout.model_validate(settings)


WITHOUT = """
import sys
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.reactive.session import Session
from rollout.worker import RolloutWorker
from tests.rollout.test_backend import make
print(make("auto"), "numba" in sys.modules)
make("cpu_kernels")
"""


def test_everything_else_works_without_the_folder_of_kernels(tmp_path: Path) -> None:
    for part in ("common", "rollout", "tests"):
        shutil.copytree(
            ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "datasets")
        )
    shutil.rmtree(tmp_path / FOLDER)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["torch", "False"], done.stderr
    assert "cpu_kernels cannot compute in float32 on cpu here; torch can" in done.stderr


def test_only_the_choice_of_a_backend_names_that_folder() -> None:
    named = [
        file.relative_to(ROOT)
        for package in ("common", "rollout", "reward_service", "learner", "deploy", "benchmarks")
        for file in (ROOT / package).rglob("*.py")
        if "reactive.cpu" in file.read_text() and FOLDER not in file.relative_to(ROOT).parents
    ]
    assert named == [Path("rollout", "policies", "reactive", "backend.py")]
