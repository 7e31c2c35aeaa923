"""The command `engram feedback`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from common.failures import Drained
from deploy.output import echo

app = typer.Typer()


@app.command()
def feedback(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG... [KEY=VALUE]...",
            help="YAML files, composed left to right, then overrides.",
        ),
    ],
    address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster; without it RAY_ADDRESS, or a local one."),
    ] = None,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="The loop's driver on another host is known to be dead: do not wait for it.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Rounds with people: ask, train a reward model on their labels, continue the policy. Ends with
    75 where labels are missing; started again, it goes on."""
    from deploy.cli import split
    from learner.interrupts import counted

    try:
        with counted() as interrupts, interrupts.at_once():
            state = _run(*split(words), address, take_over)
    except KeyboardInterrupt:
        raise Drained("stopped; the same command goes on from there") from None
    echo(json.dumps(state) if as_json else rounds_table(state))


def _run(
    configs: list[str], overrides: list[str], address: str | None, take_over: bool
) -> dict[str, Any]:
    from deploy.progress import doing, open_progress

    with doing("reading the configuration"):
        from common.config.feedback import Feedback
        from common.config.loader import load_section
        from deploy.cluster import settle

        places: dict[str, str] = {}
        settings = load_section(Feedback, {}, configs, overrides, places)
        settle(address)
        # After `settle`: torch reads the environment when it is imported.
        from common.config.run import Run
        from common.storage.lease import hold
        from common.storage.run_directory import RunDirectory
        from deploy.feedback.loop import Loop
        from deploy.feedback.rounds import begins_with_a_run, policy_run, reward_run
        from deploy.train import train_run
        from learner.requirements import require_possible

        first = [policy_run(settings, 0)] if begins_with_a_run(settings) else []
        for run in (*first, policy_run(settings, 1), reward_run(settings, 1)):
            require_possible(run)

    progress = open_progress()

    def train(run: Run) -> dict[str, Any]:
        return train_run(run, places, address, take_over, progress)

    try:
        with hold(RunDirectory(settings.runs, settings.name), progress, take_over):
            return Loop(settings, train, progress).run()
    finally:
        progress.close()


def rounds_table(state: Mapping[str, Any]) -> str:
    """Round by round, for a reader."""
    from deploy.layout import table

    first = state.get("demonstrations")
    rows = []
    if first:
        rows.append(["0", f"{first['judged']:,}", "-", f"{first['written']:,}", "-", "-", "-"])
    rows += [
        [
            str(each["round"]),
            f"{each['judged']:,}",
            f"{each['new_rows']:,}",
            f"{each.get('written', 0):,}",
            _share(each.get("reward_model"), "accuracy", "accuracy_low", "accuracy_high"),
            _share(each.get("win_rate"), "share", "low", "high"),
            _share(each.get("people"), "share", "low", "high"),
        ]
        for each in state["rounds"]
    ]
    head = ["round", "judged", "new rows", "written", "reward model right", "wins by it"]
    head += ["wins by people"]
    return f"{table(state['name'], head, rows)}\n{state['reason']}"


def _share(held: Mapping[str, float] | None, *keys: str) -> str:
    if not held:
        return "-"
    share, low, high = (held[key] for key in keys)
    return f"{share:.2f} ({low:.2f}–{high:.2f})"
