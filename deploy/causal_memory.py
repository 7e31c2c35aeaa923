"""Memory of the processes of a causal run, by purpose.

Weights, gradients, optimiser, reference and caches are counted exactly. What a forward pass keeps
for its backward pass is measured on the model itself: it is computed with tensors that have shapes
and no contents. What the process takes beside is measured once, on a CPU
(tests/deploy/test_causal_memory.py compares the sum with a learner's peak). Sizes are for the
longest rows that the settings let in, so shorter ones take less.
"""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any, NamedTuple, cast

from common.config.causal import CausalModel
from common.config.mrl import MRL
from common.config.run import Run
from common.config.stages import StageSettings, SupervisedStage
from deploy.causal_shape import CausalShape
from learner.stages.planning import FLOAT_BYTES, OPTIMIZER_FLOATS

log = logging.getLogger(__name__)

PROCESS_BYTES = 650 << 20
"""Memory of a process that has imported torch (CPU build), transformers and Ray: measured."""
HEAP_SHARE = 0.7
"""Memory that the C heap holds beside activations, as a share of them: blocks of many sizes come
and go, and the gaps between them stay the process's. Measured: 0.6 to 1.2."""


class Pass(NamedTuple):
    """The batch of one forward pass with gradients."""

    rows: int
    length: int
    """Tokens of a row."""
    answer: int
    """Tokens of a row, at its end, whose logits are computed."""


def learner_bytes(run: Run, shape: CausalShape) -> dict[str, int]:
    """Memory of one learner rank by purpose, at its busiest stage."""
    stages = [_stage_bytes(run, stage, shape) for stage in run.stages]
    return max(stages, key=lambda parts: sum(parts.values()))


def rollout_bytes(run: Run, shape: CausalShape) -> dict[str, int]:
    """Memory of one rollout worker by purpose, with every slot at the longest sequence."""
    size = FLOAT_BYTES if run.rollout.dtype == "float32" else 2
    keys = run.rollout.slots * shape.layers * 2 * shape.key_width * shape.max_tokens
    logits = run.rollout.slots * shape.vocabulary * 3 * FLOAT_BYTES
    return {
        "process": PROCESS_BYTES,
        "weights": shape.total * size,
        "KV cache at most": keys * size,
        "logits": logits,
    }


def value_head_parameters(run: Run, shape: CausalShape) -> int:
    """Parameters of the critic of a causal policy, with its own copy of the model where it has
    one."""
    settings = run.model.causal
    assert settings is not None, "of a causal policy"
    width = shape.width
    head = width + 1 if settings.value_head.layers == 1 else 2 * width * (width + 2) + 1
    return head + (shape.total if settings.value_head.body == "own" else 0)


def _stage_bytes(run: Run, stage: StageSettings, shape: CausalShape) -> dict[str, int]:
    settings = run.model.causal
    assert settings is not None, "of a causal policy"
    kept = _activations(settings, shape, _pass_of(run, stage, shape), stage.needs_rollout)
    parts = {
        "process": PROCESS_BYTES,
        "weights": shape.total * FLOAT_BYTES,
        "gradients": shape.trained * FLOAT_BYTES,
        "optimiser": shape.trained * OPTIMIZER_FLOATS * FLOAT_BYTES,
    }
    if stage.needs_rollout:
        # Weights are copied to be published. No activations are there then.
        kept = max(kept, shape.total * FLOAT_BYTES)
        if settings.lora is None:
            # It keeps copies of what is trained; the rest, where there is one, is the policy's.
            parts["reference policy"] = shape.trained * FLOAT_BYTES
        if cast(MRL, stage).algorithm_settings.critic_input is not None:
            critic = value_head_parameters(run, shape)
            parts["value head"] = critic * (2 + OPTIMIZER_FLOATS) * FLOAT_BYTES
    return parts | {"activations, about": kept, "heap, about": int(HEAP_SHARE * kept)}


def _pass_of(run: Run, stage: StageSettings, shape: CausalShape) -> Pass:
    """The largest pass of a stage."""
    limit, longest = run.learner.micro_batch_tokens, shape.max_tokens
    if not stage.needs_rollout:
        rows = math.ceil(cast(SupervisedStage, stage).batch_size / run.learner.ranks)
        return Pass(min(rows, max(1, limit // longest)), longest, longest)
    rl, answer = cast(MRL, stage), min(run.rollout.sampling.max_new_tokens, longest - 1)
    turns = max(step.max_steps for step in rl.curriculum)
    if turns == 1 and run.data.longest_prompt is not None:
        longest = min(longest, run.data.longest_prompt + answer)
    shares = run.learner.ranks * rl.algorithm_settings.minibatches
    rows = math.ceil(rl.episodes / shares) * turns
    return Pass(min(rows, max(1, limit // longest)), longest, answer)


def _activations(settings: CausalModel, shape: CausalShape, batch: Pass, sampled: bool) -> int:
    """`activation_bytes`, or what is usual where the model does not compute without contents."""
    quiet = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, quiet.disabled = quiet.disabled, True
    try:
        return activation_bytes(settings, batch, sampled)
    except (RuntimeError, TypeError, ValueError, AttributeError) as unable:  # its own code's
        log.info("activations of %s are estimated: %s", settings.path, unable)
        layers = shape.layers * (16 * shape.width + 3 * shape.inner)
        logits = 4 * shape.vocabulary * batch.answer
        return batch.rows * (batch.length * layers + logits) * FLOAT_BYTES
    finally:
        quiet.disabled = disabled


def activation_bytes(settings: CausalModel, batch: Pass, sampled: bool) -> int:
    """Bytes that a forward pass keeps for its backward pass, losses included. sampled: whether they
    are those of reinforcement learning, and not of imitation.

    Raises InputError where there is no such model, and what the model raises where its code needs
    the contents of a tensor.
    """
    # Here and not at the top: they take seconds to import.
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    from common.models.causal import config_of
    from learner.lora import is_adapter
    from learner.policies.causal import adapted
    from learner.policies.trunk import trained_names
    from learner.rl.losses import token_entropy, token_log_probs

    config, kept = config_of(settings.path), _Kept()
    with torch.device("meta"):
        model = adapted(AutoModelForCausalLM.from_config(config).eval(), settings)
    last = trained_names(model, settings)
    for name, parameter in model.named_parameters():
        learns = settings.lora is None or is_adapter(name) if last is None else name in last
        parameter.requires_grad_(learns)
    with FakeTensorMode():
        _as_on_cpu(model)
        kept.leave_out(model.parameters())
        with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
            ids = torch.zeros(batch.rows, batch.length, dtype=torch.long)
            takes = "logits_to_keep" in inspect.signature(model.forward).parameters
            given: dict[str, Any] = {"logits_to_keep": batch.answer} if takes else {}
            states: Any = model(input_ids=ids, use_cache=False, **given)
            logits = states.logits[:, -batch.answer :].reshape(-1, config.vocab_size)
            targets = ids[:, -batch.answer :].reshape(-1)
            loss = token_log_probs(logits, targets).sum()
            if sampled:
                loss = loss + token_entropy(logits).sum()
    return kept.bytes


def _as_on_cpu(model: Any) -> None:
    """Give a model on the meta device tensors of the CPU, in the mode that makes them without
    contents: attention is computed there by other kernels, which keep less."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    new = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    if held is module._parameters:
                        new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = (new, tensor)
                held[name] = made[id(tensor)][0]


class _Kept:
    """Counts the storages of the tensors that autograd keeps, each once."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}
        self._left_out: set[int] = set()

    def leave_out(self, tensors: Any) -> None:
        self._left_out |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def add(self, tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._left_out:
            # The tensor is held, too: another one must not get the number of one that is gone.
            self._held[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self._held.values())
