"""Conversations that vLLM generates. It batches by itself: an answer that ends gives way to the
next prompt in the step after.

Every draw is a function of the task's seed and the turn by vLLM's own generators, so episodes are
reproducible with the same engine only.
"""

from __future__ import annotations

import math

from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.rollout import Sampling
from common.data.causal_tokenizer import CausalTokenizer
from rollout.policies.causal.conversations import CausalState, Conversations
from rollout.policies.causal.vllm_generator import BACKEND, VllmGenerator


class VllmEngine(Conversations):
    """slots: episodes in flight, and requests that vLLM has at once."""

    backend = BACKEND

    def __init__(
        self,
        generator: VllmGenerator,
        tokenizer: CausalTokenizer,
        slots: int,
        sampling: Sampling,
        environment: EnvironmentSettings = CONVERSATION,
    ):
        super().__init__(tokenizer, slots, sampling, environment)
        self._generator = generator

    def _advance(self) -> None:
        if self._live:
            self._step()
        complete = [playing for playing in self._live if playing.complete]
        if complete or self._waiting:
            self._turn_over(complete)

    def _drop(self, playing: CausalState) -> None:
        self._generator.drop(_request(playing))
        self._live.remove(playing)

    def _step(self) -> None:
        asking = {_request(playing): playing for playing in self._live}
        with self.timer("decode"):
            tokens = self._generator.step()
        self.tally.steps += 1
        self.tally.slot_steps += self._slots
        for token in tokens:
            playing = asking.get(token.request)
            if playing is None or playing.complete:
                continue
            if not math.isfinite(token.log_prob):
                del asking[token.request]
                where = len(playing.answer)
                self._fail(playing, f"log-prob of token {where} is not finite")
                self._drop(playing)
                continue
            self._took(playing, token.id, token.log_prob)

    def _turn_over(self, complete: list[CausalState]) -> None:
        for playing in complete:
            # Where a stop string ended it, vLLM would go on.
            self._drop(playing)
        asking = self._asking(complete, self._slots - len(self._live) - len(complete))
        for playing in asking:
            self._generator.ask(
                _request(playing),
                playing.context,
                playing.room,
                playing.seed,
                playing.task.greedy or self.sampling.temperature == 0,
            )
        self._live += asking


def _request(playing: CausalState) -> str:
    """Names one answer, or memory, among all that an engine was asked for."""
    return f"{playing.number}.{playing.prompts}"
