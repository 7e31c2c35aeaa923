"""CPU time of the server of `engram view`, for a page that is open during a run of the demo."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse

from common.config.loader import load_run
from common.config.mrl import MRL
from common.config.run import Run
from common.data.datasets.table import load_corpus
from common.episode import Episode, Row, Turn
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import MetricsWriter
from common.telemetry.metrics import Metrics
from deploy.view.curves import series
from deploy.view.episode_list import Filter, episode_list
from deploy.view.memory import memory
from deploy.view.server import metrics_of, runs_of
from deploy.view.state import state
from deploy.view.waits import waits
from deploy.view.watched import WatchedRun
from rollout.journal.journal import Journal

TOKENS = 12
"""In each query and answer."""
SHOWN = 12
"""Metrics whose curves are in sight at once, at most."""


def parts(
    config: str, recorded: Mapping[str, Any], seconds_of: Callable[..., float]
) -> dict[str, float]:
    """CPU seconds of a look that finds nothing new, of one that finds a row, of one that finds the
    row and the episodes of an iteration, and of what the dearest section asks for after a row and
    after an iteration, at the end of a run.

    recorded: state of metrics of every row; seconds_of: as that of `benchmarks.metrics`.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = load_run([config], [f"runs={folder}", "data.train=256", "data.eval=64"])
        directory = RunDirectory(run.runs, run.name)
        directory.write_config(run)
        writer, metrics = MetricsWriter(directory), Metrics()
        watched = WatchedRun(directory, run.name)
        steps, iterations = itertools.count(1), itertools.count()
        mrl = next(stage for stage in run.stages if isinstance(stage, MRL))
        assert directory.local is not None
        journal = Journal(directory.local, 0)
        played = episodes(run, mrl.episodes)

        def write_row() -> None:
            metrics.merge(recorded)
            writer.write(metrics.flush(next(steps), "mrl"))

        def write_iteration() -> None:
            iteration = next(iterations)
            names = [f"0-{iteration:06d}-{index}" for index in range(len(played))]
            journal.dealt(iteration, names)
            journal.arrived(
                iteration,
                [
                    replace(episode, id=name, task=name, iteration=iteration)
                    for name, episode in zip(names, played, strict=True)
                ],
            )
            journal.trained(iteration, iteration + 1)
            write_row()

        for _ in range(supervised_rows(run)):
            write_row()
        for _ in range(mrl.total_steps):
            write_iteration()
        watched.refresh()
        sections = {
            "curves": lambda: [metrics_of([watched]), shown_series(watched)],
            "episodes": lambda: episode_list(watched.episodes, Filter()),
            "memory": lambda: memory(watched),
            "waits": lambda: waits(watched),
            "state": lambda: state(watched),
        }
        row = seconds_of(watched.refresh, 9, before=write_row)
        iteration = seconds_of(watched.refresh, 9, before=write_iteration)

        def dearest(write: Callable[[], object]) -> float:
            def news() -> None:
                write()
                watched.refresh()

            return max(
                seconds_of(
                    lambda answer=answer: JSONResponse([runs_of([watched]), answer()]), 5, news
                )
                for answer in sections.values()
            )

        return {
            "page_look": seconds_of(watched.refresh),
            "page_row": row,
            "page_iteration": iteration,
            "page_section": dearest(write_row),
            "page_section_iteration": dearest(write_iteration),
        }


def supervised_rows(run: Run) -> int:
    steps = sum(stage.total_steps for stage in run.stages if not stage.needs_rollout)
    return steps // run.learner.log_every


def shown_series(watched: WatchedRun) -> dict[str, Any]:
    names = [metric["name"] for metric in metrics_of([watched])["metrics"]]
    return series([watched], names[:SHOWN])


def episodes(run: Run, count: int) -> list[Episode]:
    """As long as those of the run, each answer right."""
    rows = itertools.islice(itertools.cycle(load_corpus(run.data, run.seed).train), count)
    return [Episode("", "", 0, turns(row), 0, status="scored") for row in rows]


def turns(row: Row) -> tuple[Turn, ...]:
    ids, log_probs = list(range(TOKENS)), [-0.1] * TOKENS
    return tuple(
        Turn(
            ids,
            ids,
            log_probs,
            ids,
            role=each.role,
            facts=each.facts,
            query=each.query,
            answer=each.answer,
            reference=each.answer,
            rewards={"recall": 1.0, "bleu": 0.5},
            reward=0.8,
        )
        for each in row.turns
    )
