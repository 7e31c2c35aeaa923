"""One conversation of a causal language model with a person, token by token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from common.config.rollout import Sampling
from common.data.causal_tokenizer import CausalTokenizer
from common.data.dialogue import Held
from common.failures import DataFailure, InputError, no_such_file
from common.seeding import derive, uniforms
from rollout.policies.causal.conversations import thought_room
from rollout.policies.causal.rows import Rows
from rollout.policies.episode_state import asked_thought
from rollout.policies.sampling import sample
from rollout.policies.stopping import StopStrings
from rollout.policies.streaming import streamed
from rollout.protocols import Event


@dataclass(frozen=True, slots=True)
class KeptDialogue:
    """Memory of a session at one moment."""

    file_format: str
    """Kind of the memory, as its files name it."""
    held: Held
    seed: int
    turn: int
    """Interactions of the conversation so far, forgotten ones included."""


class CausalSession:
    """The same model, seed, sampling and queries give the same answers."""

    def __init__(
        self,
        model: Any,
        tokenizer: CausalTokenizer,
        device: torch.device,
        seed: int,
        sampling: Sampling,
    ):
        self._rows = Rows(model, device, tokenizer.memory.max_tokens)
        self._tokenizer, self._sampling, self.seed = tokenizer, sampling, seed
        self._stops = StopStrings(sampling.stop, tokenizer)
        self._held: Held = ()
        self.turn = 0
        """Interactions of the conversation so far."""

    def reset(self) -> None:
        self._held, self.turn = (), 0

    def respond(self, query: str) -> Iterator[Event]:
        """The answer as it comes, then the two events of the update. An iterator left early leaves
        the memory as it was. Raises InputError where the query is too long for the model."""
        prompt = self._tokenizer.prompt(query)
        try:
            context = self._tokenizer.memory.context(self._held, prompt)
        except DataFailure as misfit:
            raise InputError("query", str(misfit)) from misfit
        return self._respond(query, prompt, context)

    def _respond(self, query: str, prompt: list[int], context: list[int]) -> Iterator[Event]:
        longest, tokenizer = self._sampling.max_new_tokens, self._tokenizer
        if tokenizer.thinks and asked_thought(None, self._sampling) is not None:
            ids, context = self._think(context)
            longest -= len(ids)
            yield Event("thought", tokenizer.thought_text(ids))
        room = tokenizer.memory.room(context, longest, writes=False)
        seed = derive(self.seed, self.turn)
        self._rows.change([], [context])

        def step(answer: list[int]) -> tuple[int, bool]:
            token = self._next(answer[-1] if answer else context[-1], len(answer) + 1, seed)
            return token, token == self._tokenizer.eos_id or len(answer) + 1 >= room

        answer, text = yield from streamed(step, self._tokenizer.decode, self._stops)
        yield Event("updating", text)
        self._remember(query, text, [*prompt, *answer])
        yield Event("updated")

    def _next(self, token: int, position: int, seed: int) -> int:
        key = np.array([seed], np.int64)
        drawn = torch.from_numpy(uniforms(key, np.array([position], np.int64)))
        logits = self._rows.step([token])
        return int(sample(logits, drawn.to(logits.device), self._sampling).tokens[0])

    def remember(self, query: str, answer: str) -> None:
        self._remember(query, answer, self._tokenizer.interaction(query, answer))

    def _remember(self, query: str, answer: str, interaction: list[int]) -> None:
        """interaction: its ids. Raises InputError where a memory that the policy writes has no room
        beside it."""
        memory = self._tokenizer.memory
        ids = self._write(query, answer) if memory.written else interaction
        self._held = memory.remember(self._held, ids)
        self.turn += 1

    def _write(self, query: str, answer: str) -> list[int]:
        """The ids that the policy writes to its memory after an interaction."""
        memory = self._tokenizer.memory
        try:
            prompt = self._tokenizer.write_prompt(self._held, query, answer)
        except DataFailure as misfit:
            raise InputError("memory", str(misfit)) from misfit
        seed = derive(self.seed, self.turn, "write")
        room = memory.room(prompt, self._sampling.max_new_tokens, writes=True)
        return self._generated(prompt, room, seed, lambda ids: ids[-1] == memory.end)

    def _think(self, context: list[int]) -> tuple[list[int], list[int]]:
        """The ids of a thought, and those before the answer. Raises InputError where there is no
        room for it."""
        tokenizer = self._tokenizer
        context = [*context, *tokenizer.think_open]
        try:
            room = thought_room(tokenizer, self._sampling, context)
        except DataFailure as misfit:
            raise InputError("query", str(misfit)) from misfit
        seed = derive(self.seed, self.turn, "thought")
        ids = self._generated(context, room, seed, tokenizer.ends_thought)
        return ids, [*context, *ids, *tokenizer.missing_end(ids)]

    def _generated(
        self, prompt: list[int], room: int, seed: int, ends: Callable[[list[int]], bool]
    ) -> list[int]:
        """Tokens after a prompt, up to `room` of them, or until they end."""
        self._rows.change([], [prompt])
        ids: list[int] = []
        while len(ids) < room and not (ids and ends(ids)):
            ids.append(self._next(ids[-1] if ids else prompt[-1], len(ids), seed))
        return ids

    def describe(self) -> str:
        """The memory: how much is held, of how many interactions, and the text that it is."""
        return self._tokenizer.memory.describe(self._held, self.turn, self._tokenizer.decode)

    # --- keeping memories -------------------------------------------------------------------------

    def kept(self) -> KeptDialogue:
        return KeptDialogue(self._format, self._held, self.seed, self.turn)

    @property
    def _format(self) -> str:
        return self._tokenizer.memory.file_format

    def restore(self, kept: Any) -> None:
        """Raises InputError where it is another policy's memory."""
        if not isinstance(kept, KeptDialogue) or kept.file_format != self._format:
            raise InputError("memory", f"is no memory of this policy ({self._format})")
        self._held, self.seed, self.turn = kept.held, kept.seed, kept.turn

    def save(self, path: str | Path) -> None:
        """One safetensors file. Raises InputError where it cannot be written."""
        pieces = self._tokenizer.memory.pieces(self._held)
        tensors = {
            "tokens": torch.tensor([token for each in pieces for token in each], dtype=torch.int64),
            "lengths": torch.tensor([len(each) for each in pieces], dtype=torch.int64),
        }
        session = json.dumps({"seed": self.seed, "turn": self.turn})
        try:
            save_file(tensors, str(path), {"format": self._format, "session": session})
        except (OSError, SafetensorError) as error:
            raise InputError(str(path), f"cannot be written: {error}") from error

    def load(self, path: str | Path) -> None:
        """Raises InputError where the file is something else."""
        try:
            with safe_open(str(path), "pt") as file:
                session = self._session(file.metadata())
                if session is None:
                    raise InputError(str(path), f"holds no memory of this policy ({self._format})")
                parts = file.get_tensor("tokens").split(file.get_tensor("lengths").tolist())
        except FileNotFoundError:
            raise no_such_file(path) from None
        except (OSError, SafetensorError) as error:
            raise InputError(str(path), f"cannot be read as a safetensors file: {error}") from error
        held = self._tokenizer.memory.of_pieces([part.tolist() for part in parts])
        self.restore(KeptDialogue(self._format, held, **session))

    def saved_in(self, folder: Path) -> dict[str, int]:
        found = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(str(path), "pt") as file:
                    session = self._session(file.metadata())
            except (OSError, SafetensorError):
                continue
            if session is not None:
                found[path.name] = session["turn"]
        return found

    def _session(self, metadata: dict[str, str] | None) -> dict[str, int] | None:
        """Seed and turn of a file of such a memory; None for any other."""
        if (metadata or {}).get("format") != self._format:
            return None
        session: dict[str, int] = json.loads((metadata or {})["session"])
        return session
