"""Results as text for a reader: what a run did, and what a model remembers. Figures only; the files
keep the whole truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.telemetry.series import parse_key
from common.text.printable import printable
from deploy.figures import figure_tables, main_tables
from deploy.layout import table
from deploy.progress import TROUBLES, duration, headlines

if TYPE_CHECKING:
    from learner.evaluation.replay import Replay
    from learner.evaluation.replayable import Replayable


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
    parts += main_tables(summary)
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


def replayable_text(found: Replayable) -> str:
    """Text of `engram replay RUN` without an episode."""
    if not found.replayable:
        steps = ", ".join(map(str, found.kept_steps))
        return (
            f"none of the {found.recorded:,} episodes of {found.run} can be replayed: checkpoints "
            f"are kept of steps {steps}, and no episode was played with their weights "
            "(learner.checkpoint_every, learner.keep_checkpoints)"
        )
    rows = [
        [
            line.episode,
            line.step,
            str(line.iteration),
            str(line.weights_version),
            str(line.answers),
            "-" if line.reward is None else f"{line.reward:.3f}",
        ]
        for line in found.episodes
    ]
    title = (
        f"{found.replayable:,} of {found.recorded:,} episodes can be replayed, those played with "
        f"the weights of a kept checkpoint; the most recent {len(rows):,}:"
    )
    header = ["episode", "curriculum step", "iteration", "weights", "answers", "mean reward"]
    more = found.replayable - len(rows)
    parts = [table(title, header, rows)]
    if more:
        parts.append(f"  and {more:,} more")
    return "\n".join([*parts, f"replay one with: engram replay {found.run} {rows[0][0]}"])


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


def evaluation_tables(result: Mapping[str, Any], full: bool = False) -> str:
    """The result of `engram eval`: recall by distance, and figures of facts, agreement with
    references and mean rewards over all turns. full: these by distance, order, turn and component,
    too."""
    prompts = [prompt_tables(result["prompts"])] if "prompts" in result else []
    figures = figure_tables(result) if full else main_tables(result)
    more = ["all figures by distance, turn and component: --full"]
    return "\n\n".join(
        [*prompts, *figures, *result["warnings"], *(more if figures and not full else [])]
    )


def prompt_tables(figures: Mapping[str, Any]) -> str:
    """Figures of sampled answers to prompts, and some of these."""
    named = {
        "reward": "mean reward",
        "length": "tokens of an answer",
        "ended": "share that ended by itself",
        "kl": "KL to the reference, nats per answer",
    }
    rows = [[what, f"{figures[key]:.4g}"] for key, what in named.items() if key in figures]
    rows += [
        [f"distinct {order}-grams, share", f"{share:.3f}"]
        for order, share in figures["distinct"].items()
    ]
    if "wins" in figures:
        wins = figures["wins"]
        share = f"{wins['share']:.3f} ({wins['low']:.3f} to {wins['high']:.3f})"
        scores = f"{wins['score']:.4g}; {wins['reference_score']:.4g}"
        rows += [["wins against the reference, share", share], ["the judge's mean; of it", scores]]
    title = f"Sampled answers to {figures['answers']} prompts"
    lines = [table(title, ["figure", "value"], rows)]
    for sample in figures["samples"]:
        reward = "" if sample["reward"] is None else f"  ({sample['reward']:.3g})"
        lines.append(printable(f"  {sample['prompt']} → {sample['answer']}{reward}"))
        if sample.get("reference") is not None:
            lines.append(printable(f"    the reference → {sample['reference']}"))
    return "\n".join(lines)
