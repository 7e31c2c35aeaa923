"""What reward models of Taskmaster's actions are worth, by cross-validation: `python -m
benchmarks.reward_folds FOLDER OUT`.

The config is configs/reward_taskmaster.yaml. There are 639 pairs in 230 conversations, too few for
a quarter of them to tell a weak model from chance. So each quarter is put apart in
turn: a policy is taught the language without it, a reward model of each kind is trained from that
policy, and what they say of the quarter is pooled, every pair judged once by a model that has not
seen its conversation. FOLDER: Taskmaster's rewards. OUT: for data and runs; started again, it goes
on.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import reduce
from pathlib import Path

import yaml

from benchmarks.record import record
from benchmarks.training import CONFIGS, train
from common.data.conversations import save_rows
from common.data.datasets.ranked import FOLDS, load_taskmaster, parts
from common.data.preferences import load_preferences, save_preferences
from deploy.tables import preference_tables
from learner.evaluation.preferences import Outcomes, PreferenceReport, outcomes, report
from learner.parallel.group import OneRank
from reward_service.reward_models.serving import open_model

CONFIG = CONFIGS / "reward_taskmaster.yaml"
LEVELS = {"scalar": 1, "scores": 10}
REMARK = (
    "Actions of a booking agent judged by people (Taskmaster-3 and -4), cross-validated in four "
    "parts by conversation."
)


def run(folder: Path, out: Path) -> dict[str, dict[str, PreferenceReport]]:
    """Of each kind of reward model, with what was said before and without: all folds together."""
    found: dict[str, list[tuple[Outcomes, Outcomes]]] = {kind: [] for kind in LEVELS}
    for fold in range(FOLDS):
        here = out / f"fold{fold}"
        _write_data(folder, fold, here)
        *teaching, rewarding = yaml.safe_load(CONFIG.read_text())["stages"]
        policy = _train(here, "policy", teaching)
        for kind, levels in LEVELS.items():
            where = _train(here, kind, [rewarding | {"levels": levels}], policy)
            found[kind].append(_outcomes(where, here / "test.jsonl"))
    return {kind: _pooled(each) for kind, each in found.items()}


def _write_data(folder: Path, fold: int, here: Path) -> None:
    judged = load_taskmaster(folder)
    divided = parts(
        [preference for each in judged for preference in each.preferences], judged, fold
    )
    save_rows(divided.conversations, here / "conversations.jsonl")
    save_preferences(divided.train, here / "train.jsonl")
    save_preferences(divided.test, here / "test.jsonl")


def _train(
    here: Path, name: str, stages: list[dict[str, object]], policy: Path | None = None
) -> Path:
    """The run directory of some of the config's stages, on the data in `here`, from a policy where
    one is given."""
    settings = yaml.safe_load(CONFIG.read_text()) | {
        "name": name,
        "runs": str(here),
        "stages": stages,
    }
    settings["data"] |= {
        "train": [str(here / "train.jsonl")],
        "conversations": [str(here / "conversations.jsonl")],
    }
    if policy is not None:
        settings["model"] = {"checkpoint": str(policy)}
        del settings["tokenizer"]
    config = here / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings))
    return train(config, []).where


def _outcomes(where: Path, test: Path) -> tuple[Outcomes, Outcomes]:
    """With what was said before the prompts, and without."""
    model, preferences = open_model(str(where), "transformers"), load_preferences(test)
    group = OneRank(next(model.module.parameters()).device)
    alone = [replace(preference, history=()) for preference in preferences]
    return outcomes(model, preferences, group), outcomes(model, alone, group)


def _pooled(folds: list[tuple[Outcomes, Outcomes]]) -> dict[str, PreferenceReport]:
    names = ("with_history", "without_history")
    return {
        name: report(reduce(Outcomes.and_those, each))
        for name, each in zip(names, zip(*folds, strict=True), strict=True)
    }


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    reports = {
        kind: {name: each.to_json() for name, each in found.items()}
        for kind, found in run(source, target.resolve()).items()
    }
    recorded = {
        "name": "agent's actions",
        "remark": REMARK,
        "reports": {kind: found["with_history"] for kind, found in reports.items()},
    }
    record("reward_taskmaster", "python -m benchmarks.reward_folds FOLDER OUT", recorded)
    for kind, found in reports.items():
        print(f"\n== {kind}\n\n{preference_tables(found)}")
