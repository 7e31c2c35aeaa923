"""Weights on their way from the learner to whoever plays with them: numpy, a version, and a
checksum per bucket.

Torch tensors through pickle are five to ten times slower than numpy arrays through Ray's object
store, which hands every reader of a node the same read-only memory. So nobody may keep a view of
it: `load_into` copies. And nobody believes it: `load_into` checks every bucket first, and changes
either all of a module or nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from common.failures import DataFailure, InfraFailure

BUCKET_BYTES = 16 * 2**20
# numpy has no such types: their bits travel as unsigned integers of the same width.
_AS_BITS = {
    torch.bfloat16: torch.uint16,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e5m2: torch.uint8,
}
_TORCH = {str(kind).removeprefix("torch."): kind for kind in _AS_BITS}


class WeightsCorrupt(InfraFailure):
    """The bytes that arrived are not the bytes that were sent: no fault of whatever they were to be
    used on."""

    def __init__(self, version: int, bucket: int, names: tuple[str, ...]):
        super().__init__(version, bucket, names)
        self.version, self.bucket, self.names = version, bucket, names

    def __str__(self) -> str:
        span = self.names[0] if len(self.names) == 1 else f"{self.names[0]} … {self.names[-1]}"
        return (
            f"weights version {self.version}: bucket {self.bucket} ({span}) does not have "
            "its checksum"
        )


class WeightsMismatch(DataFailure):
    """These are the weights of another model."""


@dataclass(frozen=True, slots=True)
class Bucket:
    names: tuple[str, ...]
    checksum: int
    """CRC-32 over names, shapes, types and bytes of its tensors, in order."""


@dataclass(frozen=True, slots=True)
class PackedWeights:
    version: int
    tensors: dict[str, np.ndarray]
    dtypes: dict[str, str]
    """Types of the tensors whose array holds bits only: bfloat16 as uint16."""
    buckets: tuple[Bucket, ...]

    @property
    def digest(self) -> int:
        """One number for all of it. Same version and other digest are other weights: a run that
        went back and trained anew."""
        return zlib.crc32(repr([bucket.checksum for bucket in self.buckets]).encode())


def pack(
    state_dict: Mapping[str, torch.Tensor], version: int, bucket_bytes: int = BUCKET_BYTES
) -> PackedWeights:
    """A snapshot of `state_dict`: training on does not change it."""
    tensors: dict[str, np.ndarray] = {}
    dtypes: dict[str, str] = {}
    for name, tensor in state_dict.items():
        tensor = tensor.detach().to("cpu", copy=True).contiguous()
        if tensor.dtype in _AS_BITS:
            dtypes[name] = str(tensor.dtype).removeprefix("torch.")
            tensor = tensor.view(_AS_BITS[tensor.dtype])
        tensors[name] = tensor.numpy()

    groups: list[list[str]] = []
    filled = bucket_bytes
    for name, array in tensors.items():
        if filled + array.nbytes > bucket_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += array.nbytes
    buckets = tuple(Bucket(tuple(names), _checksum(names, tensors, dtypes)) for names in groups)
    return PackedWeights(version, tensors, dtypes, buckets)


def verify(packed: PackedWeights) -> None:
    """Raises WeightsCorrupt, naming the first bucket whose bytes are not those that were packed."""
    named = [name for bucket in packed.buckets for name in bucket.names]
    if sorted(named) != sorted(packed.tensors):
        raise WeightsMismatch(
            f"weights version {packed.version}: {len(packed.tensors)} tensors, but its buckets "
            f"name {len(named)}"
        )
    for index, bucket in enumerate(packed.buckets):
        if _checksum(bucket.names, packed.tensors, packed.dtypes) != bucket.checksum:
            raise WeightsCorrupt(packed.version, index, bucket.names)


def unpack(packed: PackedWeights) -> dict[str, torch.Tensor]:
    """Verified tensors of their own memory."""
    verify(packed)
    state: dict[str, torch.Tensor] = {}
    for name, array in packed.tensors.items():
        tensor = torch.from_numpy(array.copy())
        state[name] = tensor.view(_TORCH[packed.dtypes[name]]) if name in packed.dtypes else tensor
    return state


def load_into(module: torch.nn.Module, packed: PackedWeights) -> None:
    """Copy verified weights into `module`, wherever it lives and in its own type.

    Raises WeightsCorrupt or WeightsMismatch (missing, unexpected or reshaped tensors) before
    anything is changed.
    """
    target = module.state_dict()
    missing, unexpected = (
        sorted(target.keys() - packed.tensors.keys()),
        sorted(packed.tensors.keys() - target.keys()),
    )
    if missing or unexpected:
        raise WeightsMismatch(
            f"weights version {packed.version}: missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    for name, tensor in target.items():
        if tuple(tensor.shape) != packed.tensors[name].shape:
            raise WeightsMismatch(
                f"weights version {packed.version}: {name} is {packed.tensors[name].shape}, not "
                f"{tuple(tensor.shape)}"
            )
    source = unpack(packed)
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def _checksum(
    names: list[str] | tuple[str, ...], tensors: Mapping[str, np.ndarray], dtypes: Mapping[str, str]
) -> int:
    crc = 0
    for name in names:
        array = tensors[name]
        crc = zlib.crc32(
            f"{name} {array.shape} {array.dtype.str} {dtypes.get(name, '')}".encode(), crc
        )
        crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, crc)
    return crc
