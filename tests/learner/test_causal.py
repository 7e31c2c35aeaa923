"""Causal language models as trainable policies: log-probs as sampled, padding that nobody sees, the
same update on any number of ranks, and learning that goes the right way."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.algorithms import PREVIOUS_INTERACTION
from common.config.causal import CausalModel
from common.config.run import Run
from common.episode import Episode, Fact, Interaction, Row, Turn
from common.failures import InputError
from common.models.value_head import ValueHead
from learner.checkpointing import untied_state
from learner.evaluation.evaluate import recall_by_distance
from learner.lora import adapters_off, plain_state
from learner.parallel.group import OneRank
from learner.policies import causal as causal_policies
from learner.policies.causal import CausalPolicy
from learner.policies.table import CheckpointPolicy
from rollout.policies.play import play
from tests.causal_updates import lm_rl, make_update, outcome, rank_main
from tests.local_source import processes
from tests.tiny_causal import (
    configs,
    opened,
    policy_of,
    prompt_tasks,
    scored,
    write_model,
)

LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_model(folder / name, name) for name in configs()}


def trainable(folder: Path, **settings: Any) -> tuple[CausalPolicy, CheckpointPolicy]:
    model, held = opened(folder, **settings)
    section = CausalModel.model_validate({"path": str(folder)} | settings)
    whole = CheckpointPolicy("causal", model, held, section)
    policy = whole.trainable(lm_rl(), OneRank())
    assert isinstance(policy, CausalPolicy)
    return policy, whole


def episodes_of(whole: CheckpointPolicy, count: int = 5, turns: int = 2) -> list[Episode]:
    policy = policy_of(whole.module, whole.tokenizer, sampling={"max_new_tokens": 6})
    return scored(play(policy, prompt_tasks(count, turns)))


def stir(policy: CausalPolicy) -> None:
    """Adapters that do something, as after some training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.module.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)


@pytest.mark.parametrize("family", sorted(configs()))
@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_log_probs_before_the_first_update_are_the_recorded_ones(
    models: dict[str, Path], family: str, lora: dict[str, int] | None
) -> None:
    policy, whole = trainable(models[family], lora=lora)
    stir(policy)
    served = copy.deepcopy(whole)
    plain = plain_state(policy.module)
    if plain is not None:
        model, held = opened(models[family])
        model.load_state_dict(plain)
        served = CheckpointPolicy("causal", model, held)
    episodes = episodes_of(served)
    batch = policy.evaluate(episodes, 1.0)
    recorded = [[turn.log_probs for turn in episode.answered] for episode in episodes]
    torch.testing.assert_close(batch.log_probs, batch.flat(recorded), rtol=0, atol=1e-4)
    assert batch.entropy.min() > 0
    if lora is not None:
        reference = policy.frozen_copy().log_probs(episodes, 1.0)
        assert (batch.flat(reference) - batch.log_probs).abs().max() > 1e-2
        with adapters_off(policy.module):
            base = policy.evaluate(episodes, 1.0).log_probs
        torch.testing.assert_close(batch.flat(reference), base, rtol=0, atol=0)
        assert all(p.requires_grad for n, p in policy.module.named_parameters() if ".lora_" in n)


def test_what_an_episode_is_padded_with_changes_nothing(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, whole = trainable(models["gpt2"])
    episodes = episodes_of(whole, 6)
    together = policy.evaluate(episodes, 1.0)
    for i, episode in enumerate(episodes):
        alone = policy.evaluate([episode], 1.0)
        for (_, turn), values in zip(
            alone.actions, alone.log_probs.split(alone.lengths.tolist()), strict=True
        ):
            at = together.actions.index((i, turn))
            same = together.log_probs.split(together.lengths.tolist())[at]
            torch.testing.assert_close(values, same, rtol=0, atol=1e-5)
    pad = causal_policies.pad
    monkeypatch.setattr(causal_policies, "pad", lambda rows: pad(rows, 77))
    junk = policy.evaluate(episodes, 1.0)
    torch.testing.assert_close(junk.log_probs, together.log_probs, rtol=0, atol=0)


def test_several_passes_give_the_gradient_of_one(models: dict[str, Path]) -> None:
    policy, whole = trainable(models["gpt2"])
    episodes = episodes_of(whole, 6)

    def gradient() -> torch.Tensor:
        policy.module.zero_grad(set_to_none=True)
        batch = policy.evaluate(episodes, 1.0)
        weight = batch.flat([[turn.log_probs for turn in e.answered] for e in episodes])
        (batch.log_probs * weight + batch.entropy).sum().backward()
        return torch.cat(
            [p.grad.flatten() for p in policy.module.parameters() if p.grad is not None]
        )

    one = gradient()
    policy.micro_batch_tokens = 40
    many = gradient()
    assert float((one - many).norm()) <= 1e-6 * float(one.norm())


def test_two_ranks_give_the_update_of_one(models: dict[str, Path], tmp_path: Path) -> None:
    cases = []
    for settings, credit in (
        ({}, "answer"),
        ({"lora": LORA}, "token"),
        ({"value_head": {"body": "own", "layers": 1}}, "token"),
        ({"trained_layers": 1}, "token"),
        ({"value_head": {"detach": False, "loss_weight": 0.7}}, "token"),
        ({"value_head": {"detach": False}, "lora": LORA}, "answer"),
    ):
        model, held = opened(models["gpt2"])
        section = CausalModel.model_validate({"path": str(models["gpt2"])} | settings)
        episodes = episodes_of(CheckpointPolicy("causal", model, held), 7)
        cases.append((section, episodes, credit))
    (tmp_path / "causal.pickle").write_bytes(pickle.dumps(cases))
    ranks = [processes().Process(target=rank_main, args=(r, 2, tmp_path)) for r in range(2)]
    for process in ranks:
        process.start()
    alone = [outcome(*case, OneRank()) for case in cases]
    for process in ranks:
        process.join(timeout=150)
        assert process.exitcode == 0
    together = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)]
    for number, expected in enumerate(alone):
        for name, change in expected.items():
            first, second = (rank[number][name] for rank in together)
            assert torch.equal(first, second), f"{name}: the ranks have parted"
            assert change.norm() > 0
            assert float((first - change).norm()) <= 1e-5 * float(change.norm()), (number, name)
            assert float((first - change).abs().max()) <= 1e-6, (number, name)


def test_a_value_head_begins_with_0_and_may_leave_the_states_alone() -> None:
    states = torch.randn(3, 4, 8, requires_grad=True)
    for layers, parameters in ((1, 8 + 1), (2, 8 * 16 + 16 + 16 + 1)):
        head = ValueHead(8, layers)
        assert sum(p.numel() for p in head.parameters()) == parameters
        assert head(states).shape == (3, 4)
        assert head(states).abs().max() == 0
        head.begin(0.5)
        assert bool((head(states) == 0.5).all())
        torch.nn.init.ones_(head.value.weight)
        head(states).sum().backward()
        assert states.grad is not None
        states.grad = None
        detached = ValueHead(8, layers, detach=True)
        torch.nn.init.ones_(detached.value.weight)
        detached(states).sum().backward()
        assert states.grad is None


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "reinforce"])
def test_a_rewarded_token_becomes_more_probable(models: dict[str, Path], algorithm: str) -> None:
    model, held = opened(models["gpt2"])
    section = CausalModel.model_validate({"path": str(models["gpt2"])})
    update_settings = {"kl": 0.0, "epochs": 2, "minibatches": 1}
    settings = lm_rl(
        algorithm=algorithm, optimizer={"learning_rate": 3e-3}, **{algorithm: update_settings}
    )
    update = make_update(model, held, section, settings, OneRank())
    task = prompt_tasks(1)[0]
    asked = Turn(held.prompt("the film"), [], [], [], role="act")
    context = held.memory.context((), asked.query_ids)
    good = 70

    def probability() -> float:
        with torch.no_grad():
            return float(model(torch.tensor([context])).logits[0, -1].softmax(-1)[good])

    def episode(i: int, token: int) -> Episode:
        with torch.no_grad():
            logits = model(torch.tensor([context])).logits[0, -1].log_softmax(-1)
        turn = replace(asked, answer_ids=[token], log_probs=[float(logits[token])], done=True)
        turn = replace(turn, reward=float(token == good))
        opening = Turn([], [], [], [], role="remember")
        return Episode(f"e{i}", task.id, i, (opening, turn), 0, status="scored", batch_index=i)

    before = probability()
    for iteration in range(6):
        batch = [episode(i, good if i % 2 else 71 + i) for i in range(8)]
        if iteration == 0:
            update.begin_critic(batch)
        experience = update.evaluate(batch, list(range(8)))
        update.run(experience, list(range(8)), 8, iteration)
    assert probability() > 2 * before


def test_recall_by_distance_shows_where_the_window_ends(models: dict[str, Path]) -> None:
    """A policy that answers what it can read: the value is recalled as long as the turn that said
    it is among the last interactions, and not from there on."""
    remembered = 2
    _, held = opened(models["gpt2"], interactions=remembered, memory_tokens=60)
    facts = (Fact("Rex", 0),)
    small_talk = [Interaction("a dog", "a cat", role="distract") for _ in range(4)]
    questions = [Interaction("what is my dog called", "Rex", None, "recall", facts)]
    for distance in range(1, 5):
        row = Row("my dog is called Rex", "good", (*small_talk[: distance - 1], *questions))
        turns = [Turn(held.prompt(row.query), held.answer(row.answer), [], [], role="remember")]
        episode = Episode("e", "t", 0, tuple(turns), 0)
        for each in row.interactions:
            prompt = held.prompt(each.query)
            context = held.memory.contexts(
                replace(episode, turns=(*turns, Turn(prompt, [0], [], [])))
            )[-1]
            reads = each.facts and "Rex" in held.decode(context)
            answer = "Rex" if reads else "a cat"
            turns.append(
                Turn(
                    prompt,
                    held.answer(answer),
                    [],
                    held.answer(each.answer),
                    role=each.role,
                    facts=each.facts,
                    query=each.query,
                    answer=answer,
                    reference=each.answer,
                )
            )
        recall, asked = recall_by_distance([replace(episode, turns=tuple(turns))])
        assert asked[str(distance)] == 1
        assert recall[str(distance)] == float(distance <= remembered)


@pytest.mark.parametrize("body", ["policy", "own"])
def test_values_of_tokens_are_read_before_them(models: dict[str, Path], body: str) -> None:
    """Of every answer, wherever it stands in a conversation, from the hidden states of the model
    on the very ids; the first one is the value of the prompt."""
    policy, whole = trainable(models["gpt2"], value_head={"body": body})
    cut_off = {"next_query_ids": whole.tokenizer.prompt("the film")}
    episodes = [replace(e, **(cut_off if i == 1 else {})) for i, e in enumerate(episodes_of(whole))]
    torch.manual_seed(3)
    of_tokens = policy.value_function(PREVIOUS_INTERACTION, tokens=True)
    of_answers = policy.value_function(PREVIOUS_INTERACTION)
    torch.nn.init.normal_(of_tokens._head.value.weight)
    of_answers._head.load_state_dict(of_tokens._head.state_dict())
    found = of_tokens.evaluate(episodes, of_tokens.memories(episodes))
    expected, firsts = [], []
    for episode in episodes:
        contexts = policy.memory.contexts(episode)
        for turn, context in zip(episode.answered, contexts, strict=False):
            ids = torch.tensor([[*context, *turn.answer_ids]])
            states = policy.module.base_model(ids).last_hidden_state[0]
            firsts.append(len(expected))
            expected += of_tokens._head(states[len(context) - 1 : -1]).tolist()
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)
    prompts = of_answers.evaluate(episodes, of_answers.memories(episodes))
    torch.testing.assert_close(found[firsts], prompts, rtol=0, atol=1e-5)
    beyond = [
        critic.beyond(episodes[1:2], held and held[1:2])
        for critic in (of_tokens, of_answers)
        for held in [critic.memories(episodes)]
    ]
    torch.testing.assert_close(beyond[0], beyond[1], rtol=0, atol=1e-5)


def test_tied_weights_are_kept_once(models: dict[str, Path]) -> None:
    model, _ = opened(models["gpt2"])
    names = untied_state(model).keys()
    assert {"transformer.wte.weight", "lm_head.weight"} - names == {"lm_head.weight"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model": {"causal": "m", "width": 32}}, "width belongs to a Reactive Transformer"),
        ({"stages": [{"stage": "joint_lm"}]}, "trains a reactive policy"),
        ({"model": {}}, "trains a causal policy"),
        ({"rollout": {"backend": "torch"}}, "torch does not compute a causal policy"),
        ({"model": {"causal": {"path": "m", "lora": {"dropout": 0.1}}}}, "dropout must be 0"),
        ({"model": {"causal": {"path": "m", "prompt": "Q:"}}}, "must contain {query} once"),
        (
            {"model": {"causal": {"path": "m", "value_head": {"body": "own", "detach": False}}}},
            "body own is no part of it",
        ),
    ],
)  # fmt: skip
def test_settings_that_rule_each_other_out_are_refused(change: dict[str, Any], what: str) -> None:
    settings = {
        "name": "n",
        "data": {"kind": "prompts", "train": ["p.jsonl"]},
        "model": {"causal": "m"},
        "stages": [{"stage": "lm_rl"}],
    }
    Run.model_validate(settings)
    with pytest.raises(ValueError, match=what):
        Run.model_validate(settings | change)


def test_an_adapter_for_a_layer_that_is_not_there_is_refused(models: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"no linear layer is named 'q_prjo'"):
        trainable(models["llama"], lora={"targets": ["q_prjo"]})
