"""Settings of rollout workers and of sampling."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.config.names import BackendName
from common.config.section import Section


class Sampling(Section):
    temperature: float = Field(1.0, ge=0)
    """Temperature of sampling; 0: greedy."""
    top_k: int = Field(0, ge=0)
    """Only this many of the most probable tokens; 0: off."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the most probable tokens that together have this probability; 1: off."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Only tokens with at least this share of the largest probability; 0: off."""
    max_new_tokens: int = Field(24, ge=1)
    """Longest answer, its thought and [EOS] included."""
    think: Literal["data", "always"] = "data"
    """Which queries are answered after a thought. data: those that the data, or an environment,
    have a thought for. always: all of them."""
    max_think_tokens: int | None = Field(None, ge=1)
    """Longest thought. Where the policy does not end it by then, it is ended, and the answer
    begins. None: it may take all of `max_new_tokens`, and leave no answer."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end an answer. The answer's text ends before the string. Its tokens, with which
    memory is written, contain it."""

    @model_validator(mode="after")
    def _leaves_an_answer(self) -> Self:
        most = self.max_think_tokens
        if most is not None and most + 2 > self.max_new_tokens:
            raise ValueError(
                f"max_think_tokens: {most} of max_new_tokens {self.max_new_tokens} leave no answer "
                "behind the end of a thought"
            )
        return self

    @property
    def filtered(self) -> bool:
        """Whether any token is excluded from being sampled."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


class Rollout(Section):
    workers: int = Field(2, ge=1)
    """Rollout workers."""
    slots: int = Field(32, ge=1)
    """Episodes that a worker plays at once."""
    threads: int = Field(1, ge=1)
    """PyTorch's threads in each worker on CPU. Kernels of the backend cpu_kernels take one."""
    backend: BackendName = "auto"
    """How workers compute a decoding step and a memory update. torch: PyTorch's operations, on any
    device; cuda_graphs: these, recorded and replayed on a GPU; cpu_kernels: loops compiled for
    small models in float32 on CPUs; auto: cuda_graphs on a GPU, else cpu_kernels where they can
    run, else torch. Log and episodes say which it was. With several threads on a large model,
    choose torch. A causal language model is computed by transformers, or by vllm where that is
    installed: auto takes vllm on a GPU. On a CPU it is no faster."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs of each worker; 0: CPU."""
    node_labels: dict[str, str] = Field({})
    """Labels of the Ray nodes on which workers start, such as {group: rollout}; empty: any node.
    A local cluster has none."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that workers compute in. With bfloat16, the learner's probabilities are the sampled ones
    up to rounding only; ppo/ratio_max_deviation_first measures the difference."""
    sampling: Sampling = Sampling()
    """How answers are drawn. MRL needs a temperature above 0 and no filter."""
    deadline: float = Field(300, gt=0)
    """Seconds that one group of episodes may take."""
    retries: int = Field(3, ge=0)
    """Further tries on other workers after an infra failure."""
    restarts: int = Field(-1, ge=-1)
    """Restarts of each worker by Ray; -1: no limit."""

    @property
    def command_backend(self) -> BackendName:
        """The backend of a command that plays in its own process. vLLM takes long to start and
        keeps to rollout workers."""
        return "transformers" if self.backend == "vllm" else self.backend

    @model_validator(mode="after")
    def _backend_fits(self) -> Rollout:
        if self.backend == "cuda_graphs" and self.gpus_per_worker == 0:
            raise ValueError("backend cuda_graphs needs gpus_per_worker above 0")
        if self.backend == "cpu_kernels" and (self.gpus_per_worker or self.dtype != "float32"):
            raise ValueError("backend cpu_kernels needs gpus_per_worker 0 and dtype float32")
        if self.backend == "vllm" and self.gpus_per_worker > 1:
            raise ValueError("backend vllm needs gpus_per_worker up to 1")
        if self.backend == "vllm" and self.sampling.filtered:
            raise ValueError(
                "backend vllm needs sampling without top_k, top_p and min_p: it does not tell what "
                "an answer's log-probs would be without them"
            )
        return self
