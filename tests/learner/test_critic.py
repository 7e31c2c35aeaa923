"""What the critic reads: the interaction before a query, the opening, or memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.config.algorithms import CriticInput
from common.episode import Episode, Turn
from common.failures import InputError
from common.models.reactive.config import RxTConfig
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from learner.parallel.group import OneRank
from learner.policies.reactive import ReactiveCritic
from learner.rl.advantages import generalized_advantages
from tests.hand_made import make_case
from tests.learner.test_resume import assert_same_run
from tests.local_learner import LocalLearner
from tests.local_source import (
    STAGES,
    StoppingRecorder,
    comparable_rows,
    prepared,
    run_here,
    tiny_run,
)
from tests.plain_ppo import Case, memory_for
from tests.updates import make_update, mrl

READING: dict[str, Any] = {"critic": {"memory": True}}


def reading_case(**ppo: Any) -> Case:
    return make_case(READING | ppo)


def learner_of(case: Case) -> LocalLearner:
    critic, policy = (copy.deepcopy(each) for each in (case.old_critic, case.old_policy))
    return LocalLearner(policy, critic, case.reference, case.settings, case.temperature)


# --- memory ---------------------------------------------------------------------------------------


def test_memories_are_those_that_queries_were_answered_with() -> None:
    """Of an episode that began with carried memory and was cut off, and of a longer one."""
    case = reading_case()
    critic = ReactiveCritic(
        case.old_critic, OneRank(), CriticInput(memory=True), copy.deepcopy(case.old_policy)
    )
    found = critic.memories(case.episodes)
    assert found is not None
    assert [len(memories) for memories in found] == [3, 4], "two answers and the query beyond; four"
    exact = copy.deepcopy(case.old_policy).double()
    for episode, memories in zip(case.episodes, found, strict=True):
        for turn, memory in enumerate(memories, 1):
            _, expected = memory_for(exact, episode, turn, "all")
            torch.testing.assert_close(memory, expected[0].float(), atol=1e-5, rtol=1e-5)
        assert not memories.requires_grad


def test_values_of_a_batch_do_not_move_when_the_policy_does() -> None:
    case = reading_case()
    learner = learner_of(case)
    lived = learner.credit(case.episodes)
    before = [float(term.sum.detach()) for term in learner.parts.critic_terms(lived)]
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    assert [float(term.sum.detach()) for term in learner.parts.critic_terms(lived)] == before
    moved = learner.parts.evaluate(case.episodes, [0, 1])
    assert not torch.allclose(moved.values, lived.values), "the next batch is read anew"


def test_no_gradient_of_the_critic_reaches_the_policy() -> None:
    case = reading_case()
    learner = learner_of(case)
    loss, *_ = learner.parts.critic_terms(learner.credit(case.episodes))
    loss.sum.backward()
    assert all(parameter.grad is None for parameter in learner.policy.parameters())
    assert isinstance(learner.critic, nn.Module)
    reading = [p for name, p in learner.critic.named_parameters() if name.startswith("looks.")]
    assert reading
    assert all(parameter.grad is not None for parameter in reading)


@pytest.mark.parametrize("iteration", [0, 1])
def test_a_critic_that_reads_memory_warms_up_alone(iteration: int) -> None:
    case = reading_case(critic_warmup=1)
    learner = learner_of(case)
    learner.iteration = iteration
    policy, critic = (copy.deepcopy(m.state_dict()) for m in (learner.policy, learner.critic))
    learner.update(learner.credit(case.episodes))
    kept = all(torch.equal(value, policy[k]) for k, value in learner.policy.state_dict().items())
    assert kept == (iteration == 0)
    assert all(
        not torch.equal(value, critic[name])
        for name, value in learner.critic.state_dict().items()
        if name.startswith("looks.")
    )


def test_a_rank_without_episodes_takes_part() -> None:
    case = reading_case()
    learner = learner_of(case)
    lived = learner.credit(case.episodes)
    learner.parts.step_critic(lived.select([]), 0)
    assert all(not gradient.any() for gradient in learner.gradients().values())


def test_reading_memory_begins_as_the_decoder_does_it() -> None:
    policy = make_case().policy
    critic = Critic.from_policy(policy, reads_memory=True)
    for look, layer in zip(critic.looks, policy.decoder.layers, strict=True):
        own, given = look.cross_attention.state_dict(), layer.cross_attention.state_dict()
        assert all(torch.equal(own[name], given[name]) for name in given)
    assert not list(Critic.from_policy(policy).looks)


def test_a_run_that_was_stopped_goes_on_with_the_critic_that_it_had(tmp_path: Path) -> None:
    stage = STAGES["mrl"] | {"ppo": STAGES["mrl"]["ppo"] | READING}
    straight, _ = run_here(tiny_run(tmp_path / "straight", stage))

    def stopping(run: Any, directory: Any, step: int) -> StoppingRecorder:
        recorder = StoppingRecorder(run, directory, step)
        recorder.stops_after = 3
        return recorder

    run = tiny_run(tmp_path / "stopped", stage)
    run_here(run, make_recorder=stopping)
    resumed, _ = run_here(run)
    assert_same_run(straight, resumed)


# --- the interaction ------------------------------------------------------------------------------


def reads(episodes: Sequence[Episode], **settings: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids that a critic reads for each answered turn, and beyond the last."""
    seen: list[list[int]] = []

    def critic(tokens: Tensor, mask: Tensor) -> Tensor:
        seen.extend(row[row_mask].tolist() for row, row_mask in zip(tokens, mask, strict=True))
        return torch.zeros(len(tokens))

    values = ReactiveCritic(critic, OneRank(), CriticInput(**settings))  # type: ignore[arg-type]
    values.evaluate(episodes)
    answered = seen.copy()
    seen.clear()
    cut_off = [episode for episode in episodes if episode.truncated]
    if cut_off:
        values.beyond(cut_off)
    return answered, seen


def test_the_last_query_of_a_long_term_episode_is_read_after_its_opening() -> None:
    cut, whole = make_case().episodes
    far = replace(whole, strategy="long_term")
    opening, last = far.turns[0].remembered_ids, list(far.turns[-1].query_ids)
    before, _ = reads([far])
    assert before[-1] == [*far.turns[-2].remembered_ids, *last]
    asked, _ = reads([far], opening=True)
    assert asked == [*before[:-1], [*opening, *last]]
    # A cumulative one asks for the interaction before; one that was cut off has not come to its
    # last query.
    for episode in (whole, replace(cut, strategy="long_term")):
        assert reads([episode], opening=True) == reads([episode])


def test_of_an_input_that_is_too_long_the_query_stays() -> None:
    for found, whole in zip(
        reads(make_case().episodes, max_tokens=8), reads(make_case().episodes), strict=True
    ):
        assert any(len(row) > 8 for row in whole)
        assert found == [row[-8:] for row in whole]


def test_an_input_longer_than_any_interaction_is_refused(tmp_path: Path) -> None:
    """The model's interactions have 32 tokens."""
    for tokens in (64, 65):
        stage = STAGES["mrl"] | {"ppo": {"critic": {"max_tokens": tokens}}}
        run = tiny_run(tmp_path / str(tokens), stage)
        if tokens == 64:
            prepared(run)
        else:
            with pytest.raises(InputError, match=r"stages\.mrl\.ppo\.critic\.max_tokens: is 65"):
                prepared(run)


# --- does it help? --------------------------------------------------------------------------------

TOLD, CHAT, QUESTION = ([2, 5, 8, 6], [2, 5, 9, 6]), [2, 5, 10, 6], [2, 5, 11, 6]


def explained(memory: bool) -> dict[str, float]:
    """Figures of a critic that has learnt for a while what a question is worth. Of two things one
    is told in the opening, the turn after it says nothing, and only one of the two is worth
    something to the question in the turn after that."""
    torch.manual_seed(0)
    config = RxTConfig(
        vocab_size=16, width=16, layers=2, heads=2, query_heads=2, kv_heads=2, decoder_ff=16,
        encoder_ff=16, slots=3, max_tokens=8, initializer_range=0.3,
    )  # fmt: skip
    policy = ReactiveTransformer(config).eval()
    ppo = {"discount": 0.0, "critic_warmup": 1000, "critic_learning_rate": 3e-3, "epochs": 4}
    stage = mrl(ppo=ppo | {"minibatches": 1, "value_clip": 10.0, "critic": {"memory": memory}})
    critic = Critic.from_policy(policy, memory)
    learner = LocalLearner(policy, critic, copy.deepcopy(policy), stage)

    def played(seed: int) -> Episode:
        worth = float(seed % 2)
        turns = (
            Turn(TOLD[seed % 2], [3], [], []),
            Turn(CHAT, [3], [-0.1], [], reward=0.5 + 0.1 * (seed % 3)),
            Turn(QUESTION, [12, 3], [-0.1, -0.1], [], reward=worth),
        )
        return Episode(str(seed), str(seed), seed, turns, 0, status="scored")

    for update in range(30):
        learner.update(learner.credit([played(24 * update + i) for i in range(24)]))
    return learner.credit([played(10_000 + i) for i in range(24)]).figures


def test_only_a_critic_that_reads_memory_foresees_what_memory_decides() -> None:
    """On episodes that it did not learn from, each with an initial memory of its own."""
    plain, reading = (explained(memory) for memory in (False, True))
    at_the_question = "critic/explained_variance_by_turn{turn=2}"
    assert plain[at_the_question] < 0.1
    assert reading[at_the_question] > 0.8
    assert reading["critic/explained_variance"] > plain["critic/explained_variance"] + 0.4


def test_a_new_critic_begins_with_the_mean_return_and_not_far_from_it() -> None:
    """Else its error is most of what the first advantages hold."""
    case = make_case()
    for discount in (0.0, 0.9):
        update = make_update(copy.deepcopy(case.policy), mrl(ppo={"discount": discount}))
        before = update.evaluate(case.episodes, [0, 1])
        update.begin_critic(case.episodes)
        after = update.evaluate(case.episodes, [0, 1])
        scored = after.scored
        _, returns = generalized_advantages(
            after.rewards, torch.zeros_like(after.values), 0.0, discount, 1.0, scored
        )
        mean = returns[scored].mean()
        assert after.values[after.present].tolist() == pytest.approx(
            [float(mean)] * int(after.present.sum()), rel=1e-5
        )
        errors = [((each.values - returns)[scored] ** 2).mean() for each in (before, after)]
        assert errors[1] < errors[0]


def test_a_run_begins_its_critic_once(tmp_path: Path) -> None:
    directory, _ = run_here(tiny_run(tmp_path, "mrl"))
    rows = comparable_rows(directory)
    assert rows[0]["critic/values"] == pytest.approx(rows[0]["critic/returns"], abs=0.05)
    assert len({row["critic/values"] for row in rows}) == len(rows), "it learns from then on"
