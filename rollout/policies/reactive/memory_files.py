"""Memories outside of a model: in records, as bytes, and in files, one safetensors file each with
the seed and the number of interactions in its metadata."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.episode import Memory
from common.failures import DataFailure, InputError, no_such_file
from common.models.reactive.config import RxTConfig

KIND = "stm"
"""`Memory.kind` of a short-term memory: float32 [layers, slots, width]."""
_FORMAT = "engram-memory-1"


def packed(memory: Tensor) -> Memory:
    """One memory [layers, slots, width], in the form it has in tasks and episodes."""
    return Memory(KIND, memory.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())


def unpacked(memory: Memory, config: RxTConfig) -> Tensor:
    """Inverse of `packed`. Raises DataFailure where it is another model's."""
    shape = (config.layers, config.slots, config.width)
    if memory.kind != KIND or len(memory.data) != 4 * int(np.prod(shape)):
        raise DataFailure(
            f"a memory of kind {memory.kind!r} and {len(memory.data)} bytes is not float32 of "
            f"{shape[0]} layers × {shape[1]} slots × width {shape[2]}"
        )
    return torch.from_numpy(np.frombuffer(memory.data, dtype=np.float32).reshape(shape).copy())


def memory_hash(memory: Memory) -> str:
    return hashlib.blake2b(memory.data, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class KeptMemory:
    """Memory of a session at one moment: enough to go on from there as if nothing had been in
    between."""

    memory: Tensor
    """[layers, slots, width]."""
    seed: int
    turn: int
    """Interactions it was written with."""


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """Description of one memory in a folder, without its tensor."""

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
    except FileNotFoundError:
        raise no_such_file(path) from None
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
