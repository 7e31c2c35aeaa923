"""Continuous batching of conversations with a causal language model of `transformers`.

All slots take one decoding step together; those whose answers end give them to their environments,
remember the interaction, and come back with the next prompt, while the others keep decoding.

Invariant: an episode depends on its task and the weights, not on the slot, the batch or the order
it is played in. Every random number is a function of the task's seed, the turn and the position.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.rollout import Sampling
from common.data.causal_tokenizer import CausalTokenizer
from common.seeding import uniforms
from rollout.policies.causal.conversations import CausalState, Conversations
from rollout.policies.causal.rows import Rows
from rollout.policies.sampling import Sampled, sample

BACKEND = "transformers"
"""Name of what computes here, as episodes hold it."""


class CausalEngine(Conversations):
    """slots: episodes in flight. The model's weights may be changed in place while nothing is in
    flight."""

    backend = BACKEND

    def __init__(
        self,
        model: Any,
        tokenizer: CausalTokenizer,
        slots: int,
        sampling: Sampling,
        device: torch.device,
        environment: EnvironmentSettings = CONVERSATION,
    ):
        super().__init__(tokenizer, slots, sampling, environment)
        self._rows = Rows(model, device, tokenizer.memory.max_tokens)

    @torch.inference_mode()
    def _advance(self) -> None:
        if self._live:
            self._step()
        complete = sum(playing.complete for playing in self._live)
        ready = complete + min(len(self._waiting), self._slots - len(self._live))
        # Reading prompts for several rows costs hardly more than for one: they wait for each other,
        # a step or two, until an eighth of the rows is ready.
        if ready >= max(1, (len(self._live) + ready) // 8):
            self._turn_over()

    def _drop(self, playing: CausalState) -> None:
        self._replace([row for row, each in enumerate(self._live) if each is not playing], [])

    # --- one step ---------------------------------------------------------------------------------

    def _step(self) -> None:
        live = self._live
        with self.timer("decode"):
            logits = self._rows.step([playing.last for playing in live])
        with self.timer("sample"):
            sampled = sample(
                logits,
                self._uniforms().to(logits.device),
                self.sampling,
                torch.tensor([playing.task.greedy for playing in live], device=logits.device)
                if any(playing.task.greedy for playing in live)
                else None,
            )
        with self.timer("sync"):
            broken = self._take(sampled)
        self.tally.steps += 1
        self.tally.slot_steps += self._slots
        if broken:
            for row in broken:
                token = len(live[row].answer)
                self._fail(live[row], f"log-prob of token {token} is not finite")
            self._replace([row for row in range(len(live)) if row not in broken], [])

    def _uniforms(self) -> torch.Tensor:
        """A number in [0, 1) for each row."""
        keys = [playing.seed for playing in self._live]
        positions = [len(playing.answer) for playing in self._live]
        drawn = uniforms(np.array(keys, np.int64), np.array(positions, np.int64))
        return torch.from_numpy(drawn)

    def _take(self, sampled: Sampled) -> list[int]:
        """Add its token to each answer that is not complete; the rows whose log-probs are not
        finite."""
        tokens, log_probs = sampled.tokens.tolist(), sampled.log_probs.tolist()
        unfiltered = None if sampled.unfiltered is None else sampled.unfiltered.tolist()
        broken = []
        for row, playing in enumerate(self._live):
            if playing.complete:
                continue
            if not math.isfinite(log_probs[row]):
                broken.append(row)
                continue
            if unfiltered is not None:
                playing.unfiltered.append(unfiltered[row])
            self._took(playing, tokens[row], log_probs[row])
        return broken

    def _turn_over(self) -> None:
        """Close the answers that are complete, and give every free slot its next prompt."""
        kept = [row for row, playing in enumerate(self._live) if not playing.complete]
        complete = [playing for playing in self._live if playing.complete]
        self._replace(kept, self._asking(complete, self._slots - len(self._live)))

    def _replace(self, kept: list[int], asking: list[CausalState]) -> None:
        with self.timer("prefill"):
            self._rows.change(kept, [playing.context for playing in asking])
        self._live = [*(self._live[row] for row in kept), *asking]
