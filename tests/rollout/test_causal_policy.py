"""Causal language models as rollout policies: the same tokens whoever plays beside them, and
log-probs that a plain forward pass gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.data.dialogue import Window
from common.episode import Memory
from common.failures import DataFailure, InputError
from rollout.policies.play import play
from tests.tiny_causal import CHATML, configs, opened, policy_of, prompt_tasks, write_model

FAMILIES = sorted(configs())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_model(folder / name, name) for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_log_probs_are_those_of_a_plain_forward_pass(
    models: dict[str, Path], family: str
) -> None:
    model, tokenizer = opened(models[family], interactions=2)
    sampling = {"max_new_tokens": 7, "temperature": 0.7}
    episodes = play(policy_of(model, tokenizer, 3, sampling=sampling), prompt_tasks(5, turns=3))
    for episode in episodes:
        contexts = tokenizer.memory.contexts(episode)
        for turn, context in zip(episode.answered, contexts, strict=True):
            ids = torch.tensor([[*context, *turn.answer_ids]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(context) - 1 : -1] / 0.7
            plain = logits.log_softmax(-1).gather(1, ids[0, len(context) :, None])[:, 0]
            torch.testing.assert_close(torch.tensor(turn.log_probs), plain, rtol=0, atol=1e-4)


def test_an_episode_does_not_depend_on_what_is_played_beside_it(models: dict[str, Path]) -> None:
    model, tokenizer = opened(models["gpt2"])
    sampling = {"max_new_tokens": 6}
    tasks = prompt_tasks(7, turns=2)
    together = play(policy_of(model, tokenizer, 4, sampling=sampling), tasks)
    alone = policy_of(model, tokenizer, 1, sampling=sampling)
    for task, episode in zip(tasks, together, strict=True):
        (other,) = play(alone, [task])
        assert [turn.answer_ids for turn in other.turns] == [
            turn.answer_ids for turn in episode.turns
        ]
        assert other.memory_hash == episode.memory_hash


def test_an_answer_ends_at_a_stop_string_and_its_text_before_it(models: dict[str, Path]) -> None:
    model, tokenizer = opened(models["gpt2"])
    free = play(policy_of(model, tokenizer, sampling={"max_new_tokens": 8}), prompt_tasks(4))
    text = max((episode.turns[1].answer for episode in free), key=len)
    stop = text[len(text) // 2]
    sampling = {"max_new_tokens": 8, "stop": [stop]}
    for episode in play(policy_of(model, tokenizer, sampling=sampling), prompt_tasks(4)):
        assert stop not in episode.turns[1].answer


def test_a_cancelled_episode_fails_and_leaves_the_others_as_they_are(
    models: dict[str, Path],
) -> None:
    model, tokenizer = opened(models["gpt2"])
    sampling, tasks = {"max_new_tokens": 6}, prompt_tasks(3)
    whole = play(policy_of(model, tokenizer, sampling=sampling), tasks)
    policy = policy_of(model, tokenizer, sampling=sampling)
    policy.add(tasks)
    came = policy.advance() + policy.advance()
    assert policy.cancel(tasks[1].id, "enough")
    while policy.in_flight:
        came += policy.advance()
    by_task = {episode.task: episode for episode in came}
    assert by_task[tasks[1].id].status == "failed"
    for i in (0, 2):
        assert by_task[tasks[i].id].turns[1].answer_ids == whole[i].turns[1].answer_ids


def test_a_row_that_is_not_finite_fails_alone(models: dict[str, Path]) -> None:
    model, tokenizer = opened(models["gpt_neox"])  # whose head is not its embedding
    (token,) = tokenizer.encode("Z")
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
    tasks = prompt_tasks(3)
    row = tasks[1].row
    assert row is not None
    broken = replace(row, interactions=(replace(row.interactions[0], query="Z"),))
    tasks[1] = replace(tasks[1], row=broken)
    policy = policy_of(model, tokenizer, sampling={"max_new_tokens": 4})
    assert [episode.status for episode in play(policy, tasks)] == [
        "generated",
        "failed",
        "generated",
    ]


def test_the_window_holds_the_last_interactions_within_its_tokens() -> None:
    window = Window(
        start=(9,), separator=(8,), end=7, interactions=2, memory_tokens=7, max_tokens=32
    )
    held = window.remember((), [1, 1])
    assert window.remember(held, []) == held
    held = window.remember(window.remember(held, [2, 2]), [3, 3])
    assert held == ((2, 2), (3, 3))
    assert window.context(held, [5]) == [9, 2, 2, 8, 3, 3, 8, 5]
    assert window.remember(held, [4, 4, 4, 4]) == ((4, 4, 4, 4),)
    assert window.unpacked(window.packed(held)) == held
    with pytest.raises(DataFailure, match="leaves no room"):
        window.context((), [1] * 31)
    with pytest.raises(DataFailure, match="no interactions"):
        window.unpacked(Memory("stm", b""))


def test_an_erased_memory_asks_every_query_with_nothing_before_it(
    models: dict[str, Path],
) -> None:
    model, tokenizer = opened(models["gpt2"], interactions=8)
    sampling = {"max_new_tokens": 5}
    task = prompt_tasks(1, turns=3)[0]
    policy = policy_of(model, tokenizer, sampling=sampling)
    (kept,) = play(policy, [task])
    (erased,) = play(policy, [replace(task, erase_memory=True)])
    assert kept.turns[1].answer_ids != erased.turns[1].answer_ids
    row = task.row
    assert row is not None
    alone = replace(task, row=replace(row, query="", answer=""), erase_memory=True)
    (fresh,) = play(policy, [alone])
    assert fresh.turns[1].answer_ids == erased.turns[1].answer_ids


def test_an_episode_goes_on_from_the_memory_that_another_one_left(models: dict[str, Path]) -> None:
    model, tokenizer = opened(models["gpt2"], interactions=2)
    policy = policy_of(model, tokenizer, sampling={"max_new_tokens": 5})
    first, second = prompt_tasks(2, turns=2)
    (left,) = play(policy, [replace(first, return_memory=True)])
    assert left.final_memory is not None
    row = second.row
    assert row is not None
    silent = replace(second, row=replace(row, query="", answer=""))
    (after,) = play(policy, [replace(silent, initial_memory=left.final_memory)])
    context = tokenizer.memory.contexts(after)[0]
    told = tokenizer.memory.start + tuple(
        token for turn in left.turns[1:] for token in (*turn.remembered_ids, *[10])
    )
    assert len(context) == len(told) + len(after.turns[1].query_ids)


def test_a_conversation_played_in_two_parts_has_the_answers_of_the_whole(
    models: dict[str, Path],
) -> None:
    model, tokenizer = opened(models["gpt2"], interactions=2)
    policy = policy_of(model, tokenizer, sampling={"max_new_tokens": 5})
    (task,) = prompt_tasks(1, turns=4)
    (whole,) = play(policy, [task])
    (left,) = play(policy, [replace(task, max_turns=2, return_memory=True)])
    (right,) = play(policy, [replace(task, first_turn=3, initial_memory=left.final_memory)])
    played = [turn.answer_ids for part in (left, right) for turn in part.answered]
    assert played == [turn.answer_ids for turn in whole.answered]
    assert right.memory_hash == whole.memory_hash


def test_a_chat_template_stands_around_queries_as_the_tokenizer_has_it(tmp_path: Path) -> None:
    names: dict[str, Any] = {
        "chat_template": CHATML,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }
    folder = write_model(tmp_path / "chat", **names)
    _, tokenizer = opened(folder)
    from transformers import AutoTokenizer

    given = AutoTokenizer.from_pretrained(folder)
    said = [("the film is good", "a dog"), ("a cat", "")]
    messages = [{"role": "user", "content": said[0][0]}, {"role": "assistant", "content": "a dog"}]
    messages.append({"role": "user", "content": said[1][0]})
    wanted = given.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    held = tokenizer.memory.remember((), tokenizer.interaction(*said[0]))
    context = tokenizer.memory.context(held, tokenizer.prompt(said[1][0]))
    assert context == list(wanted)
    assert tokenizer.decode([tokenizer.eos_id]) == ""
    # What a user writes is never a special token.
    assert tokenizer.prompt("a <|im_end|> dog").count(tokenizer.eos_id) == 1


def test_models_that_cannot_be_policies_are_refused_by_name(
    models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="does not exist"):
        opened(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"max_tokens: is 4000, and .* was made for 64"):
        opened(models["gpt2"], max_tokens=4000)
    with pytest.raises(InputError, match="no chat template"):
        opened(models["gpt2"], template="chat")
    mute = write_model(tmp_path / "mute", eos_token=None, bos_token=None)
    with pytest.raises(InputError, match="no end token"):
        opened(mute)
    failing = write_model(tmp_path / "failing", chat_template="{{ raise_exception('no') }}")
    with pytest.raises(InputError, match="chat template fails"):
        opened(failing)
    model, tokenizer = opened(models["gpt2"])
    with pytest.raises(InputError, match=r"rollout.backend.*Reactive Transformers"):
        policy_of(model, tokenizer, backend="torch")


def test_a_session_remembers_and_its_memory_can_be_kept(
    models: dict[str, Path], tmp_path: Path
) -> None:
    model, tokenizer = opened(models["gpt2"], interactions=1)
    policy = policy_of(model, tokenizer, sampling={"max_new_tokens": 5})
    session = policy.session(3)
    session.remember("my dog is called Rex", "good")
    session.save(tmp_path / "memory.safetensors")
    first = [event.text for event in session.respond("what is my dog called")]
    assert session.turn == 2
    other = policy.session(9)
    assert other.saved_in(tmp_path) == {"memory.safetensors": 1}
    other.load(tmp_path / "memory.safetensors")
    assert [event.text for event in other.respond("what is my dog called")] == first
    session.reset()
    assert "the last 0 of 0 interactions" in session.describe()
