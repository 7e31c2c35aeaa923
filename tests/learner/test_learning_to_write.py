"""What is written to a text memory is learnt: log-probs as recorded, credit by a plain rule, and a
policy that comes to write what will be asked."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.actions import MemoryWrite
from common.config.causal import CausalModel
from common.data.causal_tokenizer import CausalTokenizer
from common.episode import Episode, Fact, Interaction, Row, Task, Turn
from common.text.values import contains_value
from learner.evaluation.replay import parting, task_of
from learner.parallel.group import OneRank
from learner.policies.causal import CausalPolicy
from learner.policies.table import CheckpointPolicy
from learner.rl.experience import Experience, gather_experience
from learner.stages.causal_lm import CausalLMObjective
from rollout.policies.play import play
from tests.causal_updates import lm_rl, make_update
from tests.tiny_causal import WRITES, opened, policy_of, prompt_tasks, scored, write_model

DISCOUNT = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m", changes={"n_positions": 160})


def writer(folder: Path, **settings: Any) -> tuple[CausalPolicy, CheckpointPolicy]:
    section = CausalModel.model_validate({"path": str(folder), "text_memory": WRITES} | settings)
    whole = CheckpointPolicy("causal", *opened(folder, text_memory=WRITES), section)
    policy = whole.trainable(lm_rl(), OneRank())
    assert isinstance(policy, CausalPolicy)
    return policy, whole


def episodes_of(
    whole: CheckpointPolicy, count: int = 5, turns: int = 3, **task: Any
) -> list[Episode]:
    policy = policy_of(whole.module, whole.tokenizer, sampling={"max_new_tokens": 6})
    return scored(play(policy, prompt_tasks(count, turns, **task)))


def test_log_probs_of_what_was_written_are_the_recorded_ones(folder: Path) -> None:
    policy, whole = writer(folder)
    episodes = episodes_of(whole)
    episodes += [
        replace(each, next_query_ids=whole.tokenizer.prompt("the film"))
        for each in episodes_of(whole, 2, return_memory=True)
    ]
    batch = policy.evaluate(episodes, 1.0)
    recorded = [[action.log_probs for action in episode.actions] for episode in episodes]
    torch.testing.assert_close(batch.log_probs, batch.flat(recorded), rtol=0, atol=1e-4)
    written = [
        episode.actions[k].kind == "memory" for episode, k in _places(episodes, batch.actions)
    ]
    assert sum(written) == 5 * 3 + 2 * 4
    assert len(written) == 7 * 3 + sum(written)
    (rows,) = policy.log_probs(episodes[:1], 1.0)
    assert [len(row) for row in rows] == [len(action.ids) for action in episodes[0].actions]


def _places(episodes: list[Episode], actions: list[tuple[int, int]]) -> list[tuple[Episode, int]]:
    return [(episodes[i], k) for i, k in actions]


def hand_made(rewards: list[float | None], name: str = "e", place: int = 0) -> Episode:
    """An episode with one token for each answer and each memory, the last turn's left out."""
    turns = [Turn([1], [2], [], [], role="remember")]
    turns += [Turn([1], [3 + k], [-0.5], [], reward=reward) for k, reward in enumerate(rewards)]
    writes = [MemoryWrite(k, [1], [9 + k], [-0.25]) for k in range(len(rewards))]
    return Episode(name, name, 0, tuple(turns), 0, writes=tuple(writes), batch_index=place)


def credited(algorithm: str, episodes: list[Episode], folder: Path, **settings: Any) -> Experience:
    _, whole = writer(folder)
    section = {"discount": DISCOUNT, "whiten": False, "kl": 0.0} | settings
    update = make_update(
        whole.module,
        whole.tokenizer,
        whole.causal,
        lm_rl(algorithm=algorithm, **{algorithm: section}),
        OneRank(),
    )
    experience = gather_experience(episodes, None, None, 1.0, torch.device("cpu"))
    places = [episode.batch_index for episode in episodes]
    return update.algorithm.credit(experience, places, OneRank())


def returns(rewards: list[float | None]) -> list[float]:
    """Plainly: from each turn on, unscored turns stepped over."""
    found, after = [], 0.0
    for reward in reversed(rewards):
        after = after if reward is None else reward + DISCOUNT * after
        found.append(after)
    return found[::-1]


def test_a_memory_has_the_return_of_the_turns_after_it(folder: Path) -> None:
    """REINFORCE without a baseline: the memory before a turn is worth the turn's return, and
    answers are worth what they are where nothing is written."""
    rewards: list[list[float | None]] = [[1.0, 0.5, -0.25], [0.0, None, 0.75], [0.5, 0.25, None]]
    episodes = [hand_made(row, f"e{i}", i) for i, row in enumerate(rewards)]
    found = credited("reinforce", episodes, folder, baseline="excluding")
    for row, got, kept in zip(rewards, found.advantages, found.scored, strict=True):
        plain = returns(row)
        answers = [0.0 if r is None else g for r, g in zip(row, plain, strict=True)]
        assert got[1::2].tolist() == pytest.approx(answers)
        assert got[0::2].tolist() == pytest.approx(plain)
        assert kept[0::2].tolist() == [any(r is not None for r in row[k:]) for k in range(3)]
    assert found.unpaid[:, 0::2].all()
    assert not found.unpaid[:, 1::2].any()


def test_all_that_an_episode_wrote_shares_its_advantage_where_episodes_are_compared(
    folder: Path,
) -> None:
    """The rule of MemAgent: the advantage of the outcome in its group goes to every step."""
    rewards: list[list[float | None]] = [[0.0, 1.0], [0.0, 0.0], [1.0, 0.5], [0.25, 0.0]]
    episodes = [hand_made(row, f"e{i}", i) for i, row in enumerate(rewards)]
    settings = {"samples": 4, "compare": "episode"}
    found = credited("grpo", episodes, folder, divide_by_std=False, **settings)
    totals = [returns(row)[0] for row in rewards]
    for total, got in zip(totals, found.advantages, strict=True):
        expected = total - sum(totals) / 4
        assert got.tolist() == pytest.approx([expected] * 4)
    by_turn = credited("rloo", episodes, folder, samples=4)
    for i, row in enumerate(rewards):
        for turn in range(2):
            others = [returns(each)[turn] for k, each in enumerate(rewards) if k != i]
            expected = returns(row)[turn] - sum(others) / 3
            assert float(by_turn.advantages[i, 2 * turn]) == pytest.approx(expected)
            assert float(by_turn.advantages[i, 2 * turn + 1]) == pytest.approx(expected)


def test_generalised_advantages_take_each_write_as_a_step(folder: Path) -> None:
    """Against the recursion written out over actions (Schulman 2016, eq. 16): the discount is that
    of a turn after an answer and 1 after a memory."""
    episode, lam = hand_made([1.0, 0.5]), 0.8
    values = torch.tensor([[0.3, -0.2, 0.4, 0.1]])
    bare = gather_experience([episode], None, None, 1.0, torch.device("cpu"))
    experience = replace(bare, values=values, bootstrap=torch.tensor([0.6]))
    _, whole = writer(folder)
    section = {"discount": DISCOUNT, "gae_lambda": lam, "whiten": False}
    update = make_update(whole.module, whole.tokenizer, whole.causal, lm_rl(ppo=section), OneRank())
    found = update.algorithm.credit(experience, [0], OneRank())
    earned, after = [0.0, 1.0, 0.0, 0.5], [1.0, DISCOUNT, 1.0, DISCOUNT]
    v = [*values[0].tolist(), 0.6]
    running, expected = 0.0, []
    for k in reversed(range(4)):
        running = earned[k] + after[k] * v[k + 1] - v[k] + after[k] * lam * running
        expected.append(running)
    assert found.advantages[0].tolist() == pytest.approx(expected[::-1])


def test_rewards_that_are_alike_are_no_signal_beside_memories_that_earn_nothing(
    folder: Path,
) -> None:
    episodes = [hand_made([0.5, 0.5], f"e{i}", i) for i in range(3)]
    found = credited("reinforce", episodes, folder)
    assert found.figures["objective/without_signal"] == 1.0
    assert found.advantages.abs().max() == 0


@pytest.mark.parametrize("credit", ["answer", "token", "answer_mean"])
@pytest.mark.parametrize("body", ["policy", "own"])
def test_a_critic_values_the_prompts_that_memories_are_written_after(
    folder: Path, body: str, credit: str
) -> None:
    policy, whole = writer(folder, value_head={"body": body})
    episodes = [
        replace(each, next_query_ids=whole.tokenizer.prompt("the film"))
        for each in episodes_of(whole, 3, return_memory=True)
    ]
    critic = {"credit": credit, "critic_learning_rate": 0.1, "minibatches": 1}
    settings = lm_rl(ppo=critic, optimizer={"learning_rate": 1e-3})
    update = make_update(whole.module, whole.tokenizer, whole.causal, settings, OneRank())
    assert update.critic is not None
    torch.nn.init.normal_(update.critic._head.value.weight)  # type: ignore[attr-defined]
    experience = update.evaluate(episodes, [0, 1, 2])
    for episode, values in zip(episodes, experience.values, strict=True):
        contexts = policy.memory.contexts(episode)
        assert len(contexts) == len(episode.actions) + 1
        head = update.critic._head  # type: ignore[attr-defined]
        for context, value in zip(contexts, values.tolist(), strict=False):
            states = policy.module.base_model(torch.tensor([context])).last_hidden_state
            assert value == pytest.approx(float(head(states[0, -1]).detach()), abs=1e-5)
    update.run(experience, [0, 1, 2], 3, 1)
    assert update.metrics.flush(1, "lm_rl")["ppo/log_prob_max_difference"] <= 1e-4


def test_a_replay_finds_where_a_memory_parts(folder: Path) -> None:
    _, whole = writer(folder)
    for settings in ({}, {"return_memory": True}):
        (episode,) = episodes_of(whole, 1, **settings)
        policy = policy_of(whole.module, whole.tokenizer, sampling={"max_new_tokens": 6})
        (again,) = play(policy, [task_of(episode, whole.tokenizer)])
        assert parting(episode, again, rewards=False) is None
        assert again.writes == episode.writes
    first, *rest = episode.writes
    other = replace(first, ids=[*first.ids[:-1], 70])
    parted = parting(replace(episode, writes=(other, *rest)), again, rewards=False)
    assert parted is not None
    assert (parted.turn, parted.what, parted.token) == (0, "memory_tokens", len(first.ids) - 1)
    other = replace(first, log_probs=[*first.log_probs[:-1], -9.0])
    parted = parting(replace(episode, writes=(other, *rest)), again, rewards=False)
    assert parted is not None
    assert parted.what == "memory_log_probs"
    parted = parting(replace(episode, writes=tuple(rest)), again, rewards=False)
    assert parted is not None
    assert (parted.turn, parted.what) == (0, "memory")


# --- learning to write ----------------------------------------------------------------------------

VALUES = "ABCD"


def told(value: str, place: int, sample: int) -> Task:
    """A value is told, and asked for."""
    asked = Interaction("what", value, role="recall", facts=(Fact(value, 0),))
    row = Row(value, "so", (asked,))
    return Task(f"t{place}", row, seed=7 * (place - sample), batch_index=place, sample=sample)


def begun(model: Any, tokenizer: CausalTokenizer) -> None:
    """Teach a model to answer with what its memory says, and to write what was told half of the
    time, any value otherwise."""
    sequences, starts = [], []
    for held in VALUES:
        context = tokenizer.memory.context(tokenizer.encode(held), tokenizer.prompt("what"))
        prompt = tokenizer.write_prompt((), held, "so")
        for other in f"{VALUES}{held}{held}":
            for before, text in ((context, held), (prompt, other)):
                sequences.append([*before, *tokenizer.encode(text), tokenizer.eos_id])
                starts.append(len(before))
    objective = CausalLMObjective(model, sequences, starts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss, *_ = objective.terms(range(len(sequences)), 0, OneRank())
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()


def paid_for_recall(whole: CheckpointPolicy, tasks: list[Task], sign: float) -> list[Episode]:
    """Episodes with a reward of `sign` where the value that was told is in the answer."""
    sampling = {"max_new_tokens": 3}
    played = play(policy_of(whole.module, whole.tokenizer, 16, sampling=sampling), tasks)
    found = []
    for episode in played:
        opening, asked = episode.turns
        reward = sign * contains_value(asked.answer, asked.reference)
        found.append(replace(episode, turns=(opening, replace(asked, reward=reward))))
    return found


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_writing_is_learnt_for_the_reward_of_the_answers_that_read_it(
    tmp_path: Path, algorithm: str
) -> None:
    """A value is told, and what is answered depends on the memory alone. What is written names it
    more often for its reward, and hardly ever where that is negated."""
    write_model(tmp_path / "m")
    model, tokenizer = opened(tmp_path / "m", text_memory=WRITES | {"tokens": 3})
    torch.manual_seed(0)
    for module in model.modules():
        model._init_weights(module)
    begun(model, tokenizer)
    section = CausalModel.model_validate({"path": str(tmp_path / "m"), "text_memory": WRITES})
    samples = 4 if algorithm == "grpo" else 1
    own = {"samples": samples, "kl": 0.0, "minibatches": 2, "epochs": 2}
    settings = lm_rl(algorithm=algorithm, **{algorithm: own}, optimizer={"learning_rate": 1e-3})
    recalled: dict[float, list[float]] = {1.0: [], -1.0: []}
    written: dict[float, list[float]] = {1.0: [], -1.0: []}
    for sign in recalled:
        whole = CheckpointPolicy("causal", copy.deepcopy(model), tokenizer, section)
        update = make_update(whole.module, tokenizer, section, settings, OneRank())
        for iteration in range(12):
            places = range(64 * iteration, 64 * iteration + 64)
            tasks = [told(VALUES[p // samples % 4], p, p % samples) for p in places]
            batch = paid_for_recall(whole, tasks, sign)
            recalled[sign].append(sum(abs(e.turns[1].reward or 0.0) for e in batch) / 64)
            written[sign].append(sum(e.writes[0].text == e.turns[0].query for e in batch) / 64)
            if iteration == 0:
                update.begin_critic(batch)
            at = list(range(64))
            update.run(update.evaluate(batch, at), at, 64, iteration)
    for shares in (recalled, written):
        assert shares[1.0][0] == shares[-1.0][0] == pytest.approx(0.5, abs=0.15)
        assert min(shares[1.0][-3:]) > 0.8, shares
    assert max(recalled[-1.0][-3:]) < 0.4, recalled
