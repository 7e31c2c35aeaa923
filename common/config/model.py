"""Settings of the model."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.config.causal import CausalModel
from common.config.locations import Location
from common.config.section import Section

PolicyKind = Literal["reactive", "causal"]
"""Kinds of policies, which tables of the rollout and of the learner have a line for."""


class Model(Section):
    """A named size, with single dimensions overridden; null leaves a dimension as the size has
    it."""

    size: Literal["tiny", "nano", "micro", "mini"] = "tiny"
    """Named size. It gives every dimension that is not set here."""
    checkpoint: Location | None = None
    """Checkpoint whose weights the run starts from. Its shape is used, and dimensions set here must
    agree with it."""
    causal: CausalModel | None = None
    """A causal language model as the policy, in place of a Reactive Transformer: its settings, or
    a folder or hub name alone. Nothing else is set beside it."""
    width: int | None = Field(None, ge=1)
    """Width of embeddings, hidden states and memory slots."""
    layers: int | None = Field(None, ge=1)
    """Layers of the decoder, of the encoder, of the memory attention and of memory."""
    heads: int | None = Field(None, ge=1)
    """Attention heads. A head has width / heads features."""
    query_heads: int | None = Field(None, ge=1)
    """Query heads of self-attention, memory cross-attention and memory attention. Fewer than
    `heads` is sparse query attention."""
    kv_heads: int | None = Field(None, ge=1)
    """Key and value heads of these attentions. They divide the query heads."""
    cross_query_heads: int | None = Field(None, ge=1)
    """Query heads of memory cross-attention; null: as `query_heads`."""
    cross_kv_heads: int | None = Field(None, ge=1)
    """Key and value heads of memory cross-attention; null: as `kv_heads`."""
    memory_query_heads: int | None = Field(None, ge=1)
    """Query heads of memory attention; null: as `query_heads`."""
    memory_kv_heads: int | None = Field(None, ge=1)
    """Key and value heads of memory attention; null: as `kv_heads`."""
    slots: int | None = Field(None, ge=1)
    """Slots of short-term memory per layer."""
    max_tokens: int | None = Field(None, ge=8)
    """Longest interaction, in tokens."""
    decoder_ff: int | None = Field(None, ge=1)
    """Inner width of a decoder feed-forward layer, or of each of its experts."""
    encoder_ff: int | None = Field(None, ge=1)
    """Inner width of an encoder feed-forward layer."""
    experts: int | None = Field(None, ge=0)
    """Experts of each decoder feed-forward layer; 0: dense."""
    experts_per_token: int | None = Field(None, ge=1)
    """Experts per token. Several are weighted by their probabilities relative to each other, one by
    its probability."""
    memory_reads: Literal[1, 2] | None = None
    """Times that each decoder layer reads its layer of memory. The second read has a norm, queries
    and an output of its own and the keys and values of the first. It can ask for what the first
    found, such as the place of a person that the first named."""
    memory_attention: (
        Literal["simple", "self", "interlayer", "gated_self_interlayer", "last_interaction"] | None
    ) = None
    """Targets of the attention that slots compute before they read the interaction: none (simple),
    the slots of their layer (self), the mean over layers (interlayer), or a gated mixture of both.
    last_interaction: no memory attention at all; memory is the last interaction as the encoder has
    it, and nothing before it is kept. A baseline, for it cannot remember across two turns. Settings
    of gates and of the heads of memory attention have no effect then, nor has the `gate_penalty` of
    memory_aware."""
    residual_gate: (
        Literal["none", "static", "elementwise", "linear", "per_number", "delta"] | None
    ) = None
    """How old and new memory are combined: their sum (none), or by a gate that is a parameter
    (static), a parameter times the slot's status (elementwise), a linear map of all slots'
    statuses (linear), or a linear map of a slot's old and new contents, one for each of its numbers
    (per_number). The status of a slot is the mean of old plus new memory over its width. The
    articles have the first four; per_number overwrites less of what is to be kept. In place of a
    gate, delta takes a slot as a small associative memory with a row for each head: it removes what
    a key from the new contents retrieves, adds a new value under that key, and leaves the rest."""
    gate_activation: Literal["sigmoid", "tanh"] | None = None
    """sigmoid gives g·new + (1-g)·old, tanh gives (1+g)·new + (1-g)·old."""
    gate_per_slot: bool | None = None
    """Whether each slot has a gate of its own; else one is shared. Not for per_number and delta."""
    gate_initial: float | None = None
    """Pre-activation of the gates of a new model, or of the strength of its delta writes; below 0
    they begin by keeping."""
    gate_stretch: float | None = Field(None, ge=0, le=1)
    """s: a sigmoid gate, or the strength of a delta write, is (1 + 2s)·g - s, cut off at 0 and 1,
    so that it can be shut."""
    initial_memory: Literal["normal", "learned"] | None = None
    """normal: drawn from the episode's seed; learned: a trained parameter."""
    initial_memory_std: float | None = Field(None, ge=0)
    """Standard deviation of initial memory, or of the first value of the trained parameter."""
    rope_base: float | None = Field(None, gt=1)
    """Base of the rotary position embedding."""
    norm_eps: float | None = Field(None, gt=0)
    """Added to the mean square in RMS norms."""
    initializer_range: float | None = Field(None, gt=0)
    """Standard deviation of a new model's weights."""

    @property
    def kind(self) -> PolicyKind:
        """Kind of the policy."""
        return "reactive" if self.causal is None else "causal"

    @property
    def dimensions(self) -> dict[str, Any]:
        """Dimensions of a Reactive Transformer that are set here; None: as the size has them."""
        return self.model_dump(exclude={"size", "checkpoint", "causal"})

    @field_validator("causal", mode="before")
    @classmethod
    def _named_alone(cls, causal: Any) -> Any:
        return {"path": causal} if isinstance(causal, str) else causal

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        beside = {"checkpoint": self.checkpoint} | self.dimensions
        named = next((key for key, value in beside.items() if value is not None), None)
        if self.causal is not None and named is not None:
            raise ValueError(
                f"{named} belongs to a Reactive Transformer; beside causal it means nothing"
            )
        return self
