"""One optimiser step, the same for every stage: combine losses over ranks, backward, sum gradients,
clip, AdamW.

The learning rate is a pure function of the step, so there is no scheduler state to lose or to apply
twice on resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.config.stages import Optimizer
from common.failures import DataFailure
from learner.parallel.group import Group, sum_gradients

LOSS_SCALE = "loss_scale/"


@dataclass(frozen=True)
class LossTerm:
    """One part of a loss: a sum over this rank's items and how many there were. The mean is over
    the items of all ranks."""

    name: str
    sum: Tensor
    count: Tensor | float
    coefficient: float = 1.0
    """0: measured, not trained on."""


def combine(
    terms: Sequence[LossTerm], group: Group
) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """This rank's share of the loss, Σ coefficient · sum / global count, and (local sum, local
    count) by name for the metrics.

    Added up over ranks the shares are the loss of the whole batch, whatever lengths each rank
    holds.
    """
    sums: dict[str, tuple[float, float]] = {}
    (loss,) = combine_passes([terms], group, sums)
    return loss, sums


def combine_passes(
    passes: Iterable[Sequence[LossTerm]], group: Group, sums: dict[str, tuple[float, float]]
) -> Iterator[Tensor]:
    """The same for a batch that is computed pass by pass: the share of the loss of each pass, one
    after the other, so that a caller can let go of one before the next is computed. passes: at
    least one, and in each of them the same terms, whose count is that of all passes of this rank
    together. sums: filled with (local sum, local count) by name.

    Only the first pass asks the other ranks, so each rank may have a number of its own.
    """
    everywhere: list[float] = []
    for number, terms in enumerate(passes):
        if number == 0:
            counts = torch.tensor(
                [float(term.count) for term in terms], dtype=torch.float64, device=group.device
            )
            everywhere = group.sum(counts).tolist()
            sums |= {
                term.name: (0.0, own) for term, own in zip(terms, counts.tolist(), strict=True)
            }
        loss = torch.zeros((), device=group.device)
        for term, total in zip(terms, everywhere, strict=True):
            so_far, count = sums[term.name]
            sums[term.name] = (so_far + float(term.sum.detach()), count)
            if term.coefficient:
                # Weights make counts below 1, and of nothing the sum is 0.
                loss = loss + term.coefficient * term.sum / (total if total > 0 else 1.0)
        yield loss


def learning_rate_factor(settings: Optimizer, step: int, steps: int) -> float:
    """Share of the peak rate at `step` of `steps`: linear warm-up, then half a cosine down to
    `final_fraction`."""
    warmup = round(settings.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return settings.final_fraction + (1 - settings.final_fraction) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, done))
    )


class Trainer:
    """AdamW over the named, trainable parameters of some modules. Vectors (norms, biases, gates)
    are not decayed."""

    def __init__(
        self,
        modules: dict[str, nn.Module],
        settings: Optimizer,
        steps: int,
        group: Group,
        scale: Callable[[str], float] = lambda name: 1.0,
    ):
        """scale: share of its peak rate that a parameter is trained at, 0 where it is frozen; takes
        names such as "model.memory_attention.layers.0.gate.weight"."""
        self.settings, self.steps, self.group = settings, steps, group
        self._modules, self._scale = modules, scale
        self.named: dict[str, nn.Parameter] = {}
        """Parameters that are trained. Those that are frozen are no part of the optimiser: it would
        decay them, and begin their moments."""
        self.adamw = self._optimizer()
        self._norm = 0.0
        """Norm of the last gradient, before clipping."""
        self.loss_scale = group.precision.loss_scale()
        self.passed_over = False
        """Whether the last gradient overflowed, on any rank, so that no rank took a step."""

    def select(self) -> None:
        """Ask `scale` anew which parameters are trained. Those that were trained before keep their
        moments, those that are new begin without."""
        before = self.adamw.state
        self.adamw = self._optimizer()
        for parameter in self.named.values():
            if parameter in before:
                self.adamw.state[parameter] = before[parameter]

    def _optimizer(self) -> torch.optim.AdamW:
        """AdamW without moments for the parameters that are trained, which it collects. Their order
        is that of the modules, whenever each began: the norm of all gradients is a sum in it."""
        settings, self.named = self.settings, {}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for prefix, module in self._modules.items():
            for short, parameter in module.named_parameters():
                name = f"{prefix}.{short}"
                scale = self._scale(name)
                parameter.requires_grad_(scale > 0)
                if not scale:
                    continue
                self.named[name] = parameter
                own = settings.memory_learning_rate if ".memory_attention." in name else None
                rate = scale * (settings.learning_rate if own is None else own)
                decay = settings.weight_decay if parameter.dim() > 1 else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": held, "lr": rate, "peak": rate, "weight_decay": decay}
                for (rate, decay), held in groups.items()
            ],
            betas=(settings.beta1, settings.beta2),
            fused=self.group.device.type == "cuda" or None,
        )

    def rates(self) -> dict[str, float]:
        """The rate of the last step, by name of the parameter."""
        rate_of = {id(p): held["lr"] for held in self.adamw.param_groups for p in held["params"]}
        return {name: rate_of[id(parameter)] for name, parameter in self.named.items()}

    def update(
        self, losses: Iterable[Tensor], step: int, rate_factor: float | None = None
    ) -> tuple[float, float]:
        """Backward, sum over ranks, clip, step; returns (gradient norm before clipping, common
        learning rate).

        losses: parts of the loss. The graph of each is freed before the next is asked for, so a
        generator of many parts needs the memory of one. rate_factor: share of the peak rate; None:
        what the schedule has at `step`. No step is taken where a gradient is not finite: with a
        loss scale it is `passed_over` and the scale falls, otherwise DataFailure is raised.
        """
        factor = rate_factor
        if factor is None:
            factor = learning_rate_factor(self.settings, step, self.steps)
        for held in self.adamw.param_groups:
            held["lr"] = held["peak"] * factor
        self.adamw.zero_grad(set_to_none=True)
        for loss in losses:
            # A batch may reach none of the few parts that are trained; its gradient is 0.
            if loss.requires_grad:
                scale = self.loss_scale
                (loss if scale is None else scale.scaled(loss)).backward()
        sum_gradients(self.named.values(), self.group)
        if self.loss_scale is not None:
            self.loss_scale.unscale(self.adamw)
        norm = nn.utils.clip_grad_norm_(
            list(self.named.values()), self.settings.max_grad_norm, error_if_nonfinite=False
        )
        self._norm, self.passed_over = float(norm), False
        if not math.isfinite(self._norm):
            self.passed_over = self.loss_scale is not None and self.loss_scale.passed_over()
            if not self.passed_over:
                raise DataFailure(
                    f"step {step + 1}: {self._first_not_finite()}; nothing was learnt of it"
                )
        elif self.loss_scale is None:
            self.adamw.step()
        else:
            self.loss_scale.step(self.adamw)
        return self._norm, self.settings.learning_rate * factor

    def gradient_norms(self, part_of: Callable[[str], str]) -> dict[str, float]:
        """Norm of the last gradient before clipping, by part of what is trained: their squares add
        up to that of the whole.

        part_of: the part of a parameter, by its name.
        """
        held: dict[str, list[Tensor]] = {}
        for name, parameter in self.named.items():
            if parameter.grad is not None:
                held.setdefault(part_of(name), []).append(parameter.grad)
        if not held or self.passed_over:
            return {}
        norms = torch.stack([nn.utils.get_total_norm(gradients) for gradients in held.values()])
        # They were clipped in place, by the factor of `clip_grad_norm_`.
        clipped = max(1.0, (self._norm + 1e-6) / self.settings.max_grad_norm)
        return dict(zip(held, (clipped * norms).tolist(), strict=True))

    def _first_not_finite(self) -> str:
        """A sentence on the first tensor that is not finite."""
        # Weights first: one that is no number spoils the gradients of others.
        weights = [(f"weight {name}", parameter.data) for name, parameter in self.named.items()]
        gradients = [
            (f"gradient of {name}", parameter.grad)
            for name, parameter in self.named.items()
            if parameter.grad is not None
        ]
        for what, tensor in (*weights, *gradients):
            if not torch.isfinite(tensor).all():
                return f"the {what} is not finite"
        return "the gradients together are too large for a number"

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name, and the loss scale, for safetensors."""
        tensors = {}
        for name, parameter in self.named.items():
            for key, value in self.adamw.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value.detach().cpu().contiguous()
        if self.loss_scale is not None:
            tensors |= {f"{LOSS_SCALE}{k}": value for k, value in self.loss_scale.state().items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        scale = {
            key.removeprefix(LOSS_SCALE): value
            for key, value in tensors.items()
            if key.startswith(LOSS_SCALE)
        }
        if self.loss_scale is not None and scale:
            self.loss_scale.load_state(scale)
        for name, parameter in self.named.items():
            held = {
                key.rpartition("/")[2]: value
                for key, value in tensors.items()
                if key.rpartition("/")[0] == name
            }
            if held:
                # AdamW keeps its step count on the CPU and its moments beside the parameter.
                self.adamw.state[parameter] = {
                    key: value.clone() if key == "step" else value.clone().to(parameter.device)
                    for key, value in held.items()
                }
