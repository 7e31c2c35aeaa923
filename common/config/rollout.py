"""Settings of rollout workers and of sampling."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from common.config.section import Section


class Sampling(Section):
    temperature: float = Field(1.0, ge=0)
    """0: greedy."""
    top_k: int = Field(0, ge=0)
    """0: off."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the most probable tokens that together have this probability; 1: off."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Only tokens with at least this share of the largest probability; 0: off."""
    max_new_tokens: int = Field(24, ge=1)
    """Longest answer, [EOS] included."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end an answer. Its text ends before the first of them; its tokens, which memory
    is written with, hold it."""


class Rollout(Section):
    workers: int = Field(2, ge=1)
    """Actors that generate."""
    slots: int = Field(32, ge=1)
    """Episodes in flight per worker."""
    threads: int = Field(1, ge=1)
    """Torch threads of each worker on CPU. One plays by kernels made for small models, several by
    PyTorch."""
    gpus_per_worker: float = Field(0, ge=0)
    """0: on CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What workers compute in. With bfloat16 the distribution sampled from is the learner's up to
    rounding only, and ppo/ratio_max_deviation_first says how far off it is."""
    sampling: Sampling = Sampling()
    """How answers are drawn. MRL needs a temperature above 0 and no filter."""
    deadline: float = Field(300, gt=0)
    """Seconds for one group of episodes."""
    retries: int = Field(3, ge=0)
    """Further tries on another worker after an infra failure."""
    restarts: int = Field(-1, ge=-1)
    """Restarts Ray gives each actor; -1: without bound."""
