"""Reward models: wrong input, held-out groups, and what a new one begins as."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.data.conversations import save_rows
from common.data.datasets.table import load_corpus
from common.data.preferences import Preference, save_preferences
from common.data.tokenizer import train_tokenizer
from common.episode import Interaction, Row
from common.failures import InputError
from common.models.reactive.reward import RxTRewardModel
from learner.rl.preference_losses import discrete_loss
from learner.setup import newest
from reward_service.reward_models.model import Dialogue, from_folder
from tests.local_preferences import POLITE, preference_run, text_model
from tests.local_source import (
    lively_model,
    prepared,
    run_here,
    tiny_corpus,
    tiny_run,
)
from tests.reward_model_runs import STAGE


def test_configurations_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="reward_model comes last"):
        preference_run(tmp_path, STAGE, "joint_lm")
    with pytest.raises(ValidationError, match="learns from data of kind preferences, not synth"):
        preference_run(tmp_path, STAGE, data={"kind": "synth"})
    with pytest.raises(ValidationError, match="its backbone is elsewhere"):
        preference_run(tmp_path, "joint_lm", STAGE | {"backbone": "elsewhere"})


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for backbone, what in (
        (f"{tmp_path}/nothing", "does not exist"),
        (str(tmp_path), "is nothing that transformers opens"),
    ):
        run = preference_run(tmp_path, STAGE | {"backbone": backbone})
        with pytest.raises(InputError, match=what):
            prepared(run)
    text = text_model(tmp_path / "backbone")
    for stages, what in (
        (
            [STAGE | {"backbone": text, "lora": {"targets": ["q_projj"]}}],
            "no linear layer is named 'q_projj'; did you mean 'q_proj'",
        ),
        (
            ["joint_lm", STAGE | {"lora": {"targets": ["q_proj"]}}],
            "no linear layer is named 'q_proj'",
        ),
    ):
        with pytest.raises(InputError, match=what):
            prepared(preference_run(tmp_path, *stages))
    save_preferences(
        [Preference("what about tea", (POLITE, "go away " * 40), group="g")] * 3,
        tmp_path / "long.jsonl",
    )
    run = preference_run(tmp_path, "joint_lm", STAGE)
    data = run.data.model_copy(update={"train": (*run.data.train, str(tmp_path / "long.jsonl"))})
    with pytest.raises(
        InputError, match=r"long\.jsonl, row 1: query and answer .* model\.max_tokens is 32"
    ):
        prepared(run.model_copy(update={"data": data}))
    assert not (tmp_path / "tiny" / "checkpoints").exists()


def test_a_reward_model_is_not_taken_for_a_policy_and_keeps_what_it_was_begun_with(
    tmp_path: Path,
) -> None:
    run = preference_run(tmp_path, STAGE | {"steps": 1})
    directory, _ = run_here(run)
    for model in (tiny_run(tmp_path, "sft", name="on", model={"checkpoint": directory.path()}),):
        with pytest.raises(InputError, match="is a reward model, not a policy"):
            prepared(model)
    for key, value in (("levels", 5), ("lora", {"rank": 4})):
        with pytest.raises(
            InputError, match=f"stages.reward_model.{key}: is .*, the run in .* was started with"
        ):
            prepared(preference_run(tmp_path, STAGE | {"steps": 1, key: value}))
    backbone = newest(directory).where
    with pytest.raises(InputError, match="is a reward model of 1 levels, not 5"):
        prepared(
            preference_run(tmp_path, STAGE | {"backbone": backbone, "levels": 5}, name="other")
        )


def test_a_backbone_in_half_precision_is_trained_in_full(tmp_path: Path) -> None:
    path = text_model(tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(path).to(torch.bfloat16).save_pretrained(path)
    assert from_folder("half", path, levels=1).module.dtype == torch.bfloat16
    assert from_folder("half", path, levels=1, training=True).module.dtype == torch.float32


def test_a_text_too_long_loses_whole_turns_first_and_never_its_special_tokens(
    tmp_path: Path,
) -> None:
    path = text_model(tmp_path / "backbone", "bert", 1)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[EOS] $A [EOS]", special_tokens=[("[EOS]", 2)]
    )
    tokenizer.save_pretrained(path)
    model = from_folder("backbone", path, 12)
    short = model.read(Dialogue((), "what about tea", "it is")).tokens
    long = model.read(
        Dialogue(
            (("I like milk", "noted milk") * 1, ("cat " * 20, "dog")), "what about tea", "it is"
        )
    ).tokens
    assert short == long
    cut = model.read(Dialogue((), "red " * 30, "gladly it is tea")).tokens
    assert len(cut) == 12
    assert (cut[0], cut[-1]) == (2, 2)
    assert tokenizer.decode(cut[-5:-1]) == "gladly it is tea"


def test_held_out_groups_are_never_trained_on(tmp_path: Path) -> None:
    run = preference_run(tmp_path, STAGE)
    both = run.data.train + run.data.eval  # type: ignore[union-attr]
    data = run.data.model_copy(update={"train": both, "eval": ()})
    corpus = load_corpus(data, 0)
    train, held = (
        {each.group for each in part} for part in (corpus.preferences, corpus.held_preferences)
    )
    assert train
    assert held
    assert not train & held
    other = Row("hi", "hello", (Interaction("and then", "nothing"),))
    asked = next(each for each in corpus.held_preferences if each.history)
    save_rows([*asked.rows, other], tmp_path / "told.jsonl")
    more = load_corpus(
        data.model_copy(update={"conversations": (str(tmp_path / "told.jsonl"),)}), 0
    )
    assert other in more.train
    assert not set(asked.rows) & set(more.train), "nothing answers a held-out prompt"
    assert (
        load_corpus(run.data.model_copy(update={"train": both}), 0).preferences
        == load_corpus(run.data, 0).preferences
    )


def test_a_new_discrete_reward_model_begins_as_the_best_constant_answer() -> None:
    tokenizer = train_tokenizer(tiny_corpus().texts, 400)
    model = RxTRewardModel.from_policy(lively_model(tokenizer), 10).eval()
    with torch.no_grad():
        tokens = [
            torch.tensor([tokenizer.interaction("What is it?", answer)])
            for answer in ("Rex", "a long answer")
        ]
        better, worse = (
            model(each, torch.ones_like(each, dtype=torch.bool), model.initial_memory([0]))
            for each in tokens
        )
    assert float(discrete_loss(better, worse)) == pytest.approx(-math.log(0.45), abs=1e-6)
