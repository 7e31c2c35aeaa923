"""What one learner rank computes in one or two steps, for tests that compare one rank with several
in processes of their own."""

from __future__ import annotations

import copy
import datetime
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.config.mrl import MRL
from common.config.run import Run
from common.config.stages import Optimizer
from common.episode import Episode
from common.failures import Unavailable
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.parts import part_of
from learner.episode_source import Shard
from learner.metrics import record_episodes, record_kl
from learner.parallel.group import DistributedGroup, Group, Job, OneRank
from learner.parallel.optimizer import Trainer, combine_passes
from learner.setup import newest
from learner.stages.rl import collect, trained_figures
from learner.stages.supervised import batch_indices, build_objective
from learner.unfreezing import Unfreezing
from rollout.tasks import Plan, Selection, shards
from tests.local_source import prepared
from tests.updates import make_update

Outcome = dict[str, Tensor]
"""Everything that must not depend on the number of ranks: changes of weights, gradients,
figures."""


def supervised_outcome(run: Run, group: Group) -> Outcome:
    """Two steps of the only stage of a prepared run. The first gradients are taken as they are,
    before clipping could hide a factor."""
    directory = prepared(run)
    objective, _ = build_objective(Job(run, directory, 0, "local"), newest(directory), 0)
    stage: Any = run.stages[0]
    phases = Unfreezing(stage.phases, part_of)

    def scale(name: str) -> float:
        return objective.trainable(name) * phases.scale(name)

    trainer = plain(Trainer(objective.modules, stage.optimizer, stage.total_steps, group, scale))
    before = weights(objective.modules)
    outcome: Outcome = {}
    for step in range(2):
        indices = batch_indices(run.seed, stage.stage, objective.examples, stage.batch_size, step)[
            group.rank :: group.size
        ]
        sums: dict[str, tuple[float, float]] = {}
        losses = combine_passes(objective.passes(indices, step, group), group, sums)
        outcome[f"norm {step}"] = torch.tensor(trainer.update(losses, step)[0])
        for name, (total, count) in sums.items():
            both = group.sum(torch.tensor([total, count], dtype=torch.float64))
            outcome[f"{name} {step}"] = both
        if step == 0:
            outcome |= gradients(trainer)
        if phases.advance(step + 1):
            trainer.select()
            plain(trainer)
    return outcome | changes(objective.modules, before)


def ppo_outcome(
    settings: MRL, model: ReactiveTransformer, episodes: list[Episode], group: Group
) -> Outcome:
    """One PPO update of policy and critic on this rank's share of `episodes`."""
    torch.manual_seed(3)
    model = copy.deepcopy(model)
    reference = copy.deepcopy(model)
    critic = Critic.from_policy(model, settings.ppo.critic.memory)
    nn.init.normal_(critic.value.weight, std=0.3)
    with torch.no_grad():
        for parameter in reference.parameters():  # or the KL to the reference would be 0
            parameter.add_(0.02 * torch.randn(parameter.shape))
    mine = list(shards(episodes, group.size)[group.rank])
    optimizer = Optimizer(learning_rate=0.3, max_grad_norm=0.5)
    changed = {"kl": 0.1, "kl_target": 0.5, "kl_horizon": 20, "critic_learning_rate": 0.3}
    ppo = settings.ppo.model_copy(update=changed)
    settings = settings.model_copy(update={"optimizer": optimizer, "ppo": ppo})
    update = make_update(model, settings, reference, critic, group=group)
    assert update.critic_trainer is not None
    for trainer in (update.policy_trainer, update.critic_trainer):
        plain(trainer)
    modules = {"model": model, "critic": update.modules["critic"]}
    before = weights(modules)
    places = [episode.batch_index for episode in mine]
    experience = update.evaluate(mine, places)
    coefficient = update.kl.update(record_kl(experience, group, update.metrics), len(episodes))
    update.run(experience, places, len(episodes), 1)
    figures = {name: torch.tensor(value) for name, value in experience.figures.items()}
    record_episodes(experience, (), update.metrics)
    earned = trained_figures(update.metrics, group)["objective/scores"]
    figures["objective/scores"] = torch.tensor(earned)
    return figures | {"kl coefficient": torch.tensor(coefficient)} | changes(modules, before)


def plain(trainer: Trainer) -> Trainer:
    """AdamW divides a gradient by its own size and makes a whole step of a gradient that is
    rounding noise; plain descent does not."""
    groups = [
        {"params": held["params"], "lr": held["lr"], "peak": held["peak"]}
        for held in trainer.adamw.param_groups
    ]
    trainer.adamw = torch.optim.SGD(groups)  # type: ignore[assignment]
    return trainer


def weights(modules: dict[str, nn.Module]) -> Outcome:
    return {
        f"{m}.{name}": p.detach().clone()
        for m, module in modules.items()
        for name, p in module.named_parameters()
    }


def changes(modules: dict[str, nn.Module], before: Outcome) -> Outcome:
    """One vector per module: a parameter that hardly moves is not asked for more digits than its
    float32 weights have."""
    after = weights(modules)
    return {
        f"change of {m}": torch.cat(
            [(after[name] - before[name]).flatten() for name in before if name.startswith(f"{m}.")]
        )
        for m in modules
    }


def gradients(trainer: Trainer) -> Outcome:
    return {
        "gradients": torch.cat(
            [p.grad.flatten() for p in trainer.named.values() if p.grad is not None]
        )
    }


def supervised_cases(folder: Path) -> list[Run]:
    return [
        Run.model_validate(pickle.loads(path.read_bytes()))
        for path in sorted(folder.glob("run-*.pickle"))
    ]


def all_outcomes(folder: Path, group: Group) -> dict[str, Outcome]:
    """Every case that the test wrote into `folder`."""
    torch.set_num_threads(1)
    outcomes = {run.name: supervised_outcome(run, group) for run in supervised_cases(folder)}
    for path in sorted(folder.glob("ppo-*.pickle")):
        settings, model, episodes = pickle.loads(path.read_bytes())
        outcomes[path.stem] = ppo_outcome(settings, model, episodes, group)
    return outcomes


def rank_main(rank: int, ranks: int, folder: Path) -> None:
    """One of several ranks: the same, over gloo on the loopback device."""
    with joined(rank, ranks, folder) as group:
        torch.save(all_outcomes(folder, group), folder / f"rank-{rank}.pt")


@contextmanager
def joined(rank: int, ranks: int, folder: Path) -> Iterator[Group]:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )
    yield DistributedGroup(torch.device("cpu"))
    dist.destroy_process_group()


class AwayForOne:
    """An endpoint that is away when one of the ranks asks, and back for the other."""

    def collect(self, iteration: int, version: int, plan: Plan, rank: int, ranks: int) -> Shard:
        if rank == 1:
            raise Unavailable("reward endpoint judge", "503", 1)
        return Shard([], plan.episodes, 0, 0)


def outage_main(rank: int, ranks: int, folder: Path) -> None:
    """One of several ranks: what it makes of an outage that only rank 1 is told of."""
    with joined(rank, ranks, folder) as group:
        source: Any = AwayForOne()
        shard, away = collect(source, 0, 0, Plan("all", (Selection(2),), 4), group)
        (folder / f"outage-{rank}").write_text(f"{shard}; {away}")


def one_rank(folder: Path) -> dict[str, Outcome]:
    return all_outcomes(folder, OneRank())
