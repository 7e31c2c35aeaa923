"""`engram runs`: what runs there are in a folder, with state, stage and headline figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import fsspec

from common.failures import EngramError, InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import METRICS_FILE, RowFollower
from deploy.layout import table
from deploy.progress import TROUBLES, duration, headlines
from learner.summary import SUMMARY, read_summary, run_status

FIGURES = ("reward", "recall", "loss")
"""Headlines that have a column."""


def runs_in(folder: str) -> list[dict[str, Any]]:
    """Every run of a folder, or the run that it is itself, the one with the newest row first.

    Raises InputError for a folder that is not there. What is wrong with a run stands in its
    "problem".
    """
    files, inner = fsspec.core.url_to_fs(folder)
    if not files.isdir(inner):
        raise InputError(folder, "is no folder")
    names = sorted(path.rstrip("/").rpartition("/")[2] for path in files.ls(inner, detail=False))
    found = [
        _run(run) for name in names if _is_name(name) and _is_run(run := RunDirectory(folder, name))
    ]
    return sorted(found, key=lambda run: -(run["updated"] or 0))


def runs_table(folder: str, found: Sequence[Mapping[str, Any]]) -> str:
    """The runs for a reader."""
    if not found:
        return f"no runs in {folder}: engram demo makes one"
    rows = [
        [
            run["name"],
            run["status"],
            run["stage"] or "-",
            "-" if run["progress"] is None else f"{run['progress']:.0%}",
            str(run["step"]),
            "-" if run["wall_seconds"] is None else duration(run["wall_seconds"]),
            *(
                "-" if run["figures"].get(name) is None else f"{run['figures'][name]:.4g}"
                for name in FIGURES
            ),
            str(run["troubles"] or "-"),
        ]
        for run in found
    ]
    header = ["run", "state", "stage", "done", "step", "time", *FIGURES, "alarms, failed turns"]
    parts = [table(f"{len(found)} run{'s' if len(found) > 1 else ''} in {folder}", header, rows)]
    parts += [f"{run['name']}: {run['problem']}" for run in found if run["problem"]]
    return "\n".join(parts)


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and not any(ord(each) < 32 for each in name)


def _is_run(run: RunDirectory) -> bool:
    return any(run.exists(name) for name in ("config.yaml", METRICS_FILE, SUMMARY))


def _held_out(summary: Mapping[str, Any]) -> dict[str, float]:
    """Recall of held-out conversations, which says more than that of the last batch."""
    retention = summary.get("retention", {})
    recall = (retention.get("after_mrl") or retention.get("before_mrl") or {}).get("all")
    return {} if recall is None else {"recall": recall}


def _run(directory: RunDirectory) -> dict[str, Any]:
    problem, summary, status = None, dict[str, Any](), "unknown"
    try:
        status = run_status(directory)
        summary = read_summary(directory) if directory.exists(SUMMARY) else {}
    except (EngramError, OSError) as failure:
        problem = str(failure)
    rows, _ = RowFollower(directory).read()
    last: dict[str, Any] = {}
    for row in rows:
        if row.get("run/stage") != last.get("run/stage"):
            last = {}
        last |= {key: value for key, value in row.items() if value is not None}
    return {
        "name": directory.name,
        "where": directory.path(),
        "status": status,
        "stage": last.get("stage", ""),
        "step": last.get("step", 0),
        "progress": 1.0 if status == "done" else last.get("run/progress"),
        "wall_seconds": summary.get("wall_seconds"),
        "updated": last.get("time"),
        "figures": headlines(last) | _held_out(summary),
        "troubles": int(
            sum(
                value
                for key, value in last.items()
                if key.partition("{")[0] in TROUBLES and isinstance(value, int | float)
            )
        ),
        "problem": problem,
    }
