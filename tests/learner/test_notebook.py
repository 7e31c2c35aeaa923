"""The call for notebooks: the same update as the learner's, and bad input by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.config.causal import CausalModel
from common.data.causal_tokenizer import CausalTokenizer
from common.episode import Episode
from common.failures import InputError
from learner.notebook import PolicyTrainer
from learner.parallel.group import Group
from rollout.policies.play import play
from rollout.tasks import shards
from tests.causal_updates import lm_rl, make_update
from tests.tiny_causal import opened, policy_of, prompt_tasks, scored, write_model
from tests.tiny_policy import on_ranks
from tests.two_ranks import changes, plain, weights

SETTINGS = {
    "optimizer": {"learning_rate": 0.1, "max_grad_norm": 1e6},
    "ppo": {"credit": "token", "kl_in": "reward", "kl": 0.1, "critic_learning_rate": 0.1}
    | {"epochs": 2, "minibatches": 2, "entropy": 0.05},
}
CAUSAL: dict[str, Any] = {"interactions": 0, "value_head": {"layers": 1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("notebook") / "model")


def from_transformers(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def distributed(
    model: Any, held: CausalTokenizer, episodes: list[Episode], group: Group
) -> dict[str, torch.Tensor]:
    """Changes of weights by the update of a learner rank on its share of the episodes."""
    section = CausalModel.model_validate({"path": "model"} | CAUSAL)
    update = make_update(model, held, section, lm_rl(**SETTINGS), group)
    update.seed = 0
    modules = {"model": update.policy.module, "critic": update.modules["critic"]}
    assert update.critic_trainer is not None
    plain(update.policy_trainer), plain(update.critic_trainer)
    before = weights(modules)
    mine = list(shards(episodes, group.size)[group.rank])
    places = [episode.batch_index for episode in mine]
    update.begin_critic(mine)
    experience = update.evaluate(mine, places)
    update.run(experience, places, len(episodes), 0)
    return changes(modules, before)


def test_a_step_is_the_update_of_two_ranks(folder: Path) -> None:
    model, held = opened(folder, **CAUSAL)
    policy = policy_of(model, held, sampling={"max_new_tokens": 6})
    episodes = scored(play(policy, prompt_tasks(6)))
    trainer = PolicyTrainer(*from_transformers(folder), SETTINGS, causal=CAUSAL)
    trainer.update.seed = 0
    assert trainer.update.critic_trainer is not None
    plain(trainer.update.policy_trainer), plain(trainer.update.critic_trainer)
    modules = {"model": trainer.policy.module, "critic": trainer.update.modules["critic"]}
    before = weights(modules)
    turns = [episode.answered[0] for episode in episodes]
    figures = trainer.step(
        [turn.query for turn in turns],
        [turn.answer_ids for turn in turns],
        [float(turn.reward or 0.0) for turn in turns],
        [turn.log_probs for turn in turns],
    )
    alone = changes(modules, before)
    # Opened here: transformers cannot open two models in two threads at once.
    models = [copy.deepcopy(model) for _ in range(2)]
    for together in on_ranks(
        2, lambda group: distributed(models[group.rank], held, episodes, group)
    ):
        for name, change in alone.items():
            assert change.norm() > 0
            assert float((together[name] - change).abs().max()) <= 1e-6, name
    assert figures["critic/explained_variance"] <= 1
    assert figures["objective/kl"] == pytest.approx(0.0, abs=1e-4)


def test_log_probs_that_are_not_given_are_those_of_the_present_weights(folder: Path) -> None:
    model, tokenizer = from_transformers(folder)
    trainer = PolicyTrainer(model, tokenizer, {"algorithm": "reinforce"})
    figures = trainer.step(["the film", "a dog"], ["is good", "is bad"], [1.0, 0.0])
    assert figures["ppo/ratio_max_deviation_first"] <= 1e-4
    turn = trainer._episodes(["the film"], ["is good"], [1.0], None)[0].answered[0]
    assert turn.answer_ids[-1] == tokenizer.eos_token_id
    ids = torch.tensor([[*turn.query_ids, *turn.answer_ids]])
    expected = model(ids).logits[0, :-1].log_softmax(-1)[len(turn.query_ids) - 1 :]
    expected = expected.gather(1, torch.tensor(turn.answer_ids)[:, None])[:, 0]
    assert turn.log_probs == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_example_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "causal.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    assert len(example.splitlines()) <= 22
    exec(compile(example.replace('"gpt2"', repr(str(folder))), "causal.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("settings", "given", "what"),
    [
        ({}, (["a"], ["b", "c"], [1.0]), "given were 1, 2 and 1"),
        ({}, ([], [], []), "one at least"),
        ({"algorithm": "rloo"}, (["a"] * 3, ["b"] * 3, [1.0] * 3), "no multiple of the 4 samples"),
        ({"algorithm": "reinforce"}, (["a"], [[]], [1.0]), "row 0: has an empty query or resp"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    folder: Path, settings: dict[str, Any], given: Any, what: str
) -> None:
    trainer = PolicyTrainer(*from_transformers(folder), settings)
    with pytest.raises(InputError, match=what):
        trainer.step(*given)


def test_settings_that_are_none_are_refused_with_the_nearest(folder: Path) -> None:
    model, tokenizer = from_transformers(folder)
    with pytest.raises(InputError, match="minibatches"):
        PolicyTrainer(model, tokenizer, {"ppo": {"minibatch": 2}})
    without = copy.deepcopy(tokenizer)
    without.eos_token = None
    with pytest.raises(InputError, match="no end token"):
        PolicyTrainer(model, without)
