"""Commands on submitted runs: `engram logs` and `engram stop`."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.progress import doing
from deploy.ray_access import default_address

app = typer.Typer()

JobServerAddress = Annotated[
    str | None,
    typer.Option(help="The cluster's job server; without it RAY_ADDRESS, or this machine's."),
]
SubmittedRun = Annotated[
    str, typer.Argument(metavar="RUN", help="The name of a submitted run, or the id of its job.")
]


@app.command()
def logs(
    run: SubmittedRun,
    address: JobServerAddress = None,
    follow: Annotated[
        bool, typer.Option(help="Go on until the job ends; ends with the job's exit code.")
    ] = True,
) -> None:
    """Show the output of a submitted run."""
    address = address or default_address()
    with doing("loading Ray"):
        from deploy.submit import logs as show_logs

    raise typer.Exit(show_logs(run, address, follow=follow))


@app.command()
def stop(run: SubmittedRun, address: JobServerAddress = None) -> None:
    """Stop a submitted run; it leaves a checkpoint, and the same submission resumes it."""
    address = address or default_address()
    with doing("loading Ray"):
        from deploy.submit import stop as stop_run

    raise typer.Exit(stop_run(run, address))
