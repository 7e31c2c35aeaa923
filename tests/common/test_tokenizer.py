"""Template, special tokens and files of the conversation tokenizer."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from common.data.padding import pad
from common.data.tokenizer import SPECIAL_TOKENS, ConversationTokenizer, train_tokenizer
from common.episode import Interaction
from common.failures import InputError

TEXTS = [
    "my dog is called Rex",
    "what is my dog called?",
    "your dog is called Rex",
    "Rex",
    "[EOS] ends [Q] it [EOS]",
] * 20
TOKENIZER = train_tokenizer(TEXTS, 400)


def test_special_tokens_have_fixed_ids() -> None:
    assert [TOKENIZER.pad_id, TOKENIZER.unk_id, TOKENIZER.bos_id, TOKENIZER.eos_id] == [0, 1, 2, 3]
    assert [TOKENIZER.mask_id, TOKENIZER.query_id, TOKENIZER.answer_id, TOKENIZER.think_id] == [
        4,
        5,
        6,
        7,
    ]


def test_an_interaction_follows_the_template() -> None:
    query, answer, think = (
        TOKENIZER.encode(text) for text in ("what is my dog called?", "Rex", "he said so")
    )
    assert TOKENIZER.prompt("what is my dog called?") == [2, 5, *query, 6]
    assert TOKENIZER.interaction("what is my dog called?", "Rex") == [2, 5, *query, 6, *answer, 3]
    thoughtful = Interaction("what is my dog called?", "Rex", think="he said so")
    assert TOKENIZER.interaction(thoughtful) == [2, 5, *query, 7, *think, 6, *answer, 3]
    assert TOKENIZER.prompt(thoughtful.query, think=True) + TOKENIZER.answer(
        "Rex", "he said so"
    ) == TOKENIZER.interaction(thoughtful)


def test_a_word_is_one_token_at_the_beginning_and_inside() -> None:
    (rex,) = TOKENIZER.encode("Rex")
    assert TOKENIZER.encode("my dog is called Rex")[-1] == rex


@pytest.mark.parametrize("text", [*SPECIAL_TOKENS, "a [EOS] b", "[BOS][Q]x[A]y[EOS]", " [PAD]"])
def test_user_text_never_becomes_a_special_token(text: str, tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    for tokenizer in (
        TOKENIZER,
        ConversationTokenizer.load(tmp_path),
        ConversationTokenizer.from_json(TOKENIZER.to_json()),
    ):
        assert min(tokenizer.encode(text)) >= len(SPECIAL_TOKENS)
        assert tokenizer.decode(tokenizer.encode(text)) == text.strip()


@given(st.text())
def test_decoding_brings_ordinary_text_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.text(text)) == text.strip()


def test_saved_files_open_in_transformers_with_the_same_ids(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    opened = AutoTokenizer.from_pretrained(str(tmp_path))
    assert opened.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(8))
    assert (
        opened.pad_token_id,
        opened.bos_token_id,
        opened.eos_token_id,
        opened.mask_token_id,
    ) == (0, 2, 3, 4)
    for text in ("my dog is called Rex", "  odd [EOS]\n\ntext "):
        assert opened(text.strip(), add_special_tokens=False)["input_ids"] == TOKENIZER.encode(text)
    assert ConversationTokenizer.load(tmp_path) == TOKENIZER


def test_training_is_the_same_in_another_process() -> None:
    code = (
        "from common.data.tokenizer import train_tokenizer; "
        f"print(train_tokenizer({TEXTS!r}, 400).to_json(), end='')"
    )
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert out == TOKENIZER.to_json()


def test_it_travels_to_actors_by_pickle() -> None:
    assert pickle.loads(pickle.dumps(TOKENIZER)) == TOKENIZER


def test_vocabulary_size_is_the_real_one() -> None:
    assert TOKENIZER.vocab_size == max(TOKENIZER.encode(" ".join(TEXTS))) + 1 <= 400
    with pytest.raises(InputError, match="264"):
        train_tokenizer(TEXTS, 100)


def test_a_folder_without_tokenizer_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=tmp_path.name):
        ConversationTokenizer.load(tmp_path)


def test_padding_goes_to_the_longest_and_the_mask_is_by_length() -> None:
    tokens, mask = pad([[5, 0, 7], [9]])
    assert tokens.tolist() == [[5, 0, 7], [9, 0, 0]]
    assert tokens.dtype == torch.int64
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert mask.dtype == torch.bool
    assert pad([])[0].shape == (0, 0)
