"""One conversation with a person: the rollout engine's slots, one of them, token by token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.config.schema import Sampling
from common.data.tokenizer import ConversationTokenizer
from common.failures import InputError
from common.models.reactive import ReactiveTransformer
from common.seeding import derive
from rollout.policies.reactive import answer_text
from rollout.policies.slots import Slots, answer_room, check_interaction
from rollout.timing import PhaseTimer

_FORMAT = "engram-memory-1"


@dataclass(frozen=True, slots=True)
class Event:
    """token: `text` is what the answer grew by, perhaps nothing yet. updating: the answer is complete, `text` is all of it, and the memory
    is being updated. updated: the memory holds the interaction; the next query may come."""

    kind: Literal["token", "updating", "updated"]
    text: str = ""


class Session:
    """The same model, seed, sampling and queries give the same answers.

    `greedy`: the most probable token each time, whatever `sampling` says.
    """

    def __init__(
        self,
        model: ReactiveTransformer,
        tokenizer: ConversationTokenizer,
        seed: int = 0,
        sampling: Sampling | None = None,
        greedy: bool = False,
    ):
        self.model, self.tokenizer, self.seed, self.greedy = model, tokenizer, seed, greedy
        self.sampling = sampling or Sampling(max_new_tokens=model.config.max_tokens)
        self._slots = Slots(model, 1, self.sampling, model.device, PhaseTimer())
        self.turn = 0
        """Interactions that the memory was written with."""
        self.reset()

    @property
    def memory(self) -> Tensor:
        """A copy of the memory, [layers, slots, width]."""
        return self._slots.memory[0].clone()

    def reset(self) -> None:
        """Back to the memory that the session began with."""
        self.turn = 0
        self._slots.start([0], self.model.initial_memory([self.seed]).detach())

    def respond(self, query: str, think: bool = False) -> Iterator[Event]:
        """The answer as it comes, then the two events of the memory update. An iterator left early leaves the memory as it was.

        Raises InputError where the query is too long for the model.
        """
        prompt = self.tokenizer.prompt(query, think)
        if len(prompt) >= self.model.config.max_tokens:
            raise InputError("query", f"{len(prompt)} tokens leave no room for an answer in the model's {self.model.config.max_tokens}")
        return self._respond(prompt)

    def _respond(self, prompt: list[int]) -> Iterator[Event]:
        key = derive(self.seed, self.turn)
        self._slots.ask([0], [prompt], [key], [answer_room(self.model.config, self.sampling, prompt)], [self.greedy])
        answer: list[int] = []
        shown, ends = "", False
        while not ends:
            token = self._slots.step(1)[0]
            answer.append(token.id)
            ends = token.ends
            text = answer_text(self.tokenizer, prompt, answer)
            # A character of several bytes is not shown before its last byte is there.
            if text.startswith(shown) and (ends or not text.endswith("\ufffd")):
                yield Event("token", text[len(shown) :])
                shown = text
            else:
                yield Event("token")
        yield Event("updating", text)
        self._write([*prompt, *answer])
        yield Event("updated")

    def remember(self, query: str, answer: str) -> None:
        """Write an interaction that nobody generated: an opening, or what the model should know from the start."""
        ids = self.tokenizer.interaction(query, answer)
        check_interaction(self.model.config, ids)
        self._write(ids)

    def _write(self, interaction: list[int]) -> None:
        self._slots.start([0], self._slots.remember(self._slots.memory, [interaction]))
        self.turn += 1

    def save(self, path: str | Path) -> None:
        """The memory as one safetensors file; seed and number of interactions are its metadata."""
        metadata = {"format": _FORMAT, "session": json.dumps({"seed": self.seed, "turn": self.turn})}
        save_file({"memory": self.memory.float().cpu().contiguous()}, str(path), metadata)

    def load(self, path: str | Path) -> None:
        """Go on from what `save` wrote. Raises InputError where the file is something else, or another model's memory."""
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise InputError(str(path), f"not a memory of engram (its format is {metadata.get('format')!r}, not {_FORMAT!r})")
                memory = file.get_tensor("memory")
        except (OSError, SafetensorError) as error:
            raise InputError(str(path), f"cannot be read as a safetensors file: {error}") from error
        config = self.model.config
        shape = (config.layers, config.slots, config.width)
        if tuple(memory.shape) != shape:
            raise InputError(str(path), f"memory of shape {tuple(memory.shape)}; this model's is {shape}")
        state = json.loads(metadata["session"])
        self.seed, self.turn = state["seed"], state["turn"]
        self._slots.start([0], memory[None].to(self.model.device, self.model.dtype))
