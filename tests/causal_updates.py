"""Updates of a tiny causal language model, for tests and for the processes that they start."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.config.causal import CausalModel
from common.config.lm import LMRL
from common.config.rewards import Rewards
from common.data.causal_tokenizer import CausalTokenizer
from common.episode import Episode
from common.models.causal import open_causal
from common.telemetry.metrics import Metrics
from learner.parallel.group import Group
from learner.policies.causal import CausalPolicy
from learner.policies.table import CheckpointPolicy
from learner.rl.algorithms.table import ALGORITHMS
from learner.rl.update import Update
from rollout.tasks import shards
from tests.two_ranks import changes, joined, plain, weights


def lm_rl(**settings: Any) -> LMRL:
    return LMRL.model_validate({"stage": "lm_rl", "iterations": 10} | settings)


def make_update(
    model: Any, held: CausalTokenizer, causal: Any, settings: LMRL, group: Group
) -> Update:
    """As a learner rank makes it. causal: settings of the model."""
    policy = CheckpointPolicy("causal", model, held, causal).trainable(settings, group)
    assert isinstance(policy, CausalPolicy)
    torch.manual_seed(3)
    algorithm = ALGORITHMS[settings.algorithm](settings.algorithm_settings, Rewards().width())
    return Update(policy, algorithm, settings, 10, 1.0, 11, group, Metrics())


def outcome(
    causal: CausalModel, episodes: list[Episode], credit: str, group: Group
) -> dict[str, Tensor]:
    """Changes of weights by one update on this rank's share of the episodes."""
    torch.set_num_threads(1)
    critic: dict[str, Any] = {
        "credit": credit,
        "critic_learning_rate": 0.1,
        "epochs": 2,
        "minibatches": 5,
        "kl": 0.1,
    }
    optimizer = {"learning_rate": 0.1, "max_grad_norm": 1e6}
    settings = lm_rl(ppo=critic | {"entropy": 0.05}, optimizer=optimizer)
    model, held = open_causal(causal)
    update = make_update(model, held, causal, settings, group)
    assert update.critic_trainer is not None
    for trainer in (update.policy_trainer, update.critic_trainer):
        plain(trainer)
    modules = {"model": update.policy.module, "critic": update.modules["critic"]}
    before = weights(modules)
    mine = list(shards(episodes, group.size)[group.rank])
    places = [episode.batch_index for episode in mine]
    experience = update.evaluate(mine, places)
    update.run(experience, places, len(episodes), 1)
    return changes(modules, before)


def rank_main(rank: int, ranks: int, folder: Path) -> None:
    """One of several ranks, over gloo on the loopback device."""
    given = pickle.loads((folder / "causal.pickle").read_bytes())
    with joined(rank, ranks, folder) as group:
        torch.save([outcome(*case, group) for case in given], folder / f"rank-{rank}.pt")
