"""Base of every section of a configuration: keys are known, values are fixed, docstrings under keys
are their meaning."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
