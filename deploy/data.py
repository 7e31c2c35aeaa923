"""`engram data`: generate (synth.py), convert (convert.py), check and look at conversations.

What a command needs is imported inside it, so that `--help` and completion answer at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.config.names import MOST_FOLLOW_UPS
from common.text.counted import counted
from common.text.printable import printable
from deploy.convert import app as convert_commands
from deploy.convert import every_fault, tell_leftovers
from deploy.output import echo, tell
from deploy.progress import doing
from deploy.synth import app as synth_commands

if TYPE_CHECKING:
    from common.data.tokenizer import ConversationTokenizer
    from common.data.validate import Limits
    from common.episode import Row

app = typer.Typer(help="Generate, convert, check and look at conversations.", no_args_is_help=True)
app.add_typer(convert_commands, name="convert")
app.add_typer(synth_commands, name="synth")

INSPECT_VOCABULARY = 1024
"""Size of the tokenizer that `inspect` trains on the file itself where none is given."""

BATCH = 10_000
SAME = 5
"""Conversations that stand twice which `validate` names, of each file."""


File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="A file (.jsonl, .json, .csv, each also .gz, or .parquet), or a data set as "
        "name:subset:split.",
    ),
]
TokenizerFolder = Annotated[
    Path | None, typer.Option("--tokenizer", help="Folder with a tokenizer, such as a checkpoint.")
]


@app.command()
def walkthroughs(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration with games.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File of pairs: .jsonl or .parquet.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the configuration."),
    ] = None,
) -> None:
    """Write the walkthroughs of a configuration's text games as pairs for lm_sft: each prompt with
    the action that leads on."""
    with doing(f"playing the walkthroughs of {config}"):
        from deploy.text_games import write_walkthroughs

        pairs, games = write_walkthroughs([config], out, settings or [])
    echo(f"{out}: {counted(pairs, 'pairs')} of {counted(games, 'games')}")


@app.command()
def prefer(
    file: File,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The file of preferences: .jsonl, .jsonl.gz or .parquet."
        ),
    ],
    seed: Annotated[int, typer.Option(min=0, help="Other seeds choose other wrong values.")] = 0,
) -> None:
    """Make preferences of conversations: of each question for a fact, the right answer against the
    same with another value."""
    with doing(f"reading {file}"):
        from common.data.conversations import load_rows
        from common.data.preferences import recall_preferences, save_preferences
        from common.failures import InputError

        preferences = recall_preferences(load_rows(file), seed)
    if not preferences:
        raise InputError(
            file, "no question for one fact is answered with two values: there is nothing to prefer"
        )
    save_preferences(preferences, out)
    echo(
        f"{out}: {counted(len(preferences), 'preferences')} in "
        f"{counted(len({each.group for each in preferences}), 'conversations')}"
    )


@app.command()
def validate(
    file: File,
    held_out: Annotated[
        str | None,
        typer.Argument(
            metavar="[HELD_OUT]",
            help="Another file, to evaluate on: conversations that stand in both are named.",
        ),
    ] = None,
    max_answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, [EOS] included; needs --tokenizer.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest interaction (model.max_tokens); needs --tokenizer."),
    ] = None,
    max_follow_ups: Annotated[
        int, typer.Option(min=1, help="Follow-ups of the longest conversation.")
    ] = MOST_FOLLOW_UPS,
    tokenizer: TokenizerFolder = None,
    inferred: Annotated[
        bool,
        typer.Option(
            "--inferred", help="Values may follow from what was said without standing in it."
        ),
    ] = False,
) -> None:
    """Check a file of conversations, or two; every fault and every warning names file, line and
    field."""
    names = [file] if held_out is None else [file, held_out]
    with every_fault(), doing(f"checking {' and '.join(names)}"):
        from common.data.amounts import too_few
        from common.data.overlaps import in_both, repeated
        from common.data.readers import REPORTED
        from common.data.validate import Limits, validate_rows

        limits = Limits(max_answer_tokens, max_tokens, max_follow_ups)
        used = _tokenizer_for(limits, tokenizer)
        checked = [validate_rows(name, limits, used, not inferred) for name in names]
    for name, found in zip(names, checked, strict=True):
        again = repeated(found.placed)
        tell_first([str(warning) for warning in found.warnings], REPORTED)
        tell_first(
            [f"{where}: is the conversation of {first} again" for where, first in again], SAME
        )
        noticed = [
            counted(len(found.warnings), "warnings"),
            f"{len(again)} repeated",
        ]
        told = [text for text in noticed if not text.startswith("0 ")]
        verdict = f"no faults, {', '.join(told)}" if told else "all well"
        echo(f"{name}: {counted(len(found.rows), 'conversations')}, {verdict}")
    few = too_few(len(checked[0].rows), "conversations")
    if few is not None:
        tell(f"warning: {few}")
    if held_out is not None:
        both = in_both(checked[0].placed, checked[1].placed)
        tell_first([f"{where}: is trained on, as {first}" for where, first in both], SAME)
        known = counted(len(checked[1].rows), "conversations")
        echo(f"{len(both) or 'none'} of the {known} of {held_out} in {file}")


def _tokenizer_for(limits: Limits, folder: Path | None) -> ConversationTokenizer | None:
    """The tokenizer that counts for limits of tokens. Raises InputError where one of them comes
    without the other."""
    from common.data.tokenizer import ConversationTokenizer
    from common.failures import InputError

    counts = limits.answer_tokens is not None or limits.tokens is not None
    if counts != (folder is not None):
        raise InputError(
            "command line",
            "--tokenizer goes together with --max-tokens, or --max-answer-tokens, or both",
        )
    return ConversationTokenizer.load(folder) if folder else None


@app.command()
def divide(
    file: File,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File: .jsonl, .jsonl.gz, .parquet.")],
    max_words: Annotated[int, typer.Option(min=2, help="Longest query of a told turn.")] = 60,
) -> None:
    """Tell long turns of a file of conversations in several, by whole sentences. Turns that have to
    stay whole, such as questions, are counted."""
    with every_fault(), doing(f"dividing the turns of {file}"):
        from common.data.conversations import load_rows, save_rows
        from common.data.division import divided
        from common.data.leftovers import Leftovers

        left = Leftovers()
        rows = load_rows(file)
        told = [divided(row, max_words, f"{file}, row {i}", left) for i, row in enumerate(rows, 1)]
        save_rows(told, out)
    echo(f"{out}: {counted(len(told), 'conversations')}")
    tell_leftovers(left)


def tell_first(warnings: Sequence[str], count: int) -> None:
    """The first `count` warnings on standard error, and how many more there are."""
    for warning in warnings[:count]:
        tell(f"warning: {warning}")
    if len(warnings) > count:
        tell(f"warning: and {len(warnings) - count} more")


@app.command()
def inspect(file: File, tokenizer: TokenizerFolder = None) -> None:
    """Show what a file holds: counts, distances of questions, lengths in tokens, one
    conversation."""
    with doing(f"reading {file}"):
        from common.data.conversations import load_rows
        from common.data.tokenizer import ConversationTokenizer, train_tokenizer

        rows = load_rows(file)
        if tokenizer is None:
            turns = [turn for row in rows[:BATCH] for turn in row.turns]
            texts = [part for turn in turns for part in (turn.query, turn.answer)]
            used, source = train_tokenizer(texts, INSPECT_VOCABULARY), "trained on this file"
        else:
            used, source = ConversationTokenizer.load(tokenizer), str(tokenizer)
    console = Console()
    for table in (
        counts_table(rows),
        *([distances_table(rows)] if any(turn.facts for row in rows for turn in row.turns) else []),
        lengths_table(rows, used, source),
        example_table(rows[0]),
    ):
        console.print(table)


def counts_table(rows: Sequence[Row]) -> Table:
    strategies = Counter("not named" if row.strategy_open else row.strategy for row in rows)
    roles = Counter(turn.role for row in rows for turn in row.interactions)
    steps = Counter(len(row.interactions) for row in rows)
    lines = [("conversations", "all", len(rows))]
    lines += [("strategy", name, count) for name, count in sorted(strategies.items())]
    lines += [("follow-ups", str(number), count) for number, count in sorted(steps.items())]
    lines += [("role of follow-ups", name, count) for name, count in sorted(roles.items())]
    facts = [fact for row in rows for turn in row.interactions for fact in turn.facts]
    lines += [("facts asked for", "all", len(facts))]
    lines += [("facts asked for", "changed before", sum(bool(fact.outdated) for fact in facts))]
    return _table("Counts", ("rows by", "value", "number"), lines)


def distances_table(rows: Sequence[Row]) -> Table:
    """Distance of a question: turns since the value was last said."""
    distances = Counter(
        turn - fact.said_in
        for row in rows
        for turn, said in enumerate(row.turns)
        for fact in said.facts
    )
    total, largest = sum(distances.values()), max(distances.values(), default=0)
    lines = [
        (number, count, f"{count / total:.1%}", "█" * round(30 * count / largest))
        for number, count in sorted(distances.items())
    ]
    return _table(
        "Questions by turns since the value was last said",
        ("distance", "values", "share", ""),
        lines,
    )


def lengths_table(rows: Sequence[Row], tokenizer: ConversationTokenizer, source: str) -> Table:
    """Tokens with the template's special tokens."""
    turns = [turn for row in rows for turn in row.turns]
    lengths = {
        "interaction": sorted(len(tokenizer.interaction(turn)) for turn in turns),
        "answer": sorted(len(tokenizer.answer(turn.answer, turn.think)) for turn in turns),
        "conversation": sorted(
            sum(len(tokenizer.interaction(turn)) for turn in row.turns) for row in rows
        ),
    }
    lines = [
        (name, *(seen[int(share * (len(seen) - 1))] for share in (0, 0.5, 0.95, 1)))
        for name, seen in lengths.items()
    ]
    title = f"Tokens, by a tokenizer of {tokenizer.vocab_size} tokens {source}"
    return _table(title, ("length of one", "least", "median", "95 %", "most"), lines)


def example_table(row: Row) -> Table:
    lines = [
        (
            turn,
            said.role,
            said.query,
            said.answer,
            ", ".join(f"{fact.value} (said in {fact.said_in})" for fact in said.facts),
        )
        for turn, said in enumerate(row.turns)
    ]
    return _table(
        f"The first conversation ({row.strategy})",
        ("turn", "role", "query", "answer", "expected"),
        lines,
    )


def _table(title: str, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> Table:
    table = Table(title=escape(printable(title)), title_justify="left")
    for name in header:
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*(escape(printable(str(cell))) for cell in line))
    return table
