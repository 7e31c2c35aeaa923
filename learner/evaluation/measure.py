"""Measures of a run's answers, the same in training and in evaluation.

Rewards compare tokens by an embedding that stays as it was when MRL began, and hold the values that
training conversations ask for against an answer that names a wrong one. Both lie in the run, so a
checkpoint can be evaluated where the training data are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from common.data.causal_tokenizer import DIALOGUE
from common.data.conversations import value_counts
from common.episode import Row
from common.failures import InputError
from common.storage.checkpoint import Checkpoint
from common.storage.run_directory import RunDirectory
from learner.checkpointing import REFERENCE, load_model, tensors_beside
from learner.training_state import Position

VALUES = "values.json"
"""File of a run: how often its training conversations ask for each value."""


def write_training_values(directory: RunDirectory, train: Iterable[Row]) -> None:
    directory.write_json(VALUES, value_counts(train))


def training_values(directory: RunDirectory) -> dict[str, int]:
    """How often the run's training conversations ask for each value.

    Raises InputError for a run that was made before it was kept, or where its file is damaged.
    """
    if not directory.exists(VALUES):
        raise InputError(
            directory.path(),
            f"has no {VALUES}: an earlier version made this run; started again, it writes the file",
        )
    try:
        values: dict[str, int] = json.loads(directory.read_text(VALUES))
        if not isinstance(values, dict) or not all(
            isinstance(count, int) for count in values.values()
        ):
            raise ValueError("no counts by value")
    except ValueError as broken:
        raise InputError(
            directory.path(VALUES),
            f"is damaged ({broken}); remove it: started again, the run writes it anew",
        ) from broken
    return values


def reward_embedding(checkpoint: Checkpoint, stage: int) -> np.ndarray:
    """The token embedding that cosine rewards compare with: that of the policy which MRL started
    from, float32 [vocabulary, width].

    One that trains along would be a moving target. So a checkpoint from within the stage gives its
    reference policy's, or a resumed run would be paid by another measure than an uninterrupted one.
    """
    in_stage = Position.of(checkpoint, stage).in_stage > 0
    held = tensors_beside(checkpoint) if in_stage else {}
    with checkpoint.folder() as folder:
        if (folder / DIALOGUE).is_file():
            return _causal_embedding(checkpoint.where, folder, held)
        if in_stage:
            weight = held[f"{REFERENCE}/embedding.weight"]
        else:
            weight = load_model(checkpoint.where, folder).embedding.weight.detach()
    return weight.numpy()


def _causal_embedding(where: str, folder: Path, held: Mapping[str, Tensor]) -> np.ndarray:
    """The same of a causal language model, whose embedding has a name of its own. With adapters it
    is not trained, so the model's own is that of the reference. held: tensors beside it."""
    # Here and not at the top: it brings transformers, which takes seconds to import.
    from common.models.causal import load_causal

    model: Any = load_causal(where, folder)[0]
    weight = model.get_input_embeddings().weight
    named = next(name for name, each in model.named_parameters() if each is weight)
    return held.get(f"{REFERENCE}/{named}", weight.detach()).numpy()


def run_of(where: str) -> RunDirectory | None:
    """The run that a checkpoint lies in, None where it lies elsewhere."""
    folder, _, _ = where.rstrip("/").rpartition("/checkpoints/")
    if not folder:
        return None
    root, _, name = folder.rpartition("/")
    directory = RunDirectory(root, name)
    return directory if directory.exists("config.yaml") else None
