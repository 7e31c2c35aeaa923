"""A thought before the answer of a causal policy: apart from the answer, out of memory, within its
budget, and trained with the answer's advantage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.actions import SeparateThought
from common.config.causal import CausalModel
from common.config.run import Run
from common.episode import Episode, Interaction
from learner.evaluation.replay import parting, task_of
from learner.parallel.group import OneRank
from learner.policies.table import CheckpointPolicy
from learner.rl.experience import gather_experience
from learner.stages.remembered import answer_example
from rollout.policies.play import play
from tests.causal_updates import lm_rl, make_update
from tests.tiny_causal import WRITES, opened, policy_of, prompt_tasks, scored, write_model

THINK = {"open": "<|im_start|>", "close": "<|im_end|>"}
BUDGET = 4
SAMPLING = {"max_new_tokens": 10, "think": "always", "max_think_tokens": BUDGET}
KINDS: dict[str, dict[str, Any]] = {"window": {}, "text": {"text_memory": WRITES}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m", changes={"n_positions": 192})


def thinker(folder: Path, kind: str) -> CheckpointPolicy:
    settings = {"think": THINK} | KINDS[kind]
    section = CausalModel.model_validate({"path": str(folder)} | settings)
    return CheckpointPolicy("causal", *opened(folder, **settings), section)


def thoughtful(whole: CheckpointPolicy, count: int = 4, **task: Any) -> list[Episode]:
    policy = policy_of(whole.module, whole.tokenizer, 3, sampling=SAMPLING)
    return scored(play(policy, prompt_tasks(count, 3, **task)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_thought_is_apart_and_its_budget_leaves_an_answer(folder: Path, kind: str) -> None:
    whole = thinker(folder, kind)
    tokenizer = whole.tokenizer
    for episode in thoughtful(whole):
        assert [thought.turn for thought in episode.thoughts] == [1, 2, 3]
        for thought, turn in zip(episode.thoughts, episode.answered, strict=True):
            assert 1 <= len(thought.ids) <= BUDGET
            assert thought.cut == (tokenizer.think_close[0] not in thought.ids)
            assert list(thought.after_ids) == (tokenizer.think_close if thought.cut else [])
            assert turn.thought == tokenizer.thought_text(thought.ids)
            assert len(turn.answer_ids) >= 1
            assert len(turn.answer_ids) + len(thought.ids) <= SAMPLING["max_new_tokens"]
            assert list(turn.query_ids) == tokenizer.prompt(turn.query)
            assert turn.remembered_ids == [*turn.query_ids, *turn.answer_ids]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_that_of_the_turns_without_their_thoughts(folder: Path, kind: str) -> None:
    memory = thinker(folder, kind).tokenizer.memory
    for episode in thoughtful(thinker(folder, kind)):
        silent = replace(episode, thoughts=())
        plain, others = memory.contexts(silent), memory.contexts(episode)
        kinds = [action.kind for action in episode.actions]
        said = [ids for ids, each in zip(others, kinds, strict=True) if each != "thought"]
        for thoughtless, context, action in zip(plain, said, silent.actions, strict=True):
            inside = episode.thought_before(action.turn) if action.answers else []
            assert context == [*thoughtless, *inside]


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_of_thoughts_are_recorded_and_learnt_with_the_answer(
    folder: Path, kind: str
) -> None:
    whole = thinker(folder, kind)
    episodes = thoughtful(whole)
    settings = lm_rl(algorithm="reinforce", reinforce={"kl": 0.0, "discount": 0.5})
    update = make_update(whole.module, whole.tokenizer, whole.causal, settings, OneRank())
    batch = update.policy.evaluate(episodes, 1.0)
    recorded = [[action.log_probs for action in episode.actions] for episode in episodes]
    torch.testing.assert_close(batch.log_probs, batch.flat(recorded), rtol=0, atol=1e-4)
    credited = update.algorithm.credit(
        gather_experience(episodes, None, None, 1.0, torch.device("cpu")), [0, 1, 2, 3], OneRank()
    )
    for episode, advantages in zip(episodes, credited.advantages.tolist(), strict=True):
        kinds = [action.kind for action in episode.actions]
        assert kinds.count("thought") == 3
        for k, action in enumerate(kinds):
            if action == "thought":
                assert kinds[k + 1] == "answer"
                assert advantages[k] == pytest.approx(advantages[k + 1])
    answers = credited.of_answers(credited.rewards)
    assert answers.tolist() == [
        pytest.approx([turn.reward for turn in episode.answered]) for episode in episodes
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_thinks_again(folder: Path, kind: str) -> None:
    whole = thinker(folder, kind)
    (episode,) = thoughtful(whole, 1)
    for sampling in (SAMPLING, SAMPLING | {"think": "data"}):
        policy = policy_of(whole.module, whole.tokenizer, sampling=sampling)
        (again,) = play(policy, [task_of(episode, whole.tokenizer)])
        assert parting(episode, again, rewards=False) is None
        assert again.thoughts == episode.thoughts
    first, *rest = episode.thoughts
    other = replace(first, ids=[*first.ids[:-1], 70])
    parted = parting(replace(episode, thoughts=(other, *rest)), again, rewards=False)
    assert parted is not None
    assert (parted.turn, parted.what) == (1, "thought_tokens")
    parted = parting(replace(episode, thoughts=tuple(rest)), again, rewards=False)
    assert parted is not None
    assert parted.what == "thought"


def test_the_data_decide_where_nothing_else_is_said(folder: Path) -> None:
    whole = thinker(folder, "window")
    sampling = SAMPLING | {"think": "data"}
    policy = policy_of(whole.module, whole.tokenizer, sampling=sampling)
    (task,) = prompt_tasks(1, 2)
    assert task.row is not None
    first, second = task.row.interactions
    row = replace(task.row, interactions=(first, replace(second, think="a dog")))
    (episode,) = play(policy, [replace(task, row=row)])
    assert [thought.turn for thought in episode.thoughts] == [2]
    without = policy_of(*opened(folder), sampling=sampling)
    (plain,) = play(without, [replace(task, row=row)])
    assert plain.thoughts == ()


def test_the_end_of_a_thought_is_found_in_any_tokens(folder: Path) -> None:
    _, tokenizer = opened(folder, think={"open": "(", "close": "; so\n"})
    whole = tokenizer.encode("a dog; so")
    assert tokenizer.missing_end(whole) == []
    assert tokenizer.missing_end(whole[:-1]) == tokenizer.think_close
    assert tokenizer.thought_text(whole) == "a dog"
    spelt = [token for letter in "; so" for token in tokenizer.encode(letter)]
    assert tokenizer.missing_end([*tokenizer.encode("a dog"), *spelt]) == []
    assert tokenizer.ends_thought([tokenizer.eos_id])
    assert tokenizer.missing_end([tokenizer.eos_id]) == tokenizer.think_close


def test_a_thought_of_the_data_is_taught_before_its_answer(folder: Path) -> None:
    _, tokenizer = opened(folder, think=THINK)
    context = tokenizer.memory.context((), tokenizer.prompt("who"))
    taught = answer_example(context, Interaction("who", "Rex", "a dog"), tokenizer)
    assert taught.ids[: taught.start] == [*context, *tokenizer.think_open]
    assert taught.ids[taught.start :] == tokenizer.thought("a dog") + tokenizer.answer("Rex")
    plain = answer_example(context, Interaction("who", "Rex"), tokenizer)
    assert plain.ids == [*context, *tokenizer.answer("Rex")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_shows_the_thought_apart(folder: Path, kind: str) -> None:
    whole = thinker(folder, kind)
    session = policy_of(whole.module, whole.tokenizer, sampling=SAMPLING).session(3)
    events = list(session.respond("what is my dog called"))
    kinds = [event.kind for event in events]
    assert kinds[0] == "thought"
    assert kinds.count("thought") == 1
    (said,) = (event.text for event in events if event.kind == "updating")
    assert "".join(event.text for event in events if event.kind == "token") == said


def test_a_thought_that_was_cut_says_so() -> None:
    assert SeparateThought(1, [5], [7], [-0.5], [6]).cut
    assert SeparateThought(1, [5], [7], [-0.5], [6]).whole == [5, 7, 6]
    assert not SeparateThought(1, [5], [7, 6], [-0.5, 0.0], []).cut


def test_thinking_always_needs_the_texts_around_a_thought() -> None:
    settings = {
        "name": "n",
        "data": {"kind": "prompts", "train": ["p.jsonl"]},
        "model": {"causal": "m"},
        "stages": [{"stage": "lm_rl"}],
        "rollout": {"sampling": {"think": "always"}},
    }
    with pytest.raises(ValueError, match=r"think: always needs model\.causal\.think"):
        Run.model_validate(settings)
    Run.model_validate(settings | {"model": {"causal": {"path": "m", "think": {}}}})
