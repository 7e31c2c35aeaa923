"""How fast the engine decodes on a GPU: named sizes, slots, bfloat16, and how much of the memory
bandwidth a decoding step reaches.

A step reads every decoder weight once, the keys and values filled so far, and those of memory; that
many bytes over the time of a step, over what the memory could deliver, is the share. It is the
floor that decoding has: at these batch sizes arithmetic is not what takes time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.workload import NEW_TOKENS, QUERY_TOKENS, make_tasks, make_tokenizer
from common.config.rollout import Sampling
from common.models.reactive.config import named_config
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.engine import ReactiveEngine

SIZES, SLOTS = ("nano", "micro", "mini"), (64, 256, 1024)


def run() -> dict[str, float]:
    """Flat figures {size}_{slots}_tokens_per_second and …_bandwidth_share; none where there is no
    GPU."""
    figures: dict[str, float] = {}
    if torch.cuda.is_available():
        device = torch.device("cuda")
        for size in SIZES:
            for slots in SLOTS:
                figures |= {
                    f"gpu_{size}_{slots}_{name}": value
                    for name, value in rate(size, slots, device, peak_bandwidth()).items()
                }
    return figures


def rate(
    size: Any,
    slots: int,
    device: torch.device,
    peak: float,
    repeats: int = 5,
    shape: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, float]:
    """Medians over repeats of conversations of two follow-ups. peak: bytes per second that the
    device's memory delivers at most."""
    tokenizer = make_tokenizer()
    config = named_config(
        size, **({"vocab_size": 8192, "max_tokens": QUERY_TOKENS + NEW_TOKENS} | dict(shape))
    )
    torch.manual_seed(0)
    model = ReactiveTransformer(config).eval().requires_grad_(False).to(device, torch.bfloat16)
    model.decoder.head.bias.data[config.eos_token_id] = -1e9
    engine = ReactiveEngine(model, tokenizer, slots, Sampling(max_new_tokens=NEW_TOKENS), device)
    tasks = make_tasks([2] * slots)
    engine.run(tasks)
    rates, shares = [], []
    for _ in range(repeats):
        tokens, steps, decoding = engine.tally.tokens, engine.tally.steps, _decoding(engine)
        _synchronise(device)
        began = time.perf_counter()
        engine.run(tasks)
        _synchronise(device)
        rates.append((engine.tally.tokens - tokens) / (time.perf_counter() - began))
        step = (_decoding(engine) - decoding) / (engine.tally.steps - steps)
        shares.append(bytes_per_step(model, slots) / step / peak)
    middle = repeats // 2
    return {"tokens_per_second": sorted(rates)[middle], "bandwidth_share": sorted(shares)[middle]}


def bytes_per_step(model: ReactiveTransformer, slots: int) -> float:
    """What a step of answers half grown has to read: weights of the decoder, self-attention's keys
    and values, and memory's."""
    config = model.config
    weights = sum(parameter.numel() for parameter in model.decoder.parameters())
    cross = config.cross_kv_heads or config.kv_heads
    filled = QUERY_TOKENS + NEW_TOKENS / 2
    per_slot = (
        2 * config.layers * config.head_dim * (config.kv_heads * filled + cross * config.slots)
    )
    return model.dtype.itemsize * (weights + slots * per_slot)


def peak_bandwidth() -> float:
    """Bytes per second, from the memory clock and bus width that the driver reports: two transfers
    a clock."""
    properties: Any = torch.cuda.get_device_properties(0)
    return 2 * properties.memory_clock_rate * 1e3 * properties.memory_bus_width / 8


def _decoding(engine: ReactiveEngine) -> float:
    """Seconds of decoding steps: on a GPU the host waits for them in `sync`."""
    return sum(engine.timer.seconds[phase] for phase in ("decode", "sample", "sync"))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
