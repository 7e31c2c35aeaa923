"""The benchmarks run; what they measure on this machine is for docs/performance.md."""

from __future__ import annotations

import io
from importlib import import_module

import pytest
import torch

from benchmarks import long_memory, rollout, rollout_gpu
from benchmarks.parts import Part
from benchmarks.workload import LongTailed, TurnLockstep, make_engine, make_tasks, play_in_batches
from common.config.generation import LongContext
from common.failures import InputError
from common.telemetry.progress import QuietProgress
from deploy.bench import BENCHMARKS, run_bench
from deploy.progress import LineProgress


def test_the_gpu_benchmark_measures_on_any_device() -> None:
    shape = {
        "vocab_size": 300,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "query_heads": 2,
        "kv_heads": 2,
        "slots": 6,
    }
    figures = rollout_gpu.rate("tiny", 4, torch.device("cpu"), 1e10, repeats=1, shape=shape)
    assert figures["tokens_per_second"] > 0
    assert 0 < figures["bandwidth_share"] < 1
    if not torch.cuda.is_available():
        assert rollout_gpu.run() == {}


def test_lock_step_plays_the_same_conversations_in_more_steps() -> None:
    tasks = make_tasks([2, 5, 3, 4, 2, 6, 3, 2])
    free, turns, batches = (
        make_engine(4, kind, 200) for kind in (LongTailed, TurnLockstep, TurnLockstep)
    )
    for engine in (free, turns):
        engine.run(tasks)
    play_in_batches(batches, tasks, 4)
    assert free.tally.tokens == turns.tally.tokens == batches.tally.tokens
    assert free.tally.steps < turns.tally.steps < batches.tally.steps


def test_turns_of_one_conversation_are_clocked_one_by_one() -> None:
    engine = make_engine(2, rollout.TurnClock)
    assert isinstance(engine, rollout.TurnClock)
    engine.turns = []
    engine.run(make_tasks([5, 5]))
    assert len(engine.turns) == 6


def test_an_unknown_benchmark_is_refused_by_its_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'rollout'"):
        run_bench("rolout", QuietProgress())


def test_figures_of_a_benchmark_are_told_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen = io.StringIO(), []

    def second() -> dict[str, float]:
        seen.append(out.getvalue())
        return {"slow": 2.0}

    def parts(quick: bool) -> list[Part]:
        return [Part("first part", lambda: {"fast": 1234.56789}), Part(f"second {quick}", second)]

    monkeypatch.setattr("benchmarks.rewards.parts", parts)
    figures = run_bench("rewards", LineProgress(out), quick=True)
    assert figures == {"fast": 1234.5679, "slow": 2.0}
    assert "first part" in seen[0]
    assert "fast 1,235" in seen[0]
    assert "second True" in seen[0]
    assert "slow" not in seen[0]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_parts_of_different_names(name: str) -> None:
    for quick in (False, True):
        names = [part.name for part in import_module(f"benchmarks.{name}").parts(quick)]
        assert len(set(names)) == len(names) >= 1


def test_late_turns_are_held_against_early_ones() -> None:
    seconds = [1.0] * 49 + [2.0] * 151 + [9.0] * 300 + [3.0] * 149
    found = long_memory.growth(seconds, late=(501, 649))
    assert found == {"early": 2.0, "late": 3.0, "ratio": 1.5}
    # One turn more before or after does not count.
    assert long_memory.growth([5.0, *seconds[1:]], (2, 49), (1, 1))["ratio"] == 5.0


def test_recall_and_cost_against_turns_are_measured_of_any_model() -> None:
    found = long_memory.untrained(LongContext(turns=(16, 140), eval=2))
    assert found["recall"].keys() == {"16", "140"}
    assert found["recall"]["140"]["counts"]["recall"]["all"] >= 2
    assert [each["early"] > 0 for each in found["cost"]["conversations"]] == [True] * 3
    assert 0.2 < found["cost"]["ratio"] < 5
