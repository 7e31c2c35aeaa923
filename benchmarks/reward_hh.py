"""Reward models on dialogues with several turns that people compared (Anthropic's HH sets, Bai
et al. 2022), by cross-validation.

    python -m benchmarks.reward_hh FILE.jsonl.gz [OUT]

In turn, a quarter of the dialogues is put apart: a small GPT-2 from scratch learns the language of
the others, a reward model of each kind is trained from it by `configs/reward_smollm*.yaml`, and
every pair of the quarter is judged. So each pair is judged once, by a model that has not seen its
dialogue. Writes benchmarks/results/reward_hh.json. Started again, it goes on from where it was.
"""

from __future__ import annotations

import sys
from functools import reduce
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.tiny_gpt2 import END, tokenizer_of, trained
from benchmarks.training import CONFIGS, train
from common.config.conversion import ComparedFiles
from common.data.datasets.compared import convert_preferences
from common.data.leftovers import Leftovers
from common.data.preferences import Preference, save_preferences
from common.data.splits import fraction, text_hash
from learner.evaluation.preferences import Outcomes, outcomes, report
from learner.parallel.group import OneRank
from reward_service.reward_models.serving import open_model

KINDS = {"scalar": "reward_smollm.yaml", "scores": "reward_smollm_scores.yaml"}
FOLDS, TOKENS, WIDTH, VOCABULARY = 4, 192, 96, 2048
LM_STEPS, EPOCHS, BATCH, RATE = 200, 3, 32, 3e-4


def part_of(preference: Preference) -> int:
    return int(FOLDS * fraction(text_hash(preference.group)))


def is_watched(preference: Preference) -> bool:
    """Whether training is measured on it: a tenth of each part."""
    return int(10 * FOLDS * fraction(text_hash(preference.group))) % 10 == 0


def make_model(folder: Path, known: list[Preference]) -> Path:
    """A model that has read what was said in some dialogues, and the better answers."""
    if (folder / "config.json").is_file():
        return folder
    texts = [
        "\n\n".join(
            [*(part for turn in each.history for part in turn), each.prompt, each.answers[0]]
        )
        for each in known
    ]
    tokenizer = tokenizer_of(texts, VOCABULARY)
    end = tokenizer.convert_tokens_to_ids(END)
    ids = [[*tokenizer(text)["input_ids"][-(TOKENS - 1) :], end] for text in texts]
    trained(ids, len(tokenizer), LM_STEPS, WIDTH, TOKENS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reward_model(kind: str, here: Path, model: Path) -> Path:
    words = [
        f"name={kind}",
        f"runs={here}",
        f"data.train=[{here / 'train.jsonl'}]",
        f"data.eval=[{here / 'eval.jsonl'}]",
        f"stages.reward_model.backbone={model}",
        "stages.reward_model.lora=null",
        "stages.reward_model.steps=null",
        f"stages.reward_model.epochs={EPOCHS}",
        f"stages.reward_model.batch_size={BATCH}",
        f"stages.reward_model.max_tokens={TOKENS}",
        f"stages.reward_model.optimizer.learning_rate={RATE:.6f}",
    ]
    return train(CONFIGS / KINDS[kind], words).where


def run(file: str, out: Path) -> dict[str, Any]:
    left = Leftovers()
    converted = convert_preferences([file], ComparedFiles(), left)
    preferences = [*converted.train, *converted.eval]
    found: dict[str, list[Outcomes]] = {kind: [] for kind in KINDS}
    for fold in range(FOLDS):
        here = out / f"reward_hh-{fold}"
        here.mkdir(parents=True, exist_ok=True)
        known = [each for each in preferences if part_of(each) != fold]
        held = [each for each in preferences if part_of(each) == fold]
        watched = [each for each in known if is_watched(each)]
        save_preferences([each for each in known if not is_watched(each)], here / "train.jsonl")
        save_preferences(watched, here / "eval.jsonl")
        model = make_model(here / "model", known)
        for kind in KINDS:
            judge = open_model(str(reward_model(kind, here, model)), "transformers")
            group = OneRank(next(judge.module.parameters()).device)
            found[kind].append(outcomes(judge, held, group))
    return {
        "name": "harmless answers",
        "remark": (
            f"{len(preferences):,} dialogues of which people compared two last answers "
            "(Anthropic HH, harmless), cross-validated in four parts; a GPT-2 from scratch."
        ),
        "turns": sum(1 + len(each.history) for each in preferences) / len(preferences),
        "reports": {
            kind: report(reduce(Outcomes.and_those, each)).to_json() for kind, each in found.items()
        },
    }


if __name__ == "__main__":
    result = run(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve())
    record("reward_hh", "python -m benchmarks.reward_hh FILE", result)
    print(result["reports"])
