"""Refusals where vLLM cannot generate, in an environment without it, and waits for it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from common.config.rollout import Rollout
from common.failures import DeadlineExceeded, InputError
from common.models.vllm_release import has_vllm, installed_vllm, require_vllm
from learner.requirements import require_possible
from rollout.policies.causal.policy import backend_for
from rollout.policies.causal.vllm_weights import within
from tests.learner.test_causal_pipeline import causal_run
from tests.tiny_causal import opened, policy_of, write_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def install(folder: Path, version: str) -> None:
    """Metadata as pip writes them."""
    told = folder / f"vllm-{version}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


@pytest.mark.skipif(installed_vllm() is not None, reason="vLLM is installed here")
def test_a_run_that_wants_vllm_is_refused_before_anything_starts(tmp_path: Path) -> None:
    run = causal_run(tmp_path)
    require_possible(run)
    wants = run.model_copy(update={"rollout": run.rollout.model_copy(update={"backend": "vllm"})})
    with pytest.raises(InputError, match=r"rollout\.backend: is vllm, which is not installed here"):
        require_possible(wants)
    model, held = opened(write_model(tmp_path / "model"))
    with pytest.raises(InputError, match=r"pip install .*requirements-vllm\.txt"):
        policy_of(model, held, backend="vllm")


def test_another_version_is_refused_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "0.99.1")
    monkeypatch.syspath_prepend(tmp_path)
    assert not has_vllm()
    with pytest.raises(InputError, match=r"of which 0\.99\.1 is installed here and 0\.32 is used"):
        require_vllm("rollout.backend")


def test_auto_takes_vllm_on_gpus_where_it_is_installed_and_nothing_is_filtered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "0.32.4")
    monkeypatch.syspath_prepend(tmp_path)
    plain = Rollout(gpus_per_worker=1)
    assert backend_for(plain, GPU) == "vllm"
    assert backend_for(Rollout(), CPU) == "transformers"
    filtered = Rollout.model_validate({"gpus_per_worker": 1, "sampling": {"top_k": 3}})
    assert backend_for(filtered, GPU) == "transformers"


def test_a_wait_for_vllm_ends_with_its_reason() -> None:
    never = threading.Event()
    with pytest.raises(DeadlineExceeded, match=r"waited 0\.1 s for vLLM to take weights version 3"):
        within(0.1, "vLLM to take weights version 3", lambda: bool(never.wait(60)), CPU)
    never.set()
    with pytest.raises(ZeroDivisionError):
        within(60, "a division", lambda: 1 / 0, CPU)
    done: list[int] = []
    within(60, "a list", lambda: done.append(1), CPU)
    assert done == [1]
