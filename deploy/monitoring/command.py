"""The command `engram dashboard`."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.output import tell
from deploy.view_commands import view

app = typer.Typer()


@app.command()
def dashboard(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run directories, live or finished.")
    ],
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of Prometheus on this machine.")
    ] = 9090,
    grafana_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of Grafana on this machine.")
    ] = 3000,
) -> None:
    """Start an installed Prometheus for runs, with alerts, and Grafana with dashboards where it is
    installed; Ctrl-C ends both. Without Prometheus it says how to install it, and does what `view`
    does."""
    from deploy.monitoring.server import INSTALL, Ports, find_prometheus
    from deploy.monitoring.server import dashboard as serve

    program = find_prometheus()
    if program is None:
        tell(f"engram: {INSTALL}. Until then this is `engram view`:")
        view(runs)
        return
    serve(program, runs, Ports(port, grafana_port), lambda text: tell(f"engram: {text}"))
