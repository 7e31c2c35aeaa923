"""What a GPU computes, against the CPU, and how fast; within eight minutes.

    python -m benchmarks.gpu_check

Prints one flat JSON object. `parity_…`: greedy answers and log-probs of the engine, by each backend
of a GPU against `torch` on the CPU, all in float32, and the gradients of one PPO update.
`{size}_…`: tokens per second of decoding in bfloat16, and the seconds of one update. Ends with 1
where a GPU parts from the CPU by more than `LARGEST`. Where there is no GPU it says so and measures
nothing.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from benchmarks.rollout_gpu import peak_bandwidth, rate
from benchmarks.workload import NEW_TOKENS, QUERY_TOKENS, make_tasks, make_tokenizer
from common.config.mrl import MRL, CurriculumStep
from common.config.names import BackendName
from common.config.rewards import Rewards
from common.config.rollout import Sampling
from common.episode import Episode, RewardTerm, Verdict
from common.models.reactive.config import named_config
from common.models.reactive.model import ReactiveTransformer
from common.telemetry.metrics import Metrics
from learner.parallel.group import OneRank
from learner.policies.reactive import ReactivePolicy
from learner.rl.algorithms.table import ALGORITHMS
from learner.rl.update import Update
from rollout.policies.reactive.engine import ReactiveEngine

SIZES, SLOTS = ("nano", "micro"), 256
EPISODES, FOLLOW_UPS = 32, 4
LARGEST = {"log_prob": 1e-3, "gradient": 1e-2}
"""Largest difference of a log-prob; largest of all gradients over the norm of all."""
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def make_model(size: str) -> ReactiveTransformer:
    torch.manual_seed(0)
    tokens = QUERY_TOKENS + NEW_TOKENS
    config = named_config(size, vocab_size=8192, max_tokens=tokens, initial_memory_std=1.0)
    model = ReactiveTransformer(config).eval()
    model.decoder.head.bias.data[config.eos_token_id] = -1e9  # all answers are as long
    return model


def play(model: ReactiveTransformer, backend: BackendName, greedy: bool) -> list[Episode]:
    """Episodes of a model where it is; half of their answers are rewarded."""
    engine = ReactiveEngine(
        model, make_tokenizer(), EPISODES, Sampling(max_new_tokens=NEW_TOKENS), backend=backend
    )
    tasks = [replace(task, greedy=greedy) for task in make_tasks([FOLLOW_UPS] * EPISODES)]
    term = {"bleu": RewardTerm(1.0, "check")}
    return [
        episode.judged(
            [Verdict({"bleu": float(i + k & 1)}, term, float(i + k & 1)) for k in range(FOLLOW_UPS)]
        )
        for i, episode in enumerate(engine.run(tasks))
    ]


def parity_of_engine(backend: BackendName, expected: Sequence[Episode]) -> dict[str, float]:
    """Over greedy answers: those that are the same to the last token, and the largest difference of
    a log-prob before the first token that is not."""
    found = play(make_model("nano").to(GPU), backend, greedy=True)
    same, turns, largest = 0, 0, 0.0
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours.answered, theirs.answered, strict=True):
            turns += 1
            same += a.answer_ids == b.answer_ids
            both = zip(a.answer_ids, b.answer_ids, a.log_probs, b.log_probs, strict=True)
            for token, other, log_prob, other_log_prob in both:
                if token != other:
                    break
                largest = max(largest, abs(log_prob - other_log_prob))
            if a.answer_ids != b.answer_ids:
                break  # memory holds another answer from here on
    name = f"parity_{backend}"
    return {f"{name}_answers_alike": same / turns, f"{name}_log_prob": largest}


def make_update(model: ReactiveTransformer, device: torch.device) -> Update:
    step = CurriculumStep(name="all", iterations=1, max_steps=FOLLOW_UPS)
    settings = MRL.model_validate(
        {"stage": "mrl", "curriculum": (step,), "ppo": {"epochs": 1, "minibatches": 1}}
    )
    section, group = settings.algorithm_settings, OneRank(device)
    policy = ReactivePolicy(
        model.to(device), group, section.bptt_turns, section.memory_change, settings.router_loss
    )
    algorithm = ALGORITHMS[settings.algorithm](section, Rewards().width())
    return Update(policy, algorithm, settings, 10, 1.0, 0, group, Metrics())


def updated(model: ReactiveTransformer, episodes: list[Episode], device: torch.device) -> nn.Module:
    """The model after one update, which leaves its gradients."""
    update = make_update(model, device)
    places = list(range(len(episodes)))
    update.run(update.evaluate(episodes, places), places, len(places), 0)
    return model


def parity_of_update(episodes: list[Episode]) -> dict[str, float]:
    model = make_model("nano")
    there = updated(copy.deepcopy(model), episodes, GPU)
    here = dict(updated(model, episodes, CPU).named_parameters())
    largest, squares = 0.0, 0.0
    for name, parameter in there.named_parameters():
        ours = here[name].grad
        if ours is not None and parameter.grad is not None:
            largest = max(largest, float((parameter.grad.cpu() - ours).abs().max()))
            squares += float(ours.square().sum())
    return {"parity_gradient": largest / squares**0.5}


def speed(size: str) -> dict[str, float]:
    decoding = rate(size, SLOTS, GPU, peak_bandwidth(), repeats=3)
    model = make_model(size).to(GPU)
    episodes, places = play(model, "auto", greedy=False), list(range(EPISODES))
    update, seconds = make_update(model, GPU), []
    for iteration in range(3):  # the first one warms up
        torch.cuda.synchronize()
        began = time.perf_counter()
        update.run(update.evaluate(episodes, places), places, EPISODES, iteration)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {f"{size}_{name}": value for name, value in decoding.items()} | {
        f"{size}_update_seconds": min(seconds[1:]),
        f"{size}_memory_gigabytes": torch.cuda.max_memory_allocated() / 1e9,
    }


def run() -> dict[str, float]:
    """The figures; none where there is no GPU."""
    if not torch.cuda.is_available():
        return {}
    expected = play(make_model("nano"), "torch", greedy=True)
    figures = parity_of_engine("torch", expected) | parity_of_engine("cuda_graphs", expected)
    figures |= parity_of_update(expected)
    for size in SIZES:
        figures |= speed(size)
    return {name: round(value, 6) for name, value in figures.items()}


if __name__ == "__main__":
    figures = run()
    if not figures:
        print("there is no GPU here: nothing was measured", file=sys.stderr)
    print(json.dumps(figures, indent=2))
    sys.exit(
        any(
            value > limit
            for kind, limit in LARGEST.items()
            for name, value in figures.items()
            if name.startswith("parity") and name.endswith(kind)
        )
    )
