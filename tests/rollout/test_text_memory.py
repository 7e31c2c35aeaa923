"""A memory that is text: what is written is played and recorded, the next answer reads it and no
more of the past, and files keep it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.causal import CausalModel
from common.data.causal_tokenizer import CausalTokenizer
from common.data.text_memory import TextMemory
from common.episode import Memory
from common.failures import DataFailure, InputError
from rollout.policies.causal.vllm_engine import VllmEngine
from rollout.policies.causal.vllm_generator import Token
from rollout.policies.play import play
from tests.tiny_causal import CHATML, WRITES, opened, policy_of, prompt_tasks, write_model

SAMPLING = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m", changes={"n_positions": 160})


@pytest.fixture(scope="module")
def writer(folder: Path) -> tuple[Any, CausalTokenizer]:
    return opened(folder, text_memory=WRITES)


def test_an_answer_reads_what_was_written_and_nothing_else_of_the_past(
    writer: tuple[Any, CausalTokenizer],
) -> None:
    model, tokenizer = writer
    sampling = SAMPLING | {"temperature": 0.7}
    for episode in play(policy_of(model, tokenizer, 3, sampling=sampling), prompt_tasks(5, 3)):
        assert [write.turn for write in episode.writes] == [0, 1, 2]
        held: list[int] = []
        for write, turn, asked in zip(
            episode.writes, episode.turns, episode.answered, strict=False
        ):
            told = tokenizer._special("M:") + held + tokenizer._special(" Q:")
            told += tokenizer.encode(turn.query) + tokenizer._special(" A:")
            told += tokenizer.encode(turn.answer) + tokenizer._special(" N:")
            assert list(write.prompt_ids) == told
            _agree(model, told, write.ids, write.log_probs)
            held = [i for i in write.ids if i != tokenizer.eos_id]
            assert write.text == tokenizer.decode(held)
            assert write.cut == (write.ids[-1] != tokenizer.eos_id)
            assert len(write.ids) <= WRITES["tokens"]
            read = tokenizer._special("M:") + held + tokenizer._special("\n")
            _agree(model, read + list(asked.query_ids), asked.answer_ids, asked.log_probs)


def _agree(model: Any, before: list[int], ids: Any, log_probs: Any) -> None:
    """Whether recorded log-probs are those of a plain forward pass after `before`."""
    whole = torch.tensor([[*before, *ids]])
    with torch.no_grad():
        logits = model(whole).logits[0, len(before) - 1 : -1] / 0.7
    plain = logits.log_softmax(-1).gather(1, whole[0, len(before) :, None])[:, 0]
    torch.testing.assert_close(torch.tensor(log_probs), plain, rtol=0, atol=1e-4)


def test_an_episode_does_not_depend_on_what_is_played_beside_it(
    writer: tuple[Any, CausalTokenizer],
) -> None:
    tasks = prompt_tasks(7, 2)
    together = play(policy_of(*writer, 4, sampling=SAMPLING), tasks)
    alone = policy_of(*writer, 1, sampling=SAMPLING)
    for task, episode in zip(tasks, together, strict=True):
        (other,) = play(alone, [task])
        assert [w.ids for w in other.writes] == [w.ids for w in episode.writes]
        assert [t.answer_ids for t in other.turns] == [t.answer_ids for t in episode.turns]
        assert other.memory_hash == episode.memory_hash


def test_samples_of_a_task_write_apart(writer: tuple[Any, CausalTokenizer]) -> None:
    task = prompt_tasks(1, 2)[0]
    tasks = [replace(task, id=f"{task.id}.{k}", sample=k) for k in range(3)]
    first = [e.writes[0] for e in play(policy_of(*writer, sampling=SAMPLING), tasks)]
    assert len({tuple(write.prompt_ids) for write in first}) == 1
    assert len({tuple(write.ids) for write in first}) == 3


def test_the_memory_is_written_with_the_reference_where_it_is_forced(
    writer: tuple[Any, CausalTokenizer],
) -> None:
    _, tokenizer = writer
    (forced,) = play(
        policy_of(*writer, sampling=SAMPLING), prompt_tasks(1, 2, teacher_forcing=True)
    )
    reference = tokenizer.encode(forced.turns[1].reference)
    prompt = list(forced.writes[1].prompt_ids)
    end = len(prompt) - len(tokenizer._special(" N:"))
    assert prompt[end - len(reference) : end] == reference
    assert forced.turns[1].answer != forced.turns[1].reference


def test_an_erased_memory_is_what_the_episode_began_with(
    writer: tuple[Any, CausalTokenizer],
) -> None:
    _, tokenizer = writer
    policy = policy_of(*writer, sampling=SAMPLING)
    held = tuple(tokenizer.encode("Rex"))
    memory = tokenizer.memory.packed(held)
    task = prompt_tasks(1, 2, initial_memory=memory)[0]
    (erased,) = play(policy, [replace(task, erase_memory=True)])
    assert erased.writes == ()
    asked = [turn.query_ids for turn in erased.answered]
    assert tokenizer.memory.contexts(erased) == [
        tokenizer.memory.context(held, query) for query in asked
    ]
    (kept,) = play(policy, [task])
    assert kept.answered[0].log_probs != erased.answered[0].log_probs
    with pytest.raises(DataFailure, match="a memory of kind 'stm' is no text"):
        tokenizer.memory.unpacked(Memory("stm", b""))


def test_the_last_memory_is_written_where_another_episode_begins_with_it(
    writer: tuple[Any, CausalTokenizer],
) -> None:
    _, tokenizer = writer
    policy = policy_of(*writer, sampling=SAMPLING)
    (left,) = play(policy, prompt_tasks(1, 2, return_memory=True))
    assert [write.turn for write in left.writes] == [0, 1, 2]
    assert left.actions[-1].kind == "memory"
    assert left.actions[-1].reward is None, "nothing of this episode came of it"
    assert left.final_memory is not None
    last = tuple(i for i in left.writes[-1].ids if i != tokenizer.eos_id)
    assert tokenizer.memory.unpacked(left.final_memory) == last
    (going_on,) = play(policy, prompt_tasks(1, 2, initial_memory=left.final_memory))
    assert (
        list(last)
        == list(going_on.writes[0].prompt_ids)[len(tokenizer._special("M:")) :][: len(last)]
    )


def test_stop_strings_end_answers_and_leave_memories_alone(
    writer: tuple[Any, CausalTokenizer],
) -> None:
    free = play(policy_of(*writer, sampling={"max_new_tokens": 8}), prompt_tasks(6, 2))
    # No part of a character: those show as one that no token stands for.
    letters = [{c for c in e.writes[0].text[:-1] if c.isascii() and c.isalpha()} for e in free]
    stop = max(set().union(*letters), key=lambda one: sum(one in each for each in letters))
    sampling = {"max_new_tokens": 8, "stop": [stop]}
    stopped = play(policy_of(*writer, sampling=sampling), prompt_tasks(6, 2))
    assert not any(stop in turn.answer for episode in stopped for turn in episode.answered)
    first = [episode.writes[0] for episode in stopped]
    assert [write.ids for write in first] == [episode.writes[0].ids for episode in free]
    assert any(stop in write.text[:-1] for write in first)


def test_what_does_not_fit_is_said_and_not_cut(writer: tuple[Any, CausalTokenizer]) -> None:
    model, tokenizer = writer
    task = prompt_tasks(1, 2)[0]
    assert task.row is not None
    long = replace(task, row=replace(task.row, query="a dog " * 90))
    (failed,) = play(policy_of(model, tokenizer, sampling=SAMPLING), [long])
    assert failed.status == "failed"
    assert "leaves no room for a memory of 8 in a sequence of 160" in str(failed.turns[-1].failure)
    memory = tokenizer.memory
    with pytest.raises(DataFailure, match="a memory of 80 tokens and a prompt of 90 leave no room"):
        memory.context((5,) * 80, [5] * 90)
    assert isinstance(memory, TextMemory)
    assert memory.remember((1, 2), [tokenizer.eos_id]) == (), "an empty memory is empty"
    assert memory.remember((1, 2), [7, 8]) == (7, 8), "one that the budget ended is kept whole"


def test_a_last_turn_that_nobody_remembers_need_not_fit(
    writer: tuple[Any, CausalTokenizer],
) -> None:
    task = prompt_tasks(1, 1)[0]
    assert task.row is not None
    (asked,) = task.row.interactions
    long = replace(asked, query="a " * 70)
    told = replace(task, row=replace(task.row, query="my dog", interactions=(long,)))
    (episode,) = play(policy_of(*writer, sampling=SAMPLING), [told])
    assert episode.status == "generated"


def test_a_chat_template_has_the_memory_in_the_message_of_the_user(tmp_path: Path) -> None:
    write_model(tmp_path / "m", changes={"n_positions": 160}, chat_template=CHATML)
    _, tokenizer = opened(tmp_path / "m", text_memory=WRITES)
    held = tuple(tokenizer.encode("Rex"))
    context = tokenizer.memory.context(held, tokenizer.prompt("hello"))
    assert tokenizer._tokenizer.decode(context, skip_special_tokens=False) == (
        "<|im_start|>user\nM:Rex\nhello<|im_end|>\n<|im_start|>assistant\n"
    )
    prompt = tokenizer.write_prompt(held, "what", "a cat")
    assert tokenizer._tokenizer.decode(prompt, skip_special_tokens=False) == (
        "<|im_start|>user\nM:Rex Q:what A:a cat N:<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"text_memory": {"read": "M:"}}, "must contain {memory} once each"),
        ({"text_memory": {"write": "{query} {memory} {answer}"}}, "once each, in this order"),
        ({"text_memory": {}, "interactions": 2}, "interactions is for a policy that remembers int"),
    ],
)
def test_settings_that_show_no_memory_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        CausalModel.model_validate({"path": "m"} | settings)


def test_a_budget_that_cannot_be_rewritten_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"text_memory\.tokens: is 80: to rewrite a memory"):
        opened(folder, text_memory={"tokens": 80})


def test_a_session_writes_shows_saves_and_goes_on(
    writer: tuple[Any, CausalTokenizer], folder: Path, tmp_path: Path
) -> None:
    policy = policy_of(*writer, sampling=SAMPLING)
    session = policy.session(3)
    session.remember("my dog is called Rex", "good")
    session.save(tmp_path / "memory.safetensors")
    assert "written after 1 interactions" in session.describe()
    before = session.describe()
    first = [event.text for event in session.respond("what is my dog called")]
    assert session.describe() != before
    other = policy.session(9)
    assert other.saved_in(tmp_path) == {"memory.safetensors": 1}
    other.load(tmp_path / "memory.safetensors")
    assert other.describe() == before
    assert [event.text for event in other.respond("what is my dog called")] == first
    session.reset()
    assert session.describe().endswith("(nothing)")
    window = policy_of(*opened(folder), sampling=SAMPLING).session(3)
    with pytest.raises(InputError, match=r"holds no memory of this policy \(engram-interactions"):
        window.load(tmp_path / "memory.safetensors")
    with pytest.raises(InputError, match="is no memory of this policy"):
        window.restore(session.kept())


class EngineAsGenerator:
    """The interface of `VllmGenerator` over recorded episodes: what was generated after a prompt by
    the draws of a seed comes again, a token a step."""

    def __init__(self, told: dict[tuple[int, tuple[int, ...]], list[tuple[int, float]]]):
        self._told, self._asked = told, dict[str, list[tuple[int, float]]]()
        self.names: list[str] = []

    def ask(self, request: str, context: Any, room: int, seed: int, greedy: bool) -> None:
        self.names.append(request)
        self._asked[request] = list(self._told[seed, tuple(context)])

    def step(self) -> list[Token]:
        return [Token(name, *left.pop(0)) for name, left in self._asked.items() if left]

    def drop(self, request: str) -> None:
        self._asked.pop(request, None)


def test_vllm_plays_the_same_turns_and_writes(writer: tuple[Any, CausalTokenizer]) -> None:
    model, tokenizer = writer
    tasks = prompt_tasks(4, 3)
    played = play(policy_of(model, tokenizer, sampling=SAMPLING), tasks)
    told = {}
    for task, episode in zip(tasks, played, strict=True):
        contexts = tokenizer.memory.contexts(episode)
        for action, context in zip(episode.actions, contexts, strict=True):
            wrote = action.kind == "memory"
            seed = task.seed_of("write", action.turn) if wrote else task.answer_seed(action.turn)
            tokens = list(zip(action.ids, action.log_probs, strict=True))
            told[seed, tuple(context)] = tokens
    settings = policy_of(model, tokenizer, sampling=SAMPLING)._engine.sampling  # type: ignore[attr-defined]
    generator = EngineAsGenerator(told)
    engine = VllmEngine(generator, tokenizer, 2, settings)  # type: ignore[arg-type]
    engine.add(tasks)
    found = {}
    while engine.in_flight:
        found.update((episode.task, episode) for episode in engine.advance())
    for episode in played:
        assert found[episode.task].writes == episode.writes
        assert found[episode.task].turns == episode.turns
        assert found[episode.task].memory_hash == episode.memory_hash
    assert len(set(generator.names)) == len(generator.names) == 4 * 6
