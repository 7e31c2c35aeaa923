"""Who waits for whom: seconds of each role by phase between rows of metrics, and idle shares."""

from __future__ import annotations

from typing import Any

from common.telemetry.series import parse_key
from deploy.view.watched import WatchedRun

SECONDS, IDLE = "time/phase_seconds", "time/idle_fraction"
MOST_INTERVALS = 120
"""Intervals of the time line; of a longer run the newest."""
WAITING = {"collect", "idle", "wait"}
"""Phases in which a role has nothing to do but wait."""


def waits(watched: WatchedRun) -> dict[str, Any]:
    """{"roles", "phases", "intervals": [{"step", "stage", "seconds", "roles": {role: {phase:
    seconds}}, "idle": {role: share}}]}. Seconds of a role add up over its processes."""
    intervals: list[dict[str, Any]] = []
    totals: dict[tuple[str, str], float] = {}
    before: float | None = None
    keys = [key for key in list(watched.columns) if key.startswith((SECONDS, IDLE))]
    labels_of = {key: parse_key(key).labels for key in keys}
    for row in watched.rows:
        roles: dict[str, dict[str, float]] = {}
        idle: dict[str, float] = {}
        for key, labels in labels_of.items():
            value = row.get(key)
            if value is None:
                continue
            if key.startswith(SECONDS):
                role, phase = labels["role"], labels["phase"]
                spent = value - totals.get((role, phase), 0.0)
                totals[role, phase] = value
                # A counter that fell was begun anew by a resume from an older checkpoint.
                roles.setdefault(role, {})[phase] = spent if spent >= 0 else value
            else:
                idle[labels["role"]] = value
        time = row.get("time")
        seconds = time - before if time is not None and before is not None else None
        before = time if time is not None else before
        if roles or idle:
            intervals.append(
                {
                    "step": row["step"],
                    "stage": row.get("stage", ""),
                    "seconds": seconds,
                    "roles": roles,
                    "idle": idle,
                }
            )
    shown = intervals[-MOST_INTERVALS:]
    roles_seen = sorted({role for each in intervals for role in (*each["roles"], *each["idle"])})
    return {
        "roles": roles_seen,
        "phases": {
            role: sorted({phase for other, phase in totals if other == role}) for role in roles_seen
        },
        "waiting": sorted(WAITING),
        "total": len(intervals),
        "intervals": shown,
        "overall": {
            role: {
                phase: sum(each["roles"].get(role, {}).get(phase, 0.0) for each in intervals)
                for other, phase in totals
                if other == role
            }
            for role in roles_seen
        },
    }
