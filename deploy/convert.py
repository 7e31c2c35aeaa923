"""`engram data convert`: files and public data sets as records that a run reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.failures import InputError
from common.text.counted import counted
from deploy.output import echo, tell
from deploy.progress import doing

if TYPE_CHECKING:
    from common.config.conversion import LongFiles
    from common.config.data import Data
    from common.data.leftovers import Leftovers
    from common.data.preferences import Preference
    from common.episode import Row

app = typer.Typer(
    help="Write your own files of conversations or compared answers, or a public data set, as "
    "records that a run reads.",
    no_args_is_help=True,
)


class FileFormat(StrEnum):
    jsonl = "jsonl"
    gz = "jsonl.gz"
    parquet = "parquet"


Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the files of the splits.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings as in a config's data section."),
]
FormatOption = Annotated[FileFormat, typer.Option("--format", help="How the files are written.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The raw files of the data set.")]
Words = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE... OUT [KEY=VALUE]...",
        help="Files (.jsonl, .json, .csv, each also .gz, or .parquet) or names of `datasets`; the "
        "folder to write to; settings, such as columns.role=speaker.",
    ),
]


@app.command()
def chat(words: Words, format: FormatOption = FileFormat.jsonl) -> None:
    """Conversations as `messages` (OpenAI), ShareGPT or CSV: conversations to train on and held-out
    ones, and pairs for SFT."""
    from common.config.conversion import ChatFiles
    from common.config.loader import load_section
    from common.data.conversations import save_pairs, save_rows
    from common.data.datasets.chat import convert_chats
    from common.data.leftovers import Leftovers

    files, out, settings = split_words(words)
    left = Leftovers()
    with every_fault(), doing(f"reading {', '.join(files)}"):
        found = convert_chats(files, load_section(ChatFiles, {}, [], settings), left)
    write(out, "train", format, found.train, save_rows, "conversations")
    write(out, "eval", format, found.eval, save_rows, "conversations")
    write(out, "pairs", format, found.pairs, save_pairs, "pairs")
    tell_leftovers(left)


@app.command()
def preferences(words: Words, format: FormatOption = FileFormat.jsonl) -> None:
    """Compared answers (`chosen`, `rejected`) as text, transcripts ("Human: … Assistant: …") or
    `messages`: preferences to train on and held-out ones."""
    from common.config.conversion import ComparedFiles
    from common.config.loader import load_section
    from common.data.datasets.compared import convert_preferences
    from common.data.leftovers import Leftovers

    files, out, settings = split_words(words)
    left = Leftovers()
    with every_fault(), doing(f"reading {', '.join(files)}"):
        found = convert_preferences(files, load_section(ComparedFiles, {}, [], settings), left)
    write_preferences(out, format, train=found.train, eval=found.eval)
    tell_leftovers(left)


@app.command()
def babi(
    folder: Folder, out: Out, settings: Settings = None, format: FormatOption = FileFormat.jsonl
) -> None:
    """The bAbI tasks as conversations: tasks=[1,2]."""
    with doing("reading the settings"):
        from common.config.data import BabiData
        from common.config.loader import load_section

        chosen = load_section(BabiData, {"folder": str(folder)}, [], settings or [])
    write_corpus(chosen, 0, out, format)


@app.command()
def sgd(
    folder: Folder, out: Out, settings: Settings = None, format: FormatOption = FileFormat.jsonl
) -> None:
    """Schema-Guided Dialogue as conversations: max_follow_ups=6."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with doing("reading the settings"):
        from common.config.data import SgdData
        from common.config.loader import load_section

        chosen = load_section(SgdData, {"folder": str(folder)}, [], settings or [])
    write_corpus(chosen, 0, out, format)


@app.command()
def babilong(words: Words, format: FormatOption = FileFormat.jsonl) -> None:
    """BABILong's stories within books, to evaluate on."""
    from common.data.datasets.babilong import babilong_rows

    convert_long(words, format, babilong_rows)


@app.command()
def locomo(words: Words, format: FormatOption = FileFormat.jsonl) -> None:
    """LoCoMo's conversations over many sessions, to evaluate on."""
    from common.data.datasets.locomo import locomo_rows

    convert_long(words, format, locomo_rows)


@app.command()
def longmemeval(words: Words, format: FormatOption = FileFormat.jsonl) -> None:
    """LongMemEval's questions after many sessions with an assistant, to evaluate on."""
    from common.data.datasets.longmemeval import longmemeval_rows

    convert_long(words, format, longmemeval_rows)


@app.command()
def persona(words: Words, format: FormatOption = FileFormat.jsonl) -> None:
    """Persona chats as conversations that recall who answers: to train on, and held-out ones."""
    from common.config.conversion import PersonaFiles
    from common.config.loader import load_section
    from common.data.conversations import save_rows
    from common.data.datasets.persona import convert_personas
    from common.data.leftovers import Leftovers

    files, out, settings = split_words(words)
    left = Leftovers()
    with every_fault(), doing(f"reading {', '.join(files)}"):
        found = convert_personas(files, load_section(PersonaFiles, {}, [], settings), left)
    write(out, "train", format, found.train, save_rows, "conversations")
    write(out, "eval", format, found.eval, save_rows, "conversations")
    tell_leftovers(left)


def convert_long(
    words: Sequence[str],
    format: FileFormat,
    rows_of: Callable[[Sequence[str], LongFiles, Leftovers], list[Row]],
) -> None:
    """Files of a data set that is there to be evaluated on, as one file."""
    from common.config.conversion import LongFiles
    from common.config.loader import load_section
    from common.data.conversations import save_rows
    from common.data.leftovers import Leftovers

    files, out, settings = split_words(words)
    left = Leftovers()
    with every_fault(), doing(f"reading {', '.join(files)}"):
        rows = rows_of(files, load_section(LongFiles, {}, [], settings), left)
    write(out, "eval", format, rows, save_rows, "conversations")
    tell_leftovers(left)


@app.command()
def instructions(folder: Folder, out: Out, format: FormatOption = FileFormat.jsonl) -> None:
    """The instructions of "Build a Large Language Model (From Scratch)" as preferences."""
    from common.data.datasets.ranked import load_instructions, parts

    with doing(f"reading {folder}"):
        divided = parts(load_instructions(folder))
    write_preferences(out, format, train=divided.train, test=divided.test)


@app.command()
def taskmaster(folder: Folder, out: Out, format: FormatOption = FileFormat.jsonl) -> None:
    """Taskmaster's rewarded actions as preferences, and conversations that end with a good one."""
    from common.data.conversations import save_rows
    from common.data.datasets.ranked import load_taskmaster, parts

    with doing(f"reading {folder}"):
        judged = load_taskmaster(folder)
    divided = parts([preference for each in judged for preference in each.preferences], judged)
    write(out, "conversations", format, divided.conversations, save_rows, "conversations")
    write_preferences(out, format, train=divided.train, test=divided.test)


def split_words(words: Sequence[str]) -> tuple[list[str], Path, list[str]]:
    """Sources, folder and settings. A word with "=" is a setting, unless a file has that very
    name."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    places = [word for word in words if word not in settings]
    if len(places) < 2:
        raise InputError("command line", "give the files to read, then the folder to write to")
    *files, out = places
    if Path(out).is_file():
        raise InputError(
            out, "is a file; the last name is the folder that the converted files go to"
        )
    return files, Path(out), settings


@contextmanager
def every_fault() -> Iterator[None]:
    """Show all faults of a file on standard error, before the first ends the command."""
    from common.data.readers import BadRecords

    try:
        yield
    except BadRecords as bad:
        for fault in bad.faults if len(bad.faults) > 1 else []:
            tell(str(fault))
        raise


def write_corpus(data: Data, seed: int, out: Path, format: FileFormat) -> None:
    """The splits of a corpus, one file each."""
    from common.data.conversations import save_rows
    from common.data.datasets.table import load_corpus

    with doing(f"making the conversations of {out}"):
        corpus = load_corpus(data, seed)
    splits = {"train": corpus.train, "eval": corpus.eval, "test": corpus.test} | corpus.patterns
    for split, rows in splits.items():
        write(out, split, format, rows, save_rows, "conversations")


def write_preferences(out: Path, format: FileFormat, **splits: Sequence[Preference]) -> None:
    """Preferences of each split, with the number of their groups."""
    from common.data.preferences import save_preferences

    for split, part in splits.items():
        groups = len({each.group for each in part})
        write(
            out,
            split,
            format,
            part,
            save_preferences,
            "preferences",
            f" in {counted(groups, 'groups')}",
        )


def write(
    out: Path,
    name: str,
    format: FileFormat,
    records: Sequence[Any],
    save: Callable[[Any, Path], None],
    unit: str,
    beside: str = "",
) -> None:
    """Write a file and say what it holds. Of no records there is no file, not even an older one."""
    path = out / f"{name}.{format.value}"
    if records:
        save(records, path)
    else:
        path.unlink(missing_ok=True)
    held = counted(len(records), unit) + beside if records else f"no {unit}, not written"
    echo(f"{path}: {held}")


def tell_leftovers(left: Leftovers) -> None:
    """Show what was left out or changed."""
    from deploy.tables import table

    rows = [[what, f"{count:,}", first] for what, count, first in left.entries()]
    if rows:
        echo("")
        echo(table("Left out or changed", ["what", "number", "first at"], rows))
    else:
        echo("nothing was left out")
