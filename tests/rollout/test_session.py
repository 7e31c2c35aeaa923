from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common.config.rollout import Sampling
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.episode import Interaction, Row, Task
from common.failures import InputError
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.reactive.memory_files import list_memories, packed
from rollout.policies.reactive.session import Session

TOKENIZER: ConversationTokenizer = train_tokenizer(["my dog is called Rex and the cat Żółw"], 280)
SAMPLING = Sampling(max_new_tokens=9)


def make_model(slots: int = 8) -> ReactiveTransformer:
    torch.manual_seed(0)
    shape = {
        "width": 32,
        "heads": 4,
        "query_heads": 2,
        "kv_heads": 2,
        "decoder_ff": 48,
        "encoder_ff": 48,
        "slots": slots,
        "max_tokens": 40,
    }
    return ReactiveTransformer(
        RxTConfig(vocab_size=TOKENIZER.vocab_size, initializer_range=0.25, **shape)
    ).eval()


def say(session: Session, query: str) -> str:
    events = list(session.respond(query))
    assert [event.kind for event in events[-2:]] == ["updating", "updated"]
    assert {event.kind for event in events[:-2]} == {"token"}
    text = events[-2].text
    assert "".join(event.text for event in events[:-2]) == text
    return text


def test_a_session_says_what_the_engine_says() -> None:
    model = make_model()
    row = Row("my dog is Rex", "nice", (Interaction("the dog?", ""), Interaction("the cat?", "")))
    episode = ReactiveEngine(model, TOKENIZER, 3, SAMPLING).run(
        [Task("t", row, seed=4, return_memory=True)]
    )[0]
    session = Session(model, TOKENIZER, 4, SAMPLING)
    session.remember(row.query, row.answer)
    assert [say(session, interaction.query) for interaction in row.interactions] == [
        turn.answer for turn in episode.answered
    ]
    assert packed(session.memory) == episode.final_memory
    assert session.turn == 3


def test_memory_changes_with_every_interaction_and_comes_back_with_reset() -> None:
    session = Session(make_model(), TOKENIZER, 1, SAMPLING)
    states = [session.memory]
    first = say(session, "my dog is Rex")
    states.append(session.memory)
    say(session, "the cat?")
    states.append(session.memory)
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
    session.reset()
    assert torch.equal(session.memory, states[0])
    assert say(session, "my dog is Rex") == first


def test_a_loaded_session_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    model = make_model()
    session = Session(model, TOKENIZER, 7, SAMPLING)
    say(session, "my dog is Rex")
    session.save(tmp_path / "memory.safetensors")
    other = Session(model, TOKENIZER, 0, SAMPLING)
    other.load(tmp_path / "memory.safetensors")
    assert torch.equal(other.memory, session.memory)
    assert [say(other, query) for query in ("the dog?", "and?")] == [
        say(session, query) for query in ("the dog?", "and?")
    ]
    with safe_open(str(tmp_path / "memory.safetensors"), "pt") as file:
        assert json.loads(file.metadata()["session"]) == {"seed": 7, "turn": 1}


def test_a_memory_that_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    session = Session(make_model(), TOKENIZER, 0, SAMPLING)
    before = session.memory
    Session(make_model(slots=9), TOKENIZER, 0, SAMPLING).save(tmp_path / "other.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    save_file({"memory": before.contiguous()}, str(tmp_path / "foreign.safetensors"))
    for name, what in {
        "other": r"shape \(2, 9, 32\)",
        "noise": "safetensors",
        "foreign": "not a memory",
        "missing": "safetensors",
    }.items():
        with pytest.raises(InputError, match=what):
            session.load(tmp_path / f"{name}.safetensors")
    assert torch.equal(session.memory, before)
    assert session.turn == 0


def test_a_query_too_long_is_refused_and_the_session_goes_on() -> None:
    session = Session(make_model(), TOKENIZER, 0, SAMPLING)
    with pytest.raises(InputError, match="leave no room"):
        session.respond("dog " * 50)
    assert say(session, "dog")


def test_an_answer_left_early_is_not_remembered() -> None:
    session = Session(make_model(), TOKENIZER, 0, SAMPLING)
    before = session.memory
    next(session.respond("my dog is Rex"))
    assert torch.equal(session.memory, before)
    session.reset()
    fresh = Session(session.model, TOKENIZER, 0, SAMPLING)
    assert say(session, "the cat?") == say(fresh, "the cat?")


def test_a_fork_remembers_the_same_and_goes_its_own_way() -> None:
    session = Session(make_model(), TOKENIZER, 3, SAMPLING)
    say(session, "my dog is Rex")
    fork = session.fork()
    kept = session.memory
    assert torch.equal(fork.memory, kept)
    said = say(fork, "the cat?")
    assert torch.equal(session.memory, kept)
    assert say(session, "the cat?") == said


def test_a_session_stops_at_a_stop_string() -> None:
    free = Session(make_model(), TOKENIZER, 0, SAMPLING)
    text = say(free, "my dog is Rex")
    stop = text[1:3]
    session = Session(make_model(), TOKENIZER, 0, SAMPLING.model_copy(update={"stop": (stop,)}))
    assert say(session, "my dog is Rex") == text.partition(stop)[0].rstrip()


def test_memories_of_a_folder_are_listed_without_what_is_none(tmp_path: Path) -> None:
    session = Session(make_model(), TOKENIZER, 0, SAMPLING)
    say(session, "my dog is Rex")
    session.save(tmp_path / "one.safetensors")
    save_file({"memory": session.memory.contiguous()}, str(tmp_path / "foreign.safetensors"))
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    assert [(found.path.name, found.shape, found.turn) for found in list_memories(tmp_path)] == [
        ("one.safetensors", (2, 8, 32), 1)
    ]
