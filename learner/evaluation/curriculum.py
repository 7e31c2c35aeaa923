"""Held-out conversations while MRL trains: those of the whole curriculum, by which its best weights
are chosen, and those of the present step, for its rule.

They begin as episodes do: where a step's episodes may begin with the memory that another one left,
so do its held-out conversations, and those of the curriculum that it is a part of."""

from __future__ import annotations

import time

import torch

from common.config.mrl import HELD_OUT, MRL, CurriculumStep
from common.config.run import Run
from common.telemetry.metrics import Metrics
from learner.evaluation.evaluate import evaluation_rows
from learner.evaluation.figures import Figure
from learner.evaluation.held_out import HeldOut
from learner.metrics import record_figures_of_facts
from learner.parallel.group import Group
from rollout.tasks import fitting_any

QUALITY = "quality"
"""Name of the figure that the best weights are chosen by: the share of exact answers to questions,
or where no conversation asks for a fact, the mean word F1 of answers with their references."""


class HeldOutCurriculum:
    """held_out: what plays conversations; None on ranks other than 0, which are told the
    figures."""

    def __init__(self, run: Run, settings: MRL, held_out: HeldOut | None, group: Group):
        self._run, self._settings, self._held_out, self._group = run, settings, held_out, group

    def measure(self, step: CurriculumStep | None, metrics: Metrics) -> dict[str, float]:
        """Figures by name, the same on all ranks, which call it together. step: the present one;
        None at the end of the curriculum."""
        names = (QUALITY, *HELD_OUT)
        found = dict.fromkeys(names, -1.0)  # stands for none
        if self._held_out is not None:
            started = time.perf_counter()
            found |= self._play(self._held_out, step, metrics)
            seconds = time.perf_counter() - started
            metrics.record("time/phase_seconds", seconds, phase="evaluate", role="learner")
        own = torch.tensor([found[name] for name in names], dtype=torch.float64)
        everywhere = self._group.max(own.to(self._group.device)).tolist()
        return {name: value for name, value in zip(names, everywhere, strict=True) if value >= 0}

    def _play(
        self, held_out: HeldOut, step: CurriculumStep | None, metrics: Metrics
    ) -> dict[str, float]:
        settings, count = self._settings, self._settings.evaluate_conversations
        rows = evaluation_rows(fitting_any(held_out.rows, settings.curriculum), count)
        carried = any(_carries(each) for each in settings.curriculum)
        whole = held_out.figures(self._run, rows, carried)
        record_figures_of_facts(whole, metrics)
        found = {QUALITY: _all(whole["exact"] if whole["exact"].totals() else whole["f1"])}
        if step is not None and not step.until.keys().isdisjoint(HELD_OUT):
            of_step = evaluation_rows(fitting_any(held_out.rows, [step]), count)
            same = of_step == rows and _carries(step) == carried
            own = whole if same else held_out.figures(self._run, of_step, _carries(step))
            for name in HELD_OUT:
                found[name] = _all(own[name.removeprefix("curriculum/")])
                metrics.record(name, found[name])
        return found


def _carries(step: CurriculumStep) -> bool:
    return step.reset_probability < 1


def _all(figure: Figure) -> float:
    return figure.share()["all"]
