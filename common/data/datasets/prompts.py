"""Prompts in files of the user's own, with what the stages before learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from common.config.data import PromptsData
from common.data.checks import Fault, shape_faults
from common.data.conversations import load_pairs, load_texts
from common.data.corpus import Corpus
from common.data.fingerprint import Source
from common.data.readers import checked_records
from common.data.splits import fraction, text_hash
from common.episode import Interaction, Row
from common.failures import InputError

FIELDS = ("prompt", "query", "text")
"""Names that a prompt may have in a record; the lines of a .txt file come as texts."""


def prompts_corpus(data: PromptsData, seed: int) -> Corpus:
    """A row for each prompt: nothing is told before, and its one follow-up is the prompt."""
    train_files = [_prompts("train", name) for name in data.train]
    eval_files = [_prompts("eval", name) for name in data.eval]
    train = [row for file in train_files for row in file.records]
    held = [row for file in eval_files for row in file.records]
    if not held:
        share = {id(row): fraction(text_hash(row.interactions[0].query)) for row in train}
        held = [row for row in train if share[id(row)] < data.eval_fraction]
        train = [row for row in train if share[id(row)] >= data.eval_fraction]
    fits = _counter(data)
    kept, kept_held = ([row for row in rows if fits(row)] for rows in (train, held))
    if not kept or not kept_held:
        raise InputError(
            "data",
            f"{len(train) + len(held)} prompts leave {len(kept)} to train on and {len(kept_held)} "
            "held out; both need some",
        )
    texts = [Source("data.texts", name, "texts", load_texts(name)) for name in data.texts]
    pairs = [Source("data.pairs", name, "pairs", load_pairs(name)) for name in data.pairs]
    told = [pair for source in pairs for pair in source.records]
    answered = [row.interactions[0] for row in kept if row.interactions[0].answer]
    return Corpus(
        kept,
        kept_held,
        [],
        [text for source in texts for text in source.records],
        told or answered,
        files=(*train_files, *eval_files, *texts, *pairs),
        left_out=_left_out(data, len(train) - len(kept), len(held) - len(kept_held)),
    )


def _left_out(data: PromptsData, train: int, held: int) -> str:
    if not train + held:
        return ""
    return (
        f"{train:,} prompts to train on and {held:,} held out have more than "
        f"{data.max_prompt_tokens} tokens (data.max_prompt_tokens) and are left out"
    )


def _prompts(key: str, name: str) -> Source:
    return Source(f"data.{key}", name, "conversations", load_prompts(name))


def load_prompts(name: str) -> list[Row]:
    """A row for each prompt of a file or a `datasets` name."""
    records = checked_records(name, _faults)
    return [Row("", "", (_asked(record),), source=name) for record in records]


def _asked(record: dict[str, Any]) -> Interaction:
    prompt = next(record[name] for name in FIELDS if record.get(name) is not None)
    return Interaction(prompt, record.get("answer") or "")


def _faults(record: Any) -> Iterator[Fault]:
    name = next((each for each in FIELDS if isinstance(record, dict) and each in record), "prompt")
    faults = list(shape_faults(record, {name: str}, {"answer": str}, ""))
    yield from faults
    if not faults and not record[name].strip():
        yield name, "is empty"


def _counter(data: PromptsData) -> Callable[[Row], bool]:
    """Whether a prompt is short enough. Raises InputError where nothing says how to count."""
    limit = data.max_prompt_tokens
    if limit is None:
        return lambda row: True
    if data.tokenizer is None:
        raise InputError(
            "data.max_prompt_tokens", "needs data.tokenizer, or model.causal, to count tokens with"
        )
    # Here and not at the top: it brings transformers, which takes seconds to import.
    from common.models.causal import token_counter

    count = token_counter(data.tokenizer)
    return lambda row: count(row.interactions[0].query) <= limit
