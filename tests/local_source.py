"""The learner without Ray: a tiny run, its directory, and an `EpisodeSource` that plays and scores
in this process.

Everything in it is the real thing (dealer, engine, rewards, loops, recorder, checkpoints), so what
these runs show is what a run under Ray does, short of processes and messages. Imported by tests,
and by the processes that tests start.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from common.config.rewards import Rewards
from common.config.rollout import Sampling
from common.config.run import Run
from common.data.conversations import value_counts
from common.data.corpus import Corpus
from common.data.datasets.table import load_corpus
from common.data.tokenizer import SPECIAL_TOKENS, ConversationTokenizer
from common.episode import Episode, Task
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from common.weights import PackedWeights
from learner.episode_source import Shard
from learner.evaluation.measure import reward_embedding
from learner.parallel.group import Group, Job, OneRank
from learner.policies.table import open_policy
from learner.recorder import Recorder
from learner.setup import newest, prepare
from learner.stages.planning import stages_by_group
from learner.stages.rl import train_on
from learner.stages.sequence import is_finished, run_stages
from reward_service.compose import score_episodes
from reward_service.normalization import after, from_json, to_json
from rollout.iterations import Iterations, RolloutState
from rollout.policies.play import play
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.tasks import Dealer, Plan, shards

STAGES: dict[str, dict[str, Any]] = {
    "joint_lm": {"stage": "joint_lm", "steps": 6, "batch_size": 6},
    "sft": {
        "stage": "sft",
        "steps": 6,
        "batch_size": 6,
        "blind_fraction": 0.3,
        "hide_probability": 0.1,
        "noise": 0.1,
        "mask_random": 0.2,
        "mask_keep": 0.2,
        "middle_weight": 0.5,
    },
    "memory_pretrain": {
        "stage": "memory_pretrain",
        "steps": 6,
        "batch_size": 6,
        "input_noise": 0.1,
        "label_noise": 0.1,
        "label_weight_shift": 0.15,
    },
    "memory_aware": {"stage": "memory_aware", "steps": 6, "batch_size": 6},
    "mrl": {
        "stage": "mrl",
        "episodes": 7,
        "curriculum": [
            {"name": "short", "iterations": 2, "max_steps": 2},
            {"name": "held", "iterations": 4, "max_steps": 3, "reset_probability": 0.4},
        ],
        "ppo": {"entropy": 0.01, "kl_target": 0.5, "kl_horizon": 20, "memory_change": 0.1},
    },
}
"""One small section per stage, with what makes results depend on ranks, resumes and padding
switched on."""


def tiny_run(
    folder: Path | str,
    *stages: str | dict[str, Any],
    name: str = "tiny",
    **sections: dict[str, Any],
) -> Run:
    """Two layers of width 32 and two dozen short conversations; sections are laid over the defaults
    key by key. No stage: one of language modelling, as a run must have one."""
    settings: dict[str, dict[str, Any]] = {
        "data": {
            "kind": "synth",
            "train": 24,
            "eval": 6,
            "steps": [1, 2, 3],
            "subjects": 2,
            "values": 4,
        },
        "tokenizer": {"vocab_size": 400},
        "model": {
            "width": 32,
            "layers": 2,
            "heads": 4,
            "query_heads": 2,
            "kv_heads": 2,
            "decoder_ff": 48,
            "encoder_ff": 48,
        }
        | {"slots": 6, "max_tokens": 32},
        "learner": {"checkpoint_every": 2, "log_every": 1},
        "rollout": {"workers": 1, "slots": 4, "sampling": {"max_new_tokens": 8}},
        "evaluation": {"episodes": 6},
    }
    for section, values in sections.items():
        default = settings.get(section, {})
        other = values.get("kind", default.get("kind")) != default.get("kind")
        settings[section] = values if other else default | values
    chosen = [
        STAGES[stage] if isinstance(stage, str) else stage for stage in stages or ("joint_lm",)
    ]
    return Run.model_validate(
        {"name": name, "runs": str(folder), "seed": 5, "stages": chosen, **settings}
    )


class LocalSource:
    """Deals, plays and scores as the conductor and its workers do. Rank 0's weights are all it has,
    so it serves groups of one."""

    def __init__(self, job: Job):
        run, checkpoint = job.run, newest(job.directory)
        self.run = run
        opened = open_policy(checkpoint)
        self.tokenizer, self.special = opened.tokenizer, opened.special_ids
        self.policy = opened.playing(run.rollout, run.environment, -1)
        corpus = load_corpus(run.data, run.seed)
        self.known = list(value_counts(corpus.train))
        self.embedding = reward_embedding(checkpoint, job.stage)
        self.version = -1
        self.iterations = Iterations(
            Dealer(corpus.train, run.seed, job.stage, run.environment.kind),
            lambda scorer, episodes: to_json(after(from_json(scorer), episodes, run.rewards)),
        )
        self.carried = 0
        """Episodes that went on from the memory of an earlier one."""

    def publish(self, weights: PackedWeights) -> int:
        self.policy.load(weights)
        self.version = weights.version
        return 1

    def collect(self, iteration: int, version: int, plan: Plan, rank: int, ranks: int) -> Shard:
        assert (version, iteration) == (self.version, self.iterations.next)
        tasks = self.iterations.deal(plan, iteration)
        self.carried += sum(task.initial_memory is not None for task in tasks)
        scored = score_episodes(
            play(self.policy, tasks),
            self.run.rewards,
            self.embedding,
            self.special,
            self.known,
            from_json(self.iterations.state(iteration).scorer),
        )
        episodes = self.iterations.collected(plan, iteration, scored)
        failed = sum(turn.reward is None for episode in episodes for turn in episode.answered)
        return Shard(list(shards(episodes, ranks)[rank]), len(tasks), 0, failed)

    def trained(self, iteration: int, version: int) -> None:
        self.iterations.trained(iteration)

    def state(self) -> RolloutState:
        return self.iterations.state(self.iterations.next)

    def load_state(self, state: RolloutState) -> None:
        self.iterations.load(state)

    def metrics(self) -> dict[str, Any]:
        return {}


class DyingRecorder(Recorder):
    """Kills its process, as `kill -9` does, when a row of a given step has been written."""

    dies_after = 0

    def record(
        self, rank: int, ranks: int, done: int, global_step: int, state: dict[str, Any]
    ) -> None:
        super().record(rank, ranks, done, global_step, state)
        if global_step == self.dies_after:
            os.kill(os.getpid(), signal.SIGKILL)


class StoppingRecorder(Recorder):
    """Asks the ranks to stop once a row of a given step has been written."""

    stops_after = 0

    def record(
        self, rank: int, ranks: int, done: int, global_step: int, state: dict[str, Any]
    ) -> None:
        super().record(rank, ranks, done, global_step, state)
        if global_step == self.stops_after:
            self.request_stop()


def prepared(run: Run) -> RunDirectory:
    """The run's directory with its first checkpoint, or as it was left."""
    directory = RunDirectory(run.runs, run.name)
    prepare(run, directory, load_corpus(run.data, run.seed))
    return directory


def run_here(
    run: Run,
    group: Group | None = None,
    make_recorder: Callable[[Run, RunDirectory, int], Recorder] = Recorder,
) -> tuple[RunDirectory, list[LocalSource]]:
    """Run or resume all stages in this process, as `learner.driver.train` would on a cluster;
    stops where the recorder asks to."""
    directory, sources = prepared(run), []
    recorder = make_recorder(run, directory, newest(directory).step)
    try:
        for indices in stages_by_group(run.stages):
            last = newest(directory)
            left = [i for i in indices if not is_finished(last, i, run.stages[i])]
            if not left:
                continue
            job = Job(run, directory, left[0], "local", following=len(left) - 1)
            if run.stages[job.stage].needs_rollout:
                sources.append(LocalSource(job))
                train_on(group or OneRank(), job, recorder, sources[-1])
            else:
                run_stages(group or OneRank(), job, recorder)
            if recorder.stop_requested():
                break
    finally:
        recorder.close()
    return directory, sources


def comparable_rows(directory: RunDirectory) -> list[Mapping[str, Any]]:
    """Rows of metrics.jsonl without what depends on the clock, and on where a run was stopped."""
    return [
        {
            key: value
            for key, value in row.items()
            if not key.startswith(("time", "sync/", "checkpoint/", "host/"))
            and not any(timed in key for timed in ("per_second", "_seconds"))
        }
        for row in read_rows(directory)
    ]


def run_and_die(settings: dict[str, Any], dies_after: int) -> None:
    """In a process of its own: run until the row of step `dies_after` is written, and be killed."""

    def dying(run: Run, directory: RunDirectory, step: int) -> Recorder:
        recorder = DyingRecorder(run, directory, step)
        recorder.dies_after = dies_after
        return recorder

    run_here(Run.model_validate(settings), make_recorder=dying)


@contextmanager
def at_step(run: Run, step: int, act: Callable[[], object]) -> Iterator[None]:
    """`act` is called, in a thread of its own, as soon as metrics.jsonl has the row of `step`."""
    over, acted = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            rows = read_rows(RunDirectory(run.runs, run.name))
            if rows and rows[-1]["step"] >= step:
                act()
                acted.set()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        assert acted.is_set(), f"the run was over before the row of step {step} was seen"


# --- parts of a run -------------------------------------------------------------------------------


def tiny_corpus(seed: int = 5) -> Corpus:
    return load_corpus(tiny_run("unused").data, seed)


def lively_model(
    tokenizer: ConversationTokenizer, seed: int = 0, **shape: Any
) -> ReactiveTransformer:
    """Weights so large that memory and every past token change what comes next, and answers that
    end at different lengths."""
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {
        "width": 32,
        "heads": 4,
        "query_heads": 2,
        "kv_heads": 2,
        "decoder_ff": 48,
        "encoder_ff": 48,
    }
    defaults |= {"slots": 6, "max_tokens": 32, "initializer_range": 0.25, "initial_memory_std": 1.0}
    model = ReactiveTransformer(
        RxTConfig(**{"vocab_size": tokenizer.vocab_size} | defaults | shape)
    ).eval()
    model.decoder.head.bias.data[tokenizer.eos_id] = 4.0
    return model


def played(
    model: ReactiveTransformer,
    tokenizer: ConversationTokenizer,
    tasks: Sequence[Task],
    temperature: float = 1.0,
) -> list[Episode]:
    """Episodes of `tasks`, scored."""
    engine = ReactiveEngine(
        model, tokenizer, 4, Sampling(temperature=temperature, max_new_tokens=8)
    )
    special = tuple(range(len(SPECIAL_TOKENS)))
    return score_episodes(
        engine.run(tasks), Rewards(), model.embedding.weight.detach().numpy(), special
    )


def tiny_tasks(count: int, **settings: Any) -> list[Task]:
    rows = tiny_corpus().train
    return [
        Task(f"0-000000-{i:05d}", rows[i], seed=100 + i, batch_index=i, **settings)
        for i in range(count)
    ]


def processes() -> ForkServerContext:
    """Processes that start in a moment: forked off a server without threads that has imported all
    of this once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.local_source"])
    return context
