"""A web server around a page: the socket first, so that its address can be printed."""

from __future__ import annotations

import socket
from threading import Event

import uvicorn

from common.failures import InputError
from deploy.pages.frame import Page, frame_app

CLOSE_SECONDS = 3
"""That open pages have to go when the server ends."""


def listen(host: str, port: int, any_free: bool) -> tuple[socket.socket, int]:
    """A listening socket and its port. any_free: whether another port will do where this one is
    taken. Raises InputError where the address cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in [port, 0] if any_free else [port]:
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, candidate))
            found.listen(64)
        except OSError as failure:
            found.close()
            refused = failure
            continue
        return found, int(found.getsockname()[1])
    raise InputError("--port", f"cannot listen on {host}:{port}: {refused.strerror or refused}")


class PageServer(uvicorn.Server):
    """A server that ends live updates first when it ends: they would keep it from closing."""

    def __init__(
        self, page: Page, host: str, port: int, token: str | None, ended: Event | None = None
    ):
        """ended: what live updates of the page wait on; set when the server ends."""
        self._ended = ended or Event()
        config = uvicorn.Config(
            frame_app(page, host, port, token),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ended.set()
        await super().shutdown(sockets)
