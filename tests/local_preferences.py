"""Small preferences and small models of transformers, made here: model hubs are out of reach."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from common.data.preferences import Preference, save_preferences
from tests.local_source import tiny_run

WORDS = ("red", "blue", "green", "tea", "milk", "cat", "dog", "rain", "sun", "snow")
POLITE, RUDE, WORST = "gladly it is", "go away with", "shut up about"


def preferences(
    count: int, seed: int = 0, answers: int = 2, margin: float = 0.0
) -> list[Preference]:
    """Polite answers are better than rude ones; some prompts have a history, and with three answers
    the last is ruder still."""
    rng, found = random.Random(seed), []
    for i in range(count):
        word = rng.choice(WORDS)
        history = tuple(
            (f"I like {rng.choice(WORDS)}", f"noted {rng.choice(WORDS)}") for _ in range(i % 3)
        )
        ranked = tuple(f"{tone} {word}" for tone in (POLITE, RUDE, WORST)[:answers])
        found.append(
            Preference(
                f"what about {word} number {i}",
                ranked,
                margin if answers == 2 else 0.0,
                history,
                f"g{seed}-{i}",
            )
        )
    return found


def preference_run(folder: Path, *stages: Any, **sections: Any) -> Any:
    """A tiny run on files of preferences: 40 to train on, 20 held out."""
    train, held = folder / "train.jsonl", folder / "eval.jsonl"
    save_preferences(preferences(30) + preferences(10, seed=1, answers=3), train)
    save_preferences(preferences(20, seed=2), held)
    data = {"kind": "preferences", "train": [str(train)], "eval": [str(held)]}
    return tiny_run(folder, *stages, **{"data": data} | sections)


def text_tokenizer() -> PreTrainedTokenizerFast:
    words = [
        "[PAD]",
        "[UNK]",
        "[EOS]",
        *sorted(
            {
                w
                for p in preferences(200, answers=3)
                for t in (p.prompt, *p.answers)
                for w in t.split()
            }
        ),
    ]
    words += [word for word in ("I", "like", "noted", *WORDS) if word not in words]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )


def text_model(
    folder: Path,
    kind: str = "llama",
    levels: int | None = None,
    width: int = 32,
    labels: Sequence[str] = (),
    **more: Any,
) -> str:
    """A folder with a tiny model of transformers: a causal LM ("llama"), an encoder ("bert"), a
    reward model of `levels` ("bert"), or a classifier with `labels` ("bert"), to whose
    configuration `more` is added."""
    torch.manual_seed(0)
    tokenizer = text_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shape |= {"intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}
    if kind == "llama":
        model: Any = LlamaForCausalLM(
            LlamaConfig(**shape, num_key_value_heads=2, bos_token_id=None, eos_token_id=2)
        )
    elif labels:
        model = BertForSequenceClassification(
            BertConfig(**shape, id2label=dict(enumerate(labels)), **more)
        )
        model.classifier.weight.data.normal_()  # a new one says nearly the same of everything
    elif levels is None:
        model = BertModel(BertConfig(**shape))
    else:
        model = BertForSequenceClassification(BertConfig(**shape, num_labels=levels, levels=levels))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
