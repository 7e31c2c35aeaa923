"""Metrics of training: losses of supervised stages, optimiser steps, and memory."""

from __future__ import annotations

from common.telemetry.metric import TOKENS, Metric, counter, gauge, histogram, mean

TRAIN: list[Metric] = [
    mean(
        "train/loss_lm",
        "nats",
        "predicted tokens",
        "Next-token loss of the decoder",
        better="lower",
    ),
    mean(
        "train/loss_masked_lm",
        "nats",
        "masked tokens",
        "Masked-token loss of the encoder",
        better="lower",
    ),
    mean(
        "train/loss_neighbours",
        "nats",
        "tokens told",
        "Loss of the tokens around a token, told from its encoding",
        better="lower",
    ),
    mean(
        "train/accuracy_neighbours",
        "fraction",
        "tokens told",
        "Share of the tokens around a token that its encoding ranks first",
        better="higher",
    ),
    mean(
        "train/loss_router",
        "1",
        "optimiser steps",
        "Load-balancing loss of mixture-of-experts layers",
        better="lower",
    ),
    mean(
        "train/accuracy_lm",
        "fraction",
        "predicted tokens",
        "Share of tokens the decoder ranks first",
        better="higher",
    ),
    mean(
        "train/accuracy_masked_lm",
        "fraction",
        "masked tokens",
        "Share of masked tokens the encoder ranks first",
        better="higher",
    ),
    mean(
        "train/loss_preference",
        "nats",
        "prompts",
        "Loss of the reward model on ranked answers",
        better="lower",
    ),
    mean(
        "train/loss_centering",
        "reward^2",
        "prompts",
        "Square of the sum of the rewards of two answers",
        better="lower",
    ),
    mean(
        "train/accuracy_preference",
        "fraction",
        "prompts",
        "Share of pairs whose better answer has the higher reward",
        better="higher",
    ),
    mean(
        "train/reward_margin",
        "reward",
        "prompts",
        "Reward of the better answer less that of the worse",
        better="higher",
    ),
    mean(
        "train/memory_cosine",
        "cosine",
        "memory writes",
        "Cosine of the written memory and its label",
        better="higher",
    ),
    mean("train/gradient_norm", "1", "optimiser steps", "Gradient norm before clipping"),
    mean(
        "train/part_gradient_norm",
        "1",
        "optimiser steps",
        "Gradient norm of a part of the model, or of a head beside it, before clipping",
        ("part",),
    ),
    mean(
        "train/gradient_clipped",
        "fraction",
        "optimiser steps",
        "Share of steps whose gradient was clipped",
    ),
    gauge(
        "train/learning_rate",
        "1",
        "last",
        "this moment",
        "Learning rate of the decoder, and of what has none of its own",
    ),
    gauge("train/learning_rate_critic", "1", "last", "this moment", "Learning rate of the critic"),
    gauge(
        "train/trainable_parameters",
        "parameters",
        "last",
        "this moment",
        "Parameters that are trained; those of the policy in MRL",
    ),
    gauge(
        "train/part_learning_rate",
        "1",
        "last",
        "this moment",
        "Learning rate of a part of the model in a stage whose parts begin one after another "
        "(unfreeze, decoder_only_steps); 0: it is frozen",
        ("part",),
    ),
    counter(
        "train/tokens", "tokens", "one token trained on, padding left out", "Tokens trained on"
    ),
    counter(
        "train/sequences",
        "sequences",
        "one sequence or conversation trained on",
        "Sequences trained on",
    ),
    counter(
        "train/steps_passed_over",
        "steps",
        "one optimiser step of the whole learner group",
        "Steps that no rank took because a gradient overflowed in float16; the loss scale fell",
    ),
    counter(
        "train/steps", "steps", "one optimiser step of the whole learner group", "Optimiser steps"
    ),
    gauge(
        "train/tokens_per_second",
        "tokens/s",
        "sum",
        "seconds of training, summed over ranks",
        "Training throughput",
        better="higher",
    ),
]

MEMORY: list[Metric] = [
    mean("memory/change", "1", "memory writes", "Mean squared change of memory by a write"),
    mean(
        "memory/growth",
        "doublings",
        "memory writes after the first",
        "Logarithm (base 2) of memory's root mean square after a write over that before",
    ),
    mean(
        "memory/replaced",
        "fraction",
        "memory writes of a layer",
        "Share of memory that a write replaces: how far its gate is open; absent without gates",
    ),
    mean(
        "ppo/loss_memory_change",
        "1",
        "memory writes",
        "Mean squared change of memory by a write, times sqrt(turn)",
    ),
    mean("memory/resets", "fraction", "episodes", "Share started from fresh memory"),
    histogram(
        "memory/written_tokens",
        "tokens",
        TOKENS,
        "memories that the policy wrote as text",
        "Tokens of a memory, the one that ends it included",
    ),
    mean(
        "memory/written_cut",
        "fraction",
        "memories that the policy wrote as text",
        "Share that its budget of tokens ended, and not the policy",
        better="lower",
    ),
    mean(
        "memory/written_empty",
        "fraction",
        "memories that the policy wrote as text",
        "Share without any text",
        better="lower",
    ),
    mean(
        "memory/openness",
        "fraction",
        "memory writes of the layer, in a sample of episodes",
        "Share of memory that a write replaces; absent where memory has no gates",
        ("layer",),
    ),
    mean(
        "memory/slots_kept",
        "fraction",
        "slots of all layers times memory writes, in a sample of episodes",
        "Share of slots that a write changes by less than a thousandth of their norm",
    ),
    mean(
        "memory/norm",
        "1",
        "layers of memories after so many writes, in a sample of episodes",
        "Frobenius norm of a layer's memory; writes are 1, 2, 4, 8 …, the opening included",
        ("writes",),
    ),
    mean(
        "memory/drift",
        "1",
        "episodes whose last memory came with them",
        "Distance of the memory at the end of a conversation, as the rollout worker wrote it, from "
        "what the learner computes of the same tokens, relative to its norm",
        better="lower",
    ),
    mean(
        "memory/effective_rank",
        "dimensions",
        "layers of memories after so many writes, in a sample of episodes",
        "Exponential of the entropy of a layer's normalised singular values (Roy & Vetterli 2007): "
        "1 where all slots say the same, at most the number of slots",
        ("writes",),
        "higher",
    ),
]
