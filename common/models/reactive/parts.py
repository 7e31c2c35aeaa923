"""Parts of a Reactive Transformer that are trained, or frozen, as a whole.

Names only, without torch: configurations are checked by them.
"""

from __future__ import annotations

from typing import Literal, get_args

Part = Literal["memory_attention", "memory_cross_attention", "encoder", "decoder", "embedding"]
PARTS: tuple[Part, ...] = get_args(Part)
_OF_CROSS_ATTENTION = (
    "cross_attention",
    "cross_norm",
    "memory_norm",
    "second_attention",
    "second_norm",
)


def part_of(name: str) -> Part:
    """The part that a parameter belongs to, by the parameter's name in `ReactiveTransformer`.

    A learned initial memory goes with the memory attention, the output head with the decoder. The
    embedding, which encoder and decoder share, is a part of its own. ValueError for a name that
    belongs nowhere: a new module has to be given its part here.
    """
    module, *below = name.split(".")
    if module == "first_memory":
        return "memory_attention"
    if module == "decoder" and any(each in below for each in _OF_CROSS_ATTENTION):
        return "memory_cross_attention"
    part = next((part for part in PARTS if part == module), None)
    if part is None:
        raise ValueError(f"the parameter {name} belongs to none of {', '.join(PARTS)}")
    return part
