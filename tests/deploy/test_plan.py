from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.actors.resources import REWARD_WORKER_CPUS, claims, total_cpus, total_gpus
from common.config.run import Run
from common.failures import InputError
from common.models.reactive.config import RxTConfig, named_config
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.module import write_model
from common.models.reactive.reward import RxTRewardModel
from common.storage.checkpoint import save_checkpoint
from common.storage.run_directory import RunDirectory
from deploy.cluster import local_cpus
from deploy.plan import learner_bytes, plan_text, rollout_bytes, stage_plans
from learner.stages.planning import (
    Batches,
    critic_parameters,
    longest_conversation,
    model_shape,
    reward_parameters,
)
from tests.local_preferences import preference_run, text_model

MRL = {
    "stage": "mrl",
    "episodes": 16,
    "curriculum": [
        {"name": "short", "iterations": 5, "max_steps": 3},
        {"name": "long", "iterations": 2, "max_steps": 8},
    ],
    "ppo": {"epochs": 3, "minibatches": 2},
}


def run(**changes: Any) -> Run:
    base: dict[str, Any] = {
        "name": "p",
        "data": {"kind": "synth", "steps": [2, 7]},
        "stages": [
            {"stage": "sft", "steps": 10, "batch_size": 6},
            {"stage": "memory_aware", "steps": 4, "batch_size": 5},
            MRL,
        ],
        "learner": {"ranks": 2, "threads": 3, "gpus_per_rank": 1},
        "rollout": {
            "workers": 3,
            "threads": 2,
            "gpus_per_worker": 0.5,
            "slots": 4,
            "sampling": {"max_new_tokens": 10},
        },
    }
    return Run.model_validate(base | changes)


def batches(run: Run, config: RxTConfig) -> list[Batches]:
    return [each for plan in stage_plans(run, config) for each in plan.batches]


def test_batch_algebra_of_supervised_stages() -> None:
    sft, memory_aware, *_ = batches(run(), named_config("tiny", max_tokens=20))
    assert (sft.batch, sft.per_rank, sft.minibatch_per_rank, sft.optimizer_steps) == (6, 3, 3, 10)
    assert (sft.interactions, sft.tokens) == (60, 1200)
    # Whole conversations: the first interaction and at most seven follow-ups.
    assert (memory_aware.per_rank, memory_aware.interactions, memory_aware.tokens) == (
        3,
        4 * 5 * 8,
        4 * 5 * 8 * 20,
    )


def test_batch_algebra_of_mrl_per_curriculum_step() -> None:
    _, _, short, long = batches(run(), named_config("tiny"))
    assert (short.name, long.name) == ("mrl: short", "mrl: long")
    assert (short.batch, short.per_rank, short.minibatch_per_rank) == (16, 8, 4)
    assert (short.optimizer_steps, long.optimizer_steps) == (5 * 3 * 2, 2 * 3 * 2)
    assert (short.interactions, long.interactions) == (5 * 16 * 3, 2 * 16 * 8)
    assert long.tokens == long.interactions * 10


def test_claims_add_up_and_a_run_without_mrl_has_no_rollout_half() -> None:
    assert total_cpus(run()) == sum(claim.count * claim.cpus for claim in claims(run()))
    assert total_gpus(run()) == 2 * 1 + 3 * 0.5
    assert [claim.role for claim in claims(run(stages=[{"stage": "sft"}]))] == ["learner rank"]
    assert local_cpus(run()) >= total_cpus(run())
    # Reward workers that may be started later are no claim, but a local cluster has a place for
    # them.
    growing = run(rewards={"workers": 1, "max_workers": 65})
    assert total_cpus(growing) == total_cpus(run(rewards={"workers": 1}))
    assert local_cpus(growing) >= total_cpus(growing) + 64 * REWARD_WORKER_CPUS


def test_rollout_memory_counts_slots_layers_heads_and_positions() -> None:
    config = named_config(
        "tiny", width=64, layers=2, heads=8, query_heads=4, kv_heads=2, slots=16, max_tokens=20
    )
    parts = rollout_bytes(run(), config)
    assert parts["KV cache of tokens"] == 4 * 2 * (2 * 2 * 8 * 20) * 4
    assert parts["KV of memory"] == 4 * 2 * (2 * 2 * 8 * 16) * 4
    assert parts["memory"] == 4 * 2 * (16 * 64) * 4
    assert parts["weights"] == config.parameters()["total"] * 4


def test_learner_holds_a_reference_only_where_there_is_mrl_and_less_per_rank_with_more_ranks() -> (
    None
):
    config = named_config("tiny")
    with_mrl, without = (
        learner_bytes(stage_plans(run(), config), config),
        learner_bytes(stage_plans(run(stages=[{"stage": "sft"}]), config), config),
    )
    assert with_mrl["reference policy"] == with_mrl["weights"]
    assert "reference policy" not in without
    alone = learner_bytes(stage_plans(run(learner={"ranks": 1}), config), config)
    assert alone["activations, about"] > with_mrl["activations, about"]
    assert alone["optimiser"] == 2 * alone["weights"]


@pytest.mark.parametrize("reads_memory", [False, True])
def test_critic_is_counted_as_it_is_built(reads_memory: bool) -> None:
    config = named_config("tiny")
    assert critic_parameters(config, reads_memory) == sum(
        parameter.numel() for parameter in Critic(config, reads_memory).parameters()
    )


def test_a_critic_that_reads_memory_is_planned_with_the_memories_of_its_episodes() -> None:
    """One per answer, and one for the query after an episode that was cut off."""
    config, steps = named_config("tiny"), [{"name": "all", "iterations": 1, "max_steps": 5}]
    stage = {"stage": "mrl", "episodes": 10, "curriculum": steps}
    reading = run(stages=[stage | {"ppo": {"critic": {"memory": True}}}], learner={"ranks": 3})
    parts = learner_bytes(stage_plans(reading, config), config)
    one = config.layers * config.slots * config.width * 4
    assert parts["memories that the critic reads"] == 4 * (5 + 1) * one
    without = learner_bytes(stage_plans(run(stages=[stage]), config), config)
    assert not any("memories" in name for name in without)
    critic = "critic, gradients and optimiser"
    assert parts[critic] > without[critic]


@pytest.mark.parametrize(
    ("data", "follow_ups"),
    [
        ({"kind": "synth", "steps": [3, 5]}, 5),
        ({"kind": "babi", "folder": "x"}, 9),
        ({"kind": "babi", "folder": "x", "layout": "statement"}, 8),
        ({"kind": "sgd", "folder": "x", "max_follow_ups": 6}, 6),
        ({"kind": "rows", "train": ["t"], "eval": ["e"]}, 8),
    ],
)
def test_longest_conversation_comes_from_the_data_or_the_curriculum(
    data: dict[str, Any], follow_ups: int
) -> None:
    assert longest_conversation(run(data=data)) == follow_ups


def test_shape_comes_from_the_named_size_or_the_checkpoint(tmp_path: Path) -> None:
    assert (
        model_shape(
            run(model={"size": "tiny", "width": 128}, tokenizer={"vocab_size": 300})
        ).vocab_size
        == 300
    )
    narrow = named_config("tiny", width=32, heads=4, query_heads=4, kv_heads=4)
    save_checkpoint(
        RunDirectory(str(tmp_path), "before"),
        0,
        partial(write_model, ReactiveTransformer(narrow)),
        {},
    )
    assert model_shape(run(model={"checkpoint": str(tmp_path / "before")})).width == 32
    with pytest.raises(InputError, match="absent"):
        model_shape(run(model={"checkpoint": str(tmp_path / "absent")}))


def test_plan_opens_with_a_config_that_loads_again() -> None:
    text = plan_text(run())
    resolved = yaml.safe_load(text.split("\n\n")[0])
    assert Run.model_validate(resolved) == run()
    assert "Memory of a rollout worker" in text


@pytest.mark.parametrize("levels", [1, 7])
def test_parameters_of_a_reward_model_are_those_that_it_has(levels: int) -> None:
    config = named_config("tiny", vocab_size=400, memory_attention="gated_self_interlayer")
    model = RxTRewardModel.from_policy(ReactiveTransformer(config), levels)
    assert reward_parameters(config, levels) == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_the_plan_of_a_backbone_says_what_it_is_and_refuses_one_that_is_not_there(
    tmp_path: Path,
) -> None:
    backbone = text_model(tmp_path / "backbone")
    run = preference_run(tmp_path, {"stage": "reward_model", "backbone": backbone})
    assert "llama" in plan_text(run)
    missing = preference_run(tmp_path, {"stage": "reward_model", "backbone": f"{tmp_path}/nothing"})
    with pytest.raises(InputError, match="does not exist"):
        plan_text(missing)
