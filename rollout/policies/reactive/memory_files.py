"""Memories as files: one safetensors file each, with the seed and the number of interactions in its
metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.failures import InputError

_FORMAT = "engram-memory-1"


@dataclass(frozen=True, slots=True)
class KeptMemory:
    """What a session remembered at a moment: enough to go on from there as if nothing had been in
    between."""

    memory: Tensor
    """[layers, slots, width]."""
    seed: int
    turn: int
    """Interactions it was written with."""


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """What a folder says about one memory in it, without reading the tensor."""

    path: Path
    shape: tuple[int, ...]
    turn: int


def save_memory(kept: KeptMemory, path: str | Path) -> None:
    metadata = {"format": _FORMAT, "session": json.dumps({"seed": kept.seed, "turn": kept.turn})}
    save_file({"memory": kept.memory.float().cpu().contiguous()}, str(path), metadata)


def load_memory(path: str | Path) -> KeptMemory:
    """Raises InputError where the file is something else."""
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise InputError(
                    str(path),
                    f"not a memory of engram (its format is {metadata.get('format')!r}, not "
                    f"{_FORMAT!r})",
                )
            return KeptMemory(file.get_tensor("memory"), **json.loads(metadata["session"]))
    except (OSError, SafetensorError) as error:
        raise InputError(str(path), f"cannot be read as a safetensors file: {error}") from error


def list_memories(folder: str | Path) -> list[MemoryFile]:
    """The memories in a folder, by name; other files are passed over."""
    found = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") == _FORMAT:
                    shape = tuple(file.get_slice("memory").get_shape())
                    found.append(MemoryFile(path, shape, json.loads(metadata["session"])["turn"]))
        except (OSError, SafetensorError):
            continue
    return found
