"""Results as text for a reader: what a run did, and what a model remembers. Figures only; the files
keep the whole truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.telemetry.series import parse_key
from deploy.progress import TROUBLES, duration, headlines

if TYPE_CHECKING:
    from learner.evaluation.replay import Replay


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A titled table in plain text: first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def lay(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)
        ]
        return ("  " + "  ".join(cells)).rstrip()

    return "\n".join([title, lay(header), *(lay(row) for row in rows)])


RECALLS = ("before_mrl", "after_mrl", "memory", "training", "erased", "most_frequent")
"""Rows of the table of recall by distance, those that there are."""
FIGURES = {
    "exact": "exact answers",
    "precision": "precision of values named",
    "changed": "recall of changed facts",
    "outdated": "answers with the outdated value",
}
INTERVAL = "  95 %"


def retention_tables(retention: Mapping[str, Any]) -> list[str]:
    """`retention` of summary.json or of `engram eval --json` as tables: recall by distance with its
    controls, the other figures by distance, and recall by order of telling. Intervals of 95 % stand
    below each row."""
    intervals: Mapping[str, Any] = retention.get("intervals", {})
    recall: list[Row] = [
        (name.replace("_", " "), retention[name], intervals.get(name, {}))
        for name in RECALLS
        if name in retention
    ]
    parts = [share_table("Recall by turns since the value was last said", recall)]
    others: list[Row] = []
    for name, label in FIGURES.items():
        others += _figure_rows(label, retention.get(name), intervals.get(name, {}))
    if others:
        parts.append(share_table("Other figures by turns since the value was last said", others))
    order = _figure_rows("recall", retention.get("by_order"), intervals.get("by_order", {}))
    if order:
        parts.append(
            share_table("Recall by the order in which a conversation told its facts", order)
        )
    return parts


Row = tuple[str, Mapping[str, float], Mapping[str, Sequence[float]]]
"""Label, share by key, and interval by key."""


def _figure_rows(
    label: str, figure: Mapping[str, Any] | None, intervals: Mapping[str, Any]
) -> list[Row]:
    """The rows of one figure: one, or in a summary one before and one after MRL."""
    if not figure:
        return []
    if not any(isinstance(value, Mapping) for value in figure.values()):
        return [(label, figure, intervals)]
    return [
        (f"{label}, {when.replace('_', ' ')}", shares, intervals.get(when, {}))
        for when, shares in figure.items()
        if shares
    ]


def share_table(title: str, rows: Sequence[Row]) -> str:
    """Shares by key; a key that a row lacks shows as "-". Keys are numbers, or "all"."""
    keys = {key for _, shares, _ in rows for key in shares}
    columns = sorted(keys, key=lambda key: (key == "all", key.zfill(8)))
    lines = []
    for label, shares, intervals in rows:
        lines.append([label, *(f"{shares[key]:.3f}" if key in shares else "-" for key in columns)])
        if intervals:
            spans = (
                f"{intervals[key][0]:.2f}–{intervals[key][1]:.2f}" if key in intervals else ""
                for key in columns
            )
            lines.append([INTERVAL, *spans])
    return table(title, ["", *columns], lines)


def summary_tables(summary: Mapping[str, Any]) -> str:
    """The content of summary.json as tables: stages, rewards by component and what failed in them,
    and retention where it was measured."""
    rows = []
    for stage in summary["stages"]:
        figures = ", ".join(
            f"{label} {seen['first']:.4g} → {seen['last']:.4g}"
            for label, seen in headlines(stage["metrics"]).items()
        )
        rows.append([stage["name"], str(stage["steps"]), duration(stage["wall_seconds"]), figures])
    title = f"{summary['name']}: {summary['status']} after {duration(summary['wall_seconds'])}"
    parts = [table(title, ["stage", "steps", "time", "first → last"], rows)]
    for stage in summary["stages"]:
        parts += reward_tables(stage)
    if summary["retention"]:
        parts += retention_tables(summary["retention"])
    parts += summary.get("warnings", [])
    return "\n\n".join(parts)


def reward_tables(stage: Mapping[str, Any]) -> list[str]:
    """Rewards of a stage by component, and its failed turns and alarms by reason; none where the
    stage scored nothing."""
    metrics = [(parse_key(key), seen) for key, seen in stage["metrics"].items()]
    components = [
        [key.labels["component"], f"{seen['first']:.3f}", f"{seen['last']:.3f}"]
        for key, seen in metrics
        if key.name == "reward/component" and "cohort" not in key.labels
    ]
    parts = []
    if components:
        title = f"{stage['name']}: mean reward by component, before its weight"
        parts.append(table(title, ["", "first", "last"], components))
    troubles = [
        [TROUBLES[key.name], " ".join(key.labels.values()), f"{seen['last']:g}"]
        for key, seen in metrics
        if key.name in TROUBLES
    ]
    if troubles:
        parts.append(
            table(
                f"{stage['name']}: what to look at", ["", "which", "since the run began"], troubles
            )
        )
    return parts


def replay_text(result: Replay) -> str:
    """The result of a replay, in sentences."""
    what = (
        f"{result.turns} turns and {result.tokens} tokens with the weights of step "
        f"{result.weights_version} ({result.checkpoint})"
    )
    away = (
        f"; rewards were not compared: {result.rewards_not_compared}"
        if result.rewards_not_compared
        else ""
    )
    if result.parted is not None:
        return f"{result.episode}: {result.parted}\nreplayed {what}{away}"
    same = "tokens" if away else "tokens and rewards"
    agreed = f"log-probs within {result.log_prob_max_difference:.1e}, memory {result.memory_hash}"
    return f"{result.episode}: identical\nreplayed {what}: same {same}, {agreed}{away}"


def bench_table(what: str, figures: Mapping[str, float]) -> str:
    """Figures of a benchmark, one to a line."""
    rows = [
        [name, f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"]
        for name, value in figures.items()
    ]
    return table(f"bench {what}", ["figure", "value"], rows)


def preference_tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The result of `engram eval` on preferences: accuracy and loss with their 95 % intervals, and
    calibration."""
    header = [
        "",
        "pairs",
        "groups",
        "accuracy",
        "95 %",
        "loss",
        "95 %",
        "constant",
        "calibration error",
    ]
    rows = [
        [
            name.replace("_", " "), str(found["pairs"]), str(found["groups"]),
            f"{found['accuracy']:.3f}",
            f"{found['accuracy_low']:.3f}–{found['accuracy_high']:.3f}", f"{found['loss']:.3f}",
            f"{found['loss_low']:.3f}–{found['loss_high']:.3f}", f"{found['constant_loss']:.3f}",
            f"{found['calibration_error']:.3f}",
        ]
        for name, found in results.items()
    ]  # fmt: skip
    bins = [
        [f"{sure:.3f}", f"{right:.3f}", str(count)]
        for sure, right, count in results["with_history"]["calibration"]
    ]
    return "\n\n".join(
        [
            table("How often the better answer has the higher reward", header, rows),
            table(
                "How sure the model is, and how often it is right",
                ["confidence", "accuracy", "pairs"],
                bins,
            ),
        ]
    )


def evaluation_tables(result: Mapping[str, Any]) -> str:
    """The result of `engram eval`: retention, and mean rewards by component."""
    parts = retention_tables(result["retention"])
    if result["rewards"]:
        means = [[name, f"{mean:.3f}"] for name, mean in result["rewards"].items()]
        parts.append(table("Mean reward per answer", ["component", "mean"], means))
    return "\n\n".join(parts)
