"""One conversation of a causal language model with a person, token by token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from common.config.rollout import Sampling
from common.data.causal_tokenizer import CausalTokenizer
from common.data.dialogue import Interactions
from common.failures import DataFailure, InputError, no_such_file
from common.seeding import derive, uniforms
from rollout.policies.causal.rows import Rows
from rollout.policies.sampling import sample
from rollout.policies.stopping import StopStrings
from rollout.policies.streaming import streamed
from rollout.protocols import Event

_FORMAT = "engram-interactions-1"


@dataclass(frozen=True, slots=True)
class KeptInteractions:
    """Memory of a session at one moment."""

    held: Interactions
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
        self._rows = Rows(model, device, tokenizer.window.max_tokens)
        self._tokenizer, self._sampling, self.seed = tokenizer, sampling, seed
        self._stops = StopStrings(sampling.stop, tokenizer)
        self._held: Interactions = ()
        self.turn = 0
        """Interactions of the conversation so far."""

    def reset(self) -> None:
        self._held, self.turn = (), 0

    def respond(self, query: str, think: bool = False) -> Iterator[Event]:
        """The answer as it comes, then the two events of the update. An iterator left early leaves
        the memory as it was. Raises InputError where the query is too long for the model."""
        prompt = self._tokenizer.prompt(query)
        try:
            context = self._tokenizer.window.context(self._held, prompt)
        except DataFailure as misfit:
            raise InputError("query", str(misfit)) from misfit
        return self._respond(prompt, context)

    def _respond(self, prompt: list[int], context: list[int]) -> Iterator[Event]:
        room = min(self._sampling.max_new_tokens, self._tokenizer.window.max_tokens - len(context))
        self._rows.change([], [context])

        def step(answer: list[int]) -> tuple[int, bool]:
            token = self._next(answer[-1] if answer else context[-1], len(answer) + 1)
            return token, token == self._tokenizer.eos_id or len(answer) + 1 >= room

        answer, text = yield from streamed(step, self._tokenizer.decode, self._stops)
        yield Event("updating", text)
        self._remember([*prompt, *answer])
        yield Event("updated")

    def _next(self, token: int, position: int) -> int:
        key = np.array([derive(self.seed, self.turn)], np.int64)
        drawn = torch.from_numpy(uniforms(key, np.array([position], np.int64)))
        logits = self._rows.step([token])
        return int(sample(logits, drawn.to(logits.device), self._sampling).tokens[0])

    def remember(self, query: str, answer: str) -> None:
        self._remember(self._tokenizer.interaction(query, answer))

    def _remember(self, interaction: list[int]) -> None:
        self._held = self._tokenizer.window.remember(self._held, interaction)
        self.turn += 1

    def describe(self) -> str:
        """The memory in two lines: how much is held, and of how many interactions."""
        tokens, window = sum(map(len, self._held)), self._tokenizer.window
        return (
            f"the last {len(self._held)} of {self.turn} interactions, {tokens} tokens\n"
            f"at most {window.interactions} interactions and {window.memory_tokens} tokens are held"
        )

    # --- keeping memories -------------------------------------------------------------------------

    def kept(self) -> KeptInteractions:
        return KeptInteractions(self._held, self.seed, self.turn)

    def restore(self, kept: Any) -> None:
        """Raises InputError where it is another policy's memory."""
        if not isinstance(kept, KeptInteractions):
            raise InputError("memory", "holds no interactions as tokens")
        self._held, self.seed, self.turn = kept.held, kept.seed, kept.turn

    def save(self, path: str | Path) -> None:
        """One safetensors file. Raises InputError where it cannot be written."""
        tokens = [token for each in self._held for token in each]
        tensors = {
            "tokens": torch.tensor(tokens, dtype=torch.int64),
            "lengths": torch.tensor([len(each) for each in self._held], dtype=torch.int64),
        }
        session = json.dumps({"seed": self.seed, "turn": self.turn})
        try:
            save_file(tensors, str(path), {"format": _FORMAT, "session": session})
        except (OSError, SafetensorError) as error:
            raise InputError(str(path), f"cannot be written: {error}") from error

    def load(self, path: str | Path) -> None:
        """Raises InputError where the file is something else."""
        try:
            with safe_open(str(path), "pt") as file:
                session = _session(file.metadata())
                if session is None:
                    raise InputError(str(path), "holds no interactions of a causal language model")
                parts = file.get_tensor("tokens").split(file.get_tensor("lengths").tolist())
        except FileNotFoundError:
            raise no_such_file(path) from None
        except (OSError, SafetensorError) as error:
            raise InputError(str(path), f"cannot be read as a safetensors file: {error}") from error
        self.restore(KeptInteractions(tuple(tuple(p.tolist()) for p in parts), **session))

    def saved_in(self, folder: Path) -> dict[str, int]:
        found = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(str(path), "pt") as file:
                    session = _session(file.metadata())
            except (OSError, SafetensorError):
                continue
            if session is not None:
                found[path.name] = session["turn"]
        return found


def _session(metadata: dict[str, str] | None) -> dict[str, int] | None:
    """Seed and turn of a file of ours; None for any other."""
    if (metadata or {}).get("format") != _FORMAT:
        return None
    session: dict[str, int] = json.loads((metadata or {})["session"])
    return session
