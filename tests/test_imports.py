"""What importing every module of a package brings into a process, and who names whom."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OF_TRANSFORMERS = {
    "common/data/causal_tokenizer.py",
    "common/data/tokenizer.py",
    "common/models/causal.py",
    "common/models/hub.py",
    "common/models/reactive/auto.py",
    "deploy/causal_memory.py",
    "deploy/causal_shape.py",
    "reward_service/reward_models/model.py",
    "rollout/policies/causal/rows.py",
}
"""The only files that import it."""
NGRAMS = "reward_service.components.ngrams"
IMPORTING = """
import importlib, pkgutil, sys, types
package, left_out = sys.argv[1], sys.argv[2:]
names = [each.name for each in pkgutil.walk_packages([package.replace(".", "/")], package + ".")]

class Empty(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

for left in left_out:
    sys.modules[left] = Empty(left)  # whatever is imported from it is None
for name in names:
    importlib.import_module(name)
print(len(names), *({"numba", "ray", "transformers"} & sys.modules.keys()))
"""


def loaded(package: str, *left_out: str) -> set[str]:
    """Those of numba, ray and transformers that a new process holds once it has imported every
    module of a package but the ones left out."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, package, *left_out],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=170,
        check=True,
    )
    count, *found = done.stdout.split()
    assert int(count) > 3, "no modules were found"
    return set(found)


def test_models_need_torch_only() -> None:
    assert loaded("common.models", "common.models.reactive.auto") == set()


def test_the_update_needs_neither_numba_nor_ray_nor_transformers() -> None:
    assert loaded("learner.rl") == set()


def test_to_open_a_model_needs_neither_the_compiler_of_torch_nor_peft(tmp_path: Path) -> None:
    """Each takes seconds, in every worker and before the first word of a chat."""
    code = f"""
import sys
from common.models.reactive.config import named_config
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.module import read_model, write_model
from learner.lora import plain_state
write_model(ReactiveTransformer(named_config("tiny", vocab_size=300)), {str(tmp_path)!r})
assert plain_state(read_model(ReactiveTransformer, "here", {str(tmp_path)!r})) is None
print(sorted({{"torch._dynamo", "peft", "transformers", "sklearn"}} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "[]\n", done.stderr


def test_evaluation_and_replay_need_no_ray() -> None:
    """Commands that start no cluster would wait two seconds for it."""
    assert "ray" not in loaded("learner.evaluation")


@pytest.mark.parametrize("package", ["common", "learner", "reward_service"])
def test_numba_is_for_one_backend_and_for_matching_n_grams(package: str) -> None:
    assert "numba" not in loaded(package, NGRAMS)


def imports(file: Path) -> set[str]:
    """Modules and names that a file imports anywhere, in full."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{each.name}" for each in node.names}
    return found


def test_transformers_is_imported_by_few_files_and_named_ones() -> None:
    importing = {
        str(file.relative_to(ROOT))
        for package in ("common", "rollout", "reward_service", "learner", "deploy")
        for file in (ROOT / package).rglob("*.py")
        if any(name.split(".")[0] == "transformers" for name in imports(file))
    }
    assert importing == OF_TRANSFORMERS


def test_the_update_names_no_model_class() -> None:
    models = ("ReactiveTransformer", "RxTRewardModel", "Critic")
    named = {
        f"{file.name}: {name}"
        for file in (ROOT / "learner" / "rl").rglob("*.py")
        for name in imports(file)
        if name.rpartition(".")[2] in models
    }
    assert not named
