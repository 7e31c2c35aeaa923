"""The stage reward_model: rewards under which the answer that people preferred wins.

Bradley–Terry on a scalar, with margin and centring, or the win probability of discrete scores
(learner/rl/preference_losses.py). A prompt counts as one whatever number of answers it has: all
their pairs are in one batch element (Ouyang 2022), or long rankings would outweigh pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from common.config.reward_stage import RewardModelStage
from common.config.run import MICRO_BATCH_TOKENS, Learner
from common.data.corpus import Corpus
from common.data.preferences import Preference
from common.failures import DataFailure, InputError
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.reward import RxTRewardModel
from common.seeding import derive
from common.storage.checkpoint import Checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics
from learner.checkpointing import WITH_ADAPTERS, checkpoint_model
from learner.evaluation.measure import run_of
from learner.evaluation.preferences import (
    PreferenceReport,
    measure,
    pairs_of,
    readings_of,
)
from learner.lora import adaptable_layers, add_lora, is_adapter_or_head
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.rl.preference_losses import (
    bradley_terry_loss,
    centering_penalty,
    choice_loss,
    discrete_loss,
)
from learner.stages.stage import WriteTokenizer
from learner.stages.supervised import Objective
from reward_service.reward_models.model import (
    MemoryPreferenceModel,
    PreferenceModel,
    Reading,
    expected_and_std,
    from_folder,
    in_passes,
)


def stage_model(
    settings: RewardModelStage, checkpoint: Checkpoint, in_stage: int
) -> PreferenceModel:
    """The model as this stage trains it: what the checkpoint holds, or at the stage's beginning a
    new one from the policy in it."""
    if settings.backbone is None and not in_stage:
        policy, tokenizer = checkpoint_model(checkpoint)
        return MemoryPreferenceModel(RxTRewardModel.from_policy(policy, settings.levels), tokenizer)
    with checkpoint.folder() as folder:
        return from_folder(checkpoint.where, folder, settings.max_tokens, training=True)


class RewardModelObjective(Objective):
    def __init__(
        self,
        settings: RewardModelStage,
        preferred: PreferenceModel,
        train: Sequence[Preference],
        held: Sequence[Preference],
        seed: int,
        micro_batch_tokens: int = MICRO_BATCH_TOKENS,
    ):
        """micro_batch_tokens: of one pass, padding included. Raises InputError naming the first
        preference that the model cannot read."""
        self.settings, self.preferred, self.held, self.seed = settings, preferred, held, seed
        self._micro_batch_tokens = micro_batch_tokens
        self.model: nn.Module = preferred.module
        self.modules: dict[str, nn.Module] = {"model": self.model}
        if settings.lora is not None:
            add_lora(self.model, settings.lora)
            # Not under "model": a checkpoint's model has the adapters merged in, and to go on they
            # are needed apart.
            self.modules = {WITH_ADAPTERS: self.model}
        self.readings = [_read(preferred, preference, i) for i, preference in enumerate(train)]
        self.margins = [preference.margin for preference in train]
        for i, preference in enumerate(held):
            _read(preferred, preference, i)

    @property
    def examples(self) -> int:
        return len(self.readings)

    def tokens(self, index: int, step: int) -> int:
        return sum(len(reading.tokens) for reading in self.readings[index])

    def trainable(self, name: str) -> bool:
        own = name.partition(".")[2]
        if self.settings.lora is not None:
            return is_adapter_or_head(own)
        return not (
            isinstance(self.model, RxTRewardModel) and own.startswith(self.model.writer_parameters)
        )

    def passes(self, indices: Sequence[int], step: int, group: Group) -> Iterator[list[LossTerm]]:
        torch.manual_seed(
            derive(self.seed, "dropout", step, group.rank)
        )  # so a resumed run drops what an uninterrupted one does
        readings = [self.readings[i] for i in indices]
        for chosen in prompts_in_passes(readings, self._micro_batch_tokens):
            part = self.terms([indices[i] for i in chosen], step, group)
            yield [replace(term, count=len(indices)) for term in part]

    def terms(self, indices: Sequence[int], step: int, group: Group) -> list[LossTerm]:
        chosen = [self.readings[i] for i in indices]
        readings = [reading for each in chosen for reading in each]
        if not readings:  # a rank without work takes part in the step
            nothing = torch.zeros((), device=group.device)
            return self._terms(nothing, nothing, nothing, nothing, 0)
        # One pass, but for a single prompt with more answers than fit in one.
        logits = in_passes(self.preferred.logits, readings, self._micro_batch_tokens)
        better, worse, prompt = (
            part.to(logits.device) for part in pairs_of([len(each) for each in chosen])
        )
        # Each prompt counts as one: its pairs share its weight.
        weight = 1.0 / torch.bincount(prompt, minlength=len(chosen))[prompt]
        prompts = len(chosen)
        margin = torch.tensor([self.margins[i] for i in indices], device=logits.device)[prompt]
        loss = self._loss(logits, better, worse, margin, weight, [len(each) for each in chosen])
        # Without a coefficient no backward pass would free the graph of what is measured alone.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._centering > 0):
            rewards, _ = expected_and_std(logits)
            centering = (centering_penalty(rewards[better], rewards[worse]) * weight).sum().float()
        ahead = (rewards[better] - rewards[worse]).detach()
        right, by = ((ahead > 0) * weight).sum().float(), (ahead * weight).sum().float()
        return self._terms(loss, centering, right, by, prompts)

    @property
    def _centering(self) -> float:
        """Coefficient of the penalty. Discrete scores have their own middle, and nothing to
        centre."""
        return self.settings.centering if self.preferred.levels == 1 else 0.0

    def _terms(
        self, loss: Tensor, centering: Tensor, right: Tensor, margin: Tensor, prompts: int
    ) -> list[LossTerm]:
        """The losses, given their sums over prompts."""
        return [
            LossTerm("train/loss_preference", loss, prompts),
            LossTerm("train/loss_centering", centering, prompts, self._centering),
            LossTerm("train/accuracy_preference", right, prompts, coefficient=0.0),
            LossTerm("train/reward_margin", margin, prompts, coefficient=0.0),
        ]

    def _loss(
        self,
        logits: Tensor,
        better: Tensor,
        worse: Tensor,
        margin: Tensor,
        weight: Tensor,
        answers: Sequence[int],
    ) -> Tensor:
        """Summed over prompts."""
        if self.preferred.levels > 1:
            return (discrete_loss(logits[better], logits[worse]) * weight).sum()
        rewards = logits[:, 0]
        if self.settings.ranking == "best":
            return torch.stack([choice_loss(part) for part in rewards.split(list(answers))]).sum()
        return (bradley_terry_loss(rewards[better], rewards[worse], margin) * weight).sum()

    def after_step(
        self, done: int, group: Group, metrics: Metrics, directory: RunDirectory
    ) -> None:
        """Every `evaluate_every` steps and at the end, which is kept in RUN/reward_model.json."""
        last = done == self.settings.total_steps
        if last or done % self.settings.evaluate_every == 0:
            result = self.evaluate(group, metrics)
            if last and group.rank == 0:
                directory.write_reward_model(result.to_json())

    def evaluate(self, group: Group, metrics: Metrics) -> PreferenceReport:
        """Measure on the held-out preferences; all ranks call it, and rank 0 records."""
        self.model.eval()
        result = measure(self.preferred, self.held, group)
        self.model.train()
        if group.rank == 0:
            metrics.record("eval/preference_accuracy", result.accuracy, result.pairs)
            metrics.record("eval/preference_accuracy_low", result.accuracy_low, result.pairs)
            metrics.record("eval/preference_accuracy_high", result.accuracy_high, result.pairs)
            metrics.record("eval/preference_loss", result.loss, result.pairs)
            metrics.record(
                "eval/preference_calibration_error", result.calibration_error, result.pairs
            )
        return result


def prompts_in_passes(readings: Sequence[tuple[Reading, ...]], limit: int) -> list[list[int]]:
    """Indices of prompts in groups whose answers have at most `limit` tokens together, with padding
    and with what memory is written with; those of like length together. A prompt that has more is a
    group by itself, and of no prompts there is one group."""
    widths = [max((len(each.tokens) for each in own), default=0) for own in readings]
    groups: list[list[int]] = [[]]
    rows = written = 0
    for i in sorted(range(len(readings)), key=lambda i: widths[i]):
        rows, written = (
            rows + len(readings[i]),
            written + sum(e.written_tokens for e in readings[i]),
        )
        if groups[-1] and widths[i] * rows + written > limit:
            groups.append([])
            rows, written = len(readings[i]), sum(each.written_tokens for each in readings[i])
        groups[-1].append(i)
    return groups


def preference_objective(
    settings: RewardModelStage, corpus: Corpus, checkpoint: Checkpoint, in_stage: int, seed: int
) -> tuple[RewardModelObjective, WriteTokenizer]:
    """On the preferences that people gave; those held out are measured on."""
    preferred = stage_model(settings, checkpoint, in_stage)
    directory = run_of(checkpoint.where)
    learner = Learner() if directory is None else directory.run().learner
    objective = RewardModelObjective(
        settings,
        preferred,
        corpus.preferences,
        corpus.held_preferences,
        seed,
        learner.micro_batch_tokens,
    )
    return objective, preferred.save_tokenizer


def backbone(settings: RewardModelStage, seed: int) -> tuple[nn.Module, WriteTokenizer]:
    """The model that `settings.backbone` names, with a new head; and what writes its tokenizer."""
    where = settings.backbone
    assert where is not None, "only a stage with a backbone begins with it"
    torch.manual_seed(derive(seed, "weights"))
    model = from_folder(where, where, settings.max_tokens, settings.levels, training=True)
    if settings.lora is not None:
        # refuses names that are not there, before anything is written
        adaptable_layers(model.module, settings.lora)
    return model.module, model.save_tokenizer


def require_adaptable(settings: RewardModelStage, policy: ReactiveTransformer) -> None:
    """Raises InputError where `lora` names layers that the reward model from `policy` lacks."""
    if settings.lora is not None:
        adaptable_layers(RxTRewardModel.from_policy(policy, settings.levels), settings.lora)


def _read(model: PreferenceModel, preference: Preference, index: int) -> tuple[Reading, ...]:
    try:
        return readings_of(model, preference)
    except DataFailure as misfit:
        raise InputError(
            f"data, preference {index + 1} ({preference.prompt[:40]!r} …)", str(misfit)
        ) from misfit
