"""Shipped configurations of causal language models: they name models of a hub, and here they run,
with their own settings, on models of the same architecture made from scratch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from common.config.loader import load_run
from common.config.run import Run
from common.data.datasets.table import load_corpus
from common.data.preferences import save_preferences
from common.models.hub import HUB_NAME
from common.telemetry.jsonl import read_rows
from deploy.plan import plan_text
from deploy.plan_summary import plan_summary
from tests.local_preferences import preferences, text_tokenizer
from tests.local_source import run_here
from tests.tiny_causal import CHATML, SENTENCES, write_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FAMILIES = {"HuggingFaceTB/SmolLM2-135M-Instruct": "llama", "lvwerra/gpt2-imdb": "gpt2"} | {
    "EleutherAI/gpt-neo-125m": "gpt_neo",
    "sentiment/model": "gpt2",
}
"""Families of the models that configurations name."""


def causal_configs() -> list[str]:
    """Names of the shipped files on single prompts, or for a reward model of a causal model. Games
    and memories of text have tests of their own."""
    found = []
    for file in sorted(CONFIGS.glob("*.yaml")):
        given = yaml.safe_load(file.read_text())
        backbone = any(stage.get("backbone") for stage in given.get("stages", ()))
        if backbone or (given.get("environment") or {}).get("kind") == "single_turn":
            found.append(file.stem)
    return found


def model_of(folder: Path, path: str) -> str:
    """A tiny model of the family of the one at `path`. Only instruct models have a template."""
    chat = {"chat_template": CHATML} if "Instruct" in path else {}
    made = folder / FAMILIES[path]
    return str(made if made.exists() else write_model(made, FAMILIES[path], **chat))


def classifier(folder: Path, kind: str) -> str:
    """A classifier with the labels of the published one."""
    tokenizer = text_tokenizer()
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0}
    if kind == "distilbert":
        config = DistilBertConfig(
            dim=32, hidden_dim=64, n_layers=1, n_heads=4, max_position_embeddings=96,
            id2label={0: "NEGATIVE", 1: "POSITIVE"}, **shape,
        )  # fmt: skip
        DistilBertForSequenceClassification(config).save_pretrained(folder)
    else:
        wide = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        config = RobertaConfig(
            num_attention_heads=4, max_position_embeddings=96,
            id2label={0: "nothate", 1: "hate"}, **wide, **shape,
        )  # fmt: skip
        RobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def made_small(folder: Path, name: str, runs: Path) -> Run:
    """The configuration on a tiny model and few prompts. runs: where reward models were trained."""
    file = CONFIGS / f"{name}.yaml"
    shipped = load_run([file])
    lines = [line.split() for line in SENTENCES]
    prompts = [{"prompt": " ".join(each[: 2 + k])} for k in range(3) for each in lines]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    save_preferences(preferences(60), folder / "preferences.jsonl")
    changes = [f"runs={runs}", "learner.log_every=1", "learner.checkpoint_every=1"]
    stage = shipped.stages[0]
    if stage.stage == "reward_model":
        assert HUB_NAME.fullmatch(stage.backbone or "")
        changes += [
            f"data.train=[{folder / 'preferences.jsonl'}]",
            f"stages.0.backbone={model_of(folder, str(stage.backbone))}",
            "stages.0.steps=2", "stages.0.batch_size=4", "stages.0.max_tokens=64",
        ]  # fmt: skip
        return load_run([file], changes)
    causal = shipped.model.causal
    assert causal is not None
    path = causal.path if HUB_NAME.fullmatch(causal.path) else "sentiment/model"
    changes += [
        f"data.train=[{folder / 'prompts.jsonl'}]", "data.eval=[]",
        f"model.causal.path={model_of(folder, path)}", "model.causal.max_tokens=64",
        "stages.0.iterations=2", "stages.0.episodes=4", "evaluation.episodes=2",
        "rollout.workers=1", "rollout.slots=4", "rollout.sampling.max_new_tokens=6",
    ]  # fmt: skip
    for i, model in enumerate(shipped.rewards.cumulative.models):
        place = f"rewards.cumulative.models.{i}.path"
        if "reward-smollm" in model.path:
            changes.append(f"{place}={runs / Path(model.path).name}")
        else:
            assert HUB_NAME.fullmatch(model.path)
            kind = "distilbert" if "distilbert" in model.path else "roberta"
            changes.append(f"{place}={classifier(folder / kind, kind)}")
    return load_run([file], changes)


def trained(
    folder: Path, name: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> list[dict[str, Any]]:
    """Rows of the planned and trained configuration."""
    run = made_small(folder, name, runs)
    assert name.startswith("reward_") or "Memory of a learner rank" in plan_text(run)
    capsys.readouterr()
    assert run.name in plan_summary(run, load_corpus(run.data, run.seed))
    assert capsys.readouterr().err == "", "a plan is quiet"
    directory, _ = run_here(run)
    return read_rows(directory)


CHAINS = {
    "scalar": ("reward_smollm", "reinforce_smollm"),
    "ten scores": (
        "reward_smollm_scores", "reinforce_smollm_scores", "reinforce_smollm_doubt",
    ),
    "film reviews": ("sentiment", "sentiment_small"),
    "comments": ("detoxify",),
}  # fmt: skip


def test_every_shipped_configuration_of_a_causal_model_is_run_here() -> None:
    assert sorted(name for chain in CHAINS.values() for name in chain) == causal_configs()


@pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
def test_shipped_configurations_run_on_models_of_their_architecture(
    tmp_path: Path, chain: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in chain:
        rows = trained(tmp_path, name, tmp_path / "runs", capsys)
        assert len(rows) == 2, name
        if name.startswith("reward_"):
            assert rows[-1]["train/loss_preference"] > 0
            continue
        for row in rows:
            assert row["ppo/log_prob_max_difference"] <= 1e-4, name
            # A model from scratch hardly writes the words that configs/praise.py pays.
            assert row["train/gradient_norm"] > 0 or name == "sentiment_small", name
        if "smollm" in name:
            low, high = (0, 1) if name == "reinforce_smollm" else (1, 10)
            assert low < rows[0]["objective/scores"] < high
        if name == "detoxify":
            assert rows[0]["reward/component{component=harmless,cohort=trained}"] is not None
