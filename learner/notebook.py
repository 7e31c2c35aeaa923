"""Reinforcement learning of a causal language model by calls of Python, without a run around it.

    trainer = PolicyTrainer(model, tokenizer, {"algorithm": "ppo", "ppo": {"kl": 0.05}})
    figures = trainer.step(queries, responses, rewards)

It is the update of the stage `lm_rl` (`learner/rl/update.py`) on episodes of one answer, in this
process: there are no workers, no checkpoints and no files. Whoever calls it samples and scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from common.config.causal import CausalModel
from common.config.lm import LMRL
from common.config.loader import load_section
from common.data.causal_tokenizer import CausalTokenizer
from common.episode import Episode, Turn
from common.failures import InputError
from common.models.causal import dialogue_tokenizer, require_trainable
from common.seeding import derive
from common.telemetry.metrics import Metrics
from learner.metrics import record_kl
from learner.parallel.group import Group, OneRank
from learner.policies.causal import CausalPolicy, adapted
from learner.policies.trunk import trunk_of
from learner.rl.algorithms.table import ALGORITHMS
from learner.rl.update import Update

Text = str | Sequence[int] | torch.Tensor
"""A text, or the ids of its tokens."""


class PolicyTrainer:
    """Trains `model` in place.

    model: as `AutoModelForCausalLM` opens it; dropout is switched off. tokenizer: its own, a fast
    one. settings: those of a stage `lm_rl`, as in YAML: algorithm, its section, optimizer. causal:
    those of `model.causal`: lora, value_head, template. temperature: that responses are sampled at.
    reward_width: width of the range that rewards lie in; PPO clips values to a share of it. group:
    ranks that all hold the same model; each gives `step` its own share.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: Mapping[str, Any] | None = None,
        *,
        causal: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        reward_width: float = 1.0,
        group: Group | None = None,
    ):
        """Raises InputError where the settings or the model cannot be trained with."""
        where = str(getattr(model, "name_or_path", "") or "model")
        self.settings = load_section(LMRL, {"stage": "lm_rl"} | dict(settings or {}), (), ())
        held = load_section(CausalModel, {"path": where} | dict(causal or {}), (), ())
        if held.text_memory is not None:
            raise InputError(
                "causal.text_memory", "is written in conversations; here each prompt stands alone"
            )
        self.tokenizer: CausalTokenizer = dialogue_tokenizer(where, tokenizer, model.config, held)
        require_trainable(where, model.eval(), self.tokenizer)
        device = next(model.parameters()).device
        self._group, self.metrics, self.steps = group or OneRank(device), Metrics(), 0
        # Responses stand after the very ids that they are given with, and nothing is remembered.
        window = replace(self.tokenizer.window(), start=(), interactions=0)
        self.policy = CausalPolicy(
            adapted(model, held),
            window,
            self._group,
            held.value_head,
            trunk=trunk_of(model, held),
        )
        torch.manual_seed(derive(0, "critic"))
        self.update = Update(
            self.policy,
            ALGORITHMS[self.settings.algorithm](self.settings.algorithm_settings, reward_width),
            self.settings,
            self.settings.total_steps,
            temperature,
            derive(0, "lm_rl"),
            self._group,
            self.metrics,
        )

    def step(
        self,
        queries: Sequence[Text],
        responses: Sequence[Text],
        rewards: Sequence[float],
        log_probs: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]:
        """One update, and its figures by the names of docs/metrics.md.

        queries: texts, put into the model's template, or ids, taken as they are. responses: texts,
        to which the end token is added, or ids. With several samples of a task, those of each stand
        side by side. log_probs: of the tokens of each response, recorded while sampling; None: the
        present weights'. Raises InputError where they do not fit each other.
        """
        episodes = self._episodes(queries, responses, rewards, log_probs)
        update, places = self.update, [episode.batch_index for episode in episodes]
        if self.steps == 0:
            update.begin_critic(episodes)
        experience = update.evaluate(episodes, places)
        total = int(self._group.sum(torch.tensor(len(episodes), device=self._group.device)))
        update.kl.update(record_kl(experience, self._group, self.metrics), total)
        update.run(experience, places, total, self.steps)
        self.steps += 1
        row = experience.figures | self.metrics.flush(self.steps, "lm_rl")
        return {
            name: float(value) for name, value in row.items() if isinstance(value, (int, float))
        }

    def _episodes(
        self,
        queries: Sequence[Text],
        responses: Sequence[Text],
        rewards: Sequence[float],
        log_probs: Sequence[Sequence[float]] | None,
    ) -> list[Episode]:
        self._require_fit(queries, responses, rewards)
        start = self.tokenizer.memory.start
        made = []
        for i, (query, response) in enumerate(zip(queries, responses, strict=True)):
            asked = (
                [*start, *self.tokenizer.prompt(query)] if isinstance(query, str) else ids(query)
            )
            said = self.tokenizer.answer(response) if isinstance(response, str) else ids(response)
            if not asked or not said:
                raise InputError(f"row {i}", "has an empty query or response")
            recorded = [] if log_probs is None else [float(each) for each in log_probs[i]]
            turn = Turn(asked, said, recorded, [], role="act", done=True, reward=float(rewards[i]))
            opening = Turn([], [], [], [], role="remember")
            place = self._group.rank + i * self._group.size
            made.append(
                Episode(
                    f"{self.steps}-{place}", str(place), place, (opening, turn), self.steps,
                    status="scored", batch_index=place,
                )
            )  # fmt: skip
        if log_probs is not None:
            return made
        found = self.policy.log_probs(made, self.update.temperature)
        return [
            replace(e, turns=(e.turns[0], replace(e.turns[1], log_probs=each[0].tolist())))
            for e, each in zip(made, found, strict=True)
        ]

    def _require_fit(
        self, queries: Sequence[Text], responses: Sequence[Text], rewards: Sequence[float]
    ) -> None:
        counts = len(queries), len(responses), len(rewards)
        if len(set(counts)) > 1 or not counts[0]:
            raise InputError(
                "step", "takes as many queries as responses and rewards, one at least; given were "
                f"{counts[0]}, {counts[1]} and {counts[2]}"
            )  # fmt: skip
        samples = self.settings.algorithm_settings.samples
        if counts[0] % samples:
            raise InputError(
                "step",
                f"{counts[0]} responses are no multiple of the {samples} samples of each task "
                f"({self.settings.algorithm}.samples)",
            )


def ids(tokens: Sequence[int] | torch.Tensor) -> list[int]:
    """Ids as plain numbers."""
    return [int(token) for token in tokens]
