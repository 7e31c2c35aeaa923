"""Text games as an environment: a prompt made of the game, an answer taken as an action.

A prompt holds the objective, the last steps, what is seen and carried, and the valid actions, by
the template of the settings. Steps that were shown instead of played (`examples`) stand among the
last steps, and nowhere else. The game itself runs in another process (`game_process.py`): it is
given an action as soon as the answer is complete, and works on it while others are answered.
"""

from __future__ import annotations

import random
import re
from collections import deque
from dataclasses import dataclass

from common.config.textworld import TextWorldEnvironment, TextWorldExamples
from common.episode import Interaction, Task
from common.failures import DataFailure
from common.seeding import derive
from rollout.environments.game_child import GameState
from rollout.environments.game_process import GameProcess, game_files
from rollout.protocols import Observation, Outcome, Start

PUNCTUATION = ".,?!:;"
"""Each ends an action and belongs to it."""
LONGEST_COMMAND = 100
"""Characters; games read little more."""
_FOREIGN = re.compile(r"[^a-z0-9' -]+")
NOTHING = "nothing"
"""In an inventory that is not worth a mention."""


def action_of(answer: str, marker: str = "") -> str:
    """The action in an answer: what follows the marker, up to the end of its line or of its first
    sentence. Neither ends it before a letter or a digit has appeared. Empty where the marker is
    missing."""
    _, found, text = answer.partition(marker) if marker else ("", "yes", answer)
    if not found:
        return ""
    begun = False
    for i, letter in enumerate(text):
        begun = begun or letter.isalnum()
        if begun and letter == "\n":
            return text[:i].strip()
        if begun and letter in PUNCTUATION:
            return text[: i + 1].strip()
    return text.strip()


def command_of(action: str) -> str:
    """An action as games take it: small letters and digits, single spaces. Other characters may
    mean something to what interprets games: a backslash begins its own commands."""
    return " ".join(_FOREIGN.sub(" ", action.lower()).split())[:LONGEST_COMMAND]


@dataclass
class Tally:
    """Counts of an episode."""

    steps: int = 0
    """Actions of the policy."""
    invalid: int = 0
    examples: int = 0
    followed: int = 0
    """Commands of the walkthrough that were taken so far, in order."""


class TextWorld:
    """One episode of one game."""

    def __init__(self, settings: TextWorldEnvironment):
        self._settings = settings
        self._game: GameProcess | None = None
        self._history: deque[str] = deque(maxlen=settings.history)
        self._draw = random.Random(0)
        self._action: str | None = None
        """Action that the game was given and has not been asked for."""
        self.tally = Tally()

    def reset(self, task: Task) -> Start:
        """Raises DataFailure where the game does not begin, or ends before anything is asked."""
        files = game_files(self._settings.games)
        self._draw = random.Random(derive(task.seed, "examples"))
        file = files[derive(task.seed, "game") % len(files)]
        self._game = GameProcess(file, self._settings.deadline)
        self._show_examples()
        if self.state.over:
            raise DataFailure(f"game {file}: an example ended it before anything was asked")
        return Start(self._observation())

    def begin(self, answer: str) -> None:
        """Give the game an answer's action; `step` fetches what comes of it."""
        assert self._game is not None, "reset comes before begin"
        self._action = action_of(answer, self._settings.marker)
        self._game.send(command_of(self._action))

    def step(self, answer: str) -> Outcome:
        if self._action is None:
            self.begin(answer)
        before, state = self._took()
        self.tally.steps += 1
        self.tally.invalid += not state.taken
        paid = self._paid(before, state)
        if not state.over:
            self._show_examples()
        ended = self.state.over
        return Outcome(None if ended else self._observation(), paid, figures=self._figures())

    def close(self) -> None:
        game, self._game = self._game, None
        if game is not None:
            game.close()

    @property
    def state(self) -> GameState:
        assert self._game is not None, "reset comes first"
        return self._game.state

    @property
    def listed(self) -> list[str]:
        """Valid actions that prompts list."""
        return self._listed(self.state)

    def _listed(self, state: GameState) -> list[str]:
        hidden = self._settings.unlisted
        return [each for each in state.valid if not each.startswith(hidden)]

    @property
    def next_of_walkthrough(self) -> str:
        """The next command that leads to the end; empty where none is known or it is not
        possible."""
        state = self.state
        static = state.walkthrough[self.tally.followed : self.tally.followed + 1]
        return next((each for each in (state.policy[:1] or static) if each in state.valid), "")

    # --- steps ------------------------------------------------------------------------------------

    def _took(self) -> tuple[GameState, GameState]:
        """The game before and after the action that it was given."""
        game, action = self._game, self._action
        assert game is not None, "reset comes first"
        assert action is not None, "begin comes first"
        before, self._action = game.state, None
        after = game.receive()
        self._history.append(
            self._settings.step.format(**self._seen(before), action=action.rstrip(PUNCTUATION))
        )
        rest = before.walkthrough[self.tally.followed : self.tally.followed + 1]
        self.tally.followed += rest == [command_of(action)]
        return before, after

    def _show_examples(self) -> None:
        """Take actions in the policy's place while the draw says so."""
        settings = self._settings.examples
        while not self.state.over and self._draw.random() < settings.probability:
            found = self.next_of_walkthrough if settings.actions == "walkthrough" else ""
            self.begin_command(found or self._draw.choice(self.listed or self.state.valid))
            self._took()
            self.tally.examples += 1

    def begin_command(self, command: str) -> None:
        """Give the game a command that is no answer."""
        assert self._game is not None, "reset comes first"
        self._action = command
        self._game.send(command)

    def _paid(self, before: GameState, after: GameState) -> float:
        pay = self._settings.rewards
        total = pay.point * (after.score - before.score) + pay.living
        total += 0.0 if after.taken else pay.invalid
        return total + pay.win * after.won + pay.lose * after.lost

    def _figures(self) -> dict[str, float]:
        state, tally = self.state, self.tally
        return {
            "score": state.score / state.most if state.most else float(state.won),
            "won": float(state.won),
            "lost": float(state.lost),
            "walkthrough": tally.followed / max(1, len(state.walkthrough)),
            "invalid": tally.invalid / max(1, tally.steps),
            "examples": float(tally.examples),
        }

    # --- prompts ----------------------------------------------------------------------------------

    def _observation(self) -> Observation:
        parts = self._seen(self.state)
        query = self._settings.template.format(
            objective=_one_line(self.state.objective), history="".join(self._history), **parts
        )
        lines = (re.sub(r" {2,}", " ", line).strip() for line in query.splitlines())
        return Observation("\n".join(lines), reference=self.next_of_walkthrough)

    def _seen(self, state: GameState) -> dict[str, str]:
        """Parts of a prompt that a state has."""
        inventory = _one_line(state.inventory)
        listed = self._listed(state)
        return {
            "observation": _one_line(state.observation),
            "room": _one_line(state.room),
            "inventory": "" if NOTHING in inventory else inventory,
            "actions": f"Your possible actions are {_joined(listed)}." if listed else "",
        }


def walkthroughs(settings: TextWorldEnvironment) -> list[list[Interaction]]:
    """`walkthrough` of each of the games."""
    return [walkthrough(settings, file) for file in game_files(settings.games)]


def walkthrough(settings: TextWorldEnvironment, file: str) -> list[Interaction]:
    """The prompts of a game as its walkthrough leads through it, each with the action as answer:
    what supervised fine-tuning learns from. Raises DataFailure where the game cannot be played or
    the walkthrough does not win it."""
    alone = {"games": (file,), "examples": TextWorldExamples()}
    game = TextWorld(settings.model_copy(update=alone))
    lead = f"{settings.marker} " if settings.marker else ""
    found = []
    try:
        asked = game.reset(Task("walkthrough", None, 0, environment="textworld")).observation
        for command in game.state.walkthrough:
            if asked is None:
                break
            found.append(Interaction(asked.query, lead + command))
            asked = game.step(lead + command).observation
        if not game.state.won:
            raise DataFailure(f"game {file}: its walkthrough does not win it")
    finally:
        game.close()
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _joined(names: list[str]) -> str:
    """a, b, or c"""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, or {names[-1]}"
