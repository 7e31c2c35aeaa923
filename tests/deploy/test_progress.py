from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from common.failures import InputError
from common.telemetry.progress import Progress, QuietProgress
from common.telemetry.registry import REGISTRY
from deploy.progress import (
    AGAIN,
    HEADLINES,
    SOON,
    LineProgress,
    TerminalProgress,
    describe,
    doing,
    duration,
    open_progress,
)

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_without_a_terminal_progress_is_plain_lines() -> None:
    stream = io.StringIO()
    progress = open_progress(stream)
    assert isinstance(progress, LineProgress)
    progress.stage("mrl", 2)
    progress.update(2, loss=0.5, reward=0.25, kl=0.001)
    progress.note("checkpoint 2")
    progress.close()
    assert lines(stream) == [
        "mrl: 2 steps",
        "mrl 2/2  reward 0.25  loss 0.5  kl 0.001",
        "checkpoint 2",
    ]


def test_lines_come_at_most_every_few_seconds_but_always_for_the_last_step() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, every=10, clock=clock)
    progress.stage("sft", 5)
    for step in (0, 1, 2, 3, 4, 5, 5, 5):
        progress.update(step, loss=1.0)
        clock.now += 4
    assert lines(stream) == ["sft: 5 steps", "sft 3/5  loss 1  8 s left", "sft 5/5  loss 1"]


def test_what_lasts_without_a_word_is_said_again_with_its_seconds_until_it_is_closed() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, quiet=0.1)

    def said(count: int) -> set[str]:
        """The different lines from `count` on, once there are two more."""
        ends = time.monotonic() + 10
        while len(lines(stream)) < count + 2 and time.monotonic() < ends:
            time.sleep(0.01)
        return set(lines(stream)[count:])

    progress.stage("mrl", 10)
    assert said(1) == {"mrl 0/10, 0 s ..."}
    progress.note("evaluating after MRL")
    assert said(len(lines(stream))) == {"evaluating after MRL, 0 s ..."}
    progress.close()
    count = len(lines(stream))
    time.sleep(0.3)
    assert len(lines(stream)) == count


def test_time_left_of_a_resumed_stage_counts_only_steps_done_here() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, every=0, clock=clock)
    progress.stage("mrl", 100)
    clock.now += 60
    progress.update(90)
    clock.now += 10
    progress.update(91)
    clock.now += 10
    progress.update(92)
    assert lines(stream)[1:] == [
        "mrl 90/100",
        "mrl 91/100  1 min 30 s left",
        "mrl 92/100  1 min 20 s left",
    ]


def test_terminal_shows_stage_steps_figures_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = TerminalProgress(
        Console(file=stream, force_terminal=True, width=120, color_system=None), clock=clock
    )
    progress.stage("mrl", 4)
    progress.update(0)
    clock.now += 30
    progress.update(1, recall=0.5, loss=2.0)
    progress.note("[learner] restarted")
    progress.close()
    progress.close()
    shown = stream.getvalue()
    for part in ("mrl", "1/4", "recall 0.5", "loss 2", "1 min 30 s left", "[learner] restarted"):
        assert part in shown


def test_update_before_a_stage_is_a_mistake_that_shows() -> None:
    with pytest.raises(RuntimeError, match="stage"):
        TerminalProgress(Console(file=io.StringIO(), force_terminal=True)).update(1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_of_many_metrics_only_headlines_are_shown_and_every_one_is_a_real_metric() -> None:
    figures = {
        "objective/kl": 0.1,
        "train/loss_lm": 1.23456,
        "train/tokens": 9.0,
        "objective/scores": 0.5,
        "critic/loss": 7.0,
    }
    assert describe(figures) == "reward 0.5  loss 1.235  kl 0.1"
    assert {name for names in HEADLINES.values() for name in names} <= REGISTRY.keys()


def test_quiet_progress_takes_the_same_calls() -> None:
    progress: Progress = QuietProgress()
    progress.stage("sft", 1)
    progress.update(1, loss=0.0)
    progress.note("done")
    progress.close()
    assert vars(progress) == {}


def test_what_takes_a_while_is_said_while_it_lasts_and_what_is_quick_says_nothing() -> None:
    shown = io.StringIO()
    with doing("opening [runs/demo]", shown):
        deadline = time.monotonic() + 30
        while not shown.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert shown.getvalue() == "engram: opening [runs/demo] ...\n"
        while shown.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lines(shown)[1:] == [f"engram: opening [runs/demo], {duration(SOON + AGAIN)} ..."]
    quick = io.StringIO()
    with pytest.raises(InputError), doing("opening", quick):
        raise InputError("opening", "cannot be done")
    time.sleep(2 * SOON)
    assert quick.getvalue() == ""
    terminal = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        with doing("opening [runs/demo]", terminal):
            pass
    assert "opening [runs/demo] …" in terminal.getvalue()


def test_the_command_line_answers_without_the_libraries_that_take_seconds() -> None:
    code = (
        "import sys, deploy.cli, deploy.progress; "
        "print(sorted({'torch', 'ray', 'pydantic', 'transformers', 'pyarrow', 'numpy', 'datasets'}"
        " & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr
