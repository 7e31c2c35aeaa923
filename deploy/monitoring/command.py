"""The command `engram dashboard`."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.output import tell

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
    installed; Ctrl-C ends both."""
    from deploy.monitoring.server import Ports
    from deploy.monitoring.server import dashboard as serve

    serve(runs, Ports(port, grafana_port), lambda text: tell(f"engram: {text}"))
