"""What a model remembers of real conversations: Schema-Guided Dialogue, and chats of people with a
persona.

    python -m benchmarks.real_talk sgd SEED FOLDER [OUT]
    python -m benchmarks.real_talk persona SEED FILE [OUT]

The first trains `configs/sgd.yaml` on FOLDER and evaluates on its dev file, once. The second
converts FILE (the CSV of Synthetic-Persona-Chat), trains `configs/persona.yaml` and evaluates on
the conversations that the converter holds out. Each writes
benchmarks/results/real_talk_NAME-SEED.json. Started again, it goes on from where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.training import CONFIGS, TrainedRun, train
from common.config.conversion import PersonaFiles
from common.config.loader import load_run
from common.data.conversations import save_rows
from common.data.datasets.persona import convert_personas
from common.data.datasets.table import load_corpus
from common.data.leftovers import Leftovers
from learner.evaluation.evaluate import evaluate_checkpoint


def words_of(name: str, seed: int, out: Path) -> list[str]:
    return [f"seed={seed}", f"name=real_talk_{name}-{seed}", f"runs={out}"]


def sgd(seed: int, folder: Path, out: Path) -> tuple[TrainedRun, Path]:
    """A trained run, and the file that it is evaluated on."""
    words = [*words_of("sgd", seed, out), f"data.folder={folder}"]
    done, settings = train(CONFIGS / "sgd.yaml", words), load_run([CONFIGS / "sgd.yaml"], words)
    asked = done.where / "test.jsonl"
    save_rows(load_corpus(settings.data, settings.seed).test, asked)
    return done, asked


def persona(seed: int, file: Path, out: Path) -> tuple[TrainedRun, Path]:
    """A trained run, and the file that it is evaluated on."""
    made = convert_personas([str(file)], PersonaFiles(), Leftovers())
    folder = out / "real_talk_persona-data"
    folder.mkdir(parents=True, exist_ok=True)
    files = {"train": folder / "train.jsonl", "eval": folder / "eval.jsonl"}
    for rows, path in zip(made, files.values(), strict=True):
        save_rows(rows, path)
    data = [f"data.{split}={json.dumps([str(path)])}" for split, path in files.items()]
    words = [*words_of("persona", seed, out), *data]
    return train(CONFIGS / "persona.yaml", words), files["eval"]


TALKS = {"sgd": sgd, "persona": persona}


def benchmark(name: str, seed: int, source: Path, out: Path) -> dict[str, Any]:
    done, asked = TALKS[name](seed, source, out)
    found = evaluate_checkpoint(str(done.where), str(asked))
    return {
        "seed": seed,
        "environment": done.environment,
        "wall_seconds": done.summary["wall_seconds"],
        "stages": done.stage_seconds,
        "conversations": len(asked.read_text(encoding="utf-8").splitlines()),
        "retention": found["retention"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=TALKS)
    parser.add_argument("seed", type=int)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", nargs="?", default="runs")
    given = parser.parse_args()
    out = Path(given.out).resolve()
    result = benchmark(given.name, given.seed, given.source.resolve(), out)
    command = f"python -m benchmarks.real_talk {given.name} {given.seed} "
    command += "FOLDER" if given.name == "sgd" else "FILE"
    record(f"real_talk_{given.name}-{given.seed}", command, result)
    for share in ("memory", "erased", "exact"):
        print(share, result["retention"][share])
