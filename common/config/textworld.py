"""Settings of the text games that TextWorld plays (Côté et al. 2018)."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.config.locations import Location
from common.config.section import Section
from common.failures import nearest

PROMPTS = {
    "choose": "{objective} {history}{observation} {inventory} {actions} You choose the action to",
    "ask": "{objective} {history}{observation} {inventory} {actions} What do you do?",
    "state": "{objective} {history}State: {observation} Info: {inventory} {actions} You",
}
"""Prompts by name. The question works better than `state`, after which language models like to
repeat the inventory."""
PROMPT_PARTS = ("objective", "history", "observation", "room", "inventory", "actions")
STEP_PARTS = ("observation", "room", "inventory", "actions", "action")


def _require_parts(text: str, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    """Raises ValueError where a template names a part that there is not, or none of `needed`."""
    try:
        named = [name for _, name, _, _ in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"{text!r} is no template: {error}") from None
    for name in named:
        if name not in known:
            raise ValueError(f"{{{name}}} in {text!r} is no part; {nearest(name, known)}")
    if not set(needed) & set(named):
        parts = " or ".join(f"{{{name}}}" for name in needed)
        raise ValueError(f"{text!r} must contain {parts}")


class TextWorldExamples(Section):
    """Actions that are shown: taken in place of the policy's, remembered in the prompt's history,
    and no part of what is learnt from. What they earn is nobody's reward."""

    probability: float = Field(0.0, ge=0, lt=1)
    """Probability of such an action before each prompt."""
    actions: Literal["random", "walkthrough"] = "random"
    """random: one of the valid actions that prompts list. walkthrough: the next one of the game's
    own walkthrough, or a random one where that is not possible."""


class TextWorldRewards(Section):
    """Payment of an action: the sum of all that applies. It is the reward component
    `environment`."""

    point: float = 1.0
    """For each point of the game's score."""
    win: float = 2.0
    """For winning."""
    lose: float = -2.0
    """For losing."""
    invalid: float = -0.5
    """For an action that the game does not understand or does not allow."""
    living: float = 0.0
    """For any action; below 0 it makes long games dear."""


class TextWorldEnvironment(Section):
    """Text games made by TextWorld, which the package `textworld` plays, each in a process of its
    own. The task's seed says which game of `games` an episode plays."""

    kind: Literal["textworld"]
    """Which kind of environment this is."""
    games: tuple[Location, ...] = Field(min_length=1)
    """Game files (.z8, with the .json that TextWorld wrote beside it) or folders of them, on every
    node that runs rollout workers."""
    prompt: str = "choose"
    """Prompt: `choose`, `ask` or `state`, or a text with {objective}, {history}, {observation} (the
    game's last words), {room} (what is seen now), {inventory} (empty where nothing is carried) and
    {actions} (a sentence that lists valid ones)."""
    step: str = "{observation} {inventory} You {action}. "
    """An earlier step in {history}: what was seen then, and the {action}."""
    history: int = Field(3, ge=0)
    """Earlier steps in {history}: the last ones."""
    unlisted: tuple[Annotated[str, Field(min_length=1)], ...] = ("examine ",)
    """Valid actions that begin with one of these are not listed in prompts, and never drawn as
    examples; they stay valid."""
    marker: str = ""
    """Text that an action stands behind: what comes before it is a thought, which neither the game
    nor {history} sees. An answer without it holds no action. Empty: the whole answer is the
    action."""
    examples: TextWorldExamples = TextWorldExamples()
    """Actions that are shown."""
    rewards: TextWorldRewards = TextWorldRewards()
    """Payment of actions."""
    deadline: float = Field(20, gt=0)
    """Seconds in which a game must begin, or take an action; later its process is ended and its
    episode fails."""

    @property
    def template(self) -> str:
        """The prompt as a text with parts."""
        return PROMPTS.get(self.prompt, self.prompt)

    @field_validator("prompt")
    @classmethod
    def _is_a_prompt(cls, prompt: str) -> str:
        if prompt not in PROMPTS and "{" not in prompt:
            raise ValueError(f"{prompt!r} names no prompt; {nearest(prompt, PROMPTS)}")
        _require_parts(PROMPTS.get(prompt, prompt), PROMPT_PARTS, ("observation", "room"))
        return prompt

    @field_validator("step")
    @classmethod
    def _is_a_step(cls, step: str) -> str:
        _require_parts(step, STEP_PARTS, ("action",))
        return step

    @model_validator(mode="after")
    def _remembers_examples(self) -> Self:
        shown = self.history and "{history}" in self.template
        if self.examples.probability and not shown:
            raise ValueError(
                "examples are remembered in {history} alone: let prompt contain it, and history be "
                "above 0"
            )
        return self
