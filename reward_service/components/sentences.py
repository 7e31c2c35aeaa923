"""Embeddings of texts by a sentence-transformers model, for `Cosine.model`.

The model is frozen and opened once per process. It is whatever the folder or name says: where it
changes, so do the rewards. Texts in one forward pass touch each other in the last digits of
float32, which is how far scoring the same text again may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.config.locations import is_folder, split_pin
from common.failures import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def require_sentence_model(model: str) -> None:
    """Raises InputError where the model cannot be opened. On CPU: the process that checks a run has
    no GPU to spare."""
    _load(model, "cpu")


@lru_cache(maxsize=8)
def open_sentence_model(model: str) -> SentenceTransformer:
    """A model by folder or hub name, opened once per process, on the GPU that Ray gave this
    process, or else on the CPU.

    Raises InputError where it cannot be opened, or the package that opens it is missing.
    """
    return _load(model, None)


def _load(model: str, device: str | None) -> SentenceTransformer:
    # Here and not at the top: it brings torch, which token embeddings do without.
    from reward_service.reward_models.versions import require_version

    name, commit = split_pin(require_version(model))
    folder = Path(name).expanduser()
    if not folder.is_dir() and is_folder(model):
        # A name that only a folder could have: asking the hub for it would take a minute to say so.
        raise InputError(model, "there is no such folder")
    try:
        # Here and not at the top: it brings torch, and is installed only where a configuration
        # names a model.
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            model,
            f"needs the package sentence-transformers: pip install 'engram-rl[sentence]' ({error})",
        ) from error
    try:
        return SentenceTransformer(
            str(folder) if folder.is_dir() else name, device=device, revision=commit
        ).eval()
    except Exception as error:
        raise InputError(
            model, f"is no model that sentence-transformers opens: {type(error).__name__}: {error}"
        ) from error


def sentence_vectors(model: str, texts: Sequence[str]) -> np.ndarray:
    """The model's vector of each text, as long as the model makes it: float32 [texts, width]; 0 for
    an empty text.

    Texts that stand there more than once are embedded once. Raises InputError as
    `open_sentence_model` does.
    """
    encoder = open_sentence_model(model)
    # An empty text is like nothing, as with token embeddings; the model would give it a vector all
    # the same.
    places = {
        text: i for i, text in enumerate(dict.fromkeys(text for text in texts if text.strip()))
    }
    if not places:
        return np.zeros((len(texts), 1), dtype=np.float32)
    vectors = np.asarray(encoder.encode(list(places), show_progress_bar=False), dtype=np.float32)
    padded = np.concatenate([vectors, np.zeros_like(vectors[:1])])
    return padded[[places.get(text, -1) for text in texts]]
