"""Talking to a small model with random weights: what matters here is memory and streaming, not what it says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.failures import DataFailure, InputError
from common.models.configuration import named_config
from common.models.reactive import ReactiveTransformer
from deploy import cli
from deploy.chat import Conversation, pieces, talk


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    return train_tokenizer(["my dog is called Rex", "what is my dog called?", "your dog is called Rex, der Hund heißt Zoë"], 300)


@pytest.fixture(scope="module")
def model(tokenizer: ConversationTokenizer) -> ReactiveTransformer:
    torch.manual_seed(0)
    model = ReactiveTransformer(named_config("tiny", vocab_size=tokenizer.vocab_size, max_tokens=40))
    with torch.no_grad():
        # Random weights answer nearly alike whatever they are asked; larger ones make memory visible in the answers.
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


@pytest.fixture
def conversation(model: ReactiveTransformer, tokenizer: ConversationTokenizer) -> Conversation:
    return Conversation(model, tokenizer, temperature=0.0, seed=7)


def transcript(conversation: Conversation, text: str) -> str:
    out = io.StringIO()
    talk(conversation, io.StringIO(text), Console(file=out, width=200))
    return out.getvalue()


def test_pieces_of_an_answer_add_up_to_the_whole_text(conversation: Conversation, tokenizer: ConversationTokenizer) -> None:
    pieces = list(conversation.answer("what is my dog called?"))
    prompt = tokenizer.prompt("what is my dog called?")
    ids = conversation._interaction[len(prompt) :]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert len(conversation._interaction) <= 40


def test_a_character_of_several_tokens_is_shown_whole(tokenizer: ConversationTokenizer) -> None:
    ids = tokenizer.encode("a 猫 b")
    assert len(ids) > 4, "the character was meant to be several tokens"
    shown = list(pieces(ids, tokenizer.decode))
    assert "".join(shown) == "a 猫 b"
    assert not any("\ufffd" in piece for piece in shown)
    broken = ids[: ids.index(tokenizer.encode("猫")[-1])]
    assert "".join(pieces(broken, tokenizer.decode)) == tokenizer.decode(broken)


def test_memory_changes_only_when_the_interaction_is_written(conversation: Conversation) -> None:
    before = conversation.memory.clone()
    list(conversation.answer("my dog is called Rex"))
    assert torch.equal(conversation.memory, before)
    assert conversation.remember() > 0
    assert not torch.equal(conversation.memory, before)
    assert conversation.turns == 1
    assert conversation.change > 0


def test_piped_conversation_shows_answers_and_that_memory_was_updated(conversation: Conversation) -> None:
    out = transcript(conversation, "my dog is called Rex\n\nwhat is my dog called?\n/quit\nnot reached\n")
    assert out.count("memory updated (") == 2
    assert conversation.turns == 2


def test_a_saved_memory_goes_on_where_it_stopped(
    model: ReactiveTransformer, tokenizer: ConversationTokenizer, conversation: Conversation, tmp_path: Path
) -> None:
    file = tmp_path / "rex.safetensors"
    out = transcript(conversation, f"my dog is called Rex\n/save {file}\n")
    assert f"memory saved to {file}" in out
    assert load_file(file)["memory"].shape == conversation.memory.shape[1:]
    other = Conversation(model, tokenizer, temperature=0.0, seed=8)
    assert not torch.equal(other.memory, conversation.memory)
    other.load(str(file))
    assert torch.equal(other.memory, conversation.memory)
    assert list(other.answer("what is my dog called?")) == list(conversation.answer("what is my dog called?"))


def test_reset_gives_the_memory_of_the_seed_again(conversation: Conversation) -> None:
    first = conversation.memory.clone()
    out = transcript(conversation, "my dog is called Rex\n/reset\n/memory\n")
    assert torch.equal(conversation.memory, first)
    assert "0 interactions written" in out


def test_mistakes_are_one_sentence_and_the_conversation_goes_on(conversation: Conversation, tmp_path: Path) -> None:
    save_file({"memory": torch.zeros(1, 2, 3)}, tmp_path / "other.safetensors")
    save_file({"weights": torch.zeros(1)}, tmp_path / "weights.safetensors")
    (tmp_path / "text").write_text("not tensors")
    before = conversation.memory.clone()
    files = [tmp_path / name for name in ("absent", "text", "weights.safetensors", "other.safetensors")]
    out = transcript(conversation, "".join(f"/load {file}\n" for file in files) + "/lod\n/save\n" + "why " * 200 + "\n/help\n")
    for part in (
        "no such file",
        "not a safetensors file",
        "holds no memory but weights",
        "shape (1, 2, 3)",
        "/lod: is no command",
        "needs a file",
    ):
        assert part in out
    assert "leaves no room for an answer" in out
    assert "/save FILE" in out
    assert torch.equal(conversation.memory, before)


def test_save_names_a_place_that_cannot_be_written(conversation: Conversation, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        conversation.save(str(tmp_path / "absent" / "memory.safetensors"))


def test_a_query_without_room_raises_before_memory_is_touched(conversation: Conversation) -> None:
    with pytest.raises(DataFailure, match="room"):
        list(conversation.answer("why " * 100))


def test_chat_with_what_is_no_checkpoint_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["chat", str(tmp_path / "nothing-here")]) == 2
    assert "nothing-here" in capsys.readouterr().err
