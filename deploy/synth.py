"""`engram data synth`: conversations and games that are generated.

What a command needs is imported inside it, so that `--help` and completion answer at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.text.counted import counted
from deploy.command_group import DefaultGroup
from deploy.convert import (
    FileFormat,
    FormatOption,
    Out,
    Settings,
    every_fault,
    tell_leftovers,
    write,
    write_corpus,
)
from deploy.output import echo
from deploy.progress import doing
from deploy.text_games import Challenge

if TYPE_CHECKING:
    from common.episode import Row

app = typer.Typer(
    cls=DefaultGroup, help="Write generated conversations, or text games.", no_args_is_help=True
)
Seed = Annotated[int, typer.Option(min=0, help="Other seeds give other conversations.")]


@app.command()
def conversations(
    out: Out,
    settings: Settings = None,
    seed: Seed = 0,
    format: FormatOption = FileFormat.jsonl,
) -> None:
    """Write generated conversations: train=1000 steps=[4,8] strategies=[cumulative,long_term] …
    `engram data synth OUT` is short for it."""
    with doing("reading the settings"):
        from common.config.data import SynthData
        from common.config.loader import load_section

        chosen = load_section(SynthData, {}, [], settings or [])
    write_corpus(chosen, seed, out, format)


@app.command("long_context")
def long_context(
    out: Out,
    settings: Settings = None,
    seed: Seed = 0,
    format: FormatOption = FileFormat.jsonl,
) -> None:
    """Spread facts among other talk: turns=[16,2048] facts=[qa1_train.txt] talk=[chats.json] …"""
    from common.config.generation import LongContext
    from common.config.loader import load_section
    from common.data.datasets.long_context import long_contexts
    from common.data.leftovers import Leftovers

    left = Leftovers()
    with every_fault(), doing(f"making the conversations of {out}"):
        made = long_contexts(load_section(LongContext, {}, [], settings or []), seed, left)
    _write_rows(made, out, format)
    tell_leftovers(left)


@app.command()
def capacity(
    out: Out,
    settings: Settings = None,
    seed: Seed = 0,
    format: FormatOption = FileFormat.jsonl,
) -> None:
    """Tell many facts, overwrite some, then ask for each: facts=[4,64] overwritten=0.25 …"""
    from common.config.generation import Capacity
    from common.config.loader import load_section
    from common.data.datasets.capacity import capacity_rows

    with doing(f"making the conversations of {out}"):
        made = capacity_rows(load_section(Capacity, {}, [], settings or []), seed)
    _write_rows(made, out, format)


def _write_rows(made: Mapping[str, Sequence[Row]], out: Path, format: FileFormat) -> None:
    from common.data.conversations import save_rows

    for name, rows in made.items():
        write(out, name, format, rows, save_rows, "conversations")


@app.command()
def textworld(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder for the games.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of TextWorld's challenge."),
    ] = None,
    challenge: Annotated[Challenge, typer.Option(help="Kind of game.")] = Challenge.simple,
    games: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the first; the others follow.")] = 1,
) -> None:
    """Make text games: tw-CHALLENGE-SEED.z8, each with the .json that says how it is won."""
    with doing(f"making games in {folder}"):
        from deploy.text_games import make_games

        made = make_games(folder, challenge, games, seed, settings or [])
    echo(f"{folder}: {counted(len(made), 'games')}, {made[0].name} to {made[-1].name}")
