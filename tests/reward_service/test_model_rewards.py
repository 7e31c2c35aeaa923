"""Reward models at work: what they are given, what comes out, and what is kept of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config.components import ModelReward
from common.config.rewards import RewardMix, Rewards
from common.data.padding import pad
from common.data.tokenizer import train_tokenizer
from common.episode import Episode, Turn
from common.failures import InputError
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.module import write_model
from common.models.reactive.reward import RxTRewardModel
from common.models.vllm_release import has_vllm
from reward_service.compose import score_episodes
from reward_service.pool import RewardPool
from reward_service.preflight import require_rewards
from reward_service.reward_models.model import (
    Dialogue,
    MemoryPreferenceModel,
    Reading,
    expected_and_std,
    in_passes,
)
from reward_service.reward_models.serving import model_rewards, open_model, scores
from reward_service.reward_models.versions import weights_digest
from tests.local_preferences import preferences, text_model
from tests.local_source import lively_model

EMBEDDING = np.eye(16, dtype=np.float32)


def parts_of(readings: list[Reading], limit: int) -> list[list[Reading]]:
    parts: list[list[Reading]] = []

    def score(part: list[Reading]) -> torch.Tensor:
        parts.append(part)
        return torch.zeros(len(part), 1)

    in_passes(score, readings, limit)
    return parts


def conversation(*said: tuple[str, str], name: str = "e", teacher_forced: bool = False) -> Episode:
    turns = [
        Turn(
            [2, 5, 6],
            [7, 3],
            [-1.0, -1.0],
            [8, 3],
            query=query,
            answer=answer,
            reference="it is milk",
            teacher_forced=teacher_forced,
        )
        for query, answer in said
    ]
    return Episode(name, name, 0, tuple(turns), 0)


EPISODES = [
    conversation(
        ("I like tea", "noted tea"),
        ("what about milk", "gladly it is milk"),
        ("what about rain", "go away with rain"),
        name="a",
    ),
    conversation(
        ("I like snow", "noted snow"), ("what about tea number", "gladly it is tea"), name="b"
    ),
]


def rewards(path: str, **settings: object) -> Rewards:
    mix = RewardMix(
        bleu=None,
        cosine=None,
        recall=None,
        models=(ModelReward(name="quality", path=path, **settings),),
    )  # type: ignore[arg-type]
    return Rewards(single=mix, cumulative=mix, long_term=mix)


@pytest.fixture(scope="module")
def memory_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A discrete reward model with memory, of a policy whose memory changes what comes out by
    much."""
    told = preferences(30)
    tokenizer = train_tokenizer(
        [text for each in told for text in (each.prompt, *each.answers)], 320
    )
    policy: ReactiveTransformer = lively_model(tokenizer, max_tokens=64)
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("memory")
    model = RxTRewardModel.from_policy(policy, 5)
    model.head.weight.data.normal_()  # a new one says the same of everything
    write_model(model, folder)
    tokenizer.save(folder)
    return str(folder)


def test_a_turn_is_scored_after_the_turns_before_it_in_whatever_company(memory_model: str) -> None:
    scored = score_episodes(EPISODES, rewards(memory_model, unit=False), EMBEDDING, ())
    model = open_model(memory_model, "transformers")
    assert isinstance(model, MemoryPreferenceModel)
    for episode in scored:
        for k, turn in enumerate(episode.answered, 1):
            history = tuple((before.query, before.answer) for before in episode.turns[:k])
            with torch.no_grad():
                reward, std = expected_and_std(
                    model.logits([model.read(Dialogue(history, turn.query, turn.answer))])
                )
                forgetful, _ = expected_and_std(
                    model.logits([model.read(Dialogue((), turn.query, turn.answer))])
                )
            assert turn.rewards["quality"] == pytest.approx(float(reward), abs=1e-5)
            assert turn.reward_std == pytest.approx(float(std), abs=1e-5)
            assert abs(float(reward) - float(forgetful)) > 1e-3, "memory is read"


def test_memory_holds_the_reference_where_it_was_written_with_it(memory_model: str) -> None:
    section = ModelReward(name="quality", path=memory_model)
    said = [("I like tea", "noted tea"), ("what about milk", "go away")]
    forced, free, told = (
        model_rewards(section, [episode.turns])[0]
        for episode in (
            conversation(*said, teacher_forced=True), conversation(*said),
            conversation(("I like tea", "it is milk"), said[1]),
        )
    )  # fmt: skip
    assert forced == pytest.approx(told, abs=1e-6)
    assert forced != pytest.approx(free, abs=1e-4)


def test_memory_after_each_prefix_is_what_it_is_for_that_prefix_alone(memory_model: str) -> None:
    model = open_model(memory_model, "transformers")
    assert isinstance(model, MemoryPreferenceModel)
    a, b, c = (
        tuple(model.tokenizer.interaction(query, answer))
        for query, answer in (("tea", "milk"), ("cat", "dog"), ("rain", "sun snow"))
    )
    histories = [(a, b), (), (a,), (c, a, b), (c,), (a, b), (a, b, c)]
    together = model.memories(histories)
    for history, memory in zip(histories, together, strict=True):
        expected = model.module.initial_memory([0])
        for turn in history:
            tokens, mask = pad([turn])
            encoded = model.module.encode(tokens, mask)
            expected = model.module.memory_attention(expected, encoded, mask)
        torch.testing.assert_close(memory, expected[0], atol=1e-5, rtol=1e-5)


def test_passes_are_bounded_in_tokens_and_keep_the_order(memory_model: str) -> None:
    model = open_model(memory_model, "transformers")
    readings = [model.read(Dialogue((), "tea " * (i % 5 + 1), "it is")) for i in range(11)]
    seen: list[int] = []

    def score(part: list) -> torch.Tensor:  # type: ignore[type-arg]
        seen.append(len(part) * max(len(reading.tokens) for reading in part))
        return torch.tensor([[float(len(reading.tokens))] for reading in part])

    heavy = Reading((5, 6), ((5,) * 25,))
    assert [len(part) for part in parts_of([heavy, heavy, heavy], 60)] == [2, 1], (
        "what memory is written with counts too"
    )
    found = in_passes(score, readings, 30)
    assert found[:, 0].tolist() == [len(reading.tokens) for reading in readings]
    assert max(seen) <= 30
    assert len(seen) < len(readings)


@pytest.mark.parametrize("levels", [1, 3])
def test_a_unit_reward_lies_between_0_and_1_and_orders_alike(tmp_path: Path, levels: int) -> None:
    path = text_model(tmp_path / "judge", "bert", levels)
    raw, unit = (
        score_episodes(EPISODES, rewards(path, unit=unit), EMBEDDING, ()) for unit in (False, True)
    )
    pairs = [
        (a, b)
        for one, other in zip(raw, unit, strict=True)
        for a, b in zip(one.answered, other.answered, strict=True)
    ]
    for a, b in pairs:
        value = a.rewards["quality"]
        expected = 1 / (1 + np.exp(-value)) if levels == 1 else (value - 1) / 2
        assert b.rewards["quality"] == pytest.approx(expected, abs=1e-6)
        assert b.reward_std == a.reward_std, "in levels, whatever the reward is in"
        assert (a.reward_std > 0) == (levels == 3)


@pytest.mark.parametrize("sure_first", [True, False])
def test_of_two_models_the_larger_doubt_is_kept(
    tmp_path: Path, memory_model: str, sure_first: bool
) -> None:
    """A model of three levels is never as unsure as one of five levels that knows nothing."""
    paths = [text_model(tmp_path / "judge", "bert", 3), memory_model]
    models = tuple(
        ModelReward(name=f"m{i}", path=path)
        for i, path in enumerate(paths if sure_first else paths[::-1])
    )
    mix = RewardMix(bleu=None, cosine=None, recall=None, models=models)
    both = score_episodes(
        EPISODES, Rewards(single=mix, cumulative=mix, long_term=mix), EMBEDDING, ()
    )
    apart = [score_episodes(EPISODES, rewards(path), EMBEDDING, ()) for path in paths]
    doubts = [
        [turn.reward_std for episode in episodes for turn in episode.answered]
        for episodes in (both, *apart)
    ]
    assert doubts[0] == [max(pair) for pair in zip(*doubts[1:], strict=True)]
    assert min(doubts[0]) > 0


def test_an_interaction_that_the_model_cannot_read_fails_alone_and_says_why(
    memory_model: str,
) -> None:
    long = conversation(
        ("I like tea", "noted tea"),
        ("what about milk", "milk " * 80),
        ("tea", "it is"),
        name="long",
    )
    scored = score_episodes([*EPISODES, long], rewards(memory_model), EMBEDDING, ())
    assert all(turn.reward is not None for episode in scored[:2] for turn in episode.answered)
    assert [turn.reward for turn in scored[2].answered] == [None, None]
    assert "quality: an interaction has" in str(scored[2].turns[1].failure)


def test_other_weights_are_another_version(tmp_path: Path) -> None:
    path = text_model(tmp_path / "judge", "bert", 1)
    one = weights_digest(path)
    weights_digest.cache_clear()
    assert weights_digest(path) == one
    weights_digest.cache_clear()
    assert weights_digest(text_model(tmp_path / "other", "bert", 3)) != one
    scored = score_episodes(EPISODES[:1], rewards(path), EMBEDDING, ())
    assert len(scored[0].turns[1].terms["quality"].version) == 8


def test_what_is_no_reward_model_is_refused_by_name(tmp_path: Path, memory_model: str) -> None:
    causal = text_model(tmp_path / "causal")
    for path, serve, what in (
        (causal, "transformers", "has no head that scores: it is a LlamaForCausalLM"),
        (f"{tmp_path}/nothing", "transformers", "does not exist"),
        (str(tmp_path), "transformers", "is nothing that transformers opens"),
        (memory_model, "vllm", "reads short-term memory, which vLLM cannot"),
    ):
        with pytest.raises(InputError, match=what):
            require_rewards(rewards(path, serve=serve))
        with pytest.raises(InputError, match=what):
            open_model(path, serve)
    require_rewards(rewards(memory_model))


@pytest.mark.usefixtures("ray_local")
def test_a_model_that_opens_slower_than_a_call_may_take_is_opened_all_the_same(
    memory_model: str,
) -> None:
    """Opening takes seven seconds (torch and transformers are imported for it), the first call half
    a second: it loads what is compiled."""
    settings = rewards(memory_model).model_copy(update={"deadline": 4.0, "retries": 0})

    async def main() -> tuple[list[Episode], dict[str, int]]:
        pool = RewardPool(settings, EMBEDDING, ())
        try:
            return await pool.score(EPISODES, {}), pool.stats()
        finally:
            await pool.close()

    scored, stats = asyncio.run(asyncio.wait_for(main(), 120))
    assert all(turn.reward is not None for one in scored for turn in one.answered)
    assert (stats["missed_deadlines"], stats["restored"]) == (0, 0)


@pytest.mark.usefixtures("ray_local")
def test_workers_of_a_pool_score_with_the_model_too(memory_model: str) -> None:
    settings = rewards(memory_model)

    async def main() -> list[Episode]:
        pool = RewardPool(settings, EMBEDDING, ())
        try:
            return await pool.score(EPISODES, {})
        finally:
            await pool.close()

    scored = asyncio.run(asyncio.wait_for(main(), 120))
    expected = score_episodes(EPISODES, settings, EMBEDDING, ())
    for one, other in zip(scored, expected, strict=True):
        assert [turn.reward for turn in one.answered] == pytest.approx(
            [turn.reward for turn in other.answered]
        )


@pytest.mark.vllm
@pytest.mark.parametrize("levels", [1, 3])
def test_vllm_gives_the_scores_of_transformers(tmp_path: Path, levels: int) -> None:
    if not has_vllm():
        pytest.skip("vLLM is not installed here: make test-vllm")
    path = text_model(
        tmp_path / "judge", "bert", levels, width=128
    )  # heads of 32, the smallest that vLLM computes
    section = ModelReward(name="quality", path=path, unit=False)
    said = [
        Dialogue((), f"what about {word}", f"{tone} {word}")
        for word in ("tea", "milk")
        for tone in ("gladly it is", "go away with")
    ]
    ours, theirs = (open_model(path, serve) for serve in ("transformers", "vllm"))
    expected, found = (
        scores(section, model, [model.read(each) for each in said]) for model in (ours, theirs)
    )
    assert np.array(found) == pytest.approx(np.array(expected), abs=1e-4)
