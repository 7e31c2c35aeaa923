"""Warnings of a run's data: `engram plan` and `train` tell the same."""

from __future__ import annotations

from common.config.run import Run
from common.data.amounts import few_data
from common.data.corpus import Corpus
from common.data.facts import contradictions
from common.text.counted import counted
from learner.stages.stage import definition_of


def data_warnings(run: Run, corpus: Corpus) -> list[str]:
    """Few data for a model that begins with nothing, and facts that contradict one another."""
    return [*_few_data(run, corpus), *_contradictions(corpus)]


def _few_data(run: Run, corpus: Corpus) -> list[str]:
    given = run.model.checkpoint or run.model.causal
    if given is not None or any(stage.own_model for stage in run.stages):
        return []
    parts = {part for stage in run.stages for part in definition_of(stage).data}
    return few_data(corpus, parts)


def _contradictions(corpus: Corpus) -> list[str]:
    """One line for all turns whose facts contradict one another; none where there are none."""
    found = [
        (i, turn, what)
        for i, row in enumerate(corpus.train)
        for turn, what in contradictions(row.turns)
    ]
    if not found:
        return []
    i, turn, what = found[0]
    conversations = len({each[0] for each in found})
    return [
        f"facts of one turn contradict one another in {counted(conversations, 'conversations')}, "
        f"{counted(len(found), 'times')}; the first: {corpus.place('train', i)}, "
        f"interaction {turn}: {what}"
    ]
