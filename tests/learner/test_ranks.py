"""Invariant 2: two learner ranks compute what one computes on the whole batch. Two real processes
over gloo.

Tolerance: 1e-5 of the size of a vector. Ranks add the same float32 numbers in another order, and
nothing else: a lost factor, a mean of means over unequal lengths, or whitening by one's own shard
is off by percents. Of weights that PPO has changed it is 1e-4: advantages of both signs nearly
cancel in some gradients, and AdamW divides what is left by its own size, rounding included. By the
episodes, whose last bits change with the machine, it came to 4e-6 to 5.3e-5, where
supervised stages come to 5e-7.
"""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from common.config.mrl import MRL
from common.data.tokenizer import train_tokenizer
from tests.local_preferences import preference_run
from tests.local_source import (
    lively_model,
    played,
    prepared,
    processes,
    tiny_corpus,
    tiny_run,
    tiny_tasks,
)
from tests.two_ranks import Outcome, one_rank, rank_main

MIXTURE = {"experts": 4, "experts_per_token": 2, "decoder_ff": 24}
# A large rate, so that weights move by more than the rounding of float32, and a batch that two
# ranks cannot share evenly.
LARGE = {"optimizer": {"learning_rate": 0.5, "warmup_fraction": 0.0}, "batch_size": 7, "steps": 4}
ROUTED = {"router_loss": 0.5}
NOISY = {"blind_fraction": 0.4, "hide_probability": 0.2, "noise": 0.3}
SUPERVISED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "joint_lm": ({"stage": "joint_lm", **NOISY, **ROUTED}, {}),
    "sft": ({"stage": "sft", **NOISY, **ROUTED}, MIXTURE),
    "memory_pretrain": (
        {"stage": "memory_pretrain", "input_noise": 0.3},
        {"initial_memory": "learned"},
    ),
    "memory_aware": ({"stage": "memory_aware", **ROUTED}, MIXTURE),
    "memory_aware_in_phases": (
        {
            "stage": "memory_aware",
            "unfreeze": [
                {"after": 0, "train": ["memory_attention", "memory_cross_attention"]},
                {"after": 1, "train": ["encoder", "embedding"], "learning_rate": 0.5},
            ],
        },
        {},
    ),
    "memory_aware_one_turn_each": (
        {"stage": "memory_aware", "bptt_turns": 1, "batch_size": 2},
        {"initial_memory": "learned"},
    ),
}
PREFERENCES = {
    "reward_model": {"stage": "reward_model"},
    "reward_model_discrete": {"stage": "reward_model", "levels": 5, "batch_size": 2},
}
PPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ppo-dense": ({"minibatches": 2, "epochs": 2}, {"initial_memory": "learned"}),
    # Seven episodes in five minibatches: in most of them a rank has nothing to do, and must take
    # part all the same.
    "ppo-mixture": ({"minibatches": 5, "epochs": 1, "bptt_turns": 1}, MIXTURE),
    # In most minibatches a rank has no memory to read.
    "ppo-critic-with-memory": (
        {"minibatches": 5, "epochs": 1, "critic": {"memory": True}},
        {"initial_memory": "learned"},
    ),
    "ppo-raw-advantages": (
        {"minibatches": 1, "epochs": 1, "whiten": False, "kl_estimator": "k3"},
        {},
    ),
}


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Outcome], list[dict[str, Outcome]]]:
    """By one rank, and by each of two."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, (stage, shape) in SUPERVISED.items():
        run = tiny_run(folder, LARGE | stage, name=name, model=shape)
        prepared(run)
        (folder / f"run-{name}.pickle").write_bytes(pickle.dumps(run.model_dump()))
    for name, stage in PREFERENCES.items():
        run = preference_run(folder, LARGE | stage, name=name)
        prepared(run)
        (folder / f"run-{name}.pickle").write_bytes(pickle.dumps(run.model_dump()))
    tokenizer = train_tokenizer(tiny_corpus().texts, 400)
    for name, (ppo, shape) in PPO.items():
        common = {"entropy": 0.05, "memory_change": 0.2, "clip": 0.1, "value_clip": 0.1}
        curriculum = [{"name": "all", "iterations": 4, "max_steps": 3}]
        settings = MRL.model_validate(
            {"stage": "mrl", "curriculum": curriculum, "ppo": common | ppo, "router_loss": 0.5}
        )
        model = lively_model(tokenizer, **shape)
        (folder / f"{name}.pickle").write_bytes(
            pickle.dumps((settings, model, played(model, tokenizer, tiny_tasks(7))))
        )
    ranks = [processes().Process(target=rank_main, args=(rank, 2, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    alone = one_rank(folder)
    for process in ranks:
        process.join(timeout=150)
        assert process.exitcode == 0
    return alone, [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", [*SUPERVISED, *PREFERENCES, *PPO])
def test_two_ranks_compute_what_one_computes_on_the_whole_batch(
    case: str, outcomes: tuple[dict[str, Outcome], list[dict[str, Outcome]]]
) -> None:
    alone, together = outcomes
    assert alone[case].keys() == together[0][case].keys()
    for name, expected in alone[case].items():
        first, second = (rank[case][name] for rank in together)
        assert torch.equal(first, second), f"{name}: the ranks have parted"
        nothing = name == "objective/without_signal"  # 0 where rewards differ
        assert nothing or expected.norm() > 0, f"{name}: nothing to compare"
        tolerance = 1e-4 if case in PPO and name.startswith("change of") else 1e-5
        assert float((first - expected).norm()) <= tolerance * float(expected.norm()), name
