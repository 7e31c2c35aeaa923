"""Talking to a model: one slot of the rollout engine, a prompt, and a memory that is seen being updated and can be kept.

Nothing of the conversation is in the model's context: an answer sees its query and the memory, and when it ends the interaction
is written to memory. A saved memory is one safetensors file, tensor "memory" [layers, slots, width] in float32, and goes on in
any later session with a model of the same shape. Works with a terminal and with pipes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.checkpoint import open_checkpoint
from common.config.schema import Sampling
from common.data.tokenizer import ConversationTokenizer
from common.failures import DataFailure, InputError
from common.models.reactive import ReactiveTransformer
from common.seeding import derive
from learner.training_state import checkpoint_model
from rollout.policies.slots import Slots, answer_room
from rollout.timing import PhaseTimer

HELP = """\
/save FILE   keep the memory in FILE
/load FILE   go on with the memory in FILE
/reset       start from fresh memory
/memory      what the memory looks like
/quit        end"""


class Conversation:
    """One conversation with a model. `memory` is [1, layers, slots, width], as it stands between two interactions."""

    def __init__(self, model: ReactiveTransformer, tokenizer: ConversationTokenizer, temperature: float, seed: int):
        self._model, self._tokenizer, self._seed = model.eval(), tokenizer, seed
        self._sampling = Sampling(temperature=temperature, max_new_tokens=model.config.max_tokens)
        self._slots = Slots(model, 1, self._sampling, model.device, PhaseTimer())
        self._asked = 0
        self._interaction: list[int] = []
        self.turns, self.change = 0, 0.0
        """Interactions written since fresh memory or /load; root mean square change of memory by the last write."""
        self.memory = self._fresh()

    def answer(self, query: str) -> Iterator[str]:
        """The answer, piece by piece as it is generated. Raises DataFailure where the query leaves no room for one."""
        prompt = self._tokenizer.prompt(query)
        room = answer_room(self._model.config, self._sampling, prompt)
        self._slots.start([0], self.memory)
        self._slots.ask([0], [prompt], [derive(self._seed, "chat", self._asked)], [room], [False])
        self._asked += 1
        self._interaction = prompt
        yield from pieces(self._generate(), self._tokenizer.decode)

    def _generate(self) -> Iterator[int]:
        ended = False
        while not ended:
            token = self._slots.step(1)[0]
            self._interaction.append(token.id)
            ended = token.ends
            yield token.id

    def remember(self) -> float:
        """Write the last interaction to memory; milliseconds it took."""
        began = time.perf_counter()
        after = self._slots.remember(self.memory, [self._interaction])
        self.change = (after - self.memory).square().mean().sqrt().item()
        self.memory = after
        self.turns += 1
        return (time.perf_counter() - began) * 1000

    def reset(self) -> None:
        self.memory, self.turns, self.change = self._fresh(), 0, 0.0

    def save(self, path: str) -> None:
        """Raises InputError where the file cannot be written."""
        try:
            save_file({"memory": self.memory[0].float().cpu().contiguous()}, path, metadata={"interactions": str(self.turns)})
        except (OSError, SafetensorError) as error:
            raise InputError(path, f"cannot be written: {error}") from error

    def load(self, path: str) -> None:
        """Raises InputError where the file is not a memory, or one of another shape; the memory then stays as it was."""
        if not Path(path).is_file():
            raise InputError(path, "there is no such file")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise InputError(path, f"is not a safetensors file: {error}") from error
        if "memory" not in tensors:
            raise InputError(path, f"holds no memory but {', '.join(tensors) or 'nothing'}")
        if tensors["memory"].shape != self.memory.shape[1:]:
            theirs, ours = tuple(tensors["memory"].shape), tuple(self.memory.shape[1:])
            raise InputError(path, f"holds a memory of shape {theirs}, this model's has {ours}")
        self.memory, self.turns, self.change = tensors["memory"][None].to(self.memory), 0, 0.0

    def describe(self) -> str:
        _, layers, slots, width = self.memory.shape
        sizes = ", ".join(f"{size:.3g}" for size in self.memory[0].square().mean((1, 2)).sqrt().tolist())
        return (
            f"{layers} layers × {slots} slots × width {width}; {self.turns} interactions written here\n"
            f"root mean square per layer: {sizes}; change by the last write: {self.change:.3g}"
        )

    @torch.inference_mode()
    def _fresh(self) -> Tensor:
        return self._model.initial_memory([self._seed])


def pieces(ids: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Text as its tokens come.

    A character whose bytes are several tokens is held back until the last has come; bytes that never become one show at the end.
    """
    seen: list[int] = []
    text = shown = ""
    for token in ids:
        seen.append(token)
        text = decode(seen)
        if len(text) > len(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    if len(text) > len(shown):
        yield text[len(shown) :]


def chat(checkpoint: str, memory: str | None, temperature: float, seed: int) -> None:
    """Talk on standard input and output until /quit or the end of input.

    Raises InputError for a checkpoint or memory that cannot be opened.
    """
    model, tokenizer = checkpoint_model(open_checkpoint(checkpoint))
    conversation = Conversation(model, tokenizer, temperature, seed)
    if memory is not None:
        conversation.load(memory)
    talk(conversation, sys.stdin, Console())


def talk(conversation: Conversation, source: TextIO, console: Console) -> None:
    """The loop: a line is a query, or a command where it begins with "/"; a mistake is one sentence and the next prompt."""
    interactive = source.isatty() and console.is_terminal
    if interactive:
        say(console, "/help shows the commands")
    while (line := _read(source, console, interactive)) is not None:
        words = line.split(maxsplit=1)
        if not words:
            continue
        if words[0] in ("/quit", "/exit"):
            return
        try:
            if words[0].startswith("/"):
                say(console, command(conversation, words[0], words[1].strip() if len(words) > 1 else ""))
            else:
                _interact(conversation, line.strip(), console)
        except (InputError, DataFailure) as failure:
            say(console, str(failure))


def command(conversation: Conversation, name: str, argument: str) -> str:
    """Do what a command says and return what to show. Raises InputError for an unknown command or a bad file."""
    match name:
        case "/help":
            return HELP
        case "/memory":
            return conversation.describe()
        case "/reset":
            conversation.reset()
            return "memory is fresh"
        case "/save" | "/load" if not argument:
            raise InputError(name, "needs a file")
        case "/save":
            conversation.save(argument)
            return f"memory saved to {argument}"
        case "/load":
            conversation.load(argument)
            return f"memory loaded from {argument}"
        case _:
            raise InputError(name, "is no command; /help shows them")


def say(console: Console, text: str) -> None:
    """A line that is not the model's. Long lines are left to the terminal, so that file names stay whole."""
    console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


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


def _interact(conversation: Conversation, query: str, console: Console) -> None:
    for piece in conversation.answer(query):
        console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    console.print()
    with console.status("memory is being updated…"):
        milliseconds = conversation.remember()
    say(console, f"memory updated ({milliseconds:.0f} ms)")
