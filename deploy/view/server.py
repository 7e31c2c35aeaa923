"""`engram view`: the page's routes, live updates, and the server that answers them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from common.failures import InputError
from deploy.pages.frame import Page
from deploy.view.conversation import conversation
from deploy.view.curves import catalogue, series, stages
from deploy.view.episode_list import Filter, episode_list
from deploy.view.memory import memory
from deploy.view.state import log_tail, state
from deploy.view.waits import waits
from deploy.view.watched import WatchedRun

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "uPlot.iife.min.js",
    "source.js",
    "plot.js",
    "curves.js",
    "conversation.js",
    "episodes.js",
    "memory.js",
    "waits.js",
    "state.js",
    "view.js",
)
STYLES = ("uPlot.min.css", "view.css")
LOOK_SECONDS = 1.0
"""Between two looks at the files of a run, however many pages are open."""
BEAT_SECONDS = 15.0
"""Between two signs of life to a page, so that it sees a server that is gone."""

Answer = dict[str, Any] | list[Any]


def view_page(runs: Sequence[WatchedRun], ended: Event | None = None) -> Page:
    """The page on some runs. ended: set when the server ends, so that live updates end too."""
    looks = Looks(runs, ended or Event())
    names = ", ".join(run.label for run in runs)

    def route(path: str, answer: Callable[[Request], Answer]) -> Route:
        def respond(request: Request) -> Response:
            looks.look()
            return JSONResponse(answer(request))

        return Route(f"/api/{path}", respond)

    def of_run(answer: Callable[[WatchedRun], Answer]) -> Callable[[Request], Answer]:
        return lambda request: answer(_run(runs, request))

    async def events(request: Request) -> Response:
        return StreamingResponse(looks.events(request), media_type="text/event-stream")

    return Page(
        f"{names} · engram",
        STATIC,
        SCRIPTS,
        STYLES,
        [
            route("runs", lambda _: runs_of(runs)),
            route("metrics", lambda _: metrics_of(runs)),
            route("series", lambda request: series(runs, request.query_params.getlist("name"))),
            route("episodes", lambda request: _episodes(_run(runs, request), request)),
            route("episode", lambda request: _episode(_run(runs, request), request)),
            route("memory", of_run(memory)),
            route("waits", of_run(waits)),
            route("state", of_run(state)),
            route(
                "log",
                lambda request: log_tail(_run(runs, request), request.query_params.get("name", "")),
            ),
            Route("/api/events", events),
        ],
    )


def runs_of(runs: Sequence[WatchedRun]) -> list[dict[str, Any]]:
    """State of each run for the head of the page."""
    return [
        {
            "label": run.label,
            "where": run.directory.path(),
            "status": run.status(),
            "step": run.rows[-1]["step"] if run.rows else 0,
            "updated": run.rows[-1].get("time") if run.rows else None,
            "episodes": len(run.episodes.rows),
            "problems": run.problems(),
        }
        for run in runs
    ]


def metrics_of(runs: Sequence[WatchedRun]) -> dict[str, Any]:
    return {"metrics": catalogue(runs), "stages": [stages(run) for run in runs]}


def _run(runs: Sequence[WatchedRun], request: Request) -> WatchedRun:
    word = request.query_params.get("run", "0")
    if not word.isdecimal() or int(word) >= len(runs):
        raise InputError("run", f"{word!r} is none of the {len(runs)} runs, counted from 0")
    return runs[int(word)]


def _episodes(run: WatchedRun, request: Request) -> Answer:
    words = {name: word for name, word in request.query_params.items() if name != "run"}
    return episode_list(run.episodes, Filter.of(words))


def _episode(run: WatchedRun, request: Request) -> Answer:
    name = request.query_params.get("id", "")
    found = conversation(run, name)
    if found is None:
        raise InputError(name, f"is none of the {len(run.episodes.rows)} episodes of {run.label}")
    return found


class Looks:
    """Looks at the files of runs, once a second at most, while somebody asks."""

    def __init__(self, runs: Sequence[WatchedRun], ended: Event):
        self._runs, self._ended = runs, ended
        self._looked = float("-inf")

    def look(self) -> list[int]:
        """Read what is new; the generation of each run."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            for run in self._runs:
                run.refresh()
        return [run.generation for run in self._runs]

    async def events(self, request: Request) -> AsyncIterator[str]:
        """An event for each look that found something new."""
        before: Any = None
        beat = time.monotonic()
        while not self._ended.is_set() and not await request.is_disconnected():
            generations = await asyncio.to_thread(self.look)
            now = [
                {
                    "generation": generation,
                    "status": run.status(),
                    "step": run.rows[-1]["step"] if run.rows else 0,
                    "episodes": len(run.episodes.rows),
                }
                for run, generation in zip(self._runs, generations, strict=True)
            ]
            if now != before:
                before, beat = now, time.monotonic()
                yield f"event: change\ndata: {json.dumps(now)}\n\n"
            elif time.monotonic() - beat > BEAT_SECONDS:
                beat = time.monotonic()
                yield ": still here\n\n"
            await asyncio.sleep(LOOK_SECONDS)
