"""A run's progress on a terminal, or as plain lines where there is none.

On a terminal one live bar shows the stage, its steps, the figures that matter and the time left,
and notes scroll above it. Elsewhere (a file, a pipe, a Kubernetes log) the same comes as one line
now and then, since a bar's control characters would make a log unreadable. Figures are the caller's
latest; nothing is averaged here.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars

from common.telemetry.progress import Progress

HEADLINES = {
    "reward": ("objective/scores",),
    "recall": ("rollout/recall",),
    "exact": ("rollout/exact",),
    "loss": ("train/loss_lm", "train/loss_preference"),
    "accuracy": ("train/accuracy_lm", "train/accuracy_preference"),
    "cosine": ("train/memory_cosine",),
    "kl": ("objective/kl",),
}
"""Figures that the terminal shows, in this order, and the metrics that they are taken from: the
first that there is, or one of that very name. The other metrics of a run are in metrics.jsonl."""

TROUBLES = {
    "reward/failed_turns": "failed turns",
    "reward/alarms": "alarms",
    "hacking/alarms": "hacking alarms",
}
"""Counters that a reader must not miss, summed over their labels, where they are not 0."""

_Figure = TypeVar("_Figure")


def open_progress(stream: TextIO | None = None) -> Progress:
    """The progress that suits `stream` (default: standard error, so that standard output stays a
    command's result)."""
    console = Console(file=stream or sys.stderr)
    return TerminalProgress(console) if console.is_terminal else LineProgress(stream or sys.stderr)


SOON = 0.3
"""Seconds after which a command says what it does. One that ends sooner, with a mistake in its
words, says only what the mistake is."""
AGAIN = 5.0
"""Seconds after which it says so again, with the time that has passed."""
SHORT = 60
"""Characters of a note that may come again."""


@contextmanager
def doing(what: str, stream: TextIO | None = None) -> Iterator[None]:
    """Say what the block does ("opening runs/demo") while it lasts, and how long it has taken: a
    spinner on a terminal, which goes when the block is over; elsewhere a line `SOON` after its
    begin and one every `AGAIN` seconds, each of which ends in "...". The default stream is standard
    error."""
    console = Console(file=stream or sys.stderr)
    if console.is_terminal:
        with _spinning(what, console):
            yield
        return
    over = threading.Event()
    teller = threading.Thread(target=_tell_until, args=(over, what, console.file), daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        # A line must not stand among what the caller prints next.
        teller.join()


@contextmanager
def _spinning(what: str, console: Console) -> Iterator[None]:
    columns = (SpinnerColumn(), TextColumn("{task.description} …"), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as shown:
        shown.add_task(escape(what), total=None)
        yield


def _tell_until(over: threading.Event, what: str, stream: TextIO) -> None:
    began, wait = time.monotonic(), SOON
    while not over.wait(wait):
        passed = time.monotonic() - began
        spent = f", {duration(passed)}" if passed >= AGAIN else ""
        stream.write(f"engram: {what}{spent} ...\n")
        stream.flush()
        wait = AGAIN


def duration(seconds: float) -> str:
    """Two units at most: "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def headlines(figures: Mapping[str, _Figure]) -> dict[str, _Figure]:
    """The metrics of `HEADLINES` among a run's metrics, under their short names."""
    found = {}
    for label, names in HEADLINES.items():
        for name in (label, *names):
            if name in figures:
                found[label] = figures[name]
                break
    return found


def describe(figures: Mapping[str, float]) -> str:
    """ "reward 0.412  recall 0.330  failed turns 12": the headlines, four significant digits each,
    and what is wrong."""
    shown = headlines(figures)
    for name, label in TROUBLES.items():
        total = sum(value for key, value in figures.items() if key.startswith(f"{name}{{"))
        if total:
            shown[label] = total
    return "  ".join(f"{label} {value:.4g}" for label, value in shown.items())


class _Pace:
    """Time left of a stage, from the steps since its first report: a resumed stage must not count
    its earlier steps as free."""

    def __init__(self, total: int, clock: Callable[[], float]):
        self.total, self._clock = total, clock
        self._first: tuple[int, float] | None = None

    def left(self, step: int) -> float | None:
        """Seconds, or None while nothing is known."""
        if self._first is None:
            self._first = step, self._clock()
        first_step, began = self._first
        if step <= first_step:
            return None
        return (self._clock() - began) / (step - first_step) * max(0, self.total - step)


class LineProgress:
    """One line per `every` seconds, and always for a stage's last step. Where nothing is said for
    `quiet` seconds, such as while workers start and compile, what it was at comes again."""

    def __init__(
        self,
        stream: TextIO,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        quiet: float = 15.0,
    ):
        self._stream, self._every, self._clock, self._quiet = stream, every, clock, quiet
        self._name, self._pace = "", _Pace(0, clock)
        self._printed, self._shown = float("-inf"), 0
        self._at, self._since = "", time.monotonic()
        """The last line, in short, and when it was said."""
        self._said = threading.Condition()
        self._closed = False
        self._watcher: threading.Thread | None = None

    def stage(self, name: str, total: int, unit: str = "steps") -> None:
        self._name, self._pace = name, _Pace(total, self._clock)
        self._printed, self._shown = self._clock(), 0
        self._say(f"{name}: {total} {unit}", f"{name} 0/{total}")
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()

    def update(self, step: int, **figures: float) -> None:
        left, now = self._pace.left(step), self._clock()
        last = step >= self._pace.total
        if step == self._shown or (not last and now - self._printed < self._every):
            return
        self._printed, self._shown = now, step
        at = f"{self._name} {step}/{self._pace.total}"
        time_left = "" if last or left is None else f"{duration(left)} left"
        self._say("  ".join(part for part in (at, describe(figures), time_left) if part), at)

    def note(self, text: str) -> None:
        self._say(text, text if len(text) <= SHORT else self._at)

    def doing(self, what: str) -> AbstractContextManager[None]:
        return doing(what, self._stream)

    def close(self) -> None:
        with self._said:
            self._closed = True
            self._said.notify()
        if self._watcher is not None:
            self._watcher.join()
        self._stream.flush()

    def _say(self, line: str, at: str) -> None:
        with self._said:
            self._write(line)
            self._at, self._since = at, time.monotonic()
            self._said.notify()

    def _watch(self) -> None:
        with self._said:
            while not self._closed:
                if not self._said.wait(self._quiet):
                    self._write(f"{self._at}, {duration(time.monotonic() - self._since)} ...")

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class TerminalProgress:
    """A live bar; notes and finished stages stay above it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._console, self._clock = console, clock
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._pace = _Pace(0, clock)

    def stage(self, name: str, total: int, unit: str = "steps") -> None:
        # A finished stage keeps its bar: the reader sees what each one cost and reached.
        self._bars.start()
        self._pace = _Pace(total, self._clock)
        self._task = self._bars.add_task(name, total=total, left="", figures="")

    def update(self, step: int, **figures: float) -> None:
        if self._task is None:
            raise RuntimeError("Progress.update before Progress.stage")
        left = self._pace.left(step)
        finished = step >= self._pace.total
        self._bars.update(
            self._task,
            completed=step,
            left="" if finished or left is None else f"{duration(left)} left",
            figures=describe(figures),
        )

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def doing(self, what: str) -> AbstractContextManager[None]:
        return _spinning(what, self._console)

    def close(self) -> None:
        self._bars.stop()
