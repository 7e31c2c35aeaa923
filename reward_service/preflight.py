"""What rewards need, checked before anything starts: functions, models and packages that are not
there stop a run at the door."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from common.config.rewards import FunctionReward, RewardMix, Rewards
from common.episode import Row, Turn
from common.failures import InputError
from reward_service.components.function import open_function, try_function
from reward_service.components.sentences import open_sentence_model


def require_rewards(rewards: Rewards, rows: Sequence[Row] = ()) -> None:
    """Raises InputError naming the first path or key that cannot be used.

    rows: of the run's training data, for a turn to try functions on; without any they are only
    loaded.
    """
    require_functions(rewards, rows)
    for mix in rewards.mixes():
        for model in mix.models:
            # Here and not at the top, as below: it brings torch, which a service without reward
            # models does without.
            from reward_service.reward_models.serving import require_model

            require_model(model)
    require_sentence_models(rewards)


def require_functions(rewards: Rewards, rows: Sequence[Row]) -> None:
    """Every function is loaded and called once, on a turn of the data that it is for."""
    tried: set[FunctionReward] = set()
    for key, mix in rewards:
        for function in mix.functions if isinstance(mix, RewardMix) else ():
            if function not in tried:
                tried.add(function)
                row = next((row for row in rows if row.strategy == key and row.interactions), None)
                row = row or next((row for row in rows if row.interactions), None)
                try_function(function, sample_turn(row) if row is not None else None)


def sample_turn(row: Row) -> Turn:
    """The first turn of a conversation, answered as the data set has it. Its ids are made up: there
    may be no tokenizer yet."""
    asked = row.interactions[0]
    query_ids, answer_ids = (
        list(range(8, 8 + len(text.split()) + 1)) for text in (asked.query, asked.answer)
    )
    return Turn(
        query_ids, answer_ids, [-1.0] * len(answer_ids), answer_ids, asked.role, asked.facts,
        query=asked.query, answer=asked.answer, reference=asked.answer,
    )  # fmt: skip


def has_to_open(rewards: Rewards) -> bool:
    """Whether a worker has functions to load or models to open before it can score."""
    return any(
        mix.functions or mix.models or (mix.cosine is not None and mix.cosine.model is not None)
        for mix in rewards.mixes()
    )


def open_all(rewards: Rewards) -> None:
    """Open them all, so that no scoring call has to. Raises InputError where a model cannot be."""
    for mix in rewards.mixes():
        for function in mix.functions:
            # Where that fails, every turn it is called for fails at once and says why. A worker
            # that does not come up says so much later.
            with contextlib.suppress(InputError):
                open_function(function)
        if mix.cosine is not None and mix.cosine.model is not None:
            open_sentence_model(mix.cosine.model)
        for model in mix.models:
            from reward_service.reward_models.serving import open_model

            open_model(model.path, model.serve)


def require_sentence_models(rewards: Rewards) -> None:
    opened = set()
    for key, mix in rewards:
        model = mix.cosine.model if isinstance(mix, RewardMix) and mix.cosine is not None else None
        if model is not None and model not in opened:
            try:
                open_sentence_model(model, device="cpu")
            except InputError as error:
                raise InputError(f"rewards.{key}.cosine.model", str(error)) from error
            opened.add(model)
