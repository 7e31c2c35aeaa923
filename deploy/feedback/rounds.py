"""The runs of a loop with people, round by round: what each is called, starts from and learns from.
Functions of the settings and of the data that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.config.feedback import SHOWN, Feedback
from common.config.rewards import RewardMix
from common.config.run import Run
from common.data.datasets.prompts import load_prompts

REWARD = "people"
"""Name of the reward model among the rewards of the policy."""


def folder(loop: Feedback) -> Path:
    return Path(loop.runs, loop.name)


def questions_file(loop: Feedback, number: int) -> Path:
    return folder(loop) / "questions" / f"round-{number:02d}.jsonl"


def preferences_file(loop: Feedback, number: int) -> Path:
    """All comparisons up to a round: what its reward model learns from."""
    return folder(loop) / "preferences" / f"round-{number:02d}.jsonl"


def demonstrations_file(loop: Feedback, number: int) -> Path:
    """All answers that people wrote up to a round, where some of them are new in it; of round 0,
    their demonstrations before the first round."""
    return folder(loop) / "demonstrations" / f"round-{number:02d}.jsonl"


def policy_name(loop: Feedback, number: int) -> str:
    return f"{loop.name}-round-{number}"


def reward_name(loop: Feedback, number: int) -> str:
    return f"{policy_name(loop, number)}-reward"


def has_sft(loop: Feedback) -> bool:
    """Whether the policy learns demonstrations."""
    return SHOWN in [stage.stage for stage in loop.policy.stages]


def begins_with_a_run(loop: Feedback) -> bool:
    """Whether the policy is trained before people compare its answers."""
    return bool(_first_stages(loop))


def _first_stages(loop: Feedback) -> list[str]:
    """Stages before the first lm_rl. lm_sft is one of them where it has something to learn from:
    demonstrations, data.pairs, or prompts with an answer."""
    before: list[str] = [stage.stage for stage in loop.policy.stages[:-1]]
    data = loop.policy.data
    if (
        not has_sft(loop)
        or loop.demonstrations
        or data.pairs  # type: ignore[union-attr]
        or any(row.interactions[0].answer for name in data.train for row in load_prompts(name))  # type: ignore[union-attr]
    ):
        return before
    return [name for name in before if name != SHOWN]


def model_after(loop: Feedback, number: int) -> str:
    """The policy after a round, as `model.causal.path`; after round 0 before the first question."""
    if number or begins_with_a_run(loop):
        return str(Path(loop.runs, policy_name(loop, number)))
    assert loop.policy.model.causal is not None
    return loop.policy.model.causal.path


def policy_run(loop: Feedback, number: int, demonstrations: Path | None = None) -> Run:
    """The run of a round. Round 0: the stages before lm_rl. demonstrations: what people wrote so
    far, which lm_sft learns before lm_rl, where the configuration has it."""
    tree = loop.policy.model_dump(mode="json")
    *before, last = tree["stages"]
    tree |= _place(loop, policy_name(loop, number))
    if demonstrations is not None:
        tree["data"]["pairs"] = [*tree["data"]["pairs"], str(demonstrations)]
    if number == 0:
        first = _first_stages(loop)
        return Run.model_validate(
            tree | {"stages": [stage for stage in before if stage["stage"] in first]}
        )
    tree["model"]["causal"]["path"] = model_after(loop, number - 1)
    tuned = [stage for stage in before if stage["stage"] == SHOWN]
    tree["stages"] = [last]
    if demonstrations is not None and tuned:
        tree["stages"] = [tuned[-1], last]
    paid = {
        "name": REWARD,
        "path": str(Path(loop.runs, reward_name(loop, number))),
        "weight": loop.weight,
    }
    alone = "rewards" not in loop.policy.model_fields_set
    for mix in ("single", "cumulative", "long_term"):
        if alone:
            tree["rewards"][mix] = RewardMix().changed(lambda _name, _part: None).model_dump()
        tree["rewards"][mix]["models"] = [*tree["rewards"][mix]["models"], paid]
    return Run.model_validate(tree)


def reward_run(loop: Feedback, number: int) -> Run:
    tree = loop.reward_model.model_dump(mode="json") | _place(loop, reward_name(loop, number))
    tree["data"]["train"] = [str(preferences_file(loop, number))]
    return Run.model_validate(tree)


def _place(loop: Feedback, name: str) -> dict[str, Any]:
    return {"name": name, "runs": loop.runs, "seed": loop.seed}
