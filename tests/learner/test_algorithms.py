"""Algorithms without a critic against `tests/plain_algorithms.py`, in float64; on two ranks; and
which way they learn."""

from __future__ import annotations

import copy
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from common.config.algorithms import GRPO
from common.config.mrl import MRL
from common.episode import Episode, RewardTerm
from learner.parallel.group import Group, OneRank
from learner.parallel.optimizer import combine
from learner.rl.algorithms.compared import decoupled_advantages
from learner.rl.algorithms.grpo import GroupRelative
from learner.rl.experience import gather_experience
from tests.plain_algorithms import plain_loss
from tests.tiny_policy import TinyModel, on_ranks, tiny_episode, tiny_update
from tests.updates import mrl

SAMPLES = 3
QUERIES = [[1, 2], [3, 4], [5, 1]]


def settings(algorithm: str, **section: Any) -> MRL:
    grouped = {"samples": SAMPLES} if algorithm != "reinforce" else {}
    common = {"kl": 0.3, "entropy": 0.1, "discount": 0.7}
    return mrl(episodes=9, algorithm=algorithm, **{algorithm: grouped | common | section})


def episodes(perturbed: float = 0.0) -> tuple[TinyModel, TinyModel, list[Episode]]:
    """The policy as it is now, the reference, and episodes of older weights: three tasks of three,
    of which one episode failed, one turn has no score, and one episode is longer than the others.
    perturbed: what recorded log-probabilities are off by, at most."""
    older, reference = TinyModel(1), TinyModel(2)
    now = copy.deepcopy(older)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in now.parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            parameter.add_(0.3 * noise)
    made = []
    for place in range(9):
        if place == 4:
            continue
        turns: list[tuple[Any, ...]] = []
        for number in range(2 + (place == 8)):
            length = int(torch.randint(1, 5, (), generator=draw))
            answer = torch.randint(0, 6, (length,), generator=draw).tolist()
            reward = round(float(torch.rand((), generator=draw)), 3)
            if (place, number) == (1, 1):
                turns.append((QUERIES[place // 3], answer, None))
            else:
                turns.append((QUERIES[(place // 3 + number) % 3], answer, reward))
        made.append(off_by(tiny_episode(place, older, turns), perturbed, draw))
    return now, reference, of_components(made)


def off_by(episode: Episode, size: float, draw: torch.Generator) -> Episode:
    turns = [
        replace(
            turn,
            log_probs=[
                p + size * (2 * float(torch.rand((), generator=draw)) - 1) for p in turn.log_probs
            ],
        )
        for turn in episode.turns
    ]
    return replace(episode, turns=tuple(turns))


def of_components(made: list[Episode]) -> list[Episode]:
    """The episodes with rewards of two components, of which the last turns alone have the second;
    one of its values lies beyond its clip."""
    draw = torch.Generator().manual_seed(6)
    quality = RewardTerm(0.3, "a", mean=0.2, std=2.0)
    recall = RewardTerm(0.7, "b", low=0.0, high=0.8)
    found = []
    for episode in made:
        turns = [episode.turns[0]]
        for turn in episode.answered:
            parts = {"quality": quality} | ({"recall": recall} if len(turns) > 1 else {})
            raw = {name: float(torch.rand((), generator=draw)) for name in parts}
            if turn.reward is None:
                turns.append(turn)
                continue
            weights = sum(part.weight for part in parts.values())
            total = sum(p.weight * float(p.values(np.array(raw[n]))) for n, p in parts.items())
            turns.append(replace(turn, rewards=raw, terms=parts, reward=total / weights))
        found.append(replace(episode, turns=tuple(turns)))
    return found


CASES: list[tuple[str, dict[str, Any]]] = [
    ("reinforce", {}),
    ("reinforce", {"loss_mean": "answer_sums", "kl_in": "reward"}),
    ("reinforce", {"loss_mean": "answer_means", "whiten": True}),
    ("rloo", {}),
    ("rloo", {"compare": "episode", "kl_in": "reward"}),
    ("rloo", {"ratio": "none", "loss_mean": "answer_sums", "incomplete": "leave_out"}),
    ("rloo", {"ratio": "token", "clip": 0.05, "clip_high": 0.4}),
    ("rloo", {"kl_estimator": "k1", "kl_correction": True, "whiten": True}),
    ("grpo", {}),
    ("grpo", {"compare": "episode", "divide_by_std": False, "loss_mean": "tokens"}),
    ("grpo", {"ratio": "answer", "clip": 0.02, "clip_high": 0.1}),
    ("grpo", {"kl_correction": True, "incomplete": "leave_out", "loss_mean": "answer_sums"}),
    ("grpo", {"kl_estimator": "k2", "kl_correction": True, "population_variance": True}),
    ("grpo", {"aggregation": "normalise_then_sum"}),
    ("grpo", {"aggregation": "normalise_then_sum", "compare": "episode", "whiten": False}),
    ("rloo", {"aggregation": "normalise_then_sum", "incomplete": "leave_out"}),
    ("rloo", {"aggregation": "normalise_then_sum", "whiten": False, "discount": 0.0}),
    ("rejection", {}),
    ("rejection", {"keep": 3, "loss_mean": "answer_means", "compare": "episode"}),
    ("rejection", {"keep_of": "task", "keep": 1, "learn_queries": True}),
    ("rejection", {"keep_share": 0.3, "loss_mean": "answer_sums", "kl_in": "reward"}),
]
MISMATCHES = [
    {"correct": correct, "level": level, "limit": 1.3}
    for correct in ("truncate", "mask")
    for level in ("token", "answer")
]


def loss_of(
    stage: MRL,
    now: TinyModel,
    reference: TinyModel,
    made: list[Episode],
    group: Group | None = None,
) -> tuple[list[list[float]], torch.Tensor, dict[str, float]]:
    """Advantages of this rank, gradients summed over ranks, and figures."""
    module = copy.deepcopy(now)
    update = tiny_update(stage, module, reference, group)
    mine = made if group is None else made[group.rank :: group.size]
    lived = update.evaluate(mine, [episode.batch_index for episode in mine])
    loss, _ = combine(update.policy_terms(lived), update.group)
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in module.parameters()])  # type: ignore[union-attr]
    return lived.advantages.tolist(), update.group.sum(gradients), lived.figures


@pytest.mark.parametrize(("algorithm", "section"), CASES, ids=str)
def test_advantages_and_gradients_are_those_of_a_plain_computation(
    algorithm: str, section: dict[str, Any]
) -> None:
    stage, (now, reference, made) = settings(algorithm, **section), episodes()
    advantages, gradients, _ = loss_of(stage, now, reference, made)
    loss, expected = plain_loss(stage, now, reference, made)
    now.zero_grad()
    loss.backward()
    for found, row in zip(advantages, expected, strict=True):
        assert found[: len(row)] == pytest.approx([each or 0.0 for each in row], abs=2e-6)
    plain = torch.cat([p.grad.flatten() for p in now.parameters()])  # type: ignore[union-attr]
    assert float(plain.norm()) > 0.01
    torch.testing.assert_close(gradients, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mismatch", MISMATCHES, ids=str)
@pytest.mark.parametrize("algorithm", ["reinforce", "rloo", "grpo"])
def test_what_was_recorded_by_another_engine_is_weighted(
    algorithm: str, mismatch: dict[str, Any]
) -> None:
    stage, (now, reference, made) = settings(algorithm, mismatch=mismatch), episodes(0.6)
    _, gradients, figures = loss_of(stage, now, reference, made)
    loss, _ = plain_loss(stage, now, reference, made)
    now.zero_grad()
    loss.backward()
    plain = torch.cat([p.grad.flatten() for p in now.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(gradients, plain, rtol=1e-6, atol=1e-6)
    assert 0 < figures["mismatch/corrected"] < 1
    _, uncorrected, _ = loss_of(settings(algorithm), now, reference, made)
    assert float((uncorrected - plain).norm()) > 0.01


@pytest.mark.parametrize(("algorithm", "section"), CASES, ids=str)
def test_two_ranks_that_share_groups_compute_what_one_computes(
    algorithm: str, section: dict[str, Any]
) -> None:
    """Members of a group lie on both ranks, and one rank has the longer episode."""
    stage, (now, reference, made) = settings(algorithm, **section), episodes()
    advantages, gradients, figures = loss_of(stage, now, reference, made)
    ranks = on_ranks(2, lambda group: loss_of(stage, now, reference, made, group))
    for rank, (mine, both, its_figures) in enumerate(ranks):
        for found, row in zip(mine, advantages[rank::2], strict=True):
            assert found == pytest.approx(row[: len(found)], abs=1e-6)
        torch.testing.assert_close(both, gradients, rtol=1e-6, atol=1e-6)
        assert its_figures == pytest.approx(figures, abs=1e-6)


def decoupled(made: list[Episode], group: Group, **section: Any) -> torch.Tensor:
    """Advantages of the components of one rank's episodes, summed, in float64."""
    section = {"aggregation": "normalise_then_sum", "samples": SAMPLES} | section
    mine = made[group.rank :: group.size]
    lived = gather_experience(mine, None, None, 1.0, torch.device("cpu"))
    places, rule = [each.batch_index for each in mine], GroupRelative(GRPO(**section))._relative
    return decoupled_advantages(lived, places, GRPO(**section), group, rule)


def test_each_component_is_normalised_by_itself_to_the_last_digits() -> None:
    """Against numbers made here, without the weighted mean of totals in between."""
    _, _, made = episodes()
    found = decoupled(made, OneRank(), discount=0.0)
    assert found.dtype == torch.float64
    for task in range(3):
        members = [(i, each) for i, each in enumerate(made) if each.batch_index // SAMPLES == task]
        for turn in (1, 2):
            scored = [(i, each.turns[turn]) for i, each in members]
            scored = [(i, each) for i, each in scored if each.reward is not None]
            expected = dict.fromkeys((i for i, _ in scored), 0.0)
            for name in ("quality", "recall")[:turn]:
                raw = [min(each.rewards[name], each.terms[name].high) for _, each in scored]
                mean, std = statistics.fmean(raw), statistics.stdev(raw)
                of_term = scored[0][1].terms[name]
                for (i, _), value in zip(scored, raw, strict=True):
                    scaled = (std / of_term.std) + 1e-4
                    expected[i] += of_term.weight * (value - mean) / of_term.std / scaled
            for i, value in expected.items():
                assert float(found[i, turn - 1]) == pytest.approx(value, abs=1e-9)


def test_components_that_one_rank_alone_has_are_compared_on_all() -> None:
    module = TinyModel()
    whole = []
    for place in range(3):
        episode = tiny_episode(place, module, [([1, 2], [3], 0.5)])
        turn = replace(
            episode.turns[1],
            rewards={"recall": 0.1 * place**2} if place != 1 else {"length": 1.0},
            terms={"recall" if place != 1 else "length": RewardTerm(1.0, "a")},
        )
        whole.append(replace(episode, turns=(episode.turns[0], turn)))
    alone = decoupled(whole, OneRank())
    assert alone[1].item() == 0.0, "nothing else has its component"
    assert alone[2].item() > 0.1
    for rank, mine in enumerate(on_ranks(2, lambda group: decoupled(whole, group))):
        torch.testing.assert_close(mine, alone[rank::2])


def test_answers_with_equal_totals_are_told_apart_by_their_components() -> None:
    """What decoupling is for: recall varies little, quality much, and the totals are alike."""
    module, made = TinyModel(), []
    values = [(0.0, 0.5), (0.1, 0.4), (0.1, 0.4), (0.2, 0.3), (0.0, 0.5), (0.2, 0.3)]
    for place, (recall, quality) in enumerate(values):
        episode = tiny_episode(place, module, [([1, 2], [3], 0.25)])
        terms = {"recall": RewardTerm(0.8, "a"), "quality": RewardTerm(0.2, "b")}
        rewards = {"recall": recall, "quality": quality}
        turn = replace(episode.turns[1], rewards=rewards, terms=terms)
        made.append(replace(episode, turns=(episode.turns[0], turn)))
    plain, _, figures = loss_of(settings("grpo"), module, module, made)
    assert {row[0] for row in plain} == {0.0}
    assert figures["objective/without_signal"] == 1.0
    stage = settings("grpo", aggregation="normalise_then_sum")
    found, _, figures = loss_of(stage, module, module, made)
    assert found[3][0] > 0 > found[0][0], "recall weighs more"
    assert figures["objective/without_signal"] == 0.0


@pytest.mark.parametrize(
    ("algorithm", "section", "sentence"),
    [
        ("grpo", {"kl_in": "reward"}, "kl_in: reward: changes the sum of the rewards"),
        ("rloo", {"no_end_penalty": 0.5}, "no_end_penalty: changes the sum"),
        ("grpo", {"divide_by_std": False}, "divide_by_std: aggregation"),
    ],
)
def test_what_changes_totals_is_refused_beside_components(
    algorithm: str, section: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        settings(algorithm, aggregation="normalise_then_sum", **section)
    found: Any = settings(algorithm, aggregation="normalise_then_sum").algorithm_settings
    assert found.whiten


def test_groups_that_are_not_whole_are_counted_and_left_out_where_that_is_asked_for() -> None:
    now, reference, made = episodes()
    for incomplete, left_out in (("fewer", 0.0), ("leave_out", 2 / 3)):
        stage = settings("rloo", incomplete=incomplete)
        advantages, _, figures = loss_of(stage, now, reference, made)
        assert figures["objective/tasks_incomplete"] == pytest.approx(2 / 3)
        assert figures["objective/tasks_left_out"] == pytest.approx(left_out)
        alone = advantages[-1][2]
        assert alone == 0.0, "the third turn of the long episode has nothing beside it"
    assert [any(row) for row in advantages] == [False] * 5 + [True] * 3


def test_of_equal_scores_the_earlier_is_kept_and_of_equal_rewards_none() -> None:
    module = TinyModel()
    for rewards, kept in (([0.5, 0.9, 0.5, 0.5], [1, 1, 0, 0]), ([0.5] * 4, [0, 0, 0, 0])):
        made = [
            tiny_episode(i, module, [([1, 2], [3], reward)]) for i, reward in enumerate(rewards)
        ]
        stage = mrl(episodes=4, algorithm="rejection", rejection={"keep": 2})
        advantages, _, _ = loss_of(stage, module, module, made)
        assert [row[0] for row in advantages] == kept


# --- which way learning goes ----------------------------------------------------------------------

GOOD = 3
ALGORITHMS = ["ppo", "a2c", "reinforce", "rloo", "grpo", "rejection"]


def learnt(algorithm: str, sign: float, updates: int = 30, **section: Any) -> float:
    """Probability of the rewarded token after some updates; before, it is 0.4."""
    module = TinyModel(spread=0.0)
    module.asked.data[1, GOOD] = 1.2
    samples = {"samples": 4} if algorithm not in ("ppo", "a2c", "reinforce") else {}
    section = samples | {"kl": 0.0, "epochs": 1, "minibatches": 1} | section
    stage = mrl(
        episodes=24, algorithm=algorithm, optimizer={"learning_rate": 1.0}, **{algorithm: section}
    )
    update = tiny_update(stage, module)
    update.policy_trainer.settings = stage.optimizer.model_copy(update={"max_grad_norm": 9.0})
    for iteration in range(updates):
        probabilities = module([1], [0])[0].exp().detach()
        draw = torch.Generator().manual_seed(iteration)
        answers = torch.multinomial(probabilities, 24, replacement=True, generator=draw).tolist()
        made = [
            tiny_episode(i, module, [([1], [answer], sign * float(answer == GOOD))])
            for i, answer in enumerate(answers)
        ]
        lived = update.evaluate(made, list(range(24)))
        update.run(lived, list(range(24)), 24, iteration)
    return float(module([1], [0])[0, GOOD].exp().detach())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_thirty_updates_raise_the_rewarded_token_and_lower_the_punished_one(
    algorithm: str,
) -> None:
    assert learnt(algorithm, 1.0) > 0.75
    assert learnt(algorithm, -1.0) < 0.2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "section",
    [
        {"epochs": 4, "stop_kl": 1e-9},
        {"epochs": 2, "minibatches": 2, "skip_log_ratio": 1e-4},
        {"reward_clip": 0.5},
        {"whiten_rewards": True},
        {"whiten": True, "whiten_over": "minibatch"},
        {"mismatch": {"correct": "truncate"}},
        {"kl_in": "reward", "kl": 0.001},
    ],
    ids=str,
)
def test_every_guard_and_shape_of_rewards_works_for_every_algorithm(
    algorithm: str, section: dict[str, Any]
) -> None:
    if algorithm == "rejection" and "whiten" in section:
        with pytest.raises(ValueError, match="rejection sampling has no advantages"):
            learnt(algorithm, 1.0, **section)
        return
    assert learnt(algorithm, 1.0, updates=10, **section) > 0.5
