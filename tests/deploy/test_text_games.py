"""`engram data synth textworld` and `engram data walkthroughs`, and the configuration that plays
them."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.loader import load_run
from common.config.textworld import TextWorldEnvironment
from common.data.conversations import load_pairs, load_rows
from common.failures import EXIT_BAD_INPUT, EXIT_DONE
from deploy.cli import run_command
from rollout.environments.textworld import TextWorld
from tests.rollout.test_textworld import begun, damaged, game, require_games

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "textworld.yaml"


def test_games_are_made_and_won(tmp_path: Path) -> None:
    require_games()
    words = ["data", "synth", "textworld", str(tmp_path), "level=2"]
    assert run_command([*words, "--challenge", "coin", "--games", "1", "--seed", "7"]) == EXIT_DONE
    played, asked = begun(str(tmp_path / "tw-coin-7.z8"))
    assert len(played.state.walkthrough) == 2
    for command in played.state.walkthrough:
        outcome = played.step(command)
    assert outcome.figures["won"] == 1.0
    assert "coin" in asked.query
    played.close()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("goals=brief", "goals=brief: is no KEY=VALUE of tw-simple; did you mean 'goal'?"),
        ("goal=xyz", "goal=xyz: valid are brief, detailed, none"),
        ("test=yes", "test=yes: should be true or false"),
    ],
)
def test_settings_that_a_challenge_has_not_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    require_games()
    assert run_command(["data", "synth", "textworld", str(tmp_path), word]) == EXIT_BAD_INPUT
    assert said in " ".join(capsys.readouterr().err.split())


def test_synth_without_a_name_makes_conversations(tmp_path: Path) -> None:
    assert run_command(["data", "synth", str(tmp_path), "train=3", "eval=1"]) == EXIT_DONE
    assert len(load_rows(tmp_path / "train.jsonl")) == 3
    words = ["data", "synth", "conversations", str(tmp_path / "b"), "train=3", "eval=1"]
    assert run_command(words) == EXIT_DONE
    assert load_rows(tmp_path / "b" / "train.jsonl") == load_rows(tmp_path / "train.jsonl")


def test_walkthroughs_are_pairs_as_the_environment_asks(tmp_path: Path) -> None:
    out, file = tmp_path / "pairs.jsonl", game()
    words = ["data", "walkthroughs", str(CONFIG), str(out), f"environment.games=[{file}]"]
    assert run_command(words) == EXIT_DONE
    pairs = load_pairs(out)
    environment = load_run([CONFIG], [f"environment.games=[{file}]"]).environment
    assert isinstance(environment, TextWorldEnvironment)
    played, asked = begun(file, **environment.model_dump(exclude={"kind", "games", "examples"}))
    assert [pair.answer for pair in pairs] == played.state.walkthrough
    assert pairs[0].query == asked.query
    played.close()


def test_walkthroughs_of_what_is_no_game_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "pairs.jsonl")
    broken = damaged(tmp_path, "one byte")
    words = ["data", "walkthroughs", str(CONFIG), out, f"environment.games=[{broken}]"]
    assert run_command(words) == EXIT_BAD_INPUT
    assert "broken.z8 is damaged" in " ".join(capsys.readouterr().err.split())
    other = ["data", "walkthroughs", "configs/demo.yaml", out]
    assert run_command(other) == EXIT_BAD_INPUT
    assert "conversation has no walkthroughs" in " ".join(capsys.readouterr().err.split())


def test_the_configuration_trains_by_both_algorithms() -> None:
    for algorithm in ("ppo", "rejection"):
        run = load_run([CONFIG], [f"stages.lm_rl.algorithm={algorithm}"])
        assert isinstance(run.environment, TextWorldEnvironment)
        assert run.stages[1].total_steps == 10
        assert TextWorld(run.environment).tally.steps == 0
