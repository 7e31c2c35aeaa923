"""Commands that look at runs: `engram view`, `engram report` and `engram runs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.failures import InputError
from deploy.output import echo
from deploy.pages.command import LOOPBACK, HostOption, OpenOption, PortOption, serve

app = typer.Typer()

Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run directories.")]


@app.command()
def view(
    runs: Runs,
    host: HostOption = LOOPBACK,
    port: PortOption = None,
    browser: OpenOption = False,
) -> None:
    """Show runs on a local web page, live or finished: curves, episodes turn by turn, memory."""
    from deploy.progress import doing

    with doing(f"opening {', '.join(runs)}"):
        from threading import Event

        from deploy.view.server import view_page
        from deploy.view.watched import watched

        found, ended = watched(runs), Event()
        for run in found:
            run.refresh()
        page = view_page(found, ended)
    names = ", ".join(run.label for run in found)
    serve(page, names, host, port, browser, "read these runs", ended)


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN [RUN]", help="One run, or several side by side.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; without it report.html in the first run's folder."),
    ] = None,
) -> None:
    """Write the page of `view` as one HTML file that needs nothing else."""
    from deploy.progress import doing

    with doing(f"reading {', '.join(runs)}"):
        from common.storage.run_directory import write_atomically
        from deploy.report import REPORT, report_html
        from deploy.view.watched import watched

        found = watched(runs)
        html = report_html(found)
    if out is None:
        found[0].directory.write_text(REPORT, html)
        where = found[0].directory.path(REPORT)
    else:
        if not out.parent.is_dir():
            raise InputError("--out", f"there is no folder {out.parent}")
        write_atomically(out, html.encode())
        where = str(out)
    echo(f"{where} ({len(html.encode()) / 1e6:.1f} MB)")


@app.command("runs")
def list_runs(
    folder: Annotated[str, typer.Argument(help="Where run directories lie.")] = "runs",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """List the runs of a folder: state, stage, headline figures."""
    from deploy.progress import doing

    with doing(f"reading {folder}"):
        from deploy.runs import runs_in, runs_table

        found = runs_in(folder)
    echo(json.dumps({"folder": folder, "runs": found}) if as_json else runs_table(folder, found))
