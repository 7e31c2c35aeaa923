"""Scored episodes as tensors: one row per conversation, one column per action
(`Episode.actions`): its answered turns, and between them what a causal policy thought, or wrote to
a text memory.

What is thought or written earns nothing itself. It is credited as an action of a Markov decision
process is, with what came of it: the return of the turns after it, which is the rule of MemAgent
(Yu et al. 2025, arXiv 2507.02259, section 3.2) where an algorithm compares whole episodes.

Old log-probs are those recorded while sampling. Reference and critic are evaluated here, once per
batch of episodes, where the algorithm needs them. Turns that could not be scored stay in their
conversation (memory was written with them) and are masked out of every loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from common.episode import Episode
from learner.policies.protocol import TrainablePolicy, ValueFunction


@dataclass(frozen=True)
class TokenCredit:
    """Credit of the tokens of actions, where credit is per token. Tensors are
    [episodes, actions, longest action], 0 where an action has no such token."""

    present: Tensor
    """Where an answer has such a token."""
    values: Tensor
    """Values of the critic before the update, at the position before each token."""
    rewards: Tensor
    """Set by `shaped_rewards`."""
    advantages: Tensor
    """Set by the algorithm's `credit`, as `returns`."""
    returns: Tensor

    def select(self, index: Tensor) -> TokenCredit:
        """That of some of the episodes."""
        chosen = {each.name: getattr(self, each.name)[index] for each in fields(self)}
        return TokenCredit(**chosen)


@dataclass(frozen=True)
class Experience:
    """This rank's episodes of one iteration. Tensors are [episodes, actions], 0 where a
    conversation has no such action."""

    episodes: list[Episode]
    present: Tensor
    """Where a conversation has such an action."""
    scored: Tensor
    """Where the turn has a reward, or what was written is credited with one."""
    rewards: Tensor
    reward_stds: Tensor
    """Standard deviations of the scores, where a discrete reward model gave one."""
    values: Tensor
    """Values of the critic before the update; 0 without a critic."""
    bootstrap: Tensor
    """[episodes]: for an episode that was cut off, the critic's value of the query that would have
    come next; 0 for one that ended, since nothing lies beyond, and without a critic."""
    reference: list[list[Tensor]]
    """Log-probs of each action's tokens under the reference policy, by episode and
    action; those recorded while sampling where the algorithm needs no reference."""
    recomputed: list[list[Tensor]] | None = None
    """Log-probs of each answer's tokens by the learner's own policy before the update, which ratios
    are against; None: those recorded while sampling are."""
    weights: list[list[Tensor]] | None = None
    """Factors of the policy loss of each token, for what was sampled by another distribution than
    the learner's; None: all 1."""
    memories: list[Tensor] | None = None
    """Memories that the critic reads, of each episode (`ValueFunction.memories`): those of the
    weights that sampled, in all passes over the batch. None where it reads none."""
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    """Set by the algorithm's `credit`."""
    returns: Tensor = field(default_factory=lambda: torch.empty(0))
    """Set by the algorithm's `credit`: what the critic learns."""
    tokens: TokenCredit | None = None
    """Where the critic values tokens: credit of each. Values and returns of turns are then those of
    the first token of each answer, advantages the mean over its tokens."""
    figures: dict[str, float] = field(default_factory=dict)
    """Statistics over all ranks, by key of a metric's series."""

    @property
    def old(self) -> Sequence[Sequence[Sequence[float] | Tensor]]:
        """Log-probs of each action's tokens before the update, by episode and action."""
        if self.recomputed is not None:
            return self.recomputed
        return [[action.log_probs for action in episode.actions] for episode in self.episodes]

    @property
    def unpaid(self) -> Tensor:
        """Where an action is a thought, or what the policy wrote to its memory, and no answer."""
        found = torch.zeros_like(self.present, dtype=torch.bool)
        for i, episode in enumerate(self.episodes):
            if episode.writes or episode.thoughts:
                for k, action in enumerate(episode.actions):
                    found[i, k] = not action.answers
        return found

    @property
    def rewarded(self) -> Tensor:
        """Where an answer has a reward: thoughts and memories, which earn 0 by rule, are no samples
        of rewards."""
        return self.scored & ~self.unpaid

    def discounts(self, per_turn: float) -> Tensor:
        """Discount of what comes after each action: that of a turn after an answer, 1 after what is
        thought or written for the answer that comes next. So these have the return of that answer,
        and returns of answers are what they are without them."""
        return torch.where(self.unpaid, 1.0, per_turn).to(self.rewards)

    def of_answers(self, table: Tensor) -> Tensor:
        """table: [episodes, actions] → [episodes, turns], the columns of answers moved together."""
        answers = (self.present & ~self.unpaid).sum(1)
        order = self.unpaid.int().argsort(stable=True, dim=1)
        return table.gather(1, order)[:, : int(answers.max())]

    @property
    def valued(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values before the update, returns, and where there is a score, of all that the critic
        gives a value: [actions], or [tokens], episode by episode."""
        if self.tokens is None:
            present, kept = self.present, self.scored
            values, returns = self.values, self.returns
        else:
            present, kept = self.tokens.present, self.scored_tokens
            values, returns = self.tokens.values, self.tokens.returns
        return values[present], returns[present], kept[present]

    @property
    def scored_tokens(self) -> Tensor:
        """Where a token is of an answer with a score, as `TokenCredit`."""
        assert self.tokens is not None, "credit is per answer"
        return self.scored[..., None] & self.tokens.present

    def select(self, chosen: Sequence[int]) -> Experience:
        """The experience of some of the episodes."""
        index = torch.tensor(list(chosen), dtype=torch.long, device=self.scored.device)
        return replace(
            self,
            episodes=[self.episodes[i] for i in chosen],
            present=self.present[index],
            scored=self.scored[index],
            rewards=self.rewards[index],
            reward_stds=self.reward_stds[index],
            values=self.values[index],
            bootstrap=self.bootstrap[index],
            reference=[self.reference[i] for i in chosen],
            recomputed=None if self.recomputed is None else [self.recomputed[i] for i in chosen],
            weights=None if self.weights is None else [self.weights[i] for i in chosen],
            memories=None if self.memories is None else [self.memories[i] for i in chosen],
            advantages=self.advantages[index],
            returns=self.returns[index],
            tokens=None if self.tokens is None else self.tokens.select(index),
        )


@torch.no_grad()
def gather_experience(
    episodes: list[Episode],
    reference: TrainablePolicy | None,
    critic: ValueFunction | None,
    temperature: float,
    device: torch.device,
    per_token: bool = False,
) -> Experience:
    """Evaluate a batch of scored episodes, which may be of any size but not empty. per_token:
    whether the critic is one of tokens."""
    actions = [episode.actions for episode in episodes]
    counts = torch.tensor([len(each) for each in actions])
    present = (torch.arange(int(counts.max())) < counts[:, None]).to(device)
    scored = torch.zeros(present.shape, dtype=torch.bool)
    rewards, stds = (torch.zeros(present.shape) for _ in range(2))
    for i, each in enumerate(actions):
        for k, action in enumerate(each):
            if action.reward is not None:
                scored[i, k], rewards[i, k], stds[i, k] = True, action.reward, action.reward_std
    values = torch.zeros(present.shape, device=device)
    bootstrap = torch.zeros(len(episodes), device=device)
    memories = None if critic is None else critic.memories(episodes)
    tokens = None
    if critic is not None:
        found = critic.evaluate(episodes, memories)
        if per_token:
            tokens = _token_values(episodes, found, present)
            found = tokens.values[..., 0][present]
        values[present] = found
        cut_off = [i for i, episode in enumerate(episodes) if episode.truncated]
        if cut_off:
            bootstrap[cut_off] = critic.beyond(
                [episodes[i] for i in cut_off],
                None if memories is None else [memories[i] for i in cut_off],
            )
    if reference is None:
        log_probs = [
            [torch.tensor(action.log_probs, device=device) for action in each] for each in actions
        ]
    else:
        log_probs = reference.log_probs(episodes, temperature)
    scored, rewards, stds = (x.to(device) for x in (scored, rewards, stds))
    return Experience(
        episodes,
        present,
        scored,
        rewards,
        stds,
        values,
        bootstrap,
        log_probs,
        memories=memories,
        tokens=tokens,
    )


def _token_values(episodes: Sequence[Episode], values: Tensor, actions: Tensor) -> TokenCredit:
    """values: [tokens], episode by episode and action by action. actions: where there is one."""
    lengths = torch.zeros(actions.shape, dtype=torch.long, device=values.device)
    lengths[actions] = torch.tensor(
        [len(action.ids) for episode in episodes for action in episode.actions],
        device=values.device,
    )
    longest = torch.arange(int(lengths.max()), device=values.device)
    present = longest < lengths[..., None]
    held = values.new_zeros(present.shape)
    held[present] = values
    nothing = torch.zeros_like(held)
    return TokenCredit(present, held, nothing, nothing, nothing)
