"""Batches that are computed in several passes: the gradient of the whole, in the memory of one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.config.algorithms import PREVIOUS_INTERACTION
from common.config.causal import CausalModel
from common.config.run import Learner, Run
from common.config.stages import Optimizer
from learner.parallel.group import Job, OneRank
from learner.parallel.optimizer import Trainer, combine, combine_passes
from learner.policies.causal import adapted
from learner.policies.table import CheckpointPolicy
from learner.setup import newest
from learner.stages.causal_lm import CausalLMObjective
from learner.stages.reward_model import prompts_in_passes
from learner.stages.supervised import build_objective
from reward_service.reward_models.model import Reading
from rollout.policies.play import play
from tests.causal_updates import lm_rl
from tests.learner.test_causal_pipeline import causal_run
from tests.local_preferences import preference_run
from tests.local_source import prepared, processes
from tests.tiny_causal import opened, policy_of, prompt_tasks, scored, write_model
from tests.two_ranks import one_rank, rank_main

LENGTHS = (30, 4, 17, 30, 9, 2, 23, 11)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "gpt2")


class _Held:
    """A tensor that a graph saves; counts its bytes for as long as the graph is there."""

    def __init__(self, tensor: Tensor, memory: list[int]):
        self.tensor, self._memory = tensor, memory
        memory[0] += tensor.nbytes
        memory[1] = max(memory)

    def __del__(self) -> None:
        self._memory[0] -= self.tensor.nbytes


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """[now, at most] of the bytes that graphs save."""
    memory = [0, 0]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: _Held(tensor, memory), lambda held: held.tensor
    ):
        yield memory


def gradient_of(module: nn.Module, backward: Callable[[], Any]) -> tuple[Tensor, int]:
    """The gradient of a module, and the most bytes that graphs saved on the way."""
    module.zero_grad(set_to_none=True)
    with saved_bytes() as memory:
        backward()
    assert memory[0] == 0
    parts = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat(parts), memory[1]


def require_alike(one: tuple[Tensor, int], many: tuple[Tensor, int], memory: float) -> None:
    assert one[0].norm() > 0
    assert float((one[0] - many[0]).norm()) <= 1e-6 * float(one[0].norm())
    assert many[1] <= memory * one[1]


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "lora"])
def test_supervised_passes_give_the_gradient_of_one(
    model_folder: Path, lora: dict[str, int] | None
) -> None:
    settings = CausalModel.model_validate({"path": str(model_folder), "lora": lora})
    torch.manual_seed(0)
    model = adapted(opened(model_folder)[0], settings)
    if lora is not None:
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.3)
    sequences = [torch.randint(3, 300, (length,)).tolist() for length in LENGTHS]
    prompts = [length // 3 for length in LENGTHS]
    group, found, sums = OneRank(), [], []
    for limit in (4096, 32):
        objective = CausalLMObjective(model, sequences, prompts, limit)
        trainer = Trainer(
            objective.modules, Optimizer(max_grad_norm=1e9), 9, group, lambda name: 1.0
        )
        trainer.adamw = torch.optim.SGD(trainer.named.values(), lr=0.0)  # type: ignore[assignment]
        trainer.adamw.param_groups[0]["peak"] = 0.0
        told: dict[str, tuple[float, float]] = {}
        losses = combine_passes(objective.passes(range(8), 0, group), group, told)
        found.append(gradient_of(model, lambda: trainer.update(losses, 0)))  # noqa: B023
        sums.append(told)
    require_alike(*found, memory=0.35)
    whole, in_parts = sums
    assert whole.keys() == in_parts.keys()
    for name, (total, count) in whole.items():
        assert in_parts[name] == (pytest.approx(total, rel=1e-6), count)
    assert whole["train/loss_lm"][1] == sum(n - max(1, n // 3) for n in LENGTHS)


def test_passes_of_a_critic_with_a_body_of_its_own_give_the_gradient_of_one(
    model_folder: Path,
) -> None:
    model, held = opened(model_folder)
    head = {"body": "own", "layers": 1}
    settings = CausalModel.model_validate({"path": str(model_folder), "value_head": head})
    whole = CheckpointPolicy("causal", model, held, settings)
    playing = policy_of(model, held, sampling={"max_new_tokens": 6})
    episodes = scored(play(playing, prompt_tasks(9, 2)))
    found = []
    for limit in (4096, 32):
        policy = whole.trainable(lm_rl(), OneRank(), Learner(micro_batch_tokens=limit))
        critic = policy.value_function(PREVIOUS_INTERACTION, tokens=True)
        torch.manual_seed(1)
        for parameter in critic.module.head.parameters():  # type: ignore[union-attr]
            nn.init.normal_(parameter)

        def backward() -> None:
            values = critic.evaluate(episodes)  # noqa: B023
            (values * torch.linspace(-1, 1, len(values))).sum().backward()

        found.append(gradient_of(critic.module, backward))
    require_alike(*found, memory=0.5)


@pytest.mark.parametrize("settings", [{}, {"levels": 4}, {"ranking": "best"}], ids=str)
def test_passes_of_a_reward_model_give_the_gradient_of_one(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    directory = prepared(run := preference_run(tmp_path, {"stage": "reward_model"} | settings))
    group, found, sums = OneRank(), [], []
    for limit in (4096, 60):
        torch.manual_seed(0)
        objective: Any
        objective, _ = build_objective(Job(run, directory, 0, "local"), newest(directory), 0)
        objective._micro_batch_tokens = limit
        for name, parameter in objective.model.named_parameters():
            parameter.requires_grad_(objective.trainable(f"model.{name}"))
            if name == "head.weight":
                nn.init.normal_(parameter)
        chosen, told = range(24, 36), {}  # prompts with two answers, and with three

        def backward() -> None:
            passes = objective.passes(chosen, 0, group)  # noqa: B023
            for loss in combine_passes(passes, group, told):  # noqa: B023
                loss.backward()

        found.append(gradient_of(objective.model, backward))
        sums.append(told)
    require_alike(*found, memory=0.5)
    for name, (total, count) in sums[0].items():
        assert sums[1][name] == (pytest.approx(total, rel=1e-5, abs=1e-6), count), name


def test_a_rank_without_examples_takes_part_in_the_step(model_folder: Path) -> None:
    objective = CausalLMObjective(opened(model_folder)[0], [[5, 6, 7]], [1], 32)
    (terms,) = objective.passes([], 0, OneRank())
    assert [term.count for term in terms] == [0, 0]
    assert float(combine(terms, OneRank())[0]) == 0.0


def test_ranks_with_unlike_numbers_of_passes_compute_what_one_does(tmp_path: Path) -> None:
    settings = causal_run(tmp_path).model_dump(mode="json")
    # Large steps, or changes of float32 weights would have few digits.
    large = {"learning_rate": 0.3, "warmup_fraction": 0.0, "max_grad_norm": 1e6}
    stage = {"stage": "lm_sft", "steps": 2, "batch_size": 5, "optimizer": large}
    settings["stages"] = [stage]
    settings["learner"]["micro_batch_tokens"] = 16
    for name, lora in (("whole", None), ("adapters", {"rank": 4})):
        settings["name"], settings["model"]["causal"]["lora"] = name, lora
        run = Run.model_validate(settings)
        prepared(run)
        (tmp_path / f"run-{name}.pickle").write_bytes(pickle.dumps(run.model_dump()))
    ranks = [processes().Process(target=rank_main, args=(r, 2, tmp_path)) for r in range(2)]
    for process in ranks:
        process.start()
    alone = one_rank(tmp_path)
    for process in ranks:
        process.join(timeout=150)
        assert process.exitcode == 0
    together = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)]
    for case, outcome in alone.items():
        for name, expected in outcome.items():
            first, second = (rank[case][name] for rank in together)
            assert torch.equal(first, second), f"{name}: the ranks have parted"
            assert expected.norm() > 0
            assert float((first - expected).norm()) <= 1e-5 * float(expected.norm()), (case, name)


def test_prompts_share_a_pass_up_to_its_tokens() -> None:
    def prompt(*lengths: int, written: int = 0) -> tuple[Reading, ...]:
        history = ((0,) * written,) if written else ()
        return tuple(Reading((0,) * length, history) for length in lengths)

    readings = [prompt(10, 4), prompt(3, 3), prompt(50, 2), prompt(5, 2), prompt(4, 4, written=9)]
    assert prompts_in_passes(readings, 40) == [[1, 4], [3, 0], [2]]
    assert prompts_in_passes([], 24) == [[]]
