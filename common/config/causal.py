"""Settings of a causal language model as the run's policy."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.config.locations import ModelSource
from common.config.section import Section


class Lora(Section):
    """Low-rank adaptation (Hu 2021), by peft. Checkpoints hold the merged weights."""

    rank: int = Field(16, ge=1)
    """Rank of each update."""
    alpha: int = Field(32, gt=0)
    """Updates are scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability for the input of each update."""
    targets: tuple[str, ...] = ()
    """Last parts of the names of the linear layers to adapt, such as q_proj; empty: all but the
    head."""


class ValueHeadSettings(Section):
    """The value head on the policy's hidden states, where the algorithm has a critic."""

    layers: Literal[1, 2] = 2
    """1: linear. 2: linear to twice the width, ReLU, linear."""
    body: Literal["policy", "own"] = "policy"
    """policy: the head reads hidden states of the weights that sampled, which it does not change
    with `detach`.
    own: a copy of the model, which learns with the head and takes as much memory again."""
    detach: bool = True
    """Whether no gradient of the value loss reaches the policy. False, with body policy: the head
    reads hidden states of the present weights, and these learn from the value loss as well."""
    loss_weight: float = Field(0.1, gt=0)
    """Coefficient of the value loss in the policy's loss, without `detach` (0.1: Ziegler et al.
    2019). The head itself learns at `critic_learning_rate`, whatever it is."""

    @model_validator(mode="after")
    def _reaches_a_policy(self) -> Self:
        if not self.detach and self.body == "own":
            raise ValueError(
                "detach: false lets the value loss train the policy, and body own is no part of "
                "it; leave body at policy"
            )
        return self


class TextMemorySettings(Section):
    """A text memory: after each interaction the policy rewrites a text within a budget of tokens,
    and answers the next query from it alone (Yu et al. 2025, MemAgent). What it writes is trained
    by reinforcement learning, as its answers are."""

    tokens: int = Field(64, ge=1)
    """The most tokens of a memory, the one that ends it included. Writing ends there."""
    read: str = "Memory:\n{memory}\n\n"
    """Text before a query that shows the memory; {memory} stands for it."""
    write: str = "Memory:\n{memory}\n\nQuery: {query}\nAnswer: {answer}\n\nNew memory:\n"
    """Prompt that the policy writes its memory after; {memory}, {query} and {answer} stand for the
    memory so far and the interaction, in this order."""

    @field_validator("read")
    @classmethod
    def _shows_the_memory(cls, read: str) -> str:
        _pieces(read, ("{memory}",))
        return read

    @field_validator("write")
    @classmethod
    def _shows_memory_and_interaction(cls, write: str) -> str:
        _pieces(write, ("{memory}", "{query}", "{answer}"))
        return write

    @property
    def read_pieces(self) -> tuple[str, str]:
        """Texts before and after the memory."""
        before, after = _pieces(self.read, ("{memory}",))
        return before, after

    @property
    def write_pieces(self) -> tuple[str, str, str, str]:
        """Texts before, between and after memory, query and answer."""
        opening, between, asked, last = _pieces(self.write, ("{memory}", "{query}", "{answer}"))
        return opening, between, asked, last


class ThinkSettings(Section):
    """Texts around a thought before an answer. They may name special tokens of the tokenizer."""

    open: str = Field("<think>\n", min_length=1)
    """Behind the prompt of a query; the thought comes then."""
    close: str = Field("</think>\n", min_length=1)
    """Ends a thought; the answer comes then."""


def _pieces(template: str, names: tuple[str, ...]) -> list[str]:
    """The texts around the names, each of which must stand in the template once, in this order.
    Raises ValueError."""
    places = [template.find(name) for name in names]
    if any(template.count(name) != 1 for name in names) or places != sorted(places):
        raise ValueError(f"{template!r} must contain {', '.join(names)} once each, in this order")
    found, rest = [], template
    for name in names:
        before, rest = rest.split(name)
        found.append(before)
    return [*found, rest]


class CausalModel(Section):
    """A causal language model that transformers opens. It remembers the last interactions of a
    conversation as tokens, or a text that it writes itself."""

    path: ModelSource
    """Folder, run, or hub name of the model and its tokenizer."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """chat: the tokenizer's chat template around each query. plain: `prompt`. auto: chat where the
    tokenizer has a template."""
    prompt: str = "{query}"
    """Prompt in the plain template; {query} stands for the query."""
    separator: str = "\n"
    """Text between two interactions in the plain template."""
    interactions: int = Field(4, ge=0)
    """Interactions that are remembered: the last ones before each query."""
    memory_tokens: int | None = Field(None, ge=1)
    """Tokens that they may have together; the oldest are forgotten first. None: half of
    `max_tokens`."""
    text_memory: TextMemorySettings | None = None
    """A text that the policy writes itself, in place of the last interactions; None: it remembers
    these."""
    max_tokens: int | None = Field(None, ge=8)
    """Longest sequence: memory, query and answer. None: what the model was made for."""
    think: ThinkSettings | None = None
    """How the policy thinks before it answers, where `rollout.sampling.think` or the data ask for a
    thought. What it thinks is trained, and is part neither of the answer nor of memory. None: it
    answers at once, whatever the data have."""
    lora: Lora | None = None
    """Train low-rank updates only; the reference is then the model without them. None: train all
    weights, with a frozen copy as the reference."""
    trained_layers: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Train the last layers only, so many or this share of them, with the last norm and an output
    head that is not the embedding, too. The layers below stay as they are, and the reference shares
    them: it keeps copies of what is trained alone. None: all layers, or adapters."""
    value_head: ValueHeadSettings = ValueHeadSettings()
    """Value head of algorithms with a critic."""

    @field_validator("prompt")
    @classmethod
    def _has_a_query(cls, prompt: str) -> str:
        if prompt.count("{query}") != 1:
            raise ValueError(f"{prompt!r} must contain {{query}} once")
        return prompt

    @model_validator(mode="after")
    def _remembers_in_one_way(self) -> Self:
        fields = type(self).model_fields
        given = [
            name
            for name in ("interactions", "memory_tokens")
            if getattr(self, name) != fields[name].default
        ]
        if self.text_memory is not None and given:
            raise ValueError(
                f"{given[0]} is for a policy that remembers interactions; leave it out beside "
                "text_memory"
            )
        return self

    @model_validator(mode="after")
    def _adapters_or_a_whole_copy(self) -> Self:
        if self.lora is not None and self.value_head.body == "own":
            raise ValueError(
                "value_head.body own trains a whole model; with lora leave it at policy"
            )
        return self

    @model_validator(mode="after")
    def _adapters_or_last_layers(self) -> Self:
        if self.lora is not None and self.trained_layers is not None:
            raise ValueError(
                "lora and trained_layers both say which part of the model learns; leave one out"
            )
        return self

    @field_validator("lora")
    @classmethod
    def _without_dropout(cls, lora: Lora | None) -> Lora | None:
        if lora is not None and lora.dropout:
            raise ValueError(
                "dropout must be 0: a policy is trained on the probabilities it sampled with"
            )
        return lora
