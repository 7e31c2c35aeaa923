"""Reward endpoints for tests: real HTTP servers on this machine, which are away when told to be."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Endpoint:
    """Answers every request with what `answer` makes of it: a status and what becomes JSON. Close
    it."""

    def __init__(self, answer: Answer, port: int = 0):
        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                with contextlib.suppress(
                    ConnectionError
                ):  # who asked may be gone: tests are about that
                    super().handle_one_request()

            def do_POST(self) -> None:
                code, content = answer(
                    json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                )
                body = json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Judge:
    """Gives 1.0 for every turn, except while it is away: then it answers 503."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        """When it was asked while it was away."""
        self._seconds = 0.0
        self._until = 0.0

    def leave(self, seconds: float = float("inf")) -> None:
        """Be away from the next request on, for so long."""
        self._seconds = seconds

    def come_back(self) -> None:
        self._seconds = self._until = 0.0

    def __call__(self, request: dict[str, Any]) -> tuple[int, Any]:
        now = time.monotonic()
        if self._seconds:
            self._until, self._seconds = now + self._seconds, 0.0
        if now < self._until:
            self.asked.append(now)
            return 503, {}
        return 200, {"rewards": [1.0] * len(request["turns"])}


class Raw:
    """Says the same bytes on every connection, whatever was asked, and closes it; with `pieces`, a
    piece at a time."""

    def __init__(self, *pieces: bytes, pause: float = 0.0):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._pieces, self._pause = pieces, pause
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                with connection, contextlib.suppress(ConnectionError):
                    _take(connection)
                    for piece in self._pieces:
                        connection.sendall(piece)
                        time.sleep(self._pause)

    def close(self) -> None:
        self._listener.close()


def _take(connection: socket.socket) -> None:
    """One whole request: a connection that is closed with something unread is reset."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(65536)
    head, _, body = got.partition(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
