"""The model as three functions of their arguments."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.failures import InputError
from common.models.layers.attention import rope_table, rotate
from common.models.reactive.auto import AutoModel
from common.models.reactive.config import NAMED_SIZES, RxTConfig, named_config
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.module import read_model, write_model
from tests.plain_model import PlainModel

HEADS: dict[str, dict[str, Any]] = {
    "mha": {"query_heads": 4, "kv_heads": 4},
    "gqa": {"query_heads": 4, "kv_heads": 2},
    "mqa": {"query_heads": 4, "kv_heads": 1},
    "sqa": {"query_heads": 2, "kv_heads": 2},
    "own": {
        "query_heads": 2,
        "kv_heads": 2,
        "cross_query_heads": 4,
        "cross_kv_heads": 2,
        "memory_query_heads": 4,
        "memory_kv_heads": 1,
    },
}

GATES = [
    ("none", "sigmoid", True),
    ("static", "tanh", True),
    ("elementwise", "sigmoid", False),
    ("linear", "sigmoid", True),
    ("linear", "tanh", False),
]

MEMORY = [
    {
        "memory_attention": kind,
        "residual_gate": gate,
        "gate_activation": activation,
        "gate_per_slot": per_slot,
    }
    for kind, (gate, activation, per_slot) in itertools.product(
        ("simple", "self", "interlayer", "gated_self_interlayer"), GATES
    )
]

OPTIONS = {**HEADS["own"], "memory_reads": 2, "residual_gate": "delta", "memory_attention": "self"}

VARIANTS = [{**HEADS["sqa"], **memory} for memory in MEMORY] + [
    *HEADS.values(),
    {"experts": 3, "experts_per_token": 2},
    {"experts": 3, "experts_per_token": 1},
    {"initial_memory": "learned"},
    {"residual_gate": "per_number", "memory_attention": "gated_self_interlayer"},
    {"residual_gate": "per_number", "memory_attention": "self", "gate_activation": "tanh"},
    {"residual_gate": "per_number", "memory_attention": "simple", "gate_stretch": 0.4},
    {"residual_gate": "linear", "memory_attention": "self", "gate_stretch": 0.4},
    {"memory_attention": "last_interaction"},
    {"residual_gate": "delta", "gate_stretch": 0.4},
    {"memory_reads": 2},
    OPTIONS,
]


def make_model(**shape: Any) -> ReactiveTransformer:
    """Slots and tokens are different numbers throughout; gates and weights are large enough to
    matter."""
    torch.manual_seed(0)
    config = RxTConfig(
        **{
            "vocab_size": 90,
            "width": 32,
            "heads": 4,
            "layers": 3,
            "decoder_ff": 40,
            "encoder_ff": 24,
            "slots": 7,
            "max_tokens": 24,
        }
        | {"initializer_range": 0.2, "initial_memory_std": 1.0, "gate_initial": 0.3}
        | shape
    )
    return ReactiveTransformer(config).eval()


def shaken(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return module


def make_batch(
    lengths: list[int], width: int | None = None, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]
    # What stands in the padding differs with the width and must not matter.
    return torch.randint(8, 90, mask.shape, generator=generator), mask


@torch.no_grad()
def run(
    model: ReactiveTransformer, memory: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    encoded = model.encode(tokens, mask)
    written = model.remember(memory, encoded, mask)
    return encoded, written, model.decode(tokens, written)


@pytest.mark.parametrize("shape", VARIANTS, ids=str)
def test_shapes_hold_and_inputs_stay_as_they_were(shape: dict[str, Any]) -> None:
    model = make_model(**shape)
    tokens, mask = make_batch([9, 5, 1])
    memory = model.initial_memory([1, 2, 3]).detach()
    copies = memory.clone(), tokens.clone(), mask.clone()
    encoded, written, logits = run(model, memory, tokens, mask)
    assert encoded.shape == (3, 3, 9, 32)
    assert written.shape == memory.shape == (3, 3, 7, 32)
    assert logits.shape == (3, 9, 90)
    assert all(
        torch.equal(now, before) for now, before in zip((memory, tokens, mask), copies, strict=True)
    )
    assert not torch.equal(written, memory)
    assert all(
        torch.equal(a, b)
        for a, b in zip(run(model, memory, tokens, mask), (encoded, written, logits), strict=True)
    )


@pytest.mark.parametrize("shape", VARIANTS, ids=str)
def test_models_compute_what_the_plain_computation_does(shape: dict[str, Any]) -> None:
    """Encoder, write, decoder and critic; parameters that begin as zeros and ones included."""
    model = shaken(make_model(**shape))
    critic = shaken(Critic.from_policy(model))
    plain, plain_critic = (PlainModel(module, model.config) for module in (model, critic))
    tokens, mask = make_batch([9])
    memory, sequence = model.initial_memory([1]), tokens[0].tolist()
    encoded, written, logits = run(model, memory, tokens, mask)
    expected = plain.encode(sequence)
    np.testing.assert_allclose(encoded[0], expected, rtol=1e-4, atol=1e-5)
    remembered = plain.remember(memory[0].detach().double().numpy(), expected)
    np.testing.assert_allclose(written[0], remembered, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[0], plain.decode(sequence, remembered), rtol=1e-4, atol=1e-4)
    value = float(critic(tokens, mask).detach())
    assert value == pytest.approx(plain_critic.value(sequence), rel=1e-4, abs=1e-5)
    reader = shaken(Critic.from_policy(model, reads_memory=True))
    read, without = (float(reader(tokens, mask, seen).detach()) for seen in (memory, None))
    expected_value = PlainModel(reader, model.config).value(
        sequence, memory[0].detach().double().numpy()
    )
    assert read == pytest.approx(expected_value, rel=1e-4, abs=1e-5)
    assert abs(read - without) > 1e-4


@pytest.mark.parametrize("shape", VARIANTS, ids=str)
def test_padding_and_neighbours_cannot_change_a_result(shape: dict[str, Any]) -> None:
    model = make_model(**shape)
    lengths = [9, 5, 12, 1]
    tokens, mask = make_batch(lengths, width=17)
    memory = model.initial_memory([1, 2, 3, 4]).detach()
    encoded, written, logits = run(model, memory, tokens, mask)
    for i, length in enumerate(lengths):
        alone = run(model, memory[i : i + 1], tokens[i : i + 1, :length], mask[i : i + 1, :length])
        torch.testing.assert_close(encoded[i : i + 1, :, :length], alone[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(written[i : i + 1], alone[1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[i : i + 1, :length], alone[2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", VARIANTS, ids=str)
def test_the_stated_number_of_parameters_is_the_real_one(shape: dict[str, Any]) -> None:
    assert_counts(make_model(**shape))


@pytest.mark.parametrize("size", NAMED_SIZES)
def test_named_sizes_state_their_parameters(size: str) -> None:
    with torch.device("meta"):
        assert_counts(ReactiveTransformer(named_config(size)))


def assert_counts(model: ReactiveTransformer) -> None:
    counts = {
        "embedding": model.embedding,
        "decoder": model.decoder.layers,
        "encoder": model.encoder,
        "memory": model.memory_attention,
    }
    real = {part: sum(p.numel() for p in module.parameters()) for part, module in counts.items()}
    if model.config.initial_memory == "learned":
        real["memory"] += model.first_memory.numel()
    real["total"] = sum(p.numel() for p in model.parameters())
    real["head"] = real["total"] - sum(real[part] for part in counts)
    assert model.config.parameters() == real


@pytest.mark.parametrize("shape", [OPTIONS, {"experts": 3}, {"initial_memory": "learned"}], ids=str)
def test_a_saved_model_comes_back_whole(shape: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(**shape)
    write_model(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    tokens, mask = make_batch([6, 3])
    memory = model.initial_memory([0, 1]).detach()
    for loaded in (
        read_model(ReactiveTransformer, "here", tmp_path),
        AutoModel.from_pretrained(tmp_path),
    ):
        assert isinstance(loaded, ReactiveTransformer)
        assert loaded.decoder.config.parameters() == model.config.parameters()
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for ours, theirs in zip(
            run(model, memory, tokens, mask), run(loaded.eval(), memory, tokens, mask), strict=True
        ):
            assert torch.equal(ours, theirs)
    # What transformers writes again is the same model.
    loaded.save_pretrained(tmp_path / "again")  # type: ignore[operator]
    again = read_model(ReactiveTransformer, "here", tmp_path / "again")
    assert again.config == model.config
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_opening_a_model_draws_nothing(tmp_path: Path) -> None:
    write_model(make_model(), tmp_path)
    before = torch.get_rng_state()
    read_model(ReactiveTransformer, "here", tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_another_version_are_refused_in_one_sentence(tmp_path: Path) -> None:
    model = make_model()
    state = model.state_dict()
    state["decoder.layers.0.cross_attention.input.weight"] = state.pop(
        "decoder.layers.0.cross_attention.query.weight"
    )
    write_model(model, tmp_path, state)
    with pytest.raises(
        InputError,
        match=r"^here: holds the weights of another version of engram: Missing key.*query",
    ):
        read_model(ReactiveTransformer, "here", tmp_path)


def test_initial_memory_depends_on_the_seed_alone() -> None:
    model = make_model()
    together = model.initial_memory([5, 6, 7])
    assert torch.equal(model.initial_memory([7, 1])[0], together[2])
    torch.manual_seed(99)
    assert torch.equal(model.initial_memory([5])[0], together[0])
    assert not torch.equal(together[0], together[1])
    assert 0.8 < together.std() < 1.2


def test_an_answer_depends_on_memory_and_on_all_tokens_before_it_only() -> None:
    model = make_model()
    tokens, _ = make_batch([10])
    memory = model.initial_memory([1])
    logits = model.decode(tokens, memory)
    assert not torch.allclose(model.decode(tokens, model.initial_memory([2])), logits, atol=1e-2)
    for position in range(10):
        changed = tokens.clone()
        changed[0, position] = 8 + (tokens[0, position] - 7) % 80
        difference = (model.decode(changed, memory) - logits).abs().amax(-1)[0]
        assert difference[:position].max() < 1e-5 if position else True
        assert difference[position:].min() > 1e-4


def test_every_token_of_an_interaction_reaches_memory() -> None:
    model = make_model()
    tokens, mask = make_batch([8])
    memory = model.initial_memory([1])
    written = model.remember(memory, model.encode(tokens, mask), mask)
    for position in range(8):
        changed = tokens.clone()
        changed[0, position] = 8 + (tokens[0, position] - 7) % 80
        assert (
            model.remember(memory, model.encode(changed, mask), mask) - written
        ).abs().max() > 1e-4


def test_rotation_is_that_of_the_article() -> None:
    """Score of two rotated vectors depends on the distance of their positions; the first pair turns
    by one radian per position."""
    table = rope_table(50, 8, 10000.0, torch.device("cpu"))
    x = torch.randn(1, 1, 2, 8, dtype=torch.float64).float()
    q, k = x[:, :, :1], x[:, :, 1:]
    scores = [
        float((rotate(q, table[i + 3 : i + 4]) * rotate(k, table[i : i + 1])).sum())
        for i in range(0, 40, 7)
    ]
    assert max(scores) - min(scores) < 1e-4
    unit = torch.zeros(1, 1, 1, 8)
    unit[..., 0] = 1
    turned = rotate(unit, table[2:3]).flatten()
    torch.testing.assert_close(
        turned[:2],
        torch.tensor([2.0, 0.0]).cos() * torch.tensor([1.0, 0.0]) + torch.tensor([0.0, 2.0]).sin(),
    )
    assert torch.equal(rotate(x, table[:1]), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotation_is_multiplication_of_complex_numbers(dtype: torch.dtype) -> None:
    x, table = torch.randn(3, 2, 50, 8).to(dtype), rope_table(50, 8, 10000.0, torch.device("cpu"))
    frequencies = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turns = torch.polar(torch.ones(50, 4).double(), torch.arange(50)[:, None] * frequencies)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    exact = torch.view_as_real(pairs * turns).flatten(-2).to(dtype)
    assert rotate(x, table).dtype == dtype
    torch.testing.assert_close(rotate(x, table), exact, atol=1e-6, rtol=0.01 * (dtype.itemsize < 4))


@pytest.mark.parametrize(
    ("shape", "key"),
    [
        ({"width": 30}, "width"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"query_heads": 9}, "query_heads"),
        ({"experts": 1, "experts_per_token": 2}, "experts_per_token"),
        ({"memory_attention": "interlayers"}, "memory_attention"),
        ({"residual_gate": "liner"}, "residual_gate"),
        ({"memory_reads": 3}, "memory_reads"),
        ({"residual_gate": "delta", "gate_activation": "tanh"}, "gate_activation"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shape: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=f"model.{key}"):
        make_model(**shape)


def test_an_unknown_size_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'micro'"):
        named_config("mikro")
