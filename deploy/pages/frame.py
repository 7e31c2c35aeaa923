"""The frame of a local web page: its HTML, its token, its headers, its files. `engram view` and
`engram label` are pages in it: a page is a title, scripts, styles and routes.

Nothing is fetched from elsewhere: the content security policy forbids it. On an address other than
loopback every request needs the token, as a cookie (set by the link that is printed) or as
`Authorization: Bearer TOKEN`. On loopback the Host header is checked, so that no web site that a
browser has open can reach the page under a name of its own, and what is posted has to come from the
page itself, so that none can send a form to it either.
"""

from __future__ import annotations

import html
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.failures import InputError

STATIC = Path(__file__).parent / "static"
KINDS = {".js": "text/javascript", ".css": "text/css"}
FRAME_STYLES = ("frame.css",)
FRAME_SCRIPTS = ("frame.js",)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
WHOLE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""Policy of one file that holds all of a page."""


@dataclass(frozen=True)
class Page:
    title: str
    folder: Path
    """Where its scripts and styles lie."""
    scripts: Sequence[str]
    """Names in the folder, in the order in which they run, after those of the frame."""
    styles: Sequence[str] = ()
    routes: Sequence[BaseRoute] = field(default_factory=list)


@cache
def asset(folder: Path, name: str) -> str:
    """Text of a file of a page's folder."""
    return (folder / name).read_text(encoding="utf-8")


def _assets(page: Page, framed: Sequence[str], own: Sequence[str]) -> list[str]:
    """Texts of files of the frame, then of the page's."""
    return [asset(STATIC, name) for name in framed] + [asset(page.folder, name) for name in own]


def page_html(page: Page) -> str:
    """The page as it is served: its files are asked for one by one."""
    styles = "".join(
        f'<link rel="stylesheet" href="static/{name}">' for name in (*FRAME_STYLES, *page.styles)
    )
    scripts = "".join(
        f'<script src="static/{name}" defer></script>' for name in (*FRAME_SCRIPTS, *page.scripts)
    )
    return _document(page.title, POLICY, styles, scripts)


def whole_html(page: Page, data: dict[str, Any]) -> str:
    """The page as one file, with the data that it would have asked for."""
    styles = "".join(f"<style>{text}</style>" for text in _assets(page, FRAME_STYLES, page.styles))
    held = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # "<" alone could end the element, or begin a comment, whatever the data hold.
    scripts = (
        '<script type="application/json" id="data">' + held.replace("<", "\\u003c") + "</script>"
    )
    scripts += "".join(
        f"<script>{text}</script>" for text in _assets(page, FRAME_SCRIPTS, page.scripts)
    )
    return _document(page.title, WHOLE_POLICY, styles, scripts)


def _document(title: str, policy: str, styles: str, scripts: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_meta(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>{styles}</head>'
        '<body><a class="skip" href="#main">Skip to the content</a><header id="head"></header>'
        f'<main id="main" tabindex="-1"></main>{scripts}'
        "<noscript>This page draws its figures with JavaScript, which is switched off.</noscript>"
        "</body></html>"
    )


def _meta(policy: str) -> str:
    # Browsers take this one from a header only.
    return policy.replace("; frame-ancestors 'none'", "")


def frame_app(page: Page, host: str, port: int, token: str | None) -> ASGIApp:
    """The server of a page. token: that every request needs; None: none, on loopback only."""
    if token is None and not is_loopback(host):
        raise InputError("--host", f"{host} can be reached by others: a token is needed")
    routes = [
        Route("/", lambda _: HTMLResponse(page_html(page))),
        Route("/static/{name}", lambda request: _static(page, request)),
        *page.routes,
    ]
    app = Starlette(routes=routes, exception_handlers={InputError: _refusal})
    return Guard(app, host, port, token)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    return secrets.token_urlsafe(24)


def _static(page: Page, request: Request) -> Response:
    name = request.path_params["name"]
    kind = KINDS.get(Path(name).suffix)
    for folder in (STATIC, page.folder):
        # Only names of files that are there: nothing of the request becomes part of a path.
        if kind is not None and name in {path.name for path in folder.iterdir()}:
            return Response(asset(folder, name), media_type=kind)
    return JSONResponse({"error": "no such file"}, 404)


def _refusal(_: Request, refused: Exception) -> Response:
    return JSONResponse({"error": str(refused)}, 400)


class Guard:
    """Around an app: asks for the token, checks the Host header, adds headers."""

    def __init__(self, app: ASGIApp, host: str, port: int, token: str | None):
        self._app, self._token, self._cookie = app, token, f"engram-token-{port}"
        self._hosts = {host, "localhost", "127.0.0.1", "[::1]", f"[{host}]"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            await refused(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)

    def _refused(self, scope: Scope) -> Response | None:
        """The answer to a request that may not pass; None for one that may."""
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return JSONResponse({"error": "method not allowed"}, 405)
        if scope["method"] == "POST" and not _from_the_page(headers):
            return JSONResponse({"error": "only the page itself may send anything here"}, 403)
        if self._token is None:
            host = headers.get("host", "")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
            return None if name in self._hosts else JSONResponse({"error": "another host"}, 421)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given and self._is_token(given[-1]):
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            answer = RedirectResponse(scope["path"] + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return answer
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        cookie = Request(scope).cookies.get(self._cookie, "")
        if self._is_token(bearer) or self._is_token(cookie):
            return None
        sentence = "open the link that was printed, or send the token as Authorization: Bearer"
        return JSONResponse({"error": f"this page needs its token: {sentence}"}, 401)

    def _is_token(self, word: str) -> bool:
        assert self._token is not None
        # Takes as long for a word that is nearly right as for any other.
        return secrets.compare_digest(word.encode(), self._token.encode())


def _from_the_page(headers: Headers) -> bool:
    """Whether a POST is JSON, which another site's form cannot send, and names no other origin."""
    origin = headers.get("origin")
    return headers.get("content-type", "").partition(";")[0] == "application/json" and (
        origin is None or origin.partition("://")[2] == headers.get("host")
    )


HEADERS = [
    (name.encode(), value.encode())
    for name, value in {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
        "cross-origin-resource-policy": "same-origin",
    }.items()
]
