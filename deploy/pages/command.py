"""Options of commands that serve a page, and what they print of its address."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.output import echo, tell

if TYPE_CHECKING:
    from deploy.pages.frame import Page

PORT = 8266
"""Where nobody says; another free one where it is taken."""
LOOPBACK = "127.0.0.1"

HostOption = Annotated[
    str,
    typer.Option(help="Address to listen on; one that others reach needs a token, which is made."),
]
PortOption = Annotated[
    int | None, typer.Option(min=0, max=65535, help=f"Without it {PORT}, or a free one.")
]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]


def serve(
    page: Page,
    name: str,
    host: str,
    port: int | None,
    browser: bool,
    allows: str,
    ended: Event | None = None,
) -> None:
    """Print the page's link and serve it until Ctrl-C. name: of what is shown. allows: what whoever
    has the link can do. Raises InputError where the address cannot be listened on."""
    from deploy.pages.frame import is_loopback, new_token
    from deploy.pages.serving import PageServer, listen

    token = None if is_loopback(host) else new_token()
    socket, taken = listen(host, PORT if port is None else port, port is None)
    shown = "localhost" if token is None else host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{taken}/"
    link = address if token is None else f"{address}?token={token}"
    if token is not None:
        tell(f"engram: whoever has this link can {allows}; it is not encrypted")
    echo(f"{name}: {link} (Ctrl-C ends it)")
    if browser:
        import webbrowser

        webbrowser.open(link)
    PageServer(page, host, taken, token, ended).run(sockets=[socket])
