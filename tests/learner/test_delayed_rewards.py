"""A reward that comes at the end of a conversation reaches the turns before it, to which no
component applies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.config.components import Recall
from common.config.rewards import RewardMix, Rewards
from common.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from common.episode import Episode, Fact
from common.models.reactive.critic import Critic
from reward_service.compose import score_episodes
from tests.local_source import lively_model, played, tiny_corpus, tiny_tasks
from tests.updates import make_update, mrl

RECALL = RewardMix(bleu=None, cosine=None, length=None, recall=Recall(weight=1.0))
REWARDS = Rewards(single=RECALL, cumulative=RECALL, long_term=RECALL, scale=3.0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tiny_corpus().texts, 400)


def rewarded_at_the_end(episode: Episode) -> Episode:
    """Only the last turn asks for a value, and names it."""
    *before, last = [
        replace(turn, facts=(), reward=None, rewards={}, terms={}, failure=None)
        for turn in episode.turns
    ]
    last = replace(last, facts=(Fact("Zanzibar", 0),), answer="Zanzibar it is")
    asked = replace(episode, turns=(*before, last), status="generated")
    (scored,) = score_episodes(
        [asked], REWARDS, torch.zeros(400, 4).numpy(), range(len(SPECIAL_TOKENS))
    )
    return scored


def test_credit_passes_through_turns_to_which_no_component_applies(tokenizer) -> None:
    model = lively_model(tokenizer)
    long = next(
        episode for episode in played(model, tokenizer, tiny_tasks(8)) if len(episode.answered) >= 3
    )
    scored = rewarded_at_the_end(long)
    turns = len(scored.answered)
    assert [turn.reward for turn in scored.answered] == [0.0] * (turns - 1) + [3.0]
    settings = mrl(ppo={"discount": 0.9, "gae_lambda": 0.5, "whiten": False})
    critic = Critic.from_policy(model)
    torch.nn.init.zeros_(critic.value.weight)
    torch.nn.init.zeros_(critic.value.bias) if critic.value.bias is not None else None

    def advantages(episode: Episode) -> list[float]:
        update = make_update(model, settings, critic=critic)
        return update.evaluate([episode], [0]).advantages[0].tolist()

    expected = [3.0 * 0.45 ** (turns - 1 - i) for i in range(turns)]
    assert advantages(scored) == pytest.approx(expected)
    # A turn that could not be scored is stepped over as if it had never happened.
    first, second, *rest = scored.turns
    failed = replace(
        scored, turns=(first, replace(second, reward=None, failure="recall: broken"), *rest)
    )
    assert advantages(failed) == pytest.approx([0.0, *expected[1:]])
    middle = replace(scored.turns[2], reward=None, failure="recall: broken")
    failed = replace(scored, turns=(first, second, middle, *scored.turns[3:]))
    assert advantages(failed) == pytest.approx([expected[1], 0.0, *expected[2:]])
