"""Tiny causal language models made from a configuration, with tokenizers trained on a few
sentences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from common.config.causal import CausalModel
from common.config.rollout import Rollout
from common.data.causal_tokenizer import CausalTokenizer
from common.episode import Episode, Interaction, Row, Task
from common.models.causal import open_causal
from learner.policies.table import CheckpointPolicy
from rollout.protocols import Policy

SENTENCES = (
    "the film is a warm and funny story about a dog",
    "a dull and lifeless film that never finds its way",
    "the actors are good and the story is strong",
    "my dog is called Rex and my cat is called Tom",
    "what is my dog called",
    "a very bad film with a very good actor",
)
VOCABULARY = 300
LENGTH = 64
WIDE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_head": 2},
    "llama": {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32},
}
"""Changes of a configuration that give heads of 32, the smallest that vLLM computes on a CPU."""

WRITES: dict[str, Any] = {
    "tokens": 8,
    "read": "M:{memory}\n",
    "write": "M:{memory} Q:{query} A:{answer} N:",
}
"""A text memory with short texts around it."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def configs() -> dict[str, Any]:
    """A configuration of each family, by name."""
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    wide = {"hidden_size": 32, "max_position_embeddings": LENGTH, "intermediate_size": 64}
    return {
        "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH, **shape),
        "gpt_neo": GPTNeoConfig(
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=8,
            **wide,
            **shape,
        ),
        "gpt_neox": GPTNeoXConfig(num_hidden_layers=2, num_attention_heads=4, **wide, **shape),
        "llama": LlamaConfig(
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **wide, **shape
        ),
    }


def tokenizer(**names: Any) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    held = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"} | names
    return PreTrainedTokenizerFast(tokenizer_object=raw, **held)


def write_model(
    folder: Path,
    family: str = "gpt2",
    seed: int = 0,
    changes: dict[str, Any] | None = None,
    **names: Any,
) -> Path:
    """A model and its tokenizer as `from_pretrained` opens them. Weights are so large that every
    past token changes what comes next. changes: of the configuration. names: special tokens and
    chat template."""
    torch.manual_seed(seed)
    config = type(configs()[family])(**(configs()[family].to_dict() | (changes or {})))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    tokenizer(**names).save_pretrained(folder)
    return folder


def opened(folder: Path, **settings: Any) -> tuple[Any, CausalTokenizer]:
    """The model and the tokenizer as a run opens them."""
    model, held = open_causal(CausalModel.model_validate({"path": str(folder)} | settings))
    return model, held


def policy_of(model: Any, held: CausalTokenizer, slots: int = 4, **rollout: Any) -> Policy:
    """The policy as a rollout worker has it."""
    section = Rollout.model_validate({"slots": slots} | rollout)
    opened_policy = CheckpointPolicy("causal", model, held)
    return opened_policy.playing(section)


def prompt_tasks(count: int, turns: int = 1, **settings: Any) -> list[Task]:
    """Conversations of different lengths: an opening that is told where there are several turns."""
    tasks = []
    for i in range(count):
        words = SENTENCES[i % len(SENTENCES)].split()
        asked = tuple(
            Interaction(" ".join(words[: 1 + (i + k) % 5]), words[-1]) for k in range(turns)
        )
        told = ("my dog is called Rex", "good") if turns > 1 else ("", "")
        task = Task(f"0-000000-{i:05d}", Row(*told, asked), seed=50 + i, batch_index=i)
        tasks.append(replace(task, **settings))
    return tasks


def scored(episodes: list[Episode]) -> list[Episode]:
    """Episodes with a reward for every answer that differs from answer to answer."""
    return [
        replace(
            episode,
            status="scored",
            turns=(
                episode.turns[0],
                *(
                    replace(turn, reward=float(sum(turn.answer_ids) % 7) / 7, done=True)
                    for turn in episode.answered
                ),
            ),
        )
        for episode in episodes
    ]
