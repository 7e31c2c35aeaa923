"""A small GPT-2 from scratch on text files, with its tokenizer and prompts: what
`configs/sentiment_small.yaml` starts from.

    python -m benchmarks.tiny_gpt2 FOLDER FILE.txt [FILE.txt …] [--steps 300]

Writes FOLDER/model, which `from_pretrained` opens, FOLDER/prompts.jsonl and FOLDER/held_out.jsonl,
with the first eight tokens of each line, and FOLDER/pairs.jsonl: prompts that end with a word, and
how their lines go on. Each line of the files is one text.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from common.data.conversations import save_pairs
from common.data.padding import pad
from common.episode import Interaction
from learner.stages.supervised import batch_indices

END, LENGTH, PROMPT, HELD_OUT = "<|endoftext|>", 128, 8, 0.1


def words_of_folder(folder: Path) -> list[str]:
    """Settings of a run that begins with what is written to a folder."""
    return [
        f"data.train=[{folder / 'prompts.jsonl'}]",
        f"data.eval=[{folder / 'held_out.jsonl'}]",
        f"model.causal.path={folder / 'model'}",
    ]


def tokenizer_of(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, bos_token=END)


def trained(
    ids: list[list[int]], vocabulary: int, steps: int, width: int, length: int = LENGTH
) -> GPT2LMHeadModel:
    """A GPT-2 of four layers, for `length` tokens, after `steps` steps of 32 texts."""
    torch.manual_seed(1)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary, n_positions=length, n_embd=width, n_layer=4, n_head=6,
            bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps + 1)
    for step in range(steps):
        tokens, mask = pad([ids[i] for i in batch_indices(1, "texts", len(ids), 32, step)])
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits[mask[:, 1:]], tokens[:, 1:][mask[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {float(loss):.3f}", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--vocabulary", type=int, default=4096)
    asked = parser.parse_args()
    lines = [
        line.strip()
        for file in asked.files
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    random.Random(1).shuffle(lines)
    held = max(1, int(len(lines) * HELD_OUT))
    tokenizer = tokenizer_of(lines[:-held], asked.vocabulary)
    encoded = [tokenizer(line)["input_ids"][: LENGTH - 1] for line in lines]
    model = trained(
        [[*ids, 0] for ids in encoded[:-held]], len(tokenizer), asked.steps, asked.width
    )
    asked.folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(asked.folder / "model")
    tokenizer.save_pretrained(asked.folder / "model")
    for name, part in (("prompts", encoded[:-held]), ("held_out", encoded[-held:])):
        with (asked.folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for ids in part:
                if len(ids) > PROMPT + 2:
                    file.write(json.dumps({"prompt": tokenizer.decode(ids[:PROMPT])}) + "\n")
    pairs = (
        Interaction(str(tokenizer.decode(ids[:PROMPT])), str(tokenizer.decode(ids[PROMPT:])))
        for ids in encoded[:-held]
        if len(ids) > PROMPT + 2
    )
    save_pairs((pair for pair in pairs if pair.answer[0] == " "), asked.folder / "pairs.jsonl")


if __name__ == "__main__":
    main()
