"""Metrics of the learner: episodes, evaluations and its own pace. Names and denominators:
`common/telemetry/registry.py`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from common.data.special_tokens import EOS, forced, thinks
from common.data.thoughts import thoughts
from common.episode import Episode, Turn
from common.telemetry.metrics import Metrics
from common.telemetry.series import parse_key
from learner.curriculum import Curriculum
from learner.evaluation.figures import Evaluation, Figure
from learner.evaluation.match import MATCH
from learner.hacking import Samples, record_answers, record_questions
from learner.parallel.group import Group
from learner.parallel.optimizer import Trainer
from learner.rl.experience import Experience
from learner.rl.kl import AdaptiveKL
from learner.unfreezing import Unfreezing
from reward_service.components.recall import (
    Words,
    conversation_values,
    named_values,
    words_of_values,
)


def record_kl(experience: Experience, group: Group, metrics: Metrics) -> float:
    """Mean KL to the reference per answer, over all ranks (k1 on what was sampled), with that of
    the memories that were written as text; it steers the KL coefficient."""
    total, answers, tokens = 0.0, 0, 0
    for episode, reference in zip(experience.episodes, experience.reference, strict=True):
        for action, log_probs in zip(episode.actions, reference, strict=True):
            total += sum(action.log_probs) - float(log_probs.sum())
            answers += action.answers
            tokens += len(action.log_probs)
    metrics.record("objective/kl", total / answers, weight=answers)
    metrics.record("objective/kl_per_token", total / tokens, weight=tokens)
    everywhere = group.sum(
        torch.tensor([total, float(answers)], dtype=torch.float64, device=group.device)
    )
    return float(everywhere[0] / everywhere[1])


def record_parts(trainer: Trainer, unfreezing: Unfreezing, metrics: Metrics) -> None:
    """The size of what is trained, the gradient of each part in the last step and, where parts
    begin to learn one after another, the rate of each."""
    for part, norm in trainer.gradient_norms(unfreezing.part).items():
        metrics.record("train/part_gradient_norm", norm, part=part)
    trained = sum(parameter.numel() for parameter in trainer.named.values())
    metrics.record("train/trainable_parameters", trained)
    if not unfreezing.phases:
        return
    rates = {unfreezing.part(name): rate for name, rate in trainer.rates().items()}
    for part in unfreezing.scales():
        metrics.record("train/part_learning_rate", rates.get(part, 0.0), part=part)


def record_episodes(
    experience: Experience, known: Collection[Words], metrics: Metrics, end: int = EOS
) -> Samples:
    """Record this rank's episodes, all of which are trained on; returns the answers that alarms on
    reward hacking show. known: values of the training data. end: the token that ends an answer."""
    samples = Samples(end)
    for key, value in experience.figures.items():
        name, labels, _ = parse_key(key)
        metrics.record(name, value, 1, **labels)
    for episode in experience.episodes:
        metrics.record("rollout/episode_turns", len(episode.answered))
        for name, value in episode.figures.items():
            metrics.record("rollout/environment", value, figure=name)
        metrics.record("memory/resets", episode.initial_memory is None)
        for thought in episode.thoughts:
            metrics.record("rollout/thought_tokens", len(thought.ids))
            metrics.record("rollout/thought_cut", thought.cut)
        for write in episode.writes:
            metrics.record("memory/written_tokens", len(write.ids))
            metrics.record("memory/written_cut", write.cut)
            metrics.record("memory/written_empty", not write.text)
        values = words_of_values(conversation_values(episode.turns)).union(known)
        scores = [turn.reward for turn in episode.answered if turn.reward is not None]
        if len(scores) == len(episode.answered):
            metrics.record("objective/return", sum(scores))
        for number, turn in enumerate(episode.answered, start=1):
            if thinks(turn.query_ids):
                metrics.record("rollout/thought_tokens", len(thoughts(turn)[0]))
                ended = forced(turn.query_ids, turn.answer_ids, turn.log_probs)
                metrics.record("rollout/thought_cut", any(ended))
            metrics.record("rollout/turns", 1)
            metrics.record("rollout/tokens", len(turn.answer_ids))
            metrics.record("rollout/answer_tokens", len(turn.answer_ids))
            metrics.record("rollout/no_eos_fraction", turn.answer_ids[-1] != end)
            if turn.facts:
                named = named_values(turn, values)
                record_questions(turn, named, metrics, samples)
                metrics.record("rollout/recall", named.recall, weight=named.asked)
                metrics.record("rollout/exact", named.exact)
                if named.precision is not None:
                    metrics.record(
                        "rollout/precision", named.precision, weight=named.right + named.wrong
                    )
            if turn.reward is not None:
                record_reward(number, turn, turn.reward, metrics)
        record_answers(episode, metrics, samples)
    return samples


def record_reward(number: int, turn: Turn, reward: float, metrics: Metrics) -> None:
    """The reward of a turn that was scored, and each component, over all turns, by the turn's
    number, from 1, and by the distance of what it asks for."""
    metrics.record("objective/scores", reward)
    metrics.record("reward/by_turn", reward, turn=span(number))
    for name, value in turn.rewards.items():
        metrics.record("reward/component", value, component=name, cohort="trained")
        metrics.record("reward/component_by_turn", value, component=name, turn=span(number))
    if turn.facts:
        distance = span(number - min(fact.said_in for fact in turn.facts))
        metrics.record("reward/by_distance", reward, distance=distance)
        for name, value in turn.rewards.items():
            metrics.record("reward/component_by_distance", value, component=name, distance=distance)


def span(number: int) -> str:
    """A label for a count from 1 on that may be of any size: each up to 8, then "9-16", "17-32",
    "33-64" and "65+"."""
    if number <= 8:
        return str(number)
    if number > 64:
        return "65+"
    above = 2 ** (number - 1).bit_length()
    return f"{above // 2 + 1}-{above}"


def record_staleness(episodes: Sequence[Episode], version: int, metrics: Metrics) -> None:
    """How many versions the weights that played are behind those that learn, `version`."""
    behind = [version - episode.weights_version for episode in episodes]
    if behind:
        metrics.record("rollout/staleness", sum(behind) / len(behind), weight=len(behind))
        metrics.record("rollout/staleness_max", max(behind))


def record_position(kl: AdaptiveKL, curriculum: Curriculum, metrics: Metrics) -> None:
    """Where the run stands, at the end of an iteration and before the curriculum counts it."""
    metrics.record("ppo/kl_coefficient", kl.coefficient)
    metrics.record("run/curriculum_step", curriculum.index)
    metrics.record("run/iteration", curriculum.done + 1)


def record_evaluation(found: Evaluation, metrics: Metrics) -> None:
    """The figures of one evaluation."""
    record_figures_of_facts(found.figures, metrics)
    record_recall(found.erased, "erased", metrics)
    seen = {"kept": found.figures, "erased": found.erased}
    for memory, figures in seen.items():
        for name in MATCH:
            # Over all turns: a label for each turn of a long conversation would be too many.
            for turn, share, count in _shares(figures[name]):
                if turn == "all":
                    metrics.record(f"eval/{name}", share, weight=count, memory=memory)
    for component, mean, count in _shares(found.figures["scores"]):
        if component == "total":
            metrics.record("eval/scores", mean, weight=count)
        else:
            metrics.record("eval/reward", mean, weight=count, component=component)
    for component, mean, count in _shares(found.erased["scores"]):
        metrics.record("eval/reward_erased", mean, weight=count, component=component)


def record_figures_of_facts(figures: Mapping[str, Figure], metrics: Metrics) -> None:
    """Recall, with memory kept, and the other figures of facts."""
    record_recall(figures, "kept", metrics)
    for name in ("exact", "precision", "changed", "outdated"):
        for distance, share, count in _shares(figures[name]):
            metrics.record(f"eval/{name}", share, weight=count, distance=distance)
    for order, share, count in _shares(figures["by_order"]):
        metrics.record("eval/by_order", share, weight=count, order=order)


def record_recall(figures: Mapping[str, Figure], memory: str, metrics: Metrics) -> None:
    """Recall by distance. memory: "kept" or "erased"."""
    for distance, share, count in _shares(figures["recall"]):
        if (distance, memory) == ("all", "kept"):
            metrics.record("eval/facts", count)
        metrics.record("eval/recall", share, weight=count, memory=memory, distance=distance)


def record_training(figures: Mapping[str, Figure], metrics: Metrics) -> None:
    """Figures of a sample of training conversations, which stand beside those of an evaluation."""
    for distance, share, count in _shares(figures["recall"]):
        metrics.record("eval/training_recall", share, weight=count, distance=distance)
    for name in MATCH:
        for turn, share, count in _shares(figures[name]):
            if turn == "all":
                metrics.record(f"eval/training_{name}", share, weight=count)


def _shares(figure: Figure) -> list[tuple[str, float, int]]:
    """(key, share, what it is of) of each key."""
    totals = figure.totals()
    return [(key, share, totals[key]) for key, share in figure.share().items()]


def record_step(trainer: Trainer, norm: float, rate: float, metrics: Metrics) -> None:
    """One step of an optimiser. norm: of its gradient before clipping."""
    metrics.record("train/learning_rate", rate)
    if trainer.passed_over:
        record_passed_over(trainer, metrics)
        return
    metrics.record("train/gradient_norm", norm)
    metrics.record("train/gradient_clipped", norm > trainer.settings.max_grad_norm)


def record_passed_over(trainer: Trainer, metrics: Metrics) -> None:
    """A step that no rank took."""
    if trainer.group.rank == 0:
        metrics.record("train/steps_passed_over", 1)


class Pace:
    """One rank's tokens per second between two rows. Not a mean of steps: a row sums what its ranks
    report."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0, 0.0

    def count(self, tokens: int, seconds: float, metrics: Metrics) -> None:
        metrics.record("train/tokens", tokens)
        self._tokens += tokens
        self._seconds += seconds

    def record(self, metrics: Metrics) -> None:
        """Once per row, and begin anew."""
        metrics.record("train/tokens_per_second", self._tokens / self._seconds)
        self._tokens, self._seconds = 0, 0.0
