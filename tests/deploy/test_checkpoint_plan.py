"""What the plan tells of checkpoints, against those of real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config.run import Run
from common.storage.checkpoint import whole_checkpoints
from common.storage.run_directory import RunDirectory
from deploy.causal_shape import causal_shape
from deploy.checkpoint_plan import ASSUMED_RATE, Sizes, checkpoint_sizes, write_rate
from deploy.plan import causal_plans, plan_text, stage_plans
from learner.policies.table import open_policy
from tests.learner.test_causal_pipeline import causal_run
from tests.local_source import run_here, tiny_run

HEADER = 60_000
"""More than safetensors writes of names and shapes."""
EVERY = {"checkpoint_every": 2, "log_every": 1, "keep_checkpoints": 99}


def files(directory: RunDirectory, step: int) -> dict[str, int]:
    """Bytes of the tensors of a checkpoint, and of those that lie beside it."""
    (found,) = [each for each in whole_checkpoints(directory) if each.step == step]
    with found.folder() as folder:
        sizes = {path.stem: path.stat().st_size for path in folder.glob("*.safetensors")}
    return sizes | {"frozen": 0 if found.frozen is None else found.frozen.bytes}


def assert_planned(held: dict[str, int], planned: Sizes) -> None:
    """Optimisers may hold less than planned: some parts are not trained in each stage."""
    assert held["model"] == pytest.approx(planned.model, abs=HEADER)
    assert held["training"] == pytest.approx(planned.beside, abs=HEADER)
    assert held["frozen"] == pytest.approx(planned.once, abs=HEADER)
    if "optimizer" in held:
        assert held["optimizer"] == pytest.approx(planned.optimiser, abs=HEADER, rel=0.02)


def test_checkpoints_of_each_stage_are_planned_as_they_are_written(tmp_path: Path) -> None:
    wide = {"width": 96, "decoder_ff": 192, "encoder_ff": 192}
    stages = ("joint_lm", "memory_pretrain", "memory_aware", "mrl")
    run = tiny_run(tmp_path, *stages, model=wide, learner=EVERY)
    directory, _ = run_here(run)
    last = whole_checkpoints(directory)[0]
    config = open_policy(last).module.config
    planned = checkpoint_sizes(run, stage_plans(run, config))
    assert list(planned) == [f"stages.{name}" for name in stages]
    for step, name in zip((6, 12, 18, 24), stages, strict=True):
        assert_planned(files(directory, step), planned[f"stages.{name}"])
    assert "optimizer" in files(directory, 24)
    mrl = planned["stages.mrl"]
    assert mrl.once == mrl.model > 4 * HEADER
    assert mrl.optimiser == 2 * (mrl.model + mrl.beside)


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "lora"])
def test_checkpoints_of_a_causal_model_are_planned_as_they_are_written(
    tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    run = causal_run(tmp_path, lora=lora)
    directory, _ = run_here(run)
    planned = checkpoint_sizes(run, causal_plans(run, causal_shape(run.model.causal)))
    for step, name in ((2, "lm_sft"), (5, "lm_rl")):
        assert_planned(files(directory, step), planned[f"stages.{name}"])
    sft = planned["stages.lm_sft"]
    assert sft.once == (sft.model if lora else 0)


def test_the_disk_holds_one_more_than_are_kept_while_it_is_written() -> None:
    sizes = Sizes(model=100, beside=10, optimiser=220, once=100, kept=2)
    assert sizes.one == 330
    assert sizes.on_disk == 3 * 110 + 2 * 220 + 100


def test_the_rate_is_measured_where_the_run_will_be_and_leaves_nothing(tmp_path: Path) -> None:
    run = Run.model_validate(tiny_run(tmp_path / "not" / "there").model_dump())
    rate = write_rate(run)
    assert rate.where == str(tmp_path)
    assert rate.bytes_per_second > 1e6
    assert list(tmp_path.iterdir()) == []
    remote = run.model_copy(update={"runs": "memory://plans"})
    assert write_rate(remote) == (ASSUMED_RATE, "")
    assert "Checkpoints, MiB" in plan_text(remote)
    assert "written at 100 MB/s, assumed" in plan_text(remote)
