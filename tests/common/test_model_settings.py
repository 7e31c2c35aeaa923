"""Everything of a model's shape can be set in YAML."""

from __future__ import annotations

from dataclasses import fields

from common.config.model import Model
from common.models.reactive.config import RxTConfig

GIVEN = {"vocab_size"}
"""By the tokenizer, as the ids of its special tokens are."""


def test_every_field_of_a_model_is_a_setting() -> None:
    shape = {field.name for field in fields(RxTConfig) if not field.name.endswith("_token_id")}
    assert Model.model_fields.keys() - {"size", "checkpoint", "causal"} == shape - GIVEN
