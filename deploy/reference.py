"""Reference pages for users, written from the code they describe: docs/configuration.md and
docs/metrics.md.

Run after a change of the schema or the metric registry:

    python -m deploy.reference configuration > docs/configuration.md
    python -m deploy.reference metrics > docs/metrics.md

A test compares the pages with what this makes, so that they cannot say anything else than the code.
Pure functions of `common/config/run.py`, `common/models/reactive/config.py`,
`common/telemetry/registry.py` and, for metrics that nothing records yet, the names that stand in
the source.
"""

from __future__ import annotations

import sys
import textwrap
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from common.config.errors import choice_of
from common.config.model import Model
from common.config.run import Run
from common.failures import InputError, nearest
from common.models.reactive.config import NAMED_SIZES, named_config
from common.telemetry.gauges import PAUSES, ROWS_ONCE
from common.telemetry.metric import COHORTS, Metric
from common.telemetry.prometheus import prometheus_name
from common.telemetry.registry import REGISTRY

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100

CONFIGURATION = """\
# Configuration

Every key of a run's configuration. This page is made from `common/config/run.py` by `python -m
deploy.reference configuration`.

A configuration is one YAML file or several, composed left to right: mappings merge, everything else
is replaced, and an empty mapping takes away what is there. Words of the form `key=value` follow,
with dots between the parts of a key; the value is YAML. A stage is named by its `stage`, a
curriculum step or a reward function by its `name`, any item of a list by its number; of two stages
with one name, a number says which:

    engram train configs/demo.yaml name=wider model.width=128 stages.mrl.ppo.kl=0.05

A relative path, in a file or in a word, is relative to the folder that the command is given in, and
`~` is your home; the run's own configuration holds absolute paths. In a submitted job that folder
is the working directory that travelled with it. URIs, and names of data sets and models on a hub,
stay as they are.

An unknown key is an error that names the nearest valid one. `engram plan --full` takes the same
words and prints the whole configuration with every default filled in. A `*` below stands for any
item of a list, or for any of several keys with the same settings.
"""

METRICS = """\
# Metrics

Every metric of a run. This page is made from `common/telemetry/registry.py` by `python -m
deploy.reference metrics`.

One recorder per run merges what learner ranks, rollout and reward workers, conductor and driver
observe. It writes rows to `RUN/metrics.jsonl` and serves Prometheus at the URL in
`RUN/metrics_endpoint`. In a row, a series is `name` or `name{{label=value}}`. A histogram gives its
mean under its own key, and `:p50`, `:p90`, `:p95` and `:max` beside it. Counters are totals since
the run began; everything else covers the steps since the row before. The evaluation before MRL is
in the row after it, the evaluation after MRL in the row of MRL's last step. In Prometheus every
series has the label `run` too.

A row has what was recorded for it. Prometheus sees the newest value of a gauge until its stage
ends. A gauge with labels goes before, since it may be of something that is gone: after as many rows
without it as {pauses} times the longest pause of its metric in the stage. So it goes {pauses} rows
late where the metric comes with every row, {pauses} evaluations late where it comes with each, and
after {once} rows where the metric was in one row alone.

Each metric is given as: name (name in Prometheus; type, unit, denominator; labels): meaning. "per"
names the denominator: what a mean is over, and is weighted by when ranks are merged, or what one
count is. The label `cohort` ({cohorts}) separates all scored episodes from
those that were trained on; in a row, `all` is left out. Metrics of episodes without that label
cover the trained ones; evaluations count under `eval/` alone.
"""


# --- configuration --------------------------------------------------------------------------------


def configuration_reference() -> str:
    """docs/configuration.md."""
    parts = [CONFIGURATION]
    for section, places in _sections().items():
        lines = [f"## {_title(section, places)}", ""]
        if section.__doc__:
            lines += [_paragraph(_one_line(section.__doc__)), ""]
        if len(places) > 1 and _merged(places).endswith("*"):
            stands_at = ", ".join(f"`{place}`" for place in places)
            lines += [_paragraph(f"Stands at {stands_at}."), ""]
        # The key that tells a section's kind comes first, wherever a base class put it.
        fields = sorted(section.model_fields.items(), key=lambda item: not _tag(*item))
        lines += [_setting(name, field) for name, field in fields]
        parts.append("\n".join(lines) + "\n")
        if section is Model:
            parts.append(_named_sizes())
    return "\n".join(parts)


def _sections() -> dict[type[BaseModel], list[str]]:
    """Every section with the places it may stand at, a section before those inside it."""
    found: dict[type[BaseModel], list[str]] = {Run: [""]}

    def visit(section: type[BaseModel], place: str) -> None:
        for name, field in section.model_fields.items():
            choice, below = (
                choice_of(field.annotation, field.discriminator),
                f"{place}.{name}".lstrip("."),
            )
            while choice.item is not None:
                choice, below = choice_of(choice.item), f"{below}.*"
            for inner in choice.sections:
                places = found.setdefault(inner, [])
                if below not in places:
                    places.append(below)
            for inner in choice.sections:
                visit(inner, below)

    visit(Run, "")
    return found


def _title(section: type[BaseModel], places: Sequence[str]) -> str:
    if section is Run:
        return "The run"
    tags = [
        f"{name}: {value}"
        for name, field in section.model_fields.items()
        for value in _tag(name, field)
    ]
    return f"`{_merged(places)}`" + (f" with `{tags[0]}`" if tags else "")


def _tag(name: str, field: FieldInfo) -> tuple[Any, ...]:
    """The one value of the key that tells this section from the others at its place."""
    values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return values if name in ("kind", "stage") and len(values) == 1 else ()


def _merged(places: Sequence[str]) -> str:
    """One name for several places: those of the least depth, with `*` where they differ."""
    parts = [place.split(".") for place in places]
    least = min(map(len, parts))
    columns = zip(*(each for each in parts if len(each) == least), strict=True)
    return ".".join(column[0] if len(set(column)) == 1 else "*" for column in columns)


def _setting(name: str, field: FieldInfo) -> str:
    """A key with its type, its default and its meaning."""
    default = "required" if field.is_required() else f"default {_default(field.default)}"
    told = _type(field.annotation, field.metadata, field.discriminator)
    meaning = _one_line(field.description or "").replace("None:", "null:")
    return _point(f"`{name}` ({told}; {default}): {meaning}")


def _type(annotation: Any, bounds: Sequence[Any] = (), tag: Any = None) -> str:
    """The type of a key in words. bounds: pydantic's constraints; tag: the key that tells several
    kinds of sections apart."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        notes = [note for note in inside[1:] if isinstance(note, FieldInfo)]
        tags = [note.discriminator for note in notes if note.discriminator]
        return _type(
            inside[0],
            [bound for note in notes for bound in note.metadata],
            tags[0] if tags else None,
        )
    if origin in (Union, types.UnionType):
        return (
            f"section by its `{tag}`"
            if tag
            else " or ".join(_type(each, bounds) for each in inside)
        )
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin is tuple:
        return f"list{_bounds(bounds)}: {_type(inside[0])}"
    if origin is dict:
        return "keys and values"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    named = {
        int: "integer",
        float: "number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }[annotation]
    return named + (_bounds(bounds) if annotation in (int, float) else "")


def _bounds(metadata: Iterable[Any]) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "of at least"}
    told = [
        f"{sign} {getattr(each, key)}"
        for each in metadata
        for key, sign in signs.items()
        if hasattr(each, key)
    ]
    return f" {', '.join(told)}" if told else ""


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        given = ", ".join(
            f"{name}: {_plain(getattr(value, name))}" for name in sorted(value.model_fields_set)
        )
        return f"`{{{given}}}`" if given else "its own defaults"
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _named_sizes() -> str:
    """The dimensions behind each `model.size`."""
    shapes = {size: named_config(size) for size in NAMED_SIZES}
    keys = [name for name in Model.model_fields if name not in ("size", "checkpoint", "causal")]
    rows = [(f"`{key}`", *(str(getattr(shape, key)) for shape in shapes.values())) for key in keys]
    rows.append(("vocabulary", *(f"{shape.vocab_size:,}" for shape in shapes.values())))
    rows.append(("parameters", *(f"{shape.parameters()['total']:,}" for shape in shapes.values())))
    lines = [
        "## Named sizes",
        "",
        _paragraph(
            "Dimensions of each `model.size`. The vocabulary of a run is its tokenizer's; "
            "parameters are counted with the one given here."
        ),
        "",
        *_table(("", *(f"`{size}`" for size in shapes)), rows),
    ]
    return "\n".join(lines) + "\n"


# --- metrics --------------------------------------------------------------------------------------


def metrics_reference() -> str:
    """docs/metrics.md."""
    parts = [
        METRICS.format(
            cohorts=", ".join(f"`{cohort}`" for cohort in COHORTS), pauses=PAUSES, once=ROWS_ONCE
        )
    ]
    groups: dict[str, list[Metric]] = {}
    for metric in REGISTRY.values():
        groups.setdefault(metric.name.partition("/")[0], []).append(metric)
    for group, metrics in groups.items():
        lines = [f"## {group}", "", *map(_metric, metrics)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _metric(metric: Metric) -> str:
    """A metric with its kind, its labels and what it counts."""
    kind = f"{metric.type}, {metric.unit}, per {metric.denominator}"
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    told = f"{kind}; labels {labels}" if labels else kind
    return _point(f"`{metric.name}` (`{prometheus_name(metric)}`; {told}): {metric.help}.")


# --- text -----------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _point(text: str) -> str:
    """An item of a list."""
    return _paragraph(text, "* ", "  ")


def _paragraph(text: str, first: str = "", rest: str = "") -> str:
    """A text filled to the line length. first, rest: what its lines begin with."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


PAGES = {"configuration": configuration_reference, "metrics": metrics_reference}


def main(words: Sequence[str]) -> None:
    """Print the page that the one argument names."""
    if len(words) != 1 or words[0] not in PAGES:
        raise InputError(
            "deploy.reference",
            f"takes the name of one page; {nearest(words[0] if words else '', PAGES)}",
        )
    sys.stdout.write(PAGES[words[0]]())


if __name__ == "__main__":
    main(sys.argv[1:])
