"""Reward functions of a user's own: values, failures and deadlines, turn by turn. Hostile ones:
test_function_process.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from common.config.components import ExactMatch, Format, FunctionReward, Length, Repetition
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Turn
from common.failures import InputError
from reward_service.components.exact_match import exact_match_reward
from reward_service.components.format import format_reward
from reward_service.components.function import close_functions, function_rewards, source_file
from reward_service.components.repetition import distinct_shares
from reward_service.compose import score_episodes
from reward_service.normalization import version_of

FUNCTION = """\
def politeness(turn, bonus=0.0):
    if turn.answer == "crash":
        raise LookupError("no such mood")
    polite = "please" in turn.answer
    return None if turn.answer == "" else polite + bonus
"""


def turns(*answers: str) -> list[Turn]:
    ids: dict[str, Any] = {
        "query_ids": [2, 5, 9, 6],
        "answer_ids": [10, 11, 3],
        "log_probs": [-1.0] * 3,
        "reference_ids": [10, 3],
    }
    return [
        Turn(**ids, query=f"query {i}", answer=answer, reference="yes")
        for i, answer in enumerate(answers)
    ]


def episode_of(answers: list[Turn]) -> Episode:
    return Episode(
        "e", "t", 0, (Turn([2, 5, 9, 6], [10, 3], [], [10, 3], role="remember"), *answers), 0
    )


def only(**components: Any) -> Rewards:
    mix = RewardMix(**{"bleu": None, "cosine": None, "length": None, "recall": None, **components})
    return Rewards(single=mix, cumulative=mix, long_term=mix)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    close_functions()


@pytest.fixture
def function_file(tmp_path: Path) -> Path:
    file = tmp_path / "my_reward.py"
    file.write_text(FUNCTION)
    return file


# --- functions ------------------------------------------------------------------------------------


def test_a_function_in_a_file_is_a_component_through_configuration_alone(
    function_file: Path,
) -> None:
    section = FunctionReward(
        name="polite", path=f"{function_file}:politeness", weight=3.0, arguments={"bonus": 0.5}
    )
    one = episode_of(turns("yes please", "no", "crash", ""))
    (scored,) = score_episodes(
        [one],
        only(length=Length(weight=1.0), functions=(section,)),
        np.eye(16, dtype=np.float32),
        range(8),
    )
    polite, plain, crashed, silent = scored.answered
    assert polite.rewards == {"length": 0.5, "polite": 1.5}
    assert polite.reward == pytest.approx((0.5 + 3 * 1.5) / 4)
    assert plain.rewards["polite"] == 0.5
    assert silent.rewards == {"length": 0.5}
    assert silent.reward == 0.5
    assert crashed.reward is None
    failure = str(crashed.failure)
    assert failure.startswith("polite: Traceback")
    assert f'File "{function_file}", line 3, in politeness' in failure
    assert 'raise LookupError("no such mood")' in failure
    assert "custom.py" not in failure
    assert "query 'query 2' and answer 'crash'" in failure


def test_a_total_that_no_number_can_hold_fails_its_turn_and_says_of_what(
    function_file: Path,
) -> None:
    """Each value is finite; their weighted sum is not, and such a reward must not reach the
    learner."""
    section = FunctionReward(
        name="polite", path=f"{function_file}:politeness", weight=3.0, arguments={"bonus": 1.5e308}
    )
    (scored,) = score_episodes(
        [episode_of(turns("please", ""))],
        only(length=Length(), functions=(section,)),
        np.eye(16, dtype=np.float32),
        range(8),
    )
    too_large, fine = scored.answered
    assert too_large.reward is None
    assert str(too_large.failure).startswith("total: the value is inf, of {'length': 0.5")
    assert (fine.reward, fine.failure, set(fine.rewards)) == (pytest.approx(0.5), None, {"length"})


def test_a_turn_has_its_deadline_and_no_longer_whatever_came_before_it(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(
        "import time\ndef slow(turn):\n    time.sleep(float(turn.answer))\n    return 1.0\n"
    )
    section = FunctionReward(name="slow", path=f"{file}:slow", deadline=4)
    began = time.monotonic()
    outcomes = function_rewards(section, turns("0", "0", "600"))
    # Counted from when the turns before it were over: from the last look at them, it would be 8 s.
    assert 4 <= time.monotonic() - began < 7
    assert outcomes[:2] == [1.0, 1.0]
    assert "no value within 4 s" in str(outcomes[2])


def test_a_turn_that_hangs_is_failed_and_the_others_are_not(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(
        "import time\ndef slow(turn):\n    time.sleep(90 if turn.answer == 'hang' else 0.01)\n  "
        "  return 1.0\n"
    )
    section = FunctionReward(
        name="slow", path=f"{file}:slow", deadline=1.5
    )  # far longer than a busy machine stops for
    began = time.monotonic()
    outcomes = function_rewards(section, turns("a", "hang", "b", "hang", "hang", *"c" * 40))
    assert time.monotonic() - began < 60
    assert [outcome for outcome in outcomes if not isinstance(outcome, str)] == [1.0] * 42
    assert [str(outcomes[i]) for i in (1, 3)] == [
        f"no value within 1.5 s for the turn with query 'query {i}' and answer 'hang'"
        for i in (1, 3)
    ]


def test_a_value_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "odd.py"
    file.write_text(
        "def odd(turn):\n    return {'a': 'text', 'b': float('nan'), 'c': True}[turn.answer]\n"
    )
    text, nan, true = function_rewards(
        FunctionReward(name="odd", path=f"{file}:odd"), turns("a", "b", "c")
    )
    assert "could not convert string to float" in str(text)
    assert "the value is nan" in str(nan)
    assert true == 1.0


def test_functions_that_are_not_there_are_named(function_file: Path) -> None:
    broken = function_file.with_name("broken.py")
    broken.write_text("import nothing_of_that_name\n")
    for path, what in {
        f"{function_file}:politenes": "did you mean 'politeness'",
        f"{function_file.with_name('none.py')}:f": "no such file",
        f"{broken}:f": "nothing_of_that_name",
        "no_such_package.module:f": "cannot be imported",
        "politeness": "FILE.py:NAME",
    }.items():
        with pytest.raises(InputError, match=what):
            function_rewards(FunctionReward(name="f", path=path), turns("a"))


def test_the_file_of_a_module_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    for name in ("__init__", "judges"):
        (package / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert source_file("mine.judges:judge") == str(package / "judges.py")
    assert source_file("mine:judge") == str(package / "__init__.py")
    assert source_file("mine.none:judge") is None
    assert source_file("sys:intern") is None
    own = FunctionReward(name="own", path="mine.judges:judge")
    before = version_of(own)
    (package / "judges.py").write_bytes(b"\xff\x00 any bytes will do")
    version_of.cache_clear()
    assert version_of(own) != before


def test_names_of_components_must_differ() -> None:
    function = FunctionReward(name="mine", path="math:sqrt")
    with pytest.raises(ValidationError, match="two components are named 'mine'"):
        RewardMix(functions=(function, function))
    with pytest.raises(ValidationError, match="two components are named 'bleu'"):
        RewardMix(functions=(FunctionReward(name="bleu", path="math:sqrt"),))
    with pytest.raises(ValidationError, match="named 'total', which is the name of their mean"):
        RewardMix(functions=(FunctionReward(name="total", path="math:sqrt"),))


def test_one_late_turn_of_each_function_and_its_loading_are_allowed_for() -> None:
    def mix(*functions: FunctionReward) -> RewardMix:
        return RewardMix(functions=functions)

    one = FunctionReward(name="one", path="math:sqrt", deadline=5, load_deadline=20)
    longer = one.model_copy(update={"name": "same", "deadline": 7.0})
    other = one.model_copy(update={"name": "other", "arguments": {"x": 1}})
    assert Rewards(deadline=30).call_deadline() == 30
    assert (
        Rewards(deadline=30, single=mix(one), cumulative=mix(longer)).call_deadline() == 30 + 7 + 20
    )
    assert Rewards(
        deadline=30, single=mix(one), first_turn=mix(other)
    ).call_deadline() == 30 + 2 * (5 + 20)


# --- text by itself -------------------------------------------------------------------------------


def test_repetition_is_the_share_of_distinct_n_grams() -> None:
    answers = [[1, 2, 3, 4], [1, 2, 1, 2, 1], [7, 7, 7], [5], []]
    assert distinct_shares(2, answers).tolist() == [1.0, 2 / 4, 1 / 2, 1.0, 1.0]
    assert distinct_shares(1, answers).tolist() == [1.0, 2 / 5, 1 / 3, 1.0, 1.0]


def test_format_matches_the_whole_answer() -> None:
    values = format_reward(
        Format(pattern=r"\d+ dogs?"), turns("3 dogs", " 1 dog ", "3 dogs and more", "dogs")
    )
    assert values.tolist() == [1, 1, 0, 0]
    with pytest.raises(ValidationError, match="is no regular expression"):
        Format(pattern="(")


def test_exact_match_compares_words_or_characters() -> None:
    answers = turns("Yes.", "yes", " yes ", "no")
    assert exact_match_reward(ExactMatch(), answers).tolist() == [1, 1, 1, 0]
    assert exact_match_reward(ExactMatch(words_only=False), answers).tolist() == [0, 1, 1, 0]


def test_new_components_come_with_the_others() -> None:
    parts = {
        "repetition": Repetition(order=1),
        "format": Format(pattern="yes.*"),
        "exact_match": ExactMatch(),
    }
    (scored,) = score_episodes(
        [episode_of(turns("yes", "no"))], only(**parts), np.eye(16, dtype=np.float32), range(8)
    )
    assert [turn.rewards for turn in scored.answered] == [
        {"repetition": 1.0, "format": 1.0, "exact_match": 1.0},
        {"repetition": 1.0, "format": 0.0, "exact_match": 0.0},
    ]  # fmt: skip


def test_any_callable_will_do_and_its_file_makes_the_version(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    answered = Turn([2, 5, 6], [7, 3], [-1.0, -1.0], [8, 3])
    versions = set()
    for value in (0.5, 0.25):
        path.write_text(
            f"class Judge:\n    def __call__(self, turn):\n        return {value}\njudge = "
            "Judge()\n"
        )
        close_functions()
        version_of.cache_clear()
        mix = RewardMix(functions=(FunctionReward(name="judge", path=f"{path}:judge"),))
        (scored,) = score_episodes(
            [Episode("e", "t", 0, (answered, answered), 0)],
            Rewards(cumulative=mix),
            np.eye(16, dtype=np.float32),
            (),
        )
        assert scored.turns[1].rewards["judge"] == value
        versions.add(scored.turns[1].terms["judge"].version)
    assert len(versions) == 2


def test_a_mix_may_be_of_functions_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def half(turn):\n    return 0.5\n")
    own = FunctionReward(name="half", path=f"{path}:half")
    mix = RewardMix(bleu=None, cosine=None, length=None, recall=None, functions=(own,))
    answered = Turn([2, 5, 6], [7, 3], [-1.0, -1.0], [8, 3])
    (scored,) = score_episodes(
        [Episode("e", "t", 0, (answered, answered), 0)],
        Rewards(cumulative=mix),
        np.eye(16, dtype=np.float32),
        (),
    )
    assert (scored.turns[1].rewards, scored.turns[1].reward) == ({"half": 0.5}, 0.5)
