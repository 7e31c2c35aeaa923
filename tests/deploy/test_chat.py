"""Talking to a small model with random weights: what matters here is memory, words and files, not
what it says."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from common.config.rollout import Sampling
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.failures import InputError
from common.models.reactive.config import named_config
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.module import write_model
from common.storage.checkpoint import save_checkpoint
from common.storage.run_directory import RunDirectory
from common.text.printable import printable
from deploy import cli
from deploy.chat import Commands, as_text, introduction, talk
from rollout.policies.reactive.session import Session

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    return train_tokenizer(
        [
            "my dog is called Rex",
            "what is my dog called?",
            "your dog is called Rex, der Hund heißt Zoë",
        ],
        300,
    )


@pytest.fixture(scope="module")
def model(tokenizer: ConversationTokenizer) -> ReactiveTransformer:
    torch.manual_seed(0)
    model = ReactiveTransformer(
        named_config("tiny", vocab_size=tokenizer.vocab_size, max_tokens=40)
    )
    with torch.no_grad():
        # Random weights answer nearly alike whatever they are asked; larger ones make memory
        # visible in the answers.
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


@pytest.fixture
def session(model: ReactiveTransformer, tokenizer: ConversationTokenizer) -> Session:
    return Session(model, tokenizer, seed=7, sampling=Sampling(temperature=0.0, max_new_tokens=40))


def transcript(session: Session, text: str) -> str:
    out = io.StringIO()
    talk(session, io.StringIO(text), Console(file=out, width=200))
    return out.getvalue()


def test_piped_conversation_shows_answers_and_that_memory_was_updated(
    session: Session, model: ReactiveTransformer, tokenizer: ConversationTokenizer
) -> None:
    other = Session(model, tokenizer, seed=7, sampling=session.sampling)
    answers = [
        "".join(printable(event.text) for event in other.respond(query) if event.kind == "token")
        for query in ("my dog is Rex", "my dog?")
    ]
    shown = transcript(session, "my dog is Rex\n\nmy dog?\n/quit\nnot reached\n")
    # Not line by line: a random model may write line breaks.
    assert (
        re.sub(r"memory updated \([^)\n]* ms\)\n", "<updated>", shown)
        == f"> my dog is Rex\n{answers[0]}\n<updated>> my dog?\n{answers[1]}\n<updated>"
    )
    assert session.turn == 2


def test_what_the_model_was_trained_on_is_shown_harmless() -> None:
    shown = introduction(
        [[("my dog is Rex", "hello Rex"), ("my dog?", "\x1b[2JRex")], [("a", "b")]]
    )
    assert shown.splitlines() == [
        "its training data hold conversations such as these:",
        "  > my dog is Rex",
        "  hello Rex",
        "  > my dog?",
        "  \ufffd[2JRex",
        "",
        "  > a",
        "  b",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_line_in_another_encoding_costs_that_line_and_not_the_conversation(
    session: Session, encoding: str
) -> None:
    lines = b"\xef\xbb\xbfmy dog is Rex\ncaf\xe9\nder Hund hei\xc3\x9ft Zo\xc3\xab\n/quit\n"
    source = io.TextIOWrapper(io.BytesIO(lines), encoding=encoding, errors="surrogateescape")
    out = io.StringIO()
    talk(session, source, Console(file=out, width=200))
    refused = 0 if encoding == "latin-1" else 1  # there it is text
    assert out.getvalue().count("this line: is not UTF-8 text") == refused
    assert session.turn == 3 - refused


def test_bytes_that_are_text_are_read_whatever_the_stream_takes_them_for() -> None:
    assert as_text("caf\udcc3\udca9", "ascii") == "café"
    assert as_text("café", "latin-1") == "café"
    with pytest.raises(InputError, match="this line"):
        as_text("a\udcff", None)


def test_a_terminal_shows_that_memory_is_being_updated(session: Session) -> None:
    out = io.StringIO()
    talk(session, io.StringIO("my dog is Rex\n"), Console(file=out, width=100, force_terminal=True))
    assert "memory is being updated" in out.getvalue()
    assert "memory updated (" in out.getvalue()


def test_a_saved_memory_goes_on_where_it_stopped(
    model: ReactiveTransformer, tokenizer: ConversationTokenizer, session: Session, tmp_path: Path
) -> None:
    file = tmp_path / "rex.safetensors"
    assert f"memory saved to {file}" in transcript(session, f"my dog is Rex\n/save {file}\n")
    other = Session(model, tokenizer, seed=8, sampling=session.sampling)
    assert not torch.equal(other.memory, session.memory)
    assert f"memory loaded from {file}" in transcript(other, f"/load {file}\n")
    assert torch.equal(other.memory, session.memory)


def test_reset_gives_the_memory_of_the_seed_again(session: Session) -> None:
    first = session.memory
    out = transcript(session, "my dog is Rex\n/reset\n/memory\n")
    assert torch.equal(session.memory, first)
    assert "2 layers × 16 slots × width 64, 0 interactions written" in out


def test_mistakes_are_one_sentence_and_the_conversation_goes_on(
    session: Session, tmp_path: Path
) -> None:
    absent = tmp_path / "absent" / "memory.safetensors"
    before = session.memory
    out = transcript(
        session, f"/load {absent}\n/save {absent}\n/lod\n/save\n{'why ' * 200}\n/help\n"
    )
    for part in (
        f"{absent}: there is no such file",
        f"{absent}: cannot be written",
        "/lod: there is no such command",
        "/save: needs a file",
        "no room for an answer",
    ):
        assert part in out
    assert "/save FILE" in out
    assert torch.equal(session.memory, before)


def test_chat_opens_a_checkpoint_and_a_memory_and_ends_with_its_input(
    model: ReactiveTransformer, tokenizer: ConversationTokenizer, session: Session, tmp_path: Path
) -> None:
    def write(folder: Path) -> None:
        write_model(model, folder)
        tokenizer.save(folder)

    checkpoint = save_checkpoint(RunDirectory(str(tmp_path), "run"), 1, write, {})
    list(session.respond("my dog is Rex"))
    session.save(tmp_path / "rex.safetensors")
    command = [
        sys.executable,
        "-m",
        "deploy",
        "chat",
        checkpoint,
        "--memory",
        str(tmp_path / "rex.safetensors"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, input="/memory\nmy dog?\n", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "1 interaction written" in done.stdout
    assert "memory updated (" in done.stdout


def test_chat_with_what_is_no_checkpoint_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command(["chat", str(tmp_path / "nothing-here")]) == 2
    assert "nothing-here" in capsys.readouterr().err


def test_memories_are_forked_switched_between_and_listed(session: Session, tmp_path: Path) -> None:
    commands = Commands(session, tmp_path)
    list(session.respond("my dog is Rex"))
    before = session.memory
    assert commands.do("/fork", "early") == "memory kept as early; going on with main"
    list(session.respond("my dog is Tom"))
    later = session.memory
    assert not torch.equal(before, later)
    session.save(tmp_path / "kept.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"no memory")
    assert commands.do("/switch", "early") == "going on with early, 1 interaction written"
    assert torch.equal(session.memory, before)
    assert commands.do("/memories", "").splitlines() == [
        "* early: 1 interaction written", "  main: 2 interactions written",
        "  file kept.safetensors: 2 interactions written",
    ]  # fmt: skip
    commands.do("/switch", "main")
    assert torch.equal(session.memory, later)
    for name, argument, what in (
        ("/switch", "earl", "did you mean 'early'"),
        ("/fork", "early", "already"),
        ("/fork", "", "needs a name"),
    ):
        with pytest.raises(InputError, match=what):
            commands.do(name, argument)
    assert torch.equal(session.memory, later)
