"""Whether a run has enough data to learn from."""

from __future__ import annotations

from common.config.run import Run
from common.data.amounts import few_data
from common.data.corpus import Corpus
from learner.stages.stage import definition_of


def few_data_warnings(run: Run, corpus: Corpus) -> list[str]:
    """Warnings where a model that begins with nothing has few data; none where one is given."""
    given = run.model.checkpoint or run.model.causal
    if given is not None or any(stage.own_model for stage in run.stages):
        return []
    parts = {part for stage in run.stages for part in definition_of(stage).data}
    return few_data(corpus, parts)
