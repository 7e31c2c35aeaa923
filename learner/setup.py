"""Before the first stage: the run directory, the tokenizer, and the first checkpoint. Or, for a run
that is there, its last one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from common.config.run import Run
from common.data.corpus import Corpus
from common.data.fingerprint import fingerprint, to_json
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.failures import InfraFailure, InputError
from common.models.reactive.config import RxTConfig, named_config
from common.models.reactive.model import ReactiveTransformer
from common.seeding import derive
from common.storage.checkpoint import Checkpoint, latest_checkpoint, open_checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import Progress, QuietProgress
from learner.changed_settings import go_on_with, require_resumable, require_same
from learner.checkpointing import StageState, checkpoint_model, save_training
from learner.data_warnings import data_warnings
from learner.evaluation.measure import VALUES, write_training_values
from learner.examples import write_examples
from learner.fit import require_fit
from learner.lora import adaptable_layers
from learner.policies.trunk import trained_names
from learner.requirements import require_data, require_possible
from learner.resume import (
    DATA,
    as_named_in,
    checkpoint_to_resume,
    require_config,
    require_run_data,
    require_whole_records,
    tell_of_changed_rewards,
    with_moved_data,
)
from learner.stages.stage import definition_of
from learner.training_state import TrainingState
from reward_service.preflight import require_rewards
from rollout.environments.table import require_environment


def prepare(
    run: Run, directory: RunDirectory, corpus: Corpus, progress: Progress | None = None
) -> Checkpoint:
    """The checkpoint to start from: the run's last one, or a first one with a new or a given model.

    `progress` is told which settings of a run that goes on have changed, of damaged checkpoints
    that are passed over, and where a new run has few data. Raises InputError as `train` does,
    before anything of a run that is there is touched.
    """
    require_possible(run)
    require_data(run, corpus)
    require_rewards(run.rewards, corpus.train)
    require_environment(run.environment)
    told = progress or QuietProgress()
    before = as_named_in(run, directory.run()) if directory.exists("config.yaml") else None
    if before is not None:
        require_same(
            run, with_moved_data(before, run) if directory.exists(DATA) else before, directory
        )
    checkpoint = checkpoint_to_resume(directory, told)
    parts = fingerprint(corpus.sources)
    if checkpoint is not None:
        before = require_config(before, directory)
        require_resumable(run, checkpoint)
        require_run_data(parts, directory)
        require_whole_records(directory)
        go_on_with(run, before, directory, checkpoint, told)
        if not directory.exists(VALUES):
            write_training_values(directory, corpus.train)
        tell_of_changed_rewards(run, directory, told)
        return checkpoint
    for warning in data_warnings(run, corpus):
        told.note(f"warning: {warning}")
    if corpus.left_out:
        told.note(corpus.left_out)
    model, write_tokenizer = first_model(run, corpus)
    directory.write_config(run)
    directory.write_environment()
    directory.write_json(DATA, to_json(parts))
    tell_of_changed_rewards(run, directory, told)
    write_training_values(directory, corpus.train)
    write_examples(directory, corpus.train)
    state = TrainingState(0, run.stages[0].stage, 0)
    keep, beside = run.learner.keep_checkpoints, StageState(state.stage_name, {}, {})
    save_training(directory, 0, model, write_tokenizer, state, keep, beside)
    return newest(directory)


def first_model(run: Run, corpus: Corpus) -> tuple[nn.Module, Callable[[Path], None]]:
    """The model that the run's first stage begins with, and a function that writes its
    tokenizer."""
    first = run.stages[0]
    if first.own_model is not None:
        begin = definition_of(first).first_model
        assert begin is not None, f"{first.stage} takes a model of its own and cannot make it"
        return begin(first, run.seed)
    if run.model.causal is not None:
        from common.models.causal import open_causal

        causal, causal_tokenizer = open_causal(run.model.causal)
        require_fit(corpus, causal_tokenizer, causal_tokenizer.memory.max_tokens)
        if run.model.causal.lora is not None:
            # refuses names that are not there, before anything is written
            adaptable_layers(causal, run.model.causal.lora)
        trained_names(causal, run.model.causal)  # refuses what it does not find
        return causal, causal_tokenizer.save
    model, tokenizer = first_policy(run, corpus)
    require_fit(corpus, tokenizer, model.config.max_tokens)
    for stage in run.stages:
        definition_of(stage).require_shape(stage, model.config)
        definition_of(stage).require_fit(stage, model)
    return model, tokenizer.save


def first_policy(run: Run, corpus: Corpus) -> tuple[ReactiveTransformer, ConversationTokenizer]:
    overrides = run.model.dimensions
    if run.model.checkpoint is not None:
        given = open_checkpoint(run.model.checkpoint)
        model, tokenizer = checkpoint_model(given)
        for key, value in overrides.items():
            if value is not None and getattr(model.config, key) != value:
                raise InputError(
                    given.where,
                    f"this checkpoint has {key} = {getattr(model.config, key)}, the "
                    f"configuration {value}",
                )
        return model, tokenizer
    tokenizer = first_tokenizer(run, corpus)
    config: RxTConfig = named_config(
        run.model.size, **{**overrides, "vocab_size": tokenizer.vocab_size}
    )
    torch.manual_seed(derive(run.seed, "weights"))
    return ReactiveTransformer(config), tokenizer


def first_tokenizer(run: Run, corpus: Corpus) -> ConversationTokenizer:
    """The tokenizer that a Reactive Transformer's run begins with."""
    if run.model.checkpoint is not None:
        return checkpoint_model(open_checkpoint(run.model.checkpoint))[1]
    if run.tokenizer.path is not None:
        return ConversationTokenizer.load(run.tokenizer.path)
    return train_tokenizer(corpus.texts, run.tokenizer.vocab_size)


def newest(directory: RunDirectory) -> Checkpoint:
    checkpoint = latest_checkpoint(directory)
    if checkpoint is None:
        raise InfraFailure(f"{directory.path()} has lost its checkpoints")
    return checkpoint
