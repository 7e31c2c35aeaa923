"""Epochs of supervised stages as steps, once the data are read.

Everything behind the driver's door knows steps alone: schedule, resume, progress, `until`. So
`train` and `plan` put the number of steps in place of `epochs` before anything else looks at it.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, cast

from pydantic import ValidationError

from common.config.run import Run
from common.config.stages import SupervisedStage
from common.data.corpus import Corpus
from common.failures import InputError
from common.storage.checkpoint import latest_checkpoint
from common.storage.run_directory import RunDirectory
from learner.stages.planning import model_shape
from learner.stages.stage import definition_of


class Pieces:
    """Numbers of examples that depend on the tokenizer, which is opened, or trained, where one is
    asked for: the same one that the run has."""

    def __init__(self, run: Run, directory: RunDirectory, corpus: Corpus):
        self._run, self._directory, self._corpus = run, directory, corpus

    @cached_property
    def _tokenizer(self) -> Any:
        run = self._run
        if run.model.causal is not None:
            from common.models.causal import open_tokenizer

            return open_tokenizer(run.model.causal)
        from common.data.tokenizer import ConversationTokenizer
        from learner.setup import first_tokenizer

        checkpoint = latest_checkpoint(self._directory)
        if checkpoint is None:
            return first_tokenizer(run, self._corpus)
        with checkpoint.folder() as folder:
            return ConversationTokenizer.load(folder)

    @property
    def _longest(self) -> int:
        """Tokens of the longest sequence."""
        if self._run.model.causal is not None:
            return int(self._tokenizer.memory.max_tokens)
        return model_shape(self._run).max_tokens

    def of_texts(self, corpus: Corpus) -> int:
        from learner.stages.joint_lm import chunks

        tokens, limit = self._tokenizer.text, self._longest
        return sum(len(chunks(tokens(text), limit)) for text in corpus.texts)

    def of_conversations(self, corpus: Corpus) -> int:
        from learner.stages.remembered import conversation_examples

        return len(conversation_examples(corpus.train, self._tokenizer))


def with_steps(run: Run, corpus: Corpus, directory: RunDirectory) -> Run:
    """The run with steps in every stage. Raises InputError where a stage has none of the data that
    it learns from, or where so many steps do not fit the stage's other settings."""
    stages: list[Any] = list(run.stages)
    pieces = Pieces(run, directory, corpus)
    for index, each in enumerate(run.stages):
        if each.is_counted:
            continue
        stage = cast(SupervisedStage, each)  # only these have epochs
        assert stage.epochs is not None, "a stage without steps has epochs"
        row = definition_of(stage)
        count = len(getattr(corpus, row.data[0]))
        if row.count is not None and count:
            count = row.count(stage, corpus, pieces)
        if not count:
            raise InputError(
                f"{run.stage_key(index)}.epochs", "there is nothing to learn from in the data"
            )
        steps = math.ceil(stage.epochs * count / stage.batch_size)
        settings = stage.model_dump() | {"steps": steps, "epochs": None}
        try:
            stages[index] = type(stage).model_validate(settings)
        except ValidationError as misfit:
            told = misfit.errors()[0]["msg"].removeprefix("Value error, ")
            raise InputError(
                f"{run.stage_key(index)}.epochs", f"comes to {steps} steps: {told}"
            ) from misfit
    return run.model_copy(update={"stages": tuple(stages)})
