"""Compiled kernels that are kept on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLED = "from common.compiling import kernel\n\n\n@kernel\ndef two() -> int:\n    return {}\n"
CALLING = (
    "from common.compiling import kernel\nfrom inner.called import two\n\n\n@kernel\ndef "
    "doubled() -> int:\n    return 2 * two()\n"
)


def answer(folder: Path, home: Path, **variables: str) -> tuple[str, int]:
    """What a new process prints, and how often it took what was kept."""
    code = (
        "from inner.calling import doubled; print(doubled(), "
        "sum(doubled.stats.cache_hits.values()))"
    )
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(folder), str(root)])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment = {
        **inherited,
        "PYTHONPATH": path,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    value, hits = done.stdout.split()
    return value, int(hits)


@pytest.mark.parametrize("own_folder", [False, True], ids=["beside the source", "NUMBA_CACHE_DIR"])
def test_a_kernel_is_compiled_anew_when_a_file_that_it_calls_changes(
    tmp_path: Path, own_folder: bool
) -> None:
    folder, kept = tmp_path / "inner", tmp_path / "kept"
    folder.mkdir()
    variables = {"NUMBA_CACHE_DIR": str(kept)} if own_folder else {}
    (folder / "__init__.py").touch()
    (folder / "called.py").write_text(CALLED.format(2))
    (folder / "calling.py").write_text(CALLING)
    assert answer(tmp_path, tmp_path, **variables) == ("4", 0)
    assert answer(tmp_path, tmp_path, **variables) == ("4", 1)
    assert kept.exists() == own_folder
    assert bool(list(folder.glob("__pycache__/*.nbi"))) != own_folder
    (folder / "called.py").write_text(CALLED.format(20))
    assert answer(tmp_path, tmp_path, **variables) == ("40", 0)


def test_kernels_leave_the_cache_of_others_as_it_is(tmp_path: Path) -> None:
    code = (
        "import common.compiling; from numba import config; "
        "print(repr(config.CACHE_LOCATOR_CLASSES))"
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")
    }
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "''"


ENCODING = """
import re, sys, warnings
import numpy as np
from common.models.kernels import layers
from common.models.kernels.products import linear_of, pack
from common.models.kernels.sequences import Heads, Spans

draw = lambda *shape, rng=np.random.default_rng(0): rng.standard_normal(shape).astype(np.float32)
if "another first" in sys.argv:
    linear_of(np.ones((4, 8), np.float32), pack(np.ones((8, 8), np.float32)))
x, spans = draw(20, 32), Spans(np.array([0, 7]), np.array([7, 16]))
weights = layers.SequenceWeights(
    pack(draw(16, 32)), pack(draw(32, 32)), pack(draw(32, 16), draw(32))
)
layers.encode(x, spans, draw(16, 4, 2), weights, Heads(2, 2, 8), draw(32), np.float32(1e-6))
warnings.simplefilter("ignore")  # of code that was kept there is nothing to see
code = layers.encode.inspect_llvm(layers.encode.signatures[0])
calls = re.findall(r"call [^@]*@\\"?_ZN6common6models7kernels\\d+[a-z]+?\\d+([a-z_]+)B", code)
print(x.tobytes().hex(), sum(layers.encode.stats.cache_hits.values()), *set(calls))
"""


def test_a_kernel_contains_those_that_it_calls_and_gives_the_same_bits_wherever_it_was_compiled(
    tmp_path: Path,
) -> None:
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }

    def printed(*arguments: str) -> list[str]:
        command = [sys.executable, "-c", ENCODING, *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=True
        ).stdout.split()

    bits, hits, *calls = printed()
    assert (hits, calls) == ("0", ["encode"])  # by its own entry
    assert printed()[:2] == [bits, "1"]
    assert printed("another first")[:2] == [bits, "1"]
