"""A real vLLM engine: it generates what the learner computes, update after update, and comes back
where its actor is killed. `make test-vllm` runs this file."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.causal import CausalModel
from common.config.run import Run
from common.failures import InputError
from common.models.vllm_release import has_vllm
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from common.telemetry.progress import QuietProgress
from common.weights import WeightsMismatch, pack
from learner.driver import train
from learner.parallel.group import OneRank
from learner.policies.table import CheckpointPolicy
from rollout.journal.reader import episode_heads, find_episodes
from rollout.policies.play import play
from tests.causal_runs import causal_run
from tests.causal_updates import lm_rl, make_update
from tests.killing import processes_of_this_ray
from tests.tiny_causal import WIDE, opened, policy_of, prompt_tasks, scored, write_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed here: make test-vllm"),
]

COMPARED = (0, 1, 2, 5)
"""Updates after which vLLM and learner are compared."""
SAMPLING = {"max_new_tokens": 6, "temperature": 0.8}


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    family, changes = request.param
    return write_model(tmp_path / "model", family, changes=WIDE[family] | changes)


@pytest.mark.parametrize(
    "folder",
    [("gpt2", {}), ("llama", {"tie_word_embeddings": True}), ("llama", {})],
    ids=["gpt2", "llama-tied", "llama"],
    indirect=True,
)
def test_vllm_generates_what_the_learner_computes_after_every_update(folder: Path) -> None:
    model, held = opened(folder, interactions=2)
    settings = CausalModel.model_validate({"path": str(folder), "interactions": 2})
    whole = CheckpointPolicy("causal", model, held, settings)
    optimizer = {"learning_rate": 0.02, "max_grad_norm": 10.0}
    update = make_update(model, held, settings, lm_rl(optimizer=optimizer), OneRank())
    engine = policy_of(model, held, backend="vllm", sampling=SAMPLING)
    tasks, greedy = (prompt_tasks(5, 3, greedy=each) for each in (False, True))
    seen = []
    for version in range(6):
        engine.load(whole.weights(version))
        episodes = play(engine, tasks)
        assert {episode.status for episode in episodes} == {"generated"}
        if version in COMPARED:
            assert difference(update.policy, episodes) <= 1e-4
            plain = policy_of(model, held, backend="transformers", sampling=SAMPLING)
            ours, theirs = play(engine, greedy), play(plain, greedy)
            assert texts(ours) == texts(theirs)
            assert log_probs(ours) == pytest.approx(log_probs(theirs), abs=1e-4)
            assert texts(play(engine, tasks)) == texts(episodes), "seeds belong to task and turn"
            seen.append(log_probs(ours)[0])
        update.run(update.evaluate(scored(episodes), list(range(5))), list(range(5)), 5, version)
    assert len(set(seen)) == len(COMPARED), "the updates change what is compared"
    refuse_other_weights(engine, whole)


def difference(policy: Any, episodes: list[Any]) -> float:
    """The largest between recorded and recomputed log-probs."""
    found = policy.log_probs(episodes, SAMPLING["temperature"])
    return max(
        float((values - torch.tensor(turn.log_probs)).abs().max())
        for episode, turns in zip(episodes, found, strict=True)
        for turn, values in zip(episode.answered, turns, strict=True)
    )


def texts(episodes: list[Any]) -> list[list[list[int]]]:
    return [[list(turn.answer_ids) for turn in episode.answered] for episode in episodes]


def log_probs(episodes: list[Any]) -> list[float]:
    return [value for each in episodes for turn in each.answered for value in turn.log_probs]


def refuse_other_weights(engine: Any, whole: CheckpointPolicy) -> None:
    held = engine.version
    state = dict(whole.module.state_dict())
    state.pop("lm_head.weight")
    with pytest.raises(WeightsMismatch, match=r"lm_head\.weight"):
        engine.load(pack(state, 99))
    assert engine.version == held


def test_a_cancelled_episode_and_a_stop_string_leave_nothing_behind(tmp_path: Path) -> None:
    model, held = opened(write_model(tmp_path / "model", changes=WIDE["gpt2"]))
    asked = {"max_new_tokens": 12, "stop": ["a", "e", "i"]}
    engine = policy_of(model, held, 2, backend="vllm", sampling=asked)
    engine.load(pack(model.state_dict(), 0))
    plain = policy_of(model, held, 2, backend="transformers", sampling=asked)
    plain.load(pack(model.state_dict(), 0))
    greedy = prompt_tasks(4, 2, greedy=True)
    assert texts(play(engine, greedy)) == texts(play(plain, greedy))
    engine.add(greedy)
    engine.advance()
    engine.advance()
    assert engine.cancel(greedy[0].id, "no longer wanted")
    came = []
    while engine.in_flight:
        came += engine.advance()
    assert sorted(each.status for each in came) == ["failed", "generated", "generated", "generated"]
    small = write_model(tmp_path / "small")
    with pytest.raises(InputError, match="vllm does not compute this model here"):
        policy_of(*opened(small), backend="vllm")


class Killer(threading.Thread):
    """Kills the rollout worker once a row of lm_rl is there."""

    def __init__(self, directory: RunDirectory):
        super().__init__(daemon=True)
        self.directory, self.killed, self.over = directory, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            if self._reached():
                for pid, title in processes_of_this_ray().items():
                    if title.startswith("ray::RolloutWorker"):
                        os.kill(pid, signal.SIGKILL)
                        self.killed = pid
                        return

    def _reached(self) -> bool:
        try:
            return any(row["stage"] == "lm_rl" for row in read_rows(self.directory))
        except (OSError, ValueError, InputError):
            return False


def vllm_run(folder: Path) -> Run:
    run = causal_run(folder)
    rollout = run.rollout.model_copy(update={"backend": "vllm", "deadline": 200.0})
    return run.model_copy(update={"rollout": rollout})


@pytest.mark.usefixtures("ray_local")
def test_a_run_goes_on_where_the_actor_of_vllm_is_killed(tmp_path: Path) -> None:
    run = vllm_run(tmp_path)
    directory = RunDirectory(run.runs, run.name)
    killer = Killer(directory)
    killer.start()
    began = time.monotonic()
    summary = train(run, QuietProgress())
    killer.over.set()
    killer.join()
    assert killer.killed, f"nothing was killed in {time.monotonic() - began:.0f} s"
    assert [stage["name"] for stage in summary["stages"]] == ["lm_sft", "lm_rl"]
    rows = [row for row in read_rows(directory) if row["stage"] == "lm_rl"]
    assert len(rows) == 3
    assert max(row["ppo/log_prob_max_difference"] for row in rows) <= 1e-4
    played = episode_heads(directory)
    assert played.num_rows == 18
    found = find_episodes(directory, played["id"].to_pylist())
    assert {each.episode.backend for each in found} == {"vllm"}
