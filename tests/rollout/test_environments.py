"""Environments: what they are told and say, what becomes of those that raise or hang, and what a
cut-off episode is worth."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.utils.env_checker import check_env

from common.config.algorithms import PPO
from common.config.environment import CustomEnvironment
from common.config.loader import load_run
from common.config.rewards import EnvironmentReward, RewardMix, Rewards
from common.config.rollout import Rollout, Sampling
from common.episode import Episode, Fact, Interaction, Row, Task
from common.failures import InputError
from common.models.reactive.module import write_model
from common.storage.checkpoint import save_checkpoint
from common.storage.run_directory import RunDirectory
from common.weights import pack
from learner.evaluation.replay import parting, task_of
from learner.parallel.group import OneRank
from learner.policies.reactive import ReactiveCritic
from learner.rl.algorithms.ppo import ProximalPolicyOptimization
from learner.rl.experience import gather_experience
from reward_service.compose import score_episodes
from rollout.environments.conversation import Conversation
from rollout.environments.custom import CustomAdapter
from rollout.environments.guess_number import GuessNumber
from rollout.environments.table import require_environment
from rollout.policies.play import play
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.table import PolicyShape, make_policy
from rollout.protocols import Observation, Outcome, Start
from rollout.tasks import Dealer, Plan, Selection
from tests.local_source import lively_model, tiny_corpus
from tests.reactive_episodes import TOKENIZER, make_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

ROW = Row(
    "My dog is called Rex.",
    "Nice.",
    (
        Interaction("Hello", "Hi", role="distract"),
        Interaction("My dog's name?", "Rex.", role="recall", facts=(Fact("Rex", 0),)),
    ),
)
SAMPLING = Sampling(temperature=1.0, max_new_tokens=6)

ECHO = '''
import re
import time
import gymnasium
from gymnasium import spaces


class Echo(gymnasium.Env):
    """Asks for what was answered last; pays the length of an answer; does as its arguments say."""

    observation_space = action_space = spaces.Text(99)

    def __init__(self, turns=3, raises=0, hangs=0, truncates=0, unwell=()):
        self.turns, self.raises, self.hangs, self.truncates = turns, raises, hangs, truncates
        self.unwell = unwell
        self.turn = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bad = not self.unwell or self.np_random.integers(2) == 1
        return "dog", {"opening": ("the dog is Rex", "ok"), "role": "recall", "facts": [("Rex", 0)]}

    def step(self, action):
        self.turn += 1
        if self.turn == self.raises and self.bad:
            raise KeyError(f"no square {action!r}")
        if self.turn == self.hangs and self.bad:
            time.sleep(60)
        over, cut = self.turn == self.turns, self.turn == self.truncates
        info = {"reference": "cat", "figures": {"turns": self.turn}}
        return f"you said {action}", float(len(action)), over, cut, info
'''


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    (tmp_path / "echo.py").write_text(ECHO)
    return tmp_path / "echo.py"


def settings(path: Path, deadline: float = 10, **arguments: Any) -> CustomEnvironment:
    return CustomEnvironment(
        kind="custom", path=f"{path}:Echo", arguments=arguments, deadline=deadline
    )


def engine_for(environment: CustomEnvironment, slots: int = 2) -> ReactiveEngine:
    return ReactiveEngine(make_model(), TOKENIZER, slots, SAMPLING, environment=environment)


def tasks(count: int, **fields: Any) -> list[Task]:
    return [Task(f"t{i}", None, seed=i, environment="custom", **fields) for i in range(count)]


def test_a_conversation_asks_its_queries_in_order_whatever_is_answered() -> None:
    conversation = Conversation()
    start = conversation.reset(Task("t", ROW, seed=0))
    assert start == Start(Observation("Hello", "Hi", role="distract"), ROW.opening)
    assert conversation.step("nonsense") == Outcome(
        Observation("My dog's name?", "Rex.", role="recall", facts=(Fact("Rex", 0),))
    )
    assert conversation.step("") == Outcome(None)
    assert Conversation().reset(Task("t", Row("a", "b", ()), seed=0)).observation is None


def test_what_is_asked_next_depends_on_the_answer(echo: Path) -> None:
    [episode] = engine_for(settings(echo)).run(tasks(1))
    assert episode.environment == "custom"
    opening, first, second, third = episode.turns
    assert (opening.query, opening.answer, opening.answer_ids) == (
        "the dog is Rex",
        "ok",
        opening.reference_ids,
    )
    assert (first.query, first.role, first.facts) == ("dog", "recall", (Fact("Rex", 0),))
    assert second.query == f"you said {first.answer}"
    assert third.query_ids == TOKENIZER.prompt(f"you said {second.answer}")
    assert (second.reference, third.reference_ids) == ("cat", TOKENIZER.answer("cat"))
    assert [turn.rewards for turn in episode.answered] == [
        {"environment": float(len(turn.answer))} for turn in episode.answered
    ]
    assert [turn.done for turn in episode.turns] == [False, False, False, True]
    assert episode.figures == {"turns": 3.0}
    assert not episode.truncated


def test_episodes_do_not_depend_on_slots(echo: Path) -> None:
    one, many = (engine_for(settings(echo), slots).run(tasks(7)) for slots in (1, 4))
    assert one == many


def test_an_environment_that_raises_fails_its_own_episode_with_its_traceback(echo: Path) -> None:
    unwell = settings(echo, raises=2, unwell=["by seed"])
    episodes = engine_for(unwell).run(tasks(8))
    whole = engine_for(settings(echo, unwell=["by seed"])).run(tasks(8))
    failed = [episode for episode in episodes if episode.status == "failed"]
    assert 0 < len(failed) < len(episodes)
    for episode, alone in zip(episodes, whole, strict=True):
        if episode.status == "failed":
            why = episode.turns[-1].failure or ""
            assert why.startswith(f"turn 2: environment {unwell.path}, step: Traceback")
            assert 'KeyError: "no square' in why
            assert f'File "{echo}"' in why
        else:
            assert episode == alone


def test_an_environment_that_hangs_is_cut_off_and_named(echo: Path) -> None:
    hanging = settings(echo, deadline=0.3, hangs=2, unwell=["by seed"])
    engine = engine_for(hanging, slots=4)
    began = time.monotonic()
    episodes = engine.run(tasks(8))
    assert time.monotonic() - began < 30
    failed = {episode.turns[-1].failure for episode in episodes if episode.status == "failed"}
    assert failed == {f"turn 2: environment {hanging.path}, step: did not return within 0.3 s"}
    assert any(episode.status == "generated" for episode in episodes)


@pytest.mark.parametrize("by", ["the environment", "the task"])
def test_a_cut_off_episode_keeps_the_query_that_would_have_come(echo: Path, by: str) -> None:
    environment = settings(echo, truncates=2 if by == "the environment" else 0)
    limit = 2 if by == "the task" else None
    [episode] = engine_for(environment).run(tasks(1, max_turns=limit))
    assert len(episode.answered) == 2
    assert episode.truncated
    last = episode.turns[-1]
    assert list(episode.next_query_ids) == TOKENIZER.prompt(f"you said {last.answer}")
    assert not last.done
    # one that ends with its last answer was not cut off, whatever its limit
    [whole] = engine_for(environment).run(tasks(1, max_turns=3)) if by == "the task" else [None]
    assert whole is None or not whole.truncated


def test_a_cut_off_episode_is_worth_what_the_critic_expects_of_its_next_query(echo: Path) -> None:
    def critic(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (tokens * mask).sum(1).float()

    ended, cut = engine_for(settings(echo)).run([*tasks(1), *tasks(2, max_turns=1)[1:]])
    read = sum(cut.turns[-1].remembered_ids) + sum(cut.next_query_ids)
    value = ReactiveCritic(critic, OneRank())  # type: ignore[arg-type]
    lived = gather_experience([ended, cut], None, value, 1.0, torch.device("cpu"))
    assert lived.bootstrap.tolist() == [0.0, read]
    ppo = ProximalPolicyOptimization(PPO(discount=0.5, gae_lambda=1.0, whiten=False))
    credited = ppo.credit(replace(lived, scored=lived.present), [0, 1], OneRank())
    assert credited.returns[1, 0] == 0.5 * read  # its own reward is 0
    assert credited.returns[0, 2] == 0.0


def scored(episode: Episode, mix: RewardMix) -> Episode:
    model = lively_model(TOKENIZER)
    rewards = Rewards(cumulative=mix)
    embedding = model.embedding.weight.detach().numpy()
    return score_episodes([episode], rewards, embedding, tuple(range(8)))[0]


def test_what_an_environment_pays_is_a_component_like_any_other(echo: Path) -> None:
    [episode] = engine_for(settings(echo)).run(tasks(1))
    paid = [turn.rewards["environment"] for turn in episode.answered]
    nothing_else: dict[str, Any] = dict.fromkeys(("bleu", "cosine", "length", "recall"))
    alone = RewardMix(**nothing_else, environment=EnvironmentReward())
    turns = scored(episode, alone).answered
    assert [turn.reward for turn in turns] == paid
    assert [turn.rewards for turn in turns] == [{"environment": value} for value in paid]
    mixed = alone.model_copy(update={"recall": RewardMix().recall})
    weights = (1.0, 0.3)
    first, second, _ = scored(episode, mixed).answered
    assert first.reward == pytest.approx(
        (weights[0] * paid[0] + weights[1] * first.rewards["recall"]) / sum(weights)
    )
    assert second.reward == paid[1]  # recall does not apply: it asks for no fact
    silent = replace(episode, turns=tuple(replace(turn, rewards={}) for turn in episode.turns))
    unpaid = scored(silent, alone).answered
    assert [(turn.reward, turn.rewards) for turn in unpaid] == [(0.0, {})] * 3


def test_an_environment_is_tried_before_anything_starts(echo: Path) -> None:
    require_environment(settings(echo))
    with pytest.raises(InputError, match="no square ''"):
        require_environment(settings(echo, raises=1))
    with pytest.raises(InputError, match=r"no class 'Ecko' in .*Echo"):
        require_environment(CustomEnvironment(kind="custom", path=f"{echo}:Ecko"))
    with pytest.raises(InputError, match=r"(?s)cannot be imported.*No module named 'nowhere'"):
        require_environment(CustomEnvironment(kind="custom", path="nowhere:Echo"))
    with pytest.raises(InputError, match="unexpected keyword argument 'size'"):
        require_environment(settings(echo, size=3))


def test_the_game_tells_higher_from_lower_and_ends_when_it_is_won() -> None:
    check_env(GuessNumber(), skip_render_check=True)
    game = CustomAdapter(
        CustomEnvironment(kind="custom", path="rollout.environments.guess_number:GuessNumber")
    )
    start = game.reset(Task("t", None, seed=3))
    number = int("".join(filter(str.isdigit, start.opening.query)))
    assert start.observation == Observation("Guess.", str(number))
    assert game.step("what?") == Outcome(start.observation, 0.0)
    for guess, word in ((number - 1, "Higher"), (number + 1, "Lower")):
        assert game.step(str(guess)) == Outcome(
            Observation(f"{word} than {guess}.", str(number)), 0.0
        )
    assert game.step(str(number)) == Outcome(None, 1.0)


def test_rows_and_seeds_are_dealt_to_environments_that_play_them() -> None:
    plan = Plan("game", (Selection(3),), episodes=5)
    dealt = Dealer([], 1, environment="custom").deal(plan, 0)
    assert {(task.row, task.max_turns, task.environment) for task in dealt} == {(None, 3, "custom")}
    assert len({task.seed for task in dealt}) == 5
    rows = Dealer(tiny_corpus().train, 1).deal(plan, 0)
    assert all(task.row is not None and task.max_turns is None for task in rows)


def test_a_policy_plays_games_and_conversations_alike(echo: Path) -> None:
    model = make_model()
    shape = PolicyShape("reactive", model.config.to_dict(), TOKENIZER.to_json())
    policy = make_policy(shape, Rollout(slots=2, sampling=SAMPLING), settings(echo))
    assert policy.version == -1
    policy.load(pack(model.state_dict(), version=3))
    mixed = [*tasks(3), Task("row", ROW, seed=1)]
    episodes = play(policy, mixed)
    assert [episode.id for episode in episodes] == ["t0@3", "t1@3", "t2@3", "row@3"]
    engine = ReactiveEngine(model, TOKENIZER, 2, SAMPLING, environment=settings(echo))
    assert episodes == engine.run(mixed, version=3)
    assert policy.counts()["episodes"] == 4
    with pytest.raises(ValueError, match="same id"):
        play(policy, [mixed[0], mixed[0]])
    policy.add(mixed)
    with pytest.raises(RuntimeError, match="4 episodes are in flight"):
        play(policy, mixed)


def test_a_policy_that_cannot_play_on_has_nothing_in_flight(echo: Path) -> None:
    model = make_model()
    shape = PolicyShape("reactive", model.config.to_dict(), TOKENIZER.to_json())
    policy = make_policy(shape, Rollout(slots=2, sampling=SAMPLING), settings(echo))
    with pytest.raises(ValueError, match="no row"):
        play(policy, [*tasks(3), Task("row", None, seed=1)])
    assert policy.in_flight == 0


def test_the_example_of_the_documentation_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "environments.md").read_text()
    code, settings_text, playing = re.findall(r"```(?:yaml|python)\n(.*?)```", page, re.DOTALL)
    (tmp_path / "doors.py").write_text(code)
    file = tmp_path / "doors.yaml"
    file.write_text(settings_text.replace("doors.py:", f"{tmp_path}/doors.py:"))
    # As the page says: over the configuration of another game, whose arguments are another class's.
    run = load_run([CONFIGS / "game.yaml", file])
    assert run.rewards.cumulative.environment is not None
    game = run.environment
    assert isinstance(game, CustomEnvironment)
    assert game.arguments == {"size": 3}
    require_environment(game)
    [episode] = engine_for(game).run(tasks(1, max_turns=2))
    assert episode.turns[0].query.startswith("The prize is behind door")
    assert episode.turns[1].query == "Which door?"
    assert episode.truncated

    def write(folder: Path) -> None:
        write_model(make_model(), folder)
        TOKENIZER.save(folder)

    save_checkpoint(RunDirectory(str(tmp_path / "runs"), "doors"), 1, write, {})
    monkeypatch.chdir(tmp_path)
    exec(playing, {})
    assert capsys.readouterr().out.count("The prize is behind door") == 4


def test_a_game_is_replayed_and_where_it_goes_another_way_the_query_is_named(echo: Path) -> None:
    engine = engine_for(settings(echo))
    for limit in (None, 2):
        [recorded] = engine.run(tasks(1, max_turns=limit), version=3)
        [again] = engine.run([task_of(recorded, TOKENIZER)], version=3)
        assert parting(recorded, again) is None
        assert again == recorded
    shorter = engine_for(settings(echo, turns=1))
    [again] = shorter.run([task_of(recorded, TOKENIZER)], version=3)
    assert str(parting(recorded, again)) == "turns part at turn 1: recorded 3, replayed 2"
    other = replace(recorded.turns[1], query="cat", query_ids=TOKENIZER.prompt("cat"))
    moved = replace(recorded, turns=(recorded.turns[0], other, *recorded.turns[2:]))
    assert "query part at turn 1: recorded 'cat'" in str(parting(moved, recorded))
