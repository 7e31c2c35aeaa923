"""Talking to a model: a prompt, answers as they come, and a memory that is seen being updated and
can be kept.

Nothing of the conversation is in the model's context: an answer sees its query and the memory, and
when it ends the interaction is written to memory. The conversation itself is
a policy's `Session`; here are words, lines and files. Works with pipes too.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from common.config.names import BackendName
from common.data.decoding import BOM
from common.failures import InputError, nearest
from common.text.counted import counted
from common.text.printable import printable
from deploy.output import tell

if TYPE_CHECKING:
    # Torch takes seconds to import, and the reader is told first what takes a while.
    from learner.examples import Interactions
    from rollout.protocols import Kept, Session

HELP = """\
/save FILE     keep the memory in FILE
/load FILE     go on with the memory in FILE
/fork NAME     keep the memory under NAME until the chat ends, and go on
/switch NAME   keep the present memory under its own name, and go on with the one under NAME
/memories      memories under names, and those in files here
/reset         start from fresh memory
/memory        what the memory looks like
/quit          end"""
FIRST_NAME = "main"


def chat(session: Session, examples: Sequence[Interactions]) -> None:
    """Talk on standard input and output until /quit or the end of input."""
    console = Console()
    if examples:
        say(console, introduction(examples))
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # see `as_text`
    talk(session, sys.stdin, console)


def open_session(
    checkpoint: str,
    memory: str | None,
    temperature: float,
    seed: int,
    backend: BackendName | None,
) -> tuple[Session, list[Interactions]]:
    """A session with the checkpoint's model, and conversations that its run learnt from.

    backend: None takes that of the checkpoint's run.
    Raises InputError for a checkpoint or memory that cannot be opened.
    """
    from common.config.rollout import Rollout, Sampling
    from common.storage.checkpoint import open_checkpoint

    opened = open_checkpoint(checkpoint)  # before torch is imported: the name may be wrong
    from learner.evaluation.measure import run_of
    from learner.examples import read_examples
    from learner.policies.table import open_policy

    trained, directory = open_policy(opened), run_of(opened.where)
    of_run = directory.run().rollout.command_backend if directory else "auto"
    longest = trained.max_tokens
    if trained.kind == "causal" and directory is not None:
        # As in training: what is remembered needs its share of the sequence.
        longest = min(longest, directory.run().rollout.sampling.max_new_tokens)
    sampling = Sampling(temperature=temperature, max_new_tokens=longest)
    rollout = Rollout(slots=1, sampling=sampling).model_copy(update={"backend": backend or of_run})
    session = trained.playing(rollout).session(seed)
    if memory is not None:
        session.load(memory)
    if directory is not None and opened.step == 0 and trained.kind == "reactive":
        tell(f"{checkpoint} has not been trained yet: it answers at random")
    return session, read_examples(directory) if directory else []


def introduction(examples: Sequence[Interactions]) -> str:
    """The lines that show what the model knows about: conversations that it was trained on."""
    lines = ["its training data hold conversations such as these:"]
    for number, turns in enumerate(examples):
        lines += [""] if number else []
        lines += [f"  > {printable(query)}\n  {printable(answer)}" for query, answer in turns]
    return "\n".join(lines)


def talk(session: Session, source: TextIO, console: Console) -> None:
    """The loop: a line is a query, or a command where it begins with "/"; a mistake is one sentence
    and the next prompt."""
    interactive = source.isatty() and console.is_terminal
    commands = Commands(session)
    if interactive:
        say(console, "/help shows the commands")
    while (line := _read(source, console, interactive)) is not None:
        try:
            line = as_text(line, source.encoding)
        except InputError as failure:
            say(console, str(failure))
            continue
        words = line.split(maxsplit=1)
        if not words:
            continue
        if words[0] in ("/quit", "/exit"):
            return
        try:
            if not interactive:
                # Whoever reads a transcript must see which answer belongs to which line.
                say(console, f"> {line.strip()}")
            if words[0].startswith("/"):
                say(console, commands.do(words[0], words[1].strip() if len(words) > 1 else ""))
            else:
                _interact(session, line.strip(), console)
        except InputError as failure:
            say(console, str(failure))


class Commands:
    """Commands, which begin with "/": memories to files and back, and memories side by side under
    names."""

    def __init__(self, session: Session, folder: Path | None = None):
        self.session, self.folder = session, folder or Path.cwd()
        self.current = FIRST_NAME
        """Name of the memory that the session goes on with."""
        self.others: dict[str, Kept] = {}

    def do(self, name: str, argument: str) -> str:
        """Do what a command says and return what to show. Raises InputError for an unknown command,
        file or name."""
        match name:
            case "/help":
                return HELP
            case "/memory":
                return self.session.describe()
            case "/memories":
                return self.listing()
            case "/reset":
                self.session.reset()
                return "memory is fresh; what it was not told since, the model guesses"
            case "/save" | "/load" if not argument:
                raise InputError(name, "needs a file")
            case "/fork" | "/switch" if not argument:
                raise InputError(name, "needs a name")
            case "/save":
                self.session.save(argument)
                return f"memory saved to {argument}"
            case "/load":
                self.session.load(argument)
                return f"memory loaded from {argument}"
            case "/fork":
                return self.fork(argument)
            case "/switch":
                return self.switch(argument)
            case _:
                raise InputError(name, "there is no such command; /help shows them")

    def fork(self, name: str) -> str:
        if name == self.current or name in self.others:
            raise InputError(name, "is the name of a memory already; /memories shows them")
        self.others[name] = self.session.kept()
        return f"memory kept as {name}; going on with {self.current}"

    def switch(self, name: str) -> str:
        if name not in self.others:
            near = nearest(name, self.others) if self.others else "/fork makes one"
            raise InputError(name, f"there is no memory of that name; {near}")
        self.others[self.current] = self.session.kept()
        self.session.restore(self.others.pop(name))
        self.current = name
        return f"going on with {name}, {counted(self.session.turn, 'interactions')} written"

    def listing(self) -> str:
        lines = [f"* {self.current}: {counted(self.session.turn, 'interactions')} written"]
        lines += [
            f"  {name}: {counted(kept.turn, 'interactions')} written"
            for name, kept in sorted(self.others.items())
        ]
        lines += [
            f"  file {name}: {counted(turn, 'interactions')} written"
            for name, turn in self.session.saved_in(self.folder).items()
        ]
        return "\n".join(lines)


def as_text(line: str, encoding: str | None) -> str:
    """A line that was read with the error handler "surrogateescape", as text: bytes that the
    stream's encoding does not know may be UTF-8. InputError where they are not.

    So a line in another encoding costs the reader that line, and not the conversation.
    """
    line = line.removeprefix(BOM)  # before the first line of a file
    if not any("\udc80" <= character <= "\udcff" for character in line):
        return line
    try:
        return line.encode(encoding or "utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise InputError("this line", "is not UTF-8 text; it was not said to the model") from None


def say(console: Console, text: str) -> None:
    """A line that is not the model's. Long lines are left to the terminal, so that file names stay
    whole."""
    console.print(printable(text), style="dim", markup=False, highlight=False, soft_wrap=True)


def _read(source: TextIO, console: Console, interactive: bool) -> str | None:
    """The next line, or None at the end of input (or Ctrl-C at the prompt)."""
    if not interactive:
        line = source.readline()
        return line if line else None
    try:
        # input() rather than readline(): the reader's line editing and history.
        return console.input("[bold]> [/bold]")
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None


def _interact(session: Session, query: str, console: Console) -> None:
    status = console.status("memory is being updated…")
    began = 0.0
    for event in session.respond(query):
        match event.kind:
            case "thought":
                say(console, f"(thinks: {event.text or 'nothing'})")
            case "token":
                console.print(
                    printable(event.text), end="", markup=False, highlight=False, soft_wrap=True
                )
            case "updating":
                console.print()
                began = time.perf_counter()
                status.start()
            case "updated":
                status.stop()
                say(console, f"memory updated ({(time.perf_counter() - began) * 1000:.0f} ms)")
