"""Shape of a Reactive Transformer, and the named sizes.

Slots of memory and tokens of an interaction are independent numbers. The attention kind follows
from three head counts: MHA (query = kv = heads), GQA (query = heads > kv), MQA (kv = 1), SQA (query
< heads; Filipek 2025, arXiv 2510.01817).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args

from common.failures import InputError, nearest
from common.models.layers.batch_invariant import TOKENS, round_up

MemoryAttentionKind = Literal[
    "simple", "self", "interlayer", "gated_self_interlayer", "last_interaction"
]
LAST_INTERACTION: MemoryAttentionKind = "last_interaction"
"""No memory attention: memory is the last interaction as the encoder has it."""


@dataclass
class RxTConfig:
    model_type: ClassVar[str] = "rxt"

    vocab_size: int = 1024
    width: int = 64
    layers: int = 2
    heads: int = 8
    """Heads that `width` is divided into: head_dim = width / heads."""
    query_heads: int = 4
    kv_heads: int = 4
    cross_query_heads: int | None = None
    """Heads of the memory cross-attention; None: as `query_heads`."""
    cross_kv_heads: int | None = None
    memory_query_heads: int | None = None
    """Heads of the memory attention; None: as `query_heads`."""
    memory_kv_heads: int | None = None
    decoder_ff: int = 192
    encoder_ff: int = 192
    experts: int = 0
    """Experts of each decoder feed-forward; 0: dense."""
    experts_per_token: int = 2
    slots: int = 16
    """Rows of short-term memory per layer."""
    max_tokens: int = 64
    """Longest interaction."""
    memory_reads: int = 1
    """Times that each decoder layer reads its layer of memory: 1 or 2."""
    memory_attention: str = "gated_self_interlayer"
    residual_gate: str = "linear"
    """How old and new memory mix: none (sum), static, elementwise, linear, per_number or delta."""
    gate_activation: str = "sigmoid"
    gate_per_slot: bool = True
    gate_initial: float = 0.0
    """First pre-activation of the gates."""
    gate_stretch: float = 0.0
    """How far a sigmoid gate reaches past 0 and 1 before it is cut off there."""
    initial_memory: str = "normal"
    """normal: drawn from the episode's seed; learned: a parameter."""
    initial_memory_std: float = 0.02
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    initializer_range: float = 0.02
    pad_token_id: int = 0
    bos_token_id: int = 2
    eos_token_id: int = 3
    mask_token_id: int = 4
    query_token_id: int = 5
    answer_token_id: int = 6
    think_token_id: int = 7

    def __post_init__(self) -> None:
        for name in ("cross_query_heads", "memory_query_heads"):
            if getattr(self, name) is None:
                setattr(self, name, self.query_heads)
        for name in ("cross_kv_heads", "memory_kv_heads"):
            if getattr(self, name) is None:
                setattr(self, name, self.kv_heads)
        self._check()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From a dict that may hold other keys too, as config.json does."""
        known = [field.name for field in fields(cls)]
        return cls(**{name: values[name] for name in known if name in values})

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def positions(self) -> int:
        """Positions that sequences padded as in `rows.py` can have."""
        return round_up(self.max_tokens, TOKENS)

    def _check(self) -> None:
        def require(holds: bool, key: str, what: str) -> None:
            if not holds:
                raise InputError(f"model.{key}", what)

        require(
            self.width % self.heads == 0,
            "width",
            f"{self.width} is not a multiple of {self.heads} heads",
        )
        require(
            self.head_dim % 2 == 0,
            "heads",
            f"head size {self.head_dim} must be even for rotary positions",
        )
        for prefix in ("", "cross_", "memory_"):
            query, kv = (getattr(self, f"{prefix}{kind}_heads") for kind in ("query", "kv"))
            require(
                0 < query <= self.heads,
                f"{prefix}query_heads",
                f"{query} is not between 1 and heads = {self.heads}",
            )
            require(
                0 < kv <= query and query % kv == 0,
                f"{prefix}kv_heads",
                f"{kv} does not divide {prefix}query_heads = {query}",
            )
        require(
            self.experts == 0 or self.experts >= self.experts_per_token > 0,
            "experts_per_token",
            f"more than experts = {self.experts}",
        )
        for key, valid in (
            ("memory_attention", get_args(MemoryAttentionKind)),
            (
                "residual_gate",
                ("none", "static", "elementwise", "linear", "per_number", "delta"),
            ),
            ("gate_activation", ("sigmoid", "tanh")),
            ("initial_memory", ("normal", "learned")),
        ):
            value = getattr(self, key)
            require(value in valid, key, f"{value!r} is not a kind; {nearest(str(value), valid)}")

        require(
            self.memory_reads in (1, 2), "memory_reads", f"is {self.memory_reads}, and not 1 or 2"
        )
        require(
            self.residual_gate != "delta" or self.gate_activation == "sigmoid",
            "gate_activation",
            f"is {self.gate_activation}, and the strength of a delta write is a sigmoid",
        )
        require(
            self.gate_stretch == 0 or self.gate_activation == "sigmoid",
            "gate_stretch",
            f"only sigmoid gates are stretched, gate_activation is {self.gate_activation}",
        )

    def parameters(self) -> dict[str, int]:
        """Parameters by part: embedding, decoder, encoder, memory (attention), head, and their
        total."""

        def attention(query: int, kv: int) -> int:
            return (
                self.width * self.head_dim * (query + 2 * kv)
                + self.head_dim * query * self.width
                + self.width
            )

        def feed_forward(inner: int) -> int:
            return self.width * 2 * inner + 2 * inner + inner * self.width + self.width

        own = attention(self.query_heads, self.kv_heads)
        expert_layer = (
            self.experts * feed_forward(self.decoder_ff) + self.experts * self.width
            if self.experts
            else feed_forward(self.decoder_ff)
        )
        memory_heads = attention(self.memory_query_heads or 0, self.memory_kv_heads or 0)
        gate = {
            "none": 0,
            "static": self._gates,
            "elementwise": self._gates,
            "linear": self.slots * self._gates + self._gates,
            "per_number": 2 * self.width**2 + self.width,
            "delta": (self.width + 1) * (self.heads + self.head_dim + 1),
        }[self.residual_gate]
        extra = self.memory_attention != "simple"
        memory_layer = memory_heads + 2 * self.width + gate
        if extra:
            memory_layer += memory_heads + self.width + gate
        if self.memory_attention == "gated_self_interlayer":
            memory_layer += gate
        cross_query = self.cross_query_heads or 0
        read = attention(cross_query, self.cross_kv_heads or 0) + 2 * self.width
        if self.memory_reads == 2:  # by the keys and values of the first, with a norm of its own
            read += attention(cross_query, 0) + self.width
        counts = {
            "embedding": self.vocab_size * self.width,
            "decoder": self.layers * (own + read + expert_layer + 2 * self.width),
            "encoder": self.layers * (own + feed_forward(self.encoder_ff) + 2 * self.width),
            "memory": self.layers * memory_layer * (self.memory_attention != LAST_INTERACTION)
            + self.width * (self.memory_attention in ("interlayer", "gated_self_interlayer")),
            "head": self.width + self.width * self.vocab_size + self.vocab_size,
        }
        if self.initial_memory == "learned":
            counts["memory"] += self.layers * self.slots * self.width
        return counts | {"total": sum(counts.values())}

    @property
    def _gates(self) -> int:
        return self.slots if self.gate_per_slot else 1


NAMED_SIZES: dict[str, dict[str, Any]] = {
    # Width 64 wants larger first weights than the usual 0.02: with those, memory goes unused for
    # twice as many steps.
    "tiny": {
        "initializer_range": 0.08,
        "heads": 4,
        "initial_memory": "learned",
        "initial_memory_std": 1.0,
    },
    # RxT-Alpha Nano (12M) and Micro (26M): dimensions of the model cards.
    "nano": dict(
        vocab_size=7500,
        width=128,
        layers=6,
        decoder_ff=256,
        encoder_ff=384,
        experts=12,
        experts_per_token=2,
        slots=256,
        max_tokens=256,
        memory_attention="interlayer",
    ),
    "micro": dict(
        vocab_size=7500,
        width=128,
        layers=10,
        decoder_ff=256,
        encoder_ff=384,
        experts=20,
        experts_per_token=4,
        slots=256,
        max_tokens=256,
    ),
    # RxT-Alpha Mini (100M): only file sizes are published (decoder 87M, encoder 10.4M); these
    # dimensions meet them.
    "mini": dict(
        vocab_size=10000,
        width=256,
        layers=10,
        heads=16,
        query_heads=8,
        kv_heads=8,
        decoder_ff=512,
        encoder_ff=768,
        experts=20,
        experts_per_token=4,
        slots=256,
        max_tokens=256,
    ),
}


def named_config(size: str, **overrides: Any) -> RxTConfig:
    """The configuration of a named size; overrides of None are left out.

    Raises InputError for an unknown size or dimensions that do not fit together.
    """
    if size not in NAMED_SIZES:
        raise InputError("model.size", f"no size {size!r}; {nearest(size, NAMED_SIZES)}")
    return RxTConfig(
        **{
            **NAMED_SIZES[size],
            **{key: value for key, value in overrides.items() if value is not None},
        }
    )
