"""What rewards do to advantages: credit, doubt, and the clip of values on whatever scale rewards
have."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.components import FunctionReward, ModelReward
from common.config.mrl import MRL
from common.config.rewards import RewardMix, Rewards
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.episode import Episode
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from common.telemetry.jsonl import read_rows
from learner.parallel.optimizer import LossTerm
from learner.rl.advantages import (
    explained_variance,
    explained_variance_by_turn,
    generalized_advantages,
)
from learner.rl.experience import Experience
from tests.local_source import lively_model, played, run_here, tiny_corpus, tiny_run, tiny_tasks
from tests.updates import make_update, mrl


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    return train_tokenizer(tiny_corpus().texts, 400)


@pytest.fixture(scope="module")
def model(tokenizer: ConversationTokenizer) -> ReactiveTransformer:
    return lively_model(tokenizer)


@pytest.fixture(scope="module")
def episode(model: ReactiveTransformer, tokenizer: ConversationTokenizer) -> Episode:
    """Three answers."""
    return next(
        episode
        for episode in played(model, tokenizer, tiny_tasks(12))
        if len(episode.answered) == 3
    )


def settings(**ppo: Any) -> MRL:
    return mrl(ppo={"whiten": False, "discount": 0.5, "gae_lambda": 0.5, "kl": 0.1} | ppo)


def rewarded(episode: Episode, rewards: Sequence[float | None], std: float = 0.0) -> Episode:
    turns = [
        replace(turn, reward=reward, reward_std=std)
        for turn, reward in zip(episode.answered, rewards, strict=True)
    ]
    return replace(episode, turns=(episode.turns[0], *turns))


def experience(model: ReactiveTransformer, episode: Episode, **ppo: Any) -> Experience:
    """By a critic that has not learnt anything: its values are 0."""
    return make_update(model, settings(**ppo)).evaluate([episode], [0])


def losses(model: ReactiveTransformer, lived: Experience) -> dict[str, LossTerm]:
    return {term.name: term for term in make_update(model, settings()).policy_terms(lived)}


def sums(terms: dict[str, LossTerm]) -> dict[str, float]:
    return {name: float(term.sum.detach()) for name, term in terms.items()}


# --- credit ---------------------------------------------------------------------------------------


def test_credit_passes_through_turns_that_earn_nothing_by_rule(
    model: ReactiveTransformer, episode: Episode
) -> None:
    """A delayed reward: two answers to which no component applies, and the question at the end."""
    lived = experience(model, rewarded(episode, [0.0, 0.0, 1.0]))
    assert lived.scored.tolist() == [[True, True, True]]
    assert lived.advantages.tolist() == [[0.25**2, 0.25, 1.0]]
    assert losses(model, lived)["ppo/loss_policy"].count == sum(
        len(turn.answer_ids) for turn in episode.answered
    )


def test_credit_passes_over_a_turn_that_could_not_be_scored(
    model: ReactiveTransformer, episode: Episode
) -> None:
    lived = experience(model, rewarded(episode, [0.0, None, 1.0]))
    assert lived.scored.tolist() == [[True, False, True]]
    assert lived.advantages.tolist() == [[0.25, 0.0, 1.0]]
    assert lived.returns.tolist() == [[0.25, 0.0, 1.0]]


def test_an_unscored_turn_is_as_if_it_had_never_happened() -> None:
    rewards, values = torch.tensor([0.1, torch.nan, 0.3, -0.2]), torch.tensor([0.5, 9.0, 0.4, 0.2])
    kept = torch.tensor([True, False, True, True])
    for found, expected in zip(
        generalized_advantages(rewards, values, 0.7, 0.9, 0.8, kept),
        generalized_advantages(rewards[kept], values[kept], 0.7, 0.9, 0.8),
        strict=True,
    ):
        torch.testing.assert_close(found[kept], expected)
        assert found[1] == 0


def test_a_turn_that_could_not_be_scored_is_in_no_loss(
    model: ReactiveTransformer, episode: Episode
) -> None:
    unscored = rewarded(episode, [0.5, None, 1.0])
    found = losses(model, experience(model, unscored))
    tokens = sum(len(turn.answer_ids) for turn in (unscored.answered[0], unscored.answered[2]))
    assert {
        found[name].count for name in ("ppo/loss_policy", "ppo/loss_kl", "objective/entropy")
    } == {tokens}
    # Whatever the rollout said of its tokens, nothing changes.
    turn = replace(
        unscored.turns[2], log_probs=[value - 3.0 for value in unscored.turns[2].log_probs]
    )
    other = losses(
        model,
        experience(model, replace(unscored, turns=(*unscored.turns[:2], turn, unscored.turns[3]))),
    )
    assert sums(other) == sums(found)
    lived = experience(model, unscored)
    assert make_update(model, settings()).critic_terms(lived)[0].count == 2


def test_doubt_divides_by_one_and_the_levels_of_spread(
    model: ReactiveTransformer, episode: Episode
) -> None:
    lived = experience(model, rewarded(episode, [0.0, 0.0, 0.7], std=1.5), doubt=True)
    assert lived.advantages[0, 2].item() == pytest.approx(0.7 / 2.5)


# --- the clip of values ---------------------------------------------------------------------------


def mix(*models: ModelReward | FunctionReward) -> RewardMix:
    return RewardMix(
        bleu=None,
        cosine=None,
        length=None,
        recall=None,
        models=tuple(part for part in models if isinstance(part, ModelReward)),
        functions=tuple(part for part in models if isinstance(part, FunctionReward)),
    )


FIVE = mix(ModelReward(name="judge", path="a", weight=1.0, clip=(-2.0, 3.0)))
TWO_PARTS = mix(
    ModelReward(name="judge", path="a", weight=1.0, clip=(-2.0, 3.0)),
    FunctionReward(name="own", path="b", weight=3.0),
)
DEVIATIONS = mix(
    ModelReward(name="judge", path="a", weight=1.0, clip=(-50.0, 50.0), normalise=True)
)


@pytest.mark.parametrize(
    ("rewards", "width"),
    [
        (Rewards(), 1.0),
        (Rewards(scale=10.0), 10.0),
        (Rewards(symmetric=True), 2.0),
        (Rewards(symmetric=True, scale=0.5), 1.0),
        (Rewards(single=FIVE), 5.0),
        (Rewards(topic_change=FIVE, scale=2.0), 10.0),
        (Rewards(single=TWO_PARTS, cumulative=TWO_PARTS, long_term=TWO_PARTS), 2.0),
        (Rewards(single=DEVIATIONS, cumulative=DEVIATIONS, long_term=DEVIATIONS), 1.0),
    ],
)
def test_width_of_the_range_that_rewards_lie_in(rewards: Rewards, width: float) -> None:
    assert rewards.width() == width


@pytest.mark.parametrize("width", [1.0, 10.0, 0.1])
def test_values_are_clipped_alike_on_every_scale_of_rewards(
    model: ReactiveTransformer, episode: Episode, width: float
) -> None:
    """A critic that is 0.3 off the old values, and returns 0.5 off, on one scale and on another."""
    lived = experience(model, rewarded(episode, [0.5 * width] * 3), discount=0.0, gae_lambda=0.0)
    critic = Critic.from_policy(model)
    torch.nn.init.constant_(critic.value.bias, 0.3 * width)
    update = make_update(model, settings(value_clip=0.2), critic=critic, reward_width=width)
    loss, clipped, *_ = update.critic_terms(lived)
    assert float(loss.sum.detach()) / width**2 == pytest.approx(
        3 * 0.5 * 0.3**2, rel=1e-5
    )  # held at 0.2: 0.3 below the return
    assert float(clipped.sum) == 3
    update = make_update(model, settings(value_clip=0.4), critic=critic, reward_width=width)
    loss, clipped, *_ = update.critic_terms(lived)
    assert float(loss.sum.detach()) / width**2 == pytest.approx(3 * 0.5 * 0.2**2, rel=1e-5)
    assert float(clipped.sum) == 0


@pytest.mark.parametrize(("scale", "clipped"), [(1.0, True), (1000.0, False)])
def test_a_run_clips_values_on_the_scale_of_its_rewards(
    tmp_path: Path, scale: float, clipped: bool
) -> None:
    """What one step moves a critic by is much where rewards go to 1, and nothing where they go to
    1000."""
    steps = [{"name": "all", "iterations": 1, "max_steps": 3}]
    stage = {
        "stage": "mrl",
        "episodes": 7,
        "curriculum": steps,
        "ppo": {"minibatches": 1, "value_clip": 1e-4},
    }
    directory, _ = run_here(tiny_run(tmp_path, stage, rewards={"scale": scale}))
    [fraction] = [
        row["ppo/value_clip_fraction"]
        for row in read_rows(directory)
        if "ppo/value_clip_fraction" in row
    ]
    assert (fraction > 0) == clipped


def test_turns_are_explained_one_by_one_and_late_ones_in_groups() -> None:
    """Each figure is that of its turns alone. Turns that no episode has, and one whose returns are
    all alike, have none."""
    torch.manual_seed(4)
    returns = torch.randn(30, 20)
    returns[:, 2] = 0.7
    values, scored = returns + 0.5 * torch.randn(30, 20), torch.rand(30, 20) < 0.7
    found = explained_variance_by_turn(values, returns, scored)
    groups = {str(turn): slice(turn - 1, turn) for turn in range(1, 9) if turn != 3}
    groups |= {"9-16": slice(8, 16), "17-32": slice(16, 20)}
    assert found.keys() == groups.keys()
    for label, turns in groups.items():
        parts = (each[:, turns] for each in (values, returns, scored))
        assert found[label] == pytest.approx(explained_variance(*parts), abs=1e-6)
    assert len(set(found.values())) == len(found)


def test_ranks_explain_turns_as_one_does_however_long_their_episodes_are() -> None:
    """One has up to twelve turns, the other three; both take part in every sum."""
    torch.manual_seed(4)
    returns, scored = torch.randn(10, 12), torch.ones(10, 12, dtype=torch.bool)
    values = returns + 0.5 * torch.randn(10, 12)
    scored[6:, 3:] = False
    whole = explained_variance_by_turn(values, returns, scored)
    assert whole.keys() == {*map(str, range(1, 9)), "9-16"}
    places = [(slice(0, 6), slice(0, 12)), (slice(6, 10), slice(0, 3))]
    both, parts = threading.Barrier(2, timeout=20), [torch.empty(0)] * 2

    def explained_by(rank: int) -> dict[str, float]:
        def over_ranks(part: torch.Tensor) -> torch.Tensor:
            parts[rank] = part
            both.wait()
            total = parts[0] + parts[1]
            both.wait()
            return total

        mine = (each[places[rank]] for each in (values, returns, scored))
        return explained_variance_by_turn(*mine, over_ranks)

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(explained_by, range(2)):
            assert found == pytest.approx(whole, abs=1e-12)


def test_returns_that_differ_by_rounding_alone_have_nothing_to_explain() -> None:
    """0.3 seven times: the mean of their float64 values is not exactly one of them."""
    returns = torch.full((7,), 0.3)
    assert explained_variance(torch.full((7,), 0.1), returns) is None
    noisy = returns + torch.tensor([0, 1, 0, -1, 0, 1, 0]) * 3e-8
    assert noisy.unique().numel() > 1
    assert explained_variance(torch.full((7,), 0.1), noisy) is None
    assert (
        explained_variance(torch.full((7,), 0.1), returns + torch.linspace(0, 1e-3, 7)) is not None
    )
