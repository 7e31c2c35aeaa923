"""What answers at the address of a job server, and which token is sent, without a cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.failures import EXIT_BAD_INPUT, EXIT_FAILED, InputError
from deploy.cli import run_command
from deploy.job_server import JobServer
from deploy.ray_access import DEFAULT_ADDRESS, default_address, find_token


class Other(BaseHTTPRequestHandler):
    """A web server that is not Ray's: its answer is the path of its address."""

    def do_GET(self) -> None:
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"version": 1}' if self.path.startswith("/json") else b"<html>")

    def log_message(self, *_args: object) -> None: ...


@pytest.fixture
def other() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token, and no setting of Ray's."""
    for name in (
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_token_is_found_as_ray_finds_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_token() is None
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("of the home\n")
    assert find_token() == ("of the home", str(home / ".ray" / "auth_token"))
    (home / "mounted").write_text("of a file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "mounted"))
    assert find_token() == ("of a file", str(home / "mounted"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert find_token() == ("given", "RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token() is None


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_a_file_that_should_hold_the_token_and_does_not_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))
    if content is not None:
        (home / "token").write_bytes(content)
    with pytest.raises(InputError, match=str(home / "token")):
        find_token()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/missing", "answers with HTTP status 404 and is no Ray job server"),
        ("/html", "answers with something else and is no Ray job server"),
        ("/json", "answers with something else and is no Ray job server"),
    ],
)
def test_a_server_that_is_not_rays_is_named(other: str, path: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        JobServer(other + path)


@pytest.mark.parametrize("command", ["logs", "stop"])
@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        ("http://127.0.0.1:1", EXIT_FAILED, "no Ray job server answers at http://127.0.0.1:1: "),
        ("127.0.0.1:8265", EXIT_BAD_INPUT, "127.0.0.1:8265: is no job server's address; it reads"),
        ("ray://head:10001", EXIT_BAD_INPUT, "ray://head:10001: is no job server's address"),
    ],
)
def test_a_wrong_address_is_one_sentence_and_no_traceback(
    capsys: pytest.CaptureFixture[str], command: str, address: str, code: int, said: str
) -> None:
    assert run_command([command, "demo", "--address", address]) == code
    error = capsys.readouterr().err
    *waits, last = error.splitlines()
    assert last.startswith(f"engram: {said}")
    assert all(line.endswith("...") for line in waits), "what it does, and what is wrong"


def test_without_an_address_the_one_of_rays_tools_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_address() == DEFAULT_ADDRESS
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert default_address() == DEFAULT_ADDRESS, "an address of actors is no job server's"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert default_address() == "http://head:8265"
