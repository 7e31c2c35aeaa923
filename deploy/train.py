"""The commands `train` and `demo`: settings, the lease and the data first, then a cluster, then the
run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.failures import Drained
from deploy.output import echo
from deploy.progress import doing, open_progress
from learner.interrupts import counted

if TYPE_CHECKING:
    from common.config.run import Run
    from common.telemetry.progress import Progress


def train(configs: list[str], overrides: list[str], address: str | None, take_over: bool) -> None:
    """Train or resume a run, with its progress on standard error, and print its summary.

    address: a running Ray cluster; None: `RAY_ADDRESS`, or a local one. Raises Drained where it was
    interrupted, and what `learner.driver` raises.
    """
    try:
        with counted() as interrupts, interrupts.at_once():
            _train_and_show(configs, overrides, address, take_over)
    except KeyboardInterrupt:
        # Whatever it interrupted, even a second one, finds its place again: checkpoints and summary
        # are whole at any moment.
        raise Drained("stopped; the same command goes on from there") from None


def _train_and_show(
    configs: list[str], overrides: list[str], address: str | None, take_over: bool
) -> None:
    with doing("reading the configuration"):
        from common.config.loader import load_run

        places: dict[str, str] = {}
        run = load_run(configs, overrides, places)
    progress = open_progress()
    try:
        summary = train_run(run, places, address, take_over, progress)
    finally:
        progress.close()
    from common.storage.run_directory import RunDirectory
    from deploy.tables import summary_tables

    where = RunDirectory(run.runs, run.name).path()
    echo(f"{summary_tables(summary)}\n\n{next_commands(run, where)}")


def train_run(
    run: Run, places: dict[str, str], address: str | None, take_over: bool, progress: Progress
) -> dict[str, Any]:
    """Train or resume one run on a cluster of its own or at `address`; returns its summary. places:
    paths on disk that its settings name."""
    with progress.doing(f"checking the settings of {run.name}"):
        from deploy.cluster import connect, settle

        where = settle(address)
        # After `settle`: torch reads the environment when it is imported.
        from common.storage.lease import hold
        from common.storage.run_directory import RunDirectory
        from deploy.refusal import fingerprint, remembered, require_not_refused
        from deploy.report import keep_report
        from learner.driver import go, make_ready
        from learner.requirements import require_possible

        require_possible(run)

    # The lease and all that needs no cluster first: a cluster takes seconds to start.
    with hold(RunDirectory(run.runs, run.name), progress, take_over) as directory:
        ready = make_ready(run, directory, progress)
        mark = fingerprint(run, places)
        require_not_refused(directory, mark, progress)
        progress.note(
            "starting Ray on this machine" if where == "local" else f"connecting to Ray at {where}"
        )
        try:
            with connect(run, where, progress), remembered(directory, mark):
                return go(ready, progress)
        finally:
            keep_report(directory)


def next_commands(run: Run, where: str) -> str:
    """The commands that show what a finished run came to."""
    shown = os.path.relpath(where) if Path(where).is_relative_to(Path.cwd()) else where
    commands = {"engram view": "every curve and conversation, in a browser"}
    if run.stages[-1].own_model is None:
        commands = {"engram chat": "talk to the model"} | commands
    return "\n".join(f"{command} {shown}: {what}" for command, what in commands.items())
