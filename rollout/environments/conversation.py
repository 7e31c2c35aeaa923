"""A conversation as an environment: it asks the data set's queries one after another, whatever the
policy answers.

`Conversation` is the pure part, which the rollout engine steps through as well; `MemoryEnvironment`
puts `gymnasium.Env` around it. Its reward is always 0.0: rewards of an episode come from the reward
service, which sees it whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, SupportsFloat

import gymnasium
from gymnasium import spaces

from common.episode import Interaction, Row
from common.failures import InputError


class Conversation:
    """Where a row's conversation stands. Turn 0 is the opening, which goes to memory as it is; the
    policy answers from turn 1 on."""

    __slots__ = ("_turns", "turn")

    def __init__(self, row: Row):
        self._turns: tuple[Interaction, ...] = row.turns
        self.turn = 0

    @property
    def interaction(self) -> Interaction:
        """Query, reference answer, role and facts of the current turn."""
        return self._turns[self.turn]

    @property
    def done(self) -> bool:
        """Whether the current turn is the last."""
        return self.turn + 1 == len(self._turns)

    def advance(self) -> Interaction:
        """On to the next turn. Raises IndexError after the last."""
        if self.done:
            raise IndexError(f"the conversation ended with turn {self.turn}")
        self.turn += 1
        return self.interaction


class AnyText(spaces.Space[str]):
    """Every string. `gymnasium.spaces.Text` knows only strings over a listed alphabet."""

    def __init__(self, seed: int | None = None):
        super().__init__(shape=None, dtype=str, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return " ".join(
            self.np_random.choice(
                ["yes", "no", "Rex", "Żółw", "7"], size=self.np_random.integers(0, 6)
            )
        )

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText)

    __hash__ = None  # type: ignore[assignment]


class MemoryEnvironment(gymnasium.Env[str, str]):
    """Observation: the query. Action: the answer, as text or ids; no answer changes what is asked
    next.

    `reset` plays `options["row"]`, or one of `rows` drawn with the seed. The opening interaction,
    which a policy should write to its memory before it answers, is `info["opening"]`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own attribute)

    def __init__(self, rows: Sequence[Row] = ()):
        self.observation_space, self.action_space = AnyText(), AnyText()
        self._rows = tuple(rows)
        self._conversation: Conversation | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        row = (options or {}).get("row")
        if row is None:
            if not self._rows:
                raise InputError(
                    "MemoryEnvironment",
                    'nothing to play: give rows, or reset(options={"row": Row(…)})',
                )
            row = self._rows[int(self.np_random.integers(len(self._rows)))]
        if not row.interactions:
            raise InputError("MemoryEnvironment", "a row without follow-ups has no query to ask")
        conversation = self._conversation = Conversation(row)
        opening = conversation.interaction
        return conversation.advance().query, {
            "opening": (opening.query, opening.answer),
            **self._info(conversation),
        }

    def step(
        self, action: str | Iterable[int]
    ) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """The next query, 0.0, whether the conversation is over, False, and what turn the query
        belongs to.

        After the last answer the observation is the empty string.
        """
        conversation = self._conversation
        if conversation is None:
            raise gymnasium.error.ResetNeeded(
                "call reset before step, and again after the conversation ended"
            )
        if conversation.done:
            self._conversation = None
            return "", 0.0, True, False, {}
        return conversation.advance().query, 0.0, False, False, self._info(conversation)

    @staticmethod
    def _info(conversation: Conversation) -> dict[str, Any]:
        interaction = conversation.interaction
        return {
            "turn": conversation.turn,
            "role": interaction.role,
            "reference": interaction.answer,
            "facts": interaction.facts,
            "last": conversation.done,
        }
