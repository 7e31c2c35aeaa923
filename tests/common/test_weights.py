import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.weights import PackedWeights, WeightsCorrupt, WeightsMismatch, load_into, pack, verify


def model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2).to(torch.bfloat16)
    )


def read_only(packed: PackedWeights) -> PackedWeights:
    """As a reader of Ray's object store sees it."""
    for array in packed.tensors.values():
        array.flags.writeable = False
    return packed


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_loaded_module_equals_the_packed_one_bfloat16_and_integers_included() -> None:
    source, target = model(0), model(1)
    source[1].num_batches_tracked += 7
    assert not same(source, target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_into(target, read_only(pack(source.state_dict(), 3)))
    assert same(source, target)
    assert target[2].weight.dtype == torch.bfloat16


def test_training_on_changes_neither_what_was_packed_nor_what_was_loaded_from() -> None:
    source, target = model(0), model(1)
    packed = pack(source.state_dict(), 0)
    before = {name: array.copy() for name, array in packed.tensors.items()}
    load_into(target, packed)
    with torch.no_grad():
        source[0].weight.add_(1)
        target[0].weight.add_(1)
    verify(packed)
    assert all(np.array_equal(packed.tensors[name], array) for name, array in before.items())


@pytest.mark.parametrize("name", ["0.weight", "2.bias"])
def test_a_flipped_bit_is_refused_by_the_name_of_its_bucket_and_nothing_is_loaded(
    name: str,
) -> None:
    packed = pack(model(0).state_dict(), 5, bucket_bytes=64)
    assert len(packed.buckets) > 2
    packed.tensors[name].reshape(-1).view(np.uint8)[1] ^= 4
    target = model(1)
    with pytest.raises(WeightsCorrupt, match=name) as caught:
        load_into(target, packed)
    assert name in packed.buckets[caught.value.bucket].names
    assert same(target, model(1))


def test_tensors_that_changed_places_are_refused() -> None:
    state = {"a": torch.ones(4), "b": torch.zeros(4)}
    packed = pack(state, 1)
    with pytest.raises(WeightsCorrupt):
        verify(replace(packed, tensors={"a": packed.tensors["b"], "b": packed.tensors["a"]}))


def test_a_tensor_that_no_bucket_covers_is_refused() -> None:
    packed = pack({"a": torch.ones(4)}, 1)
    with pytest.raises(WeightsMismatch):
        verify(replace(packed, tensors=packed.tensors | {"b": np.zeros(1)}))


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(WeightsMismatch, match="missing"):
        load_into(torch.nn.Linear(8, 4), pack(model(0).state_dict(), 1))
    with pytest.raises(WeightsMismatch, match="weight is"):
        load_into(torch.nn.Linear(8, 5), pack(torch.nn.Linear(8, 4).state_dict(), 1))


def test_digest_tells_two_trainings_of_one_version_apart() -> None:
    assert pack(model(0).state_dict(), 1).digest == pack(model(0).state_dict(), 1).digest
    assert pack(model(0).state_dict(), 1).digest != pack(model(2).state_dict(), 1).digest
