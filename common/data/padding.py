"""Sequences of ids to rectangular tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common.data.special_tokens import PAD


def pad(sequences: Sequence[Sequence[int]], pad_id: int = PAD) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [batch, tokens] and mask bool [batch, tokens], True where a real token stands;
    as wide as the longest sequence.

    The mask comes from lengths, not from `pad_id`: a real token may have that id. No sequences give
    [0, 0].
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    width = int(lengths.max()) if len(sequences) else 0
    tokens = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    mask = torch.arange(width) < lengths[:, None]
    tokens[mask] = torch.tensor(
        [token for sequence in sequences for token in sequence], dtype=torch.int64
    )
    return tokens, mask
