"""A text classifier as a reward: which of its labels pays, by name, and how it is read.

Labels of a classifier have names and no order, so they are never counted as scores. A reward model
of the stage `reward_model` has levels 1…K in their place, and says so in its configuration.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.config.components import ModelReward
from common.failures import InputError, nearest


def label_names(config: Any, trained_here: bool) -> list[str]:
    """Names of a model's labels, in the order of its logits; none where it gives one score, or
    levels.

    trained_here: whether it is a checkpoint of a run, which holds no classifier.
    """
    if (
        trained_here
        or config.model_type == "rxt_reward"
        or getattr(config, "levels", None) is not None
    ):
        return []
    count = int(config.num_labels or 1)
    return [str(config.id2label[i]) for i in range(count)] if count > 1 else []


def require_label(where: str, section: ModelReward, config: Any, trained_here: bool) -> None:
    """Raises InputError where a classifier's labels do not say which of them is the reward."""
    names = label_names(config, trained_here)
    key = f"{where}: {section.name}.label"
    if section.label is None and names:
        raise InputError(
            key,
            f"is missing: the model is a classifier of {len(names)} labels, {', '.join(names)}; "
            "name the one that pays",
        )
    if section.label is not None and not names:
        raise InputError(
            key,
            f"is {section.label!r}, but the model gives scores and has no labels to choose "
            "from: leave it out",
        )
    if section.label is not None and section.label not in names:
        raise InputError(
            key, f"the model has no label {section.label!r}; {nearest(section.label, names)}"
        )
    if names.count(section.label or "") > 1:
        raise InputError(key, f"the model has more than one label {section.label!r}")


def label_scores(section: ModelReward, config: Any, logits: Tensor) -> Tensor:
    """The value of the label, as `section.read` says: float64 [rows] from logits [rows, labels].

    Labels exclude each other (softmax), unless the model's `problem_type` is
    multi_label_classification, where each is true or not by itself (sigmoid).
    """
    logits = logits.double()
    place = [str(config.id2label[i]) for i in range(logits.shape[-1])].index(section.label or "")
    own = logits[..., place]
    if section.read == "logit":
        return own
    apart = getattr(config, "problem_type", None) == "multi_label_classification"
    others = torch.cat((logits[..., :place], logits[..., place + 1 :]), -1)
    log_odds = own if apart else own - others.logsumexp(-1)
    return log_odds if section.read == "log_odds" else torch.sigmoid(log_odds)
