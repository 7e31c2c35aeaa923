"""One update by PPO of each family of causal models, whole and by adapters, and what the value loss
does to the policy."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.algorithms import PPO
from common.config.causal import CausalModel
from common.data.causal_tokenizer import CausalTokenizer
from common.episode import Episode
from learner.lora import is_adapter
from learner.parallel.group import OneRank
from learner.parallel.optimizer import combine
from learner.policies.causal import CausalCritic
from learner.policies.table import CheckpointPolicy
from learner.rl.experience import gather_experience
from learner.rl.rewards import shaped_rewards
from learner.rl.update import Update
from rollout.policies.play import play
from tests.causal_updates import lm_rl, make_update
from tests.tiny_causal import configs, opened, policy_of, prompt_tasks, scored, write_model


def update_of(folder: Path, ppo: dict[str, Any], **causal: Any) -> tuple[Update, list[Episode]]:
    """An update of the model in a folder, and episodes that it played. The value head gives values
    that differ, or it would have no gradient for the states below it."""
    model, held = opened(folder)
    episodes = played(model, held)
    section = CausalModel.model_validate({"path": str(folder)} | causal)
    settings = lm_rl(
        ppo={"credit": "token", "critic_learning_rate": 1e-2, "minibatches": 1} | ppo,
        optimizer={"learning_rate": 1e-3, "warmup_fraction": 0.0},
    )
    update = make_update(model, held, section, settings, OneRank())
    assert isinstance(update.critic, CausalCritic)
    torch.manual_seed(4)
    torch.nn.init.normal_(update.critic._head.value.weight, std=0.3)
    return update, episodes


def played(model: Any, held: CausalTokenizer) -> list[Episode]:
    policy = policy_of(
        CheckpointPolicy("causal", model, held).module, held, sampling={"max_new_tokens": 6}
    )
    return scored(play(policy, prompt_tasks(6, 2)))


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def gradients(update: Update, episodes: list[Episode]) -> dict[str, Tensor]:
    """Of the policy's loss, by name, before the first step."""
    experience = update.evaluate(episodes, list(range(len(episodes))))
    update.policy.module.zero_grad(set_to_none=True)
    terms = update.policy_terms(update._with_present_memories(experience))
    combine(terms, update.group)[0].backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in update.policy.module.named_parameters()
    }


@pytest.mark.parametrize("family", sorted(configs()))
@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "lora"])
def test_one_update_of_each_family_moves_policy_and_head(
    tmp_path: Path, family: str, lora: dict[str, int] | None
) -> None:
    folder = write_model(tmp_path, family)
    for head in ({"layers": 1}, {"detach": False}):
        update, episodes = update_of(
            folder, {"epochs": 2, "kl_in": "reward"}, lora=lora, value_head=head
        )
        assert update.critic is not None
        before = weights(update.policy.module), weights(update.critic.module)
        experience = update.evaluate(episodes, list(range(6)))
        update.run(experience, list(range(6)), 6, 0)
        row = update.metrics.flush(1, "lm_rl")
        assert float(row["ppo/ratio_max_deviation_first"] or 0.0) <= 1e-3
        moved = [
            {name for name, was in held.items() if not torch.equal(was, now[name])}
            for held, now in zip(
                before,
                (weights(update.policy.module), weights(update.critic.module)),
                strict=True,
            )
        ]
        assert moved[0], "the policy has not moved"
        assert moved[1] == before[1].keys()
        assert lora is None or all(is_adapter(name) for name in moved[0])
        assert ("critic/loss_in_policy" in row) == ("detach" in head)


def test_the_value_loss_adds_its_own_gradient_to_the_body(tmp_path: Path) -> None:
    """Against a plain sum over answers, one sequence at a time."""
    folder, weight = write_model(tmp_path), 0.7
    ppo = {"kl": 0.0, "value_clip": 10.0}
    alone, episodes = update_of(folder, ppo)
    apart = gradients(alone, episodes)
    update, _ = update_of(folder, ppo, value_head={"detach": False, "loss_weight": weight})
    together = gradients(update, episodes)

    assert isinstance(update.critic, CausalCritic)
    experience = update.evaluate(episodes, list(range(6)))
    assert experience.tokens is not None
    model = copy.deepcopy(update.policy.module)
    model.zero_grad(set_to_none=True)
    total, count = torch.zeros(()), 0
    for i, episode in enumerate(episodes):
        contexts = update.policy.memory.contexts(episode)  # type: ignore[attr-defined]
        for k, (turn, context) in enumerate(zip(episode.answered, contexts, strict=False)):
            ids = torch.tensor([[*context, *turn.answer_ids]])
            states = model.base_model(ids).last_hidden_state[0, len(context) - 1 : -1]
            returns = experience.tokens.returns[i, k, : len(turn.answer_ids)]
            values = update.critic._head.value(update.critic._head.hidden(states)).squeeze(-1)
            total = total + 0.5 * (values - returns).square().sum()
            count += len(turn.answer_ids)
    (weight * total / count).backward()
    compared = 0
    for name, parameter in model.named_parameters():
        added = together[name] - apart[name]
        expected = torch.zeros_like(added) if parameter.grad is None else parameter.grad
        scale = float(together[name].norm()) + float(expected.norm())
        assert float((added - expected).norm()) <= 1e-5 * max(scale, 1e-3), name
        compared += int(expected.norm() > 1e-4)
    assert compared > 10


def test_a_detached_head_leaves_the_policy_alone(tmp_path: Path) -> None:
    """Where no answer is better than another, only a value loss could move it."""
    folder = write_model(tmp_path)
    for head, moves in (({}, False), ({"detach": False}, True)):
        update, episodes = update_of(
            folder, {"kl": 0.0, "epochs": 1, "gae_lambda": 1.0}, value_head=head
        )
        before = weights(update.policy.module)
        experience = update.evaluate(episodes, list(range(6)))
        assert experience.tokens is not None
        experience.tokens.advantages.zero_()
        update.policy_trainer.settings = update.policy_trainer.settings.model_copy(
            update={"weight_decay": 0.0}
        )
        update.policy_trainer.select()
        update.run(experience, list(range(6)), 6, 0)
        now = weights(update.policy.module)
        assert any(not torch.equal(was, now[name]) for name, was in before.items()) == moves


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "lora"])
def test_the_generator_has_the_learners_log_probs_after_updates_1_2_and_5(
    tmp_path: Path, lora: dict[str, int] | None
) -> None:
    """A generator of its own, with no weights but those it is sent."""
    settings = CausalModel.model_validate(
        {"path": str(write_model(tmp_path)), "interactions": 2, "lora": lora}
    )
    model, held = opened(tmp_path, interactions=2)
    generator = policy_of(copy.deepcopy(model), held, sampling={"max_new_tokens": 6})
    whole = CheckpointPolicy("causal", model, held, settings)
    optimizer = {"learning_rate": 0.02, "max_grad_norm": 10.0, "warmup_fraction": 0.0}
    update = make_update(model, held, settings, lm_rl(optimizer=optimizer), OneRank())
    firsts = []
    for version in range(6):
        generator.load(whole.weights(version))
        episodes = scored(play(generator, prompt_tasks(5, 3)))
        recorded = [torch.tensor(turn.log_probs) for each in episodes for turn in each.answered]
        own = [values for turns in update.policy.log_probs(episodes, 1.0) for values in turns]
        largest = max(float((a - b).abs().max()) for a, b in zip(own, recorded, strict=True))
        if version in (1, 2, 5):
            assert largest <= 1e-4, version
            firsts.append(float(recorded[0][0]))
        update.run(update.evaluate(episodes, list(range(5))), list(range(5)), 5, version)
    assert len(set(firsts)) == 3, "the updates change what is compared"


def test_an_answer_without_end_earns_what_the_settings_say(tmp_path: Path) -> None:
    """Its own reward is replaced, then the penalty is taken off; answers that end keep theirs."""
    model, held = opened(write_model(tmp_path))
    episodes = played(model, held)
    ends = held.memory.end
    for place in (1, 3):
        turn = episodes[place].turns[1]
        cut = replace(turn, answer_ids=[*turn.answer_ids[:-1], ends])
        episodes[place] = replace(episodes[place], turns=(episodes[place].turns[0], cut))
    experience = gather_experience(episodes, None, None, 1.0, torch.device("cpu"))
    ended = [[turn.answer_ids[-1] == ends for turn in each.answered] for each in episodes]
    assert [any(row) for row in ended] == [False, True, False, True, False, False]

    def shaped(**settings: float) -> torch.Tensor:
        section = PPO.model_validate({"kl_in": "loss"} | settings)
        found = shaped_rewards(experience, section, 0.0, lambda ids: ids[-1] == ends, OneRank())
        return found.rewards

    own, scored_ = experience.rewards, experience.scored
    cut_ = torch.zeros_like(scored_)
    for i, row in enumerate(ended):
        cut_[i, : len(row)] = ~torch.tensor(row)
    assert torch.equal(shaped(), own)
    expected = torch.where(cut_, torch.tensor(-1.0), own)
    assert torch.equal(shaped(no_end_reward=-1.0), expected)
    assert torch.allclose(shaped(no_end_penalty=0.25), torch.where(cut_, own - 0.25, own))
    both = shaped(no_end_reward=-1.0, no_end_penalty=0.25)
    assert torch.allclose(both, torch.where(cut_, torch.tensor(-1.25), own))
