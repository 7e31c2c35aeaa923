"""The command `engram doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.failures import EXIT_DONE, EXIT_FAILED
from deploy.output import echo
from deploy.progress import doing

app = typer.Typer()


@app.command()
def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            help="A running cluster to look at too: its job server, http://HOST:8265, or "
            "HOST:6379; without it RAY_ADDRESS."
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder in which runs are to lie.")] = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Check that this machine, or a cluster, can run engram: what is missing, and the command that
    mends it. Starts nothing; ends with 1 where runs would fail."""
    from deploy.doctor.check import checks_json, checks_text, healthy, verdict
    from deploy.doctor.cluster import cluster_address, cluster_checks
    from deploy.doctor.machine import machine_checks
    from deploy.doctor.packages import declared, extra_checks, package_checks, python_check

    with doing("looking at packages and this machine"):
        found = declared()
        packages = [python_check(), *package_checks(found)]
        machine, extras = machine_checks(runs), extra_checks(found)
    groups = {"Packages": packages, "This machine": machine, "Extras": extras}
    where = cluster_address(address)
    if where is not None:
        with doing(f"looking at the cluster at {where}"):
            groups["Cluster"] = cluster_checks(where)
    checks = [check for group in groups.values() for check in group]
    if as_json:
        echo(json.dumps(checks_json(checks)))
    else:
        echo("\n\n".join(checks_text(title, group) for title, group in groups.items()))
        echo(f"\n{verdict(checks)}")
    raise typer.Exit(EXIT_DONE if healthy(checks) else EXIT_FAILED)
