"""Results as text for a reader: what a run did, and what a model remembers. Figures only; the files keep the whole truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploy.progress import duration, headlines

if TYPE_CHECKING:
    from learner.replay import Replay


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A titled table in plain text: first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def lay(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return ("  " + "  ".join(cells)).rstrip()

    return "\n".join([title, lay(header), *(lay(row) for row in rows)])


def retention_table(retention: Mapping[str, Mapping[str, float]]) -> str:
    """retention: {condition: {distance: recall}}, distances as strings or "all"; a distance that a condition lacks shows as "-"."""
    distances = {distance for by_distance in retention.values() for distance in by_distance}
    columns = sorted(distances, key=lambda distance: (distance == "all", distance.zfill(8)))
    rows = [
        [name.replace("_", " "), *(f"{by_distance[d]:.3f}" if d in by_distance else "-" for d in columns)]
        for name, by_distance in retention.items()
    ]
    return table("Recall by turns since the value was last said", ["", *columns], rows)


def summary_tables(summary: Mapping[str, Any]) -> str:
    """The content of summary.json as two tables: stages, and retention where it was measured."""
    rows = []
    for stage in summary["stages"]:
        figures = ", ".join(f"{label} {seen['first']:.4g} → {seen['last']:.4g}" for label, seen in headlines(stage["metrics"]).items())
        rows.append([stage["name"], str(stage["steps"]), duration(stage["wall_seconds"]), figures])
    title = f"{summary['name']}: {summary['status']} after {duration(summary['wall_seconds'])}"
    parts = [table(title, ["stage", "steps", "time", "first → last"], rows)]
    if summary["retention"]:
        parts.append(retention_table(summary["retention"]))
    return "\n\n".join(parts)


def replay_text(result: Replay) -> str:
    """What a replay found, in sentences."""
    what = f"{result.turns} turns and {result.tokens} tokens with the weights of version {result.weights_version} ({result.checkpoint})"
    if result.parted is not None:
        return f"{result.episode}: {result.parted}\nreplayed {what}"
    agreed = f"log-probs within {result.log_prob_max_difference:.1e}, memory {result.memory_hash}"
    return f"{result.episode}: identical\nreplayed {what}: same tokens and rewards, {agreed}"


def bench_table(what: str, figures: Mapping[str, float]) -> str:
    """Figures of a benchmark, one to a line."""
    rows = [[name, f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"] for name, value in figures.items()]
    return table(f"bench {what}", ["figure", "value"], rows)


def preference_tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The result of `engram eval` on preferences: accuracy and loss with their 95 % intervals, and calibration."""
    header = ["", "pairs", "groups", "accuracy", "95 %", "loss", "95 %", "constant", "calibration error"]
    rows = [
        [
            name.replace("_", " "), str(found["pairs"]), str(found["groups"]), f"{found['accuracy']:.3f}",
            f"{found['accuracy_low']:.3f}–{found['accuracy_high']:.3f}", f"{found['loss']:.3f}",
            f"{found['loss_low']:.3f}–{found['loss_high']:.3f}", f"{found['constant_loss']:.3f}", f"{found['calibration_error']:.3f}",
        ]
        for name, found in results.items()
    ]  # fmt: skip
    bins = [[f"{sure:.3f}", f"{right:.3f}", str(count)] for sure, right, count in results["with_history"]["calibration"]]
    return "\n\n".join(
        [
            table("How often the better answer has the higher reward", header, rows),
            table("How sure the model is, and how often it is right", ["confidence", "accuracy", "pairs"], bins),
        ]
    )


def evaluation_tables(result: Mapping[str, Any]) -> str:
    """The result of `engram eval`: retention, and mean rewards by component."""
    parts = [retention_table(result["retention"])]
    if result["rewards"]:
        means = [[name, f"{mean:.3f}"] for name, mean in result["rewards"].items()]
        parts.append(table("Mean reward per answer", ["component", "mean"], means))
    return "\n\n".join(parts)
