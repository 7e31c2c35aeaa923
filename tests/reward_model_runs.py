"""Small reward models for tests."""

from __future__ import annotations

from typing import Any

RATE = {"optimizer": {"learning_rate": 5e-3, "warmup_fraction": 0.1}}

STAGE: dict[str, Any] = {
    "stage": "reward_model",
    "steps": 60,
    "batch_size": 10,
    "evaluate_every": 30,
    **RATE,
}
