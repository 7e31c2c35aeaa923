"""Settings of a loop with people: rounds of questions, a reward model of all answers so far, and
reinforcement learning by it (`engram feedback`)."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from common.config.locations import Location
from common.config.run import Run
from common.config.section import Section

BEFORE_RL = ("lm_text", "lm_sft")
"""Stages that may come before lm_rl: the policy has them before the first question."""
SHOWN = "lm_sft"
"""The one of them that learns demonstrations."""


class Feedback(Section):
    """The loop and its two runs. Names, data of the reward model and the models that a round goes
    on with are set round by round."""

    name: str
    """Name of the loop's folder; its runs are called NAME-round-K and NAME-round-K-reward."""
    runs: Location = Field("runs", validate_default=True)
    """Folder of the loop and of its runs, on this machine."""
    seed: int = Field(0, ge=0)
    """Seed of everything random."""
    rounds: int = Field(3, ge=1)
    """Rounds at most."""
    demonstrations: int = Field(0, ge=0)
    """Prompts that people are asked to answer themselves before the first round: lm_sft learns from
    their answers. 0: none."""
    until_no_gain: bool = False
    """End before that, once people do not prefer the answers of a round's policy to those of the
    round before beyond the 95 % interval."""
    questions: int = Field(200, ge=1)
    """Questions that people are asked in a round."""
    labels: int | None = Field(None, ge=1)
    """Questions that are judged or skipped when a round goes on, and the same of the prompts that
    ask for demonstrations; None: all."""
    answers: int = Field(2, ge=2, le=4)
    """Answers to a question."""
    candidates: int = Field(800, ge=1)
    """Prompts answered in a round. Those are asked of whose ranking the last reward model is least
    sure; in the first round, the first ones."""
    compared: float = Field(0.25, ge=0, le=1)
    """Share of the questions, from the second round on, in which the policy of the round before
    gives half of the answers: what people say of them is the win rate of the new one."""
    weight: float = Field(1.0, gt=0)
    """Weight of the reward model among the rewards of the policy."""
    policy: Run
    """The run that trains the policy: a causal language model, prompts, and stages that end with
    lm_rl. Stages before it run once, before the first round; lm_sft again, before a round's lm_rl,
    where people wrote answers since it ran. It learns from all that they wrote so far, with
    data.pairs. Rewards beside the reward model; left out: there are none."""
    reward_model: Run
    """The run that trains a round's reward model, with a backbone."""

    @model_validator(mode="before")
    @classmethod
    def _names_its_runs(cls, settings: Any) -> Any:
        """The loop's two runs may leave out what it sets itself."""
        if not isinstance(settings, dict):
            return settings
        given = dict(settings)
        shared = {key: settings[key] for key in ("runs", "seed") if key in settings}
        for key, own in (
            ("policy", {}),
            ("reward_model", {"data": {"kind": "preferences", "train": ["labels.jsonl"]}}),
        ):
            if isinstance(given.get(key), dict):
                named = {"name": f"{settings.get('name')}-{key}"}
                given[key] = own | named | shared | given[key]
        return given

    @model_validator(mode="after")
    def _can_go_round(self) -> Self:
        if self.policy.model.causal is None or not self.policy.data.prompts:
            raise ValueError("policy: takes model.causal and data of kind prompts")
        stages = [stage.stage for stage in self.policy.stages]
        if stages[-1:] != ["lm_rl"] or any(name not in BEFORE_RL for name in stages[:-1]):
            raise ValueError(
                f"policy.stages: are {', '.join(stages)}; give lm_rl, after lm_text or lm_sft or "
                "nothing"
            )
        if self.demonstrations and SHOWN not in stages:
            raise ValueError(
                f"demonstrations: {self.demonstrations} are asked for, and policy.stages has no "
                f"{SHOWN} that learns from them"
            )
        own = [stage.own_model for stage in self.reward_model.stages]
        if len(own) != 1 or own[0] is None:
            raise ValueError("reward_model.stages: give one stage reward_model with a backbone")
        if self.labels is not None and self.labels > self.questions:
            raise ValueError(
                f"labels: waits for {self.labels} of {self.questions} questions (questions)"
            )
        return self
