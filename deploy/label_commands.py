"""Commands of people who rank: `engram label`, its exports and imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from common.failures import InputError
from common.text.counted import counted
from deploy.output import echo, tell
from deploy.pages.command import LOOPBACK, HostOption, OpenOption, PortOption, serve


class LabelGroup(TyperGroup):
    """`engram label RUN|FILE` serves the page, whatever is not the name of another command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["page", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    cls=LabelGroup,
    no_args_is_help=True,
    help="A local page on which people rank answers: engram label RUN|FILE. Exports and imports "
    "what they judged.",
)

Where = Annotated[
    str,
    typer.Argument(
        metavar="RUN|FILE",
        help='A run, a loop of `engram feedback`, or a data file of {"prompt", "answers"?, '
        '"history"?}.',
    ),
]


@app.command("page", hidden=True)
def page(
    where: Where,
    shared: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the questions that every labeller is asked."),
    ] = 0.0,
    host: HostOption = LOOPBACK,
    port: PortOption = None,
    browser: OpenOption = False,
) -> None:
    """Serve the page; every judgement is on disk before the next question is shown."""
    from deploy.progress import doing

    with doing(f"opening {where}"):
        from deploy.label.desk import Desk
        from deploy.label.judgements import LabelFile
        from deploy.label.questions import open_source
        from deploy.label.server import label_page, progress

        source = open_source(where)
        file = LabelFile(source.labels)
        desk = Desk(source.questions, file, shared)
        told = progress(source, desk)["notes"]
    with file:
        for note in told:
            tell(f"engram: {note}")
        held = f"{source.name}, {counted(len(source.questions), 'questions')}"
        serve(label_page(source, desk), held, host, port, browser, "label, and read the questions")


@app.command()
def export(
    where: Where,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write to.")],
) -> None:
    """Write preferences.jsonl (for a reward model), demonstrations.jsonl (for lm_sft) and
    label_studio.json."""
    from deploy.progress import doing

    with doing(f"reading labels of {where}"):
        from common.data.conversations import save_pairs
        from common.data.preferences import save_preferences
        from common.storage.run_directory import write_atomically
        from deploy.convert import FileFormat, write
        from deploy.label.agreement import agreement, agreement_sentence
        from deploy.label.judgements import broken_sentence, read_labels
        from deploy.label.label_studio import label_studio_text
        from deploy.label.questions import open_source
        from deploy.label.rows import rows_of, rows_sentences
        from deploy.label.server import gone_sentence

        source = open_source(where)
        labels = read_labels(source.labels)
        told = list(labels.latest.values())
        if not told:
            raise InputError(str(source.labels), f"holds no judgement yet; engram label {where}")
        rows = rows_of(told)
        asked = {question.id for question in source.questions}
        gone = len({each.question.id for each in told} - asked)
    out.mkdir(parents=True, exist_ok=True)
    jsonl = FileFormat.jsonl
    write(out, "preferences", jsonl, rows.preferences, save_preferences, "preferences")
    write(out, "demonstrations", jsonl, rows.demonstrations, save_pairs, "pairs")
    target = out / "label_studio.json"
    write_atomically(target, label_studio_text(told).encode())
    echo(f"{target}: {counted(len(told), 'judgements')}")
    echo(agreement_sentence(agreement(told)))
    for note in (
        broken_sentence(source.labels, labels),
        gone_sentence(gone),
        *rows_sentences(rows),
    ):
        if note:
            tell(f"engram: {note}")


@app.command("import")
def bring_in(
    where: Where,
    files: Annotated[
        list[Path],
        typer.Argument(help="Label Studio's JSON (.json), or rows of preferences."),
    ],
    labeller: Annotated[
        str | None, typer.Option(help="Who judged, where a file does not say it.")
    ] = None,
) -> None:
    """Add judgements that were made elsewhere to the labels of a run or file."""
    from deploy.progress import doing

    with doing(f"reading {', '.join(map(str, files))}"):
        import time

        from common.data.preferences import load_preferences
        from deploy.label.judgements import LabelFile, event_of
        from deploy.label.label_studio import UNKNOWN, from_label_studio
        from deploy.label.questions import open_source
        from deploy.label.rows import judgements_of
        from deploy.label.server import gone_sentence

        source = open_source(where)
        found = []
        for path in files:
            if not path.is_file():
                raise InputError(str(path), "there is no such file")
            if path.suffix == ".json":
                found += from_label_studio(path, labeller)
            else:
                rows = load_preferences(path)
                found += judgements_of(rows, labeller or UNKNOWN, time.time())
    with LabelFile(source.labels) as file:
        known = {each.id for each in file.labels.judgements} | file.labels.undone
        new = [each for each in found if each.id not in known]
        for judgement in new:
            file.append(event_of(judgement))
    here = {question.id for question in source.questions}
    echo(
        f"{source.labels}: {counted(len(new), 'judgements')} added, {len(found) - len(new)} were "
        "there already"
    )
    gone = gone_sentence(len({each.question.id for each in new} - here))
    if gone:
        tell(f"engram: {gone}")
