"""Settings of the model."""

from __future__ import annotations

from typing import Literal

from common.config.locations import Location
from common.config.section import Section


class Model(Section):
    """A named size, with single dimensions overridden; null leaves a dimension as the size has
    it."""

    size: Literal["tiny", "nano", "micro", "mini"] = "tiny"
    """Named size that gives every dimension not set here."""
    checkpoint: Location | None = None
    """Start from this checkpoint's weights; its shape then wins and the overrides must agree with
    it."""
    width: int | None = None
    """Width of embeddings, hidden states and memory slots."""
    layers: int | None = None
    """Layers of the decoder, and as many of encoder, memory attention and memory."""
    heads: int | None = None
    """Heads that the width is divided into: a head has width / heads numbers."""
    query_heads: int | None = None
    """Query heads of self-, memory cross- and memory attention; fewer than `heads` is sparse query
    attention."""
    kv_heads: int | None = None
    """Key and value heads of the same; they divide the query heads."""
    slots: int | None = None
    """Rows of short-term memory per layer."""
    max_tokens: int | None = None
    """Longest interaction, in tokens."""
    decoder_ff: int | None = None
    """Inner width of a decoder feed-forward, or of each of its experts."""
    encoder_ff: int | None = None
    """Inner width of an encoder feed-forward."""
    experts: int | None = None
    """Experts of each decoder feed-forward; 0: dense."""
    experts_per_token: int | None = None
    """Experts that each token goes to. Several are weighted by their share of their probabilities,
    one by its probability as it is."""
    memory_attention: Literal["simple", "self", "interlayer", "gated_self_interlayer"] | None = None
    """What slots see of each other before they read the interaction: nothing, their layer, the mean
    over layers, or a gated mixture."""
    residual_gate: Literal["none", "static", "elementwise", "linear"] | None = None
    """How old and new memory mix: their sum, or by a gate that is a parameter, a parameter per
    status, or linear in all slots' statuses."""
    gate_activation: Literal["sigmoid", "tanh"] | None = None
    """sigmoid gives g·new + (1-g)·old, tanh gives (1+g)·new + (1-g)·old."""
    initial_memory: Literal["normal", "learned"] | None = None
    """Drawn from the episode's seed, or a trained parameter."""
    initial_memory_std: float | None = None
    """Standard deviation of initial memory, or of the parameter's first value."""
