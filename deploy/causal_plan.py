"""The plan of a run of a causal language model: its size and its actors. Its memory is in
`causal_memory.py`."""

from __future__ import annotations

from common.actors.resources import claims
from common.config.causal import CausalModel
from common.config.run import Run
from deploy.causal_shape import CausalShape
from deploy.layout import table


def model_table(run: Run, shape: CausalShape) -> str:
    settings = run.model.causal
    assert settings is not None, "of a causal policy"
    which = ""
    if settings.lora is not None:
        which = f" (adapters of rank {settings.lora.rank})"
    elif settings.trained_layers is not None:
        which = " (the last layers)"
    rows = [
        ["parameters", f"{shape.total:,}"],
        ["trained", f"{shape.trained:,}{which}"],
        ["layers × width", f"{shape.layers} × {shape.width}"],
        ["vocabulary", f"{shape.vocabulary:,}"],
        ["longest sequence", f"{shape.max_tokens:,} tokens"],
        ["remembers", _remembers(settings)],
    ]
    return table(f"The model, {settings.path}", ["what", "value"], rows)


def _remembers(settings: CausalModel) -> str:
    if settings.text_memory is not None:
        return f"a text that it writes, of {settings.text_memory.tokens} tokens at most"
    return f"the last {settings.interactions} interactions"


def roles(run: Run) -> str:
    """Actors in words."""
    counted = [(claim.count, claim.role) for claim in claims(run)]
    return ", ".join(f"{count} {role}{'s' if count > 1 else ''}" for count, role in counted)
