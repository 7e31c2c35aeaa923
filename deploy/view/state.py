"""Where a run stands: stages, the curriculum and its rule, failures, alarms, files, logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from common.config.run import Run
from common.failures import EngramError, InputError, nearest
from common.storage.checkpoint import MANIFEST
from common.telemetry.series import parse_key
from deploy.progress import headlines
from deploy.view.watched import WatchedRun
from learner.curriculum import CurriculumState

LOG_BYTES = 64 * 1024
"""Bytes of a log that are shown, its last ones."""
FAILURES = {
    "reward/failed_turns": "turns that could not be scored",
    "conductor/failed": "tasks that could not be played or scored",
    "conductor/dropped": "tasks given up, to be dealt again",
    "fleet/restarts": "restarts",
    "fleet/retries": "calls tried again",
    "run/watchdog": "stalls",
    "sync/failures": "workers left behind by a broadcast",
}
"""Metrics of what went wrong, with what one count is; by their labels."""
ALARMS = {"hacking/alarms": "signs of reward hacking", "reward/alarms": "rewards that teach little"}


def state(watched: WatchedRun) -> dict[str, Any]:
    """Everything of the section State; what is missing is in "problems"."""
    run, text, _ = watched.config()
    summary, _ = watched.summary()
    environment, _ = watched.environment()
    rows = watched.rows
    last = _newest(watched)
    status = watched.status()
    current = (row["step"] for row in rows if row.get("run/stage") == last.get("run/stage"))
    return {
        "label": watched.label,
        "where": watched.directory.path(),
        "status": status,
        "step": rows[-1]["step"] if rows else 0,
        "updated": rows[-1].get("time") if rows else None,
        "wall_seconds": summary.get("wall_seconds"),
        "progress": last.get("run/progress"),
        "stage": rows[-1].get("stage", "") if rows else "",
        "headlines": headlines(_newest(watched, next(current, 0))),
        "stages": _stages(run, watched, status),
        "curriculum": _curriculum(run, watched, last),
        "failures": _counts(last, FAILURES),
        "alarms": _counts(last, ALARMS),
        "alarm_lines": alarm_lines(watched),
        "warnings": summary.get("warnings", []),
        "checkpoints": _checkpoints(watched),
        "config": text,
        "environment": environment,
        "logs": logs(watched),
        "problems": watched.problems(),
    }


def log_tail(watched: WatchedRun, name: str) -> dict[str, Any]:
    """The last LOG_BYTES of a log. Raises InputError where the run has none of that name."""
    if name not in (names := watched.directory.names("logs")):
        raise InputError(name, f"is no log of the run; {nearest(name, names)}")
    where = watched.directory.inner(f"logs/{name}")
    size = int(watched.directory.filesystem.info(where)["size"])
    with watched.directory.filesystem.open(where, "rb") as file:
        file.seek(max(0, size - LOG_BYTES))
        tail = file.read(LOG_BYTES)
    if size > LOG_BYTES:
        tail = tail[tail.find(b"\n") + 1 :]
    return {
        "name": name,
        "size": size,
        "cut": size > LOG_BYTES,
        "text": tail.decode(errors="replace"),
    }


def logs(watched: WatchedRun) -> list[str]:
    """Names of the run's logs, those with something in them."""
    files = watched.directory.filesystem
    return [
        name
        for name in watched.directory.names("logs")
        if files.info(watched.directory.inner(f"logs/{name}")).get("size")
    ]


def alarm_lines(watched: WatchedRun) -> list[str]:
    """Warnings of the recorder, which tells alarms with the answer that shows them best."""
    if "recorder.log" not in watched.directory.names("logs"):
        return []
    lines = log_tail(watched, "recorder.log")["text"].splitlines()
    return [line for line in lines if " WARNING " in line][-50:]


def _newest(watched: WatchedRun, since: int = 0) -> dict[str, float]:
    """The newest value of each metric that has one at step `since` or later."""
    columns = list(watched.columns.items())
    return {key: values[-1] for key, (steps, values) in columns if steps[-1] >= since}


def _stages(run: Run | None, watched: WatchedRun, status: str) -> list[dict[str, Any]]:
    """Stages of the configuration with the steps that each has done; of a run whose configuration
    cannot be read, those that have rows."""
    done: dict[int, int] = {}
    before, ended, names = 0, dict[int, int](), dict[int, str]()
    for row in watched.rows:
        index = int(row.get("run/stage", max(done, default=0)))
        if index not in done and done:
            before = ended[max(ended)]
        done[index], ended[index] = row["step"] - before, row["step"]
        names[index] = row.get("stage", "?")
    summary, _ = watched.summary()
    seconds = {
        entry.get("index"): entry.get("wall_seconds")
        for entry in summary.get("stages", [])
        if isinstance(entry, Mapping)
    }
    stages = (
        [(stage.stage, stage.total_steps) for stage in run.stages]
        if run is not None
        else [(names.get(index, "?"), None) for index in range(max(done, default=-1) + 1)]
    )
    current = max(done, default=0)
    return [
        {
            "name": name,
            "total": total,
            "done": done.get(index, 0),
            "seconds": seconds.get(index),
            "state": "over"
            if index < current or status == "done"
            else "now"
            if index == current
            else "to come",
        }
        for index, (name, total) in enumerate(stages)
    ]


def _curriculum(
    run: Run | None, watched: WatchedRun, last: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Steps of each curriculum with the rule to advance, and what is known of the step the run is
    in, by its newest checkpoint."""
    if run is None:
        return []
    found = []
    held = _curriculum_state(watched)
    for index, stage in enumerate(run.stages):
        begun = last.get("run/stage", -1)
        for number, step in enumerate(stage.curriculum_steps):
            ended = (
                held.ended[number] if held and begun == index and number < len(held.ended) else None
            )
            now = begun == index and int(last.get("run/curriculum_step", -1)) == number
            found.append(
                {
                    "stage": index,
                    "name": step.name,
                    "iterations": step.iterations,
                    "turns": [step.min_steps, step.max_steps],
                    "until": dict(step.until),
                    "times": step.times,
                    "patience": step.patience,
                    "now": now and ended is None,
                    "ended": None
                    if ended is None
                    else {"iterations": ended.iterations, "how": ended.how},
                    "latest": {name: last.get(name) for name in step.until},
                    "best": dict(held.best) if held and now and ended is None else {},
                    "reached": held.reached if held and now and ended is None else None,
                }
            )
    return found


def _curriculum_state(watched: WatchedRun) -> CurriculumState | None:
    """That of the newest checkpoint that can be read; None outside reinforcement learning."""
    for name in reversed(_checkpoints(watched)):
        try:
            manifest = json.loads(watched.directory.read_text(f"checkpoints/{name}/{MANIFEST}"))
            rl = manifest["state"]["rl"]
            return None if rl is None else CurriculumState.from_json(rl["curriculum"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EngramError):
            continue
    return None


def _checkpoints(watched: WatchedRun) -> list[str]:
    return [name for name in watched.directory.names("checkpoints") if name.startswith("step_")]


def _counts(last: Mapping[str, Any], meanings: Mapping[str, str]) -> list[dict[str, Any]]:
    """Counters that are not 0, by their labels, largest first."""
    found = []
    for key, value in last.items():
        if not isinstance(value, int | float) or not value:
            continue
        name = key.partition("{")[0]
        if name in meanings:
            labels = parse_key(key).labels
            found.append(
                {
                    "name": name,
                    "what": meanings[name],
                    "which": " ".join(labels.values()),
                    "count": value,
                }
            )
    return sorted(found, key=lambda each: -each["count"])
