"""Reward workers are killed all the time, functions raise and hang, and every turn is accounted for
once, for its own reason.

How fast that goes is measured by `engram bench reward_chaos`, on eight times as many turns.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.reward_chaos import Chaos, Killer, run
from common.episode import Episode

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(300)]


def test_every_turn_is_accounted_for_once_while_workers_are_killed(tmp_path: Path) -> None:
    # The more turns hang, the longer it takes, and the more kills there are for a given number of
    # turns.
    chaos = Chaos(episodes=600, hanging=0.01, workers=6, kill_every=1.0, kills=8)
    dealt = chaos.workload()

    async def killed() -> tuple[list[Episode], int, dict[str, int]]:
        pool = chaos.pool(tmp_path)
        killer = Killer(pool.actors, chaos.kill_every, chaos.kills)
        try:
            await killer.ready()
            killing = asyncio.create_task(killer.kill_in_turn())
            scored = await pool.score(dealt, {})
            killing.cancel()
            return scored, killer.kills, pool.stats()
        finally:
            await killer.close()
            await pool.close()

    scored, kills, stats = asyncio.run(asyncio.wait_for(killed(), 240))
    assert chaos.unaccounted(dealt, scored) == []
    assert kills >= 3
    # Not all of them: that a worker is gone shows when it has a call, and the last ones killed may
    # get none.
    assert stats["restored"] >= kills // 2


def test_the_benchmark_measures_both_parts() -> None:
    figures = run(Chaos(episodes=50, workers=2, kill_every=0.5, kills=3))
    assert figures["undisturbed_turns_per_second"] > 0
    ratio = figures["disturbed_turns_per_second"] / figures["undisturbed_turns_per_second"]
    assert figures["disturbed_over_undisturbed"] == pytest.approx(ratio)


def test_what_is_not_accounted_for_is_found() -> None:
    chaos = Chaos(episodes=2, raising=0.25, hanging=0.25)
    dealt = chaos.workload()

    def scored(episode: Episode) -> Episode:
        def judged(answer: str, reason: str | None) -> dict[str, object]:
            if reason is None:
                return {"reward": 0.5, "rewards": {"judge": 0.5}}
            return {"failure": f"judge: {reason}"}

        turns = tuple(
            replace(turn, **judged(turn.answer, chaos.expected(turn))) for turn in episode.turns[1:]
        )
        return replace(episode, turns=(episode.turns[0], *turns))

    right = [scored(episode) for episode in dealt]
    assert chaos.unaccounted(dealt, right) == []
    assert len(chaos.unaccounted(dealt, dealt)) == chaos.turns
    assert "1 of 2 episodes" in chaos.unaccounted(dealt, right[:1])[0]
    assert len(chaos.unaccounted(dealt, right[::-1])) == 1
    failed = next(turn for episode in right for turn in episode.answered if turn.failure)
    swapped = [
        replace(
            episode,
            turns=tuple(
                replace(turn, failure="judge: other") if turn is failed else turn
                for turn in episode.turns
            ),
        )
        for episode in right
    ]
    assert chaos.unaccounted(dealt, swapped) == [
        f"{failed.answer}: reward None, failure 'judge: other'"
    ]
