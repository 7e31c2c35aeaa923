"""A reward that comes at the end of a conversation reaches the turns before it, to which no
component applies."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from common.config.components import Recall
from common.config.rewards import RewardMix, Rewards
from common.data.tokenizer import SPECIAL_TOKENS, ConversationTokenizer, train_tokenizer
from common.episode import Episode, Fact, Turn
from common.models.reactive.config import RxTConfig
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from reward_service.compose import score_episodes
from tests.local_learner import LocalLearner
from tests.local_source import lively_model, played, tiny_corpus, tiny_tasks
from tests.plain_memory import memory_around_write
from tests.updates import make_update, mrl

RECALL = RewardMix(bleu=None, cosine=None, length=None, recall=Recall(weight=1.0))
REWARDS = Rewards(single=RECALL, cumulative=RECALL, long_term=RECALL, scale=3.0)


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
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


@pytest.mark.parametrize("memory", [False, True])
def test_credit_passes_through_turns_to_which_no_component_applies(
    tokenizer: ConversationTokenizer, memory: bool
) -> None:
    model = lively_model(tokenizer)
    long = next(
        episode for episode in played(model, tokenizer, tiny_tasks(8)) if len(episode.answered) >= 3
    )
    scored = rewarded_at_the_end(long)
    turns = len(scored.answered)
    assert [turn.reward for turn in scored.answered] == [0.0] * (turns - 1) + [3.0]
    ppo = {"discount": 0.9, "gae_lambda": 0.5, "whiten": False, "critic": {"memory": memory}}
    settings = mrl(ppo=ppo)
    critic = Critic.from_policy(model, memory)
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


# --- a reward at the end teaches the turn that earned it ------------------------------------------

OPENING, FIRST, MIDDLE, LAST = ([2, 5, token, 6] for token in (8, 9, 10, 12))
GOOD, OTHER = 11, 13


class Delayed:
    """Three turns, of which only the last is rewarded: with 1 where the answer to the first was
    `GOOD`, whatever was said since. No query tells what that answer was."""

    def __init__(self, memory: bool, discount: float):
        torch.manual_seed(0)
        config = RxTConfig(
            vocab_size=16, width=16, layers=1, heads=2, query_heads=2, kv_heads=2, decoder_ff=16,
            encoder_ff=16, slots=2, max_tokens=8, initializer_range=0.3, initial_memory="learned",
        )  # fmt: skip
        self.policy = ReactiveTransformer(config).eval()
        for token in (GOOD, OTHER):
            self.policy.decoder.head.bias.data[token] = 4.0
        ppo = {"discount": discount, "kl": 0.0, "epochs": 2, "minibatches": 1, "gae_lambda": 0.9}
        stage = mrl(
            ppo=ppo | {"critic_learning_rate": 1e-2, "critic": {"memory": memory}},
            optimizer={"learning_rate": 3e-3, "warmup_fraction": 0.0, "final_fraction": 1.0},
        )
        critic = Critic.from_policy(self.policy, memory)
        self.learner = LocalLearner(self.policy, critic, copy.deepcopy(self.policy), stage)
        self.drawn = torch.Generator().manual_seed(1)

    def play(self) -> list[Episode]:
        """By the policy: what it answers first goes to memory, and so does what it says next."""
        episodes: list[Episode] = []
        known: dict[tuple[int, ...], torch.Tensor] = {}
        for i in range(24):
            turns = [Turn(OPENING, [3], [], [])]
            for query in (FIRST, MIDDLE, LAST):
                before = tuple(turn.answer_ids[0] for turn in turns)
                if before not in known:
                    known[before] = self.answers(turns, query)
                log_probs = known[before]
                answer = int(torch.multinomial(log_probs.exp(), 1, generator=self.drawn))
                turns.append(Turn(query, [answer], [float(log_probs[answer])], [], reward=0.0))
            earned = float(turns[1].answer_ids[0] == GOOD)
            turns[3] = replace(turns[3], reward=earned)
            episodes.append(Episode(str(i), str(i), i, tuple(turns), 0, status="scored"))
        return episodes

    @torch.no_grad()
    def answers(self, turns: list[Turn], query: list[int]) -> torch.Tensor:
        """Log-probabilities of all tokens as the answer to a query after some turns."""
        said = [turn.remembered_ids for turn in turns]
        start = self.policy.initial_memory([0])
        _, memory = memory_around_write(self.policy, start, said, "all")
        return self.policy.decode(torch.tensor([query]), memory)[0, -1].log_softmax(-1)

    def good(self) -> float:
        """Probability that the first answer is the one that earns the reward two turns later."""
        return float(self.answers([Turn(OPENING, [3], [], [])], FIRST)[GOOD].exp())

    def learn(self) -> float:
        """How much more probable it became."""
        before = self.good()
        for _ in range(15):
            self.learner.update(self.learner.credit(self.play()))
        return self.good() - before


@pytest.mark.parametrize("memory", [False, True])
def test_a_reward_at_the_end_teaches_the_turn_that_earned_it(memory: bool) -> None:
    assert Delayed(memory, discount=0.9).learn() > 0.2


def test_without_a_future_only_the_last_turn_has_a_return() -> None:
    delayed = Delayed(memory=True, discount=0.0)
    lived = delayed.learner.credit(delayed.play())
    assert lived.advantages[:, 2].any()
    assert float(lived.returns[:, :2].abs().max()) == 0.0
