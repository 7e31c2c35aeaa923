"""`engram report`: the page of `engram view` as one self-contained HTML file, and RUN/report.html
at the end of every run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common.failures import LeaseLost
from common.storage.run_directory import RunDirectory
from deploy.pages.frame import whole_html
from deploy.view.conversation import conversation
from deploy.view.curves import series
from deploy.view.episode_list import Filter, episode_list
from deploy.view.memory import memory
from deploy.view.server import metrics_of, runs_of, view_page
from deploy.view.state import log_tail, state
from deploy.view.waits import waits
from deploy.view.watched import WatchedRun

log = logging.getLogger(__name__)

REPORT = "report.html"
POINTS = 300
"""Points of one curve."""
CHOSEN = {"latest": 40, "lowest": 20, "highest": 10, "failed": 20}
"""Episodes that are told in full, by what they were chosen for."""
LOG_CHARACTERS = 20_000
"""The last ones of each log."""


def report_html(runs: Sequence[WatchedRun]) -> str:
    """The whole page as one file; several runs stand side by side."""
    for run in runs:
        run.refresh()
    metrics = metrics_of(runs)
    lists, told = zip(*(_episodes(run) for run in runs), strict=True)
    data: dict[str, Any] = {
        "runs": runs_of(runs),
        "metrics": metrics,
        "series": series(runs, [metric["name"] for metric in metrics["metrics"]], POINTS),
        "episodes": lists,
        "episode": told,
        "memory": [memory(run) for run in runs],
        "waits": [waits(run) for run in runs],
        "state": [state(run) for run in runs],
    }
    data["log"] = [
        {name: _log(run, name) for name in found["logs"]}
        for run, found in zip(runs, data["state"], strict=True)
    ]
    return whole_html(view_page(runs), data)


def write_report(directory: RunDirectory) -> str:
    """Write RUN/report.html of a run whose driver is done; returns where."""
    directory.write_text(REPORT, report_html([WatchedRun(directory, directory.name, over=True)]))
    return directory.path(REPORT)


def keep_report(directory: RunDirectory) -> None:
    """`write_report`, where a failure is logged and no matter of the run. A run that another driver
    has taken over is left alone."""
    try:
        write_report(directory)
    except LeaseLost:
        pass  # its new driver writes it
    except Exception:
        log.warning("%s could not be written", directory.path(REPORT), exc_info=True)


def _episodes(run: WatchedRun) -> tuple[dict[str, Any], dict[str, Any]]:
    """A list of the chosen episodes with what it is filtered by, and each in full by its id."""
    found: dict[str, dict[str, Any]] = {}
    listed: dict[str, Any] = {}
    for name, count in CHOSEN.items():
        wanted = Filter(count=count)
        wanted = replace(wanted, failed=True) if name == "failed" else replace(wanted, order=name)
        listed = episode_list(run.episodes, wanted)
        found |= {one["id"]: one for one in listed["episodes"]}
    told = {name: conversation(run, name) for name in found}
    for name, one in found.items():
        turns = (told[name] or {"turns": []})["turns"]
        one["distances"] = sorted({fact["distance"] for turn in turns for fact in turn["facts"]})
        one["texts"] = "\n".join(
            part["text"] for turn in turns for part in (*turn["query"], *turn["answer"])
        ).lower()
    # In the order in which they were recorded, the newest first, as the page lists them.
    places = {name: run.episodes.find(name) or 0 for name in found}
    ordered = sorted(found.values(), key=lambda one: -places[one["id"]])
    listed |= {"total": len(found), "matching": len(found), "recorded": len(run.episodes.rows)}
    return listed | {"episodes": ordered}, told


def _log(run: WatchedRun, name: str) -> dict[str, Any]:
    found = log_tail(run, name)
    cut = len(found["text"]) > LOG_CHARACTERS
    return found | {"text": found["text"][-LOG_CHARACTERS:], "cut": found["cut"] or cut}
