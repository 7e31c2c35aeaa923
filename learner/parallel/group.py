"""The learner group: ranks that hold the same weights and share every gradient, launched by Ray
Train.

A loop is a plain function of (group, job). Under Ray Train it runs once per rank; a fast test calls
it with `OneRank`. Gradients are SUMMED over ranks, and every loss is already divided by a count
over all ranks, so two ranks give what one gives on the whole batch. (DDP would average, and needs
all of a step inside one forward call; here a step encodes, remembers and decodes.)
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.config.run import LearnerType, Run
from common.failures import DataFailure, EngramError, InfraFailure
from common.storage.lease import register_writer
from common.storage.run_directory import RunDirectory
from common.telemetry.logs import setup_logging
from learner.parallel.precision import Precision

log = logging.getLogger(__name__)

COLLECTIVE_SECONDS = 1800
"""Deadline of one collective between ranks. A dead rank is seen at once; this bounds one that
hangs."""


class Group(Protocol):
    rank: int
    size: int
    device: torch.device
    precision: Precision

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, on every rank. All ranks must call it equally often, with equal
        shapes."""

    def max(self, tensor: Tensor) -> Tensor:
        """The element-wise largest over ranks."""

    def report(self, figures: dict[str, Any]) -> None:
        """Tell Ray Train, whose page in Ray's dashboard shows it, that a checkpoint was written.
        All ranks must call it equally often; without Ray Train it does nothing."""


def no_report(_figures: dict[str, Any]) -> None:
    """For a group that Ray Train does not run."""


class OneRank:
    """A group of one: no other process is needed."""

    rank, size = 0, 1

    def __init__(
        self,
        device: torch.device | None = None,
        report: Callable[[dict[str, Any]], None] = no_report,
        dtype: LearnerType = "float32",
    ):
        self.device = device or torch.device("cpu")
        self.report, self.precision = report, Precision(dtype, self.device)

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        return tensor


class DistributedGroup:
    """The ranks of an initialised torch.distributed process group."""

    def __init__(
        self,
        device: torch.device,
        report: Callable[[dict[str, Any]], None] = no_report,
        dtype: LearnerType = "float32",
    ):
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.report, self.precision = report, Precision(dtype, device)

    def sum(self, tensor: Tensor) -> Tensor:
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def _reduce(self, tensor: Tensor, operation: Any) -> Tensor:
        result = tensor.detach().clone()
        try:
            dist.all_reduce(result, operation)
        except RuntimeError as broken:
            # How a rank sees that another one died.
            raise InfraFailure(f"a collective of {self.size} ranks failed: {broken}") from broken
        return result


def sum_gradients(parameters: Iterable[nn.Parameter], group: Group) -> None:
    """Replace every gradient by its sum over ranks, in one collective. A parameter without a
    gradient here counts as zero.

    Also where one rank is all there is: AdamW passes over a parameter without a gradient, but
    decays one whose gradient is zero.
    """
    held = [p for p in parameters if p.requires_grad]
    for parameter in held:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if group.size == 1:
        return
    total = group.sum(torch.cat([p.grad.flatten() for p in held if p.grad is not None]))
    for parameter, gradient in zip(held, total.split([p.numel() for p in held]), strict=True):
        parameter.grad = gradient.view_as(parameter)


@dataclass(frozen=True)
class Job:
    """Arguments of a rank to start a stage, or to go on with it after it died."""

    run: Run
    directory: RunDirectory
    stage: int
    """Index in run.stages."""
    namespace: str
    """Where the run's named actors live."""
    following: int = 0
    """Stages after it that the same ranks go on with."""

    def parts(self) -> Iterator[Job]:
        """A job for each of its stages."""
        for stage in range(self.stage, self.stage + self.following + 1):
            yield replace(self, stage=stage, following=0)


Loop = Callable[[Group, Job, Any], None]


def launch(loop: Loop, job: Job) -> None:
    """Run `loop` on a Ray Train worker group and wait for its end.

    A rank that dies takes its group down; Ray Train starts a new one, up to `learner.max_failures`
    times, and the loop finds its last checkpoint by itself. Raises InfraFailure once the restarts
    are used up.
    """
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(job.run.learner.start_deadline)
    # Ranks stay in the folder that their cluster was started in, where the code of a submitted job
    # lies. Nothing else depends on it.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    learner = job.run.learner
    stages = [job.run.stages[part.stage].stage for part in job.parts()]
    trainer = TorchTrainer(
        _rank_main,
        # As bytes: Ray Train's controller, through which this goes, would import all that a rank
        # needs before it starts any.
        train_loop_config={"loop_and_job": pickle.dumps((loop, job))},
        torch_config=TorchConfig(
            backend="nccl" if learner.gpus_per_rank else "gloo", timeout_s=COLLECTIVE_SECONDS
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=learner.ranks,
            use_gpu=learner.gpus_per_rank > 0,
            resources_per_worker={"CPU": learner.threads}
            | ({"GPU": learner.gpus_per_rank} if learner.gpus_per_rank else {}),
            label_selector=learner.node_labels or None,  # type: ignore[call-arg]  # only V1 is typed
        ),
        run_config=ray.train.RunConfig(
            # A name of its own each time: what a stage resumes from is our checkpoint, which holds
            # the whole run, not Ray Train's.
            name=f"{stages[0]}-{uuid.uuid4().hex[:8]}",
            storage_path=job.directory.path("ray_train"),
            failure_config=ray.train.FailureConfig(max_failures=learner.max_failures),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise InfraFailure(
            f"the learner group failed {learner.max_failures + 1} times in {', '.join(stages)}: "
            f"{error}"
        ) from error


def _rank_main(config: dict[str, Any]) -> None:
    import ray.train.torch

    from learner.recorder import RecorderClient

    loop: Loop
    job: Job
    loop, job = pickle.loads(config["loop_and_job"])
    context = ray.train.get_context()
    role = f"learner-rank-{context.get_world_rank()}"
    setup_logging(role, job.directory)
    for stream in (sys.stdout, sys.stderr):
        # Ray Train's actors have one name for all ranks; this line tells whose output follows.
        print(f":actor_name:{role}", file=stream, flush=True)
    torch.set_num_threads(job.run.learner.threads)
    recorder = RecorderClient.connect(job.namespace)
    if recorder.failed():
        # The group before this one failed in a way that no restart mends; the driver reads the
        # reason from the recorder.
        return
    kind = DistributedGroup if dist.is_initialized() else OneRank
    device = ray.train.torch.get_device()
    group: Group = kind(device, ray.train.report, job.run.learner.dtype)
    try:
        register_writer(job.directory)
        loop(group, job, recorder)
    except InfraFailure:
        raise
    except EngramError as failure:
        recorder.fail(failure, traceback.format_exc())
        raise
    except Exception as unknown:
        # Not of the machine's making as far as anybody knows, so a restart would only meet it
        # again.
        recorder.fail(DataFailure(f"{type(unknown).__name__}: {unknown}"), traceback.format_exc())
        raise
