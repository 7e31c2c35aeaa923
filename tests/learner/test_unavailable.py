"""MRL where episodes cannot be scored for now: it leaves a checkpoint, says why, and goes on from
there as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config.run import Run
from common.failures import Drained, Unavailable
from learner.driver import rebuilt
from learner.episode_source import Shard
from learner.parallel.group import Job, OneRank
from learner.recorder import Recorder
from learner.setup import newest
from learner.stages.rl import train_on
from tests.local_source import LocalSource, comparable_rows, prepared, processes, run_here, tiny_run
from tests.two_ranks import outage_main


class LeavingSource(LocalSource):
    leaves_at = 0

    def collect(self, iteration: int, *args: Any, **kwargs: Any) -> Shard:
        if iteration == self.leaves_at:
            raise Unavailable("reward endpoint judge", "Connection refused", 300, waited=300)
        return super().collect(iteration, *args, **kwargs)


def run_until_away(run: Run, iteration: int) -> Recorder:
    directory = prepared(run)
    job, recorder = (
        Job(run, directory, 0, "local"),
        Recorder(run, directory, newest(directory).step),
    )
    try:
        source = LeavingSource(job)
        source.leaves_at = iteration
        train_on(OneRank(), job, recorder, source)
    finally:
        recorder.close()
    return recorder


@pytest.mark.parametrize("iteration", [0, 3, 4])
def test_what_is_away_costs_a_run_nothing_that_it_has_learnt(
    tmp_path: Path, iteration: int
) -> None:
    """Checkpoints are due every other step: at 0 there is the first one, at 4 one was just written,
    at 3 there is none."""
    run = tiny_run(tmp_path / "stopped", "mrl")
    recorder = run_until_away(run, iteration)
    assert recorder.failed()
    failure = recorder.report().failure
    assert failure is not None
    stop = rebuilt(failure)
    assert isinstance(stop, Drained)
    assert str(stop) == (
        "reward endpoint judge does not answer (Connection refused), and was waited for 300 s; "
        f"stopped at step {iteration}; the same command goes on from there"
    )
    directory = prepared(run)
    assert newest(directory).step == iteration
    assert len(comparable_rows(directory)) == iteration

    run_here(run)
    whole, _ = run_here(tiny_run(tmp_path / "whole", "mrl"))
    assert comparable_rows(directory) == comparable_rows(whole)


def test_ranks_agree_where_only_one_of_them_was_told_of_an_outage(tmp_path: Path) -> None:
    ranks = [processes().Process(target=outage_main, args=(rank, 2, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=100)
        assert process.exitcode == 0
    found = [(tmp_path / f"outage-{rank}").read_text() for rank in range(2)]
    assert found == ["None; None", "None; reward endpoint judge does not answer (503)"]
