"""Compiled kernels that are kept on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.policies.reactive.cpu import compiling

ROOT = Path(__file__).resolve().parents[3]
CALLED = "from inner.compiling import kernel\n\n@kernel\ndef two() -> int:\n    return {}\n"
CALLING = """
from inner.called import two
from inner.compiling import kernel

@kernel
def doubled() -> int:
    return 2 * two()
"""
ANSWER = """
from inner.calling import doubled
from numba import config
print(doubled(), sum(doubled.stats.cache_hits.values()), repr(config.CACHE_DIR))
"""


def answer(folder: Path, home: Path, kept: str) -> tuple[str, int]:
    """What a new process prints, and how often it took what was kept."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    inherited.pop("XDG_CACHE_HOME", None)
    environment = {**inherited, "PYTHONPATH": str(folder), "HOME": str(home)}
    if kept:
        environment["NUMBA_CACHE_DIR"] = kept
    command = [sys.executable, "-c", ANSWER]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    value, hits, cache_of_others = done.stdout.split()
    assert cache_of_others == repr(kept), "functions of other packages are kept where they were"
    return value, int(hits)


@pytest.mark.parametrize("where", ["beside the source", "home", "NUMBA_CACHE_DIR"])
def test_a_kernel_is_compiled_again_when_a_file_that_it_calls_changes(
    tmp_path: Path, where: str
) -> None:
    folder, home, named = tmp_path / "inner", tmp_path / "home", tmp_path / "named"
    folder.mkdir()
    (folder / "__init__.py").touch()
    shutil.copy(compiling.__file__, folder)
    (folder / "called.py").write_text(CALLED.format(2))
    (folder / "calling.py").write_text(CALLING)
    if where == "beside the source":
        home.touch()  # no folder can be made there
    kept = str(named) if where == "NUMBA_CACHE_DIR" else ""
    assert answer(tmp_path, home, kept) == ("4", 0)
    assert answer(tmp_path, home, kept) == ("4", 1)
    used = {"beside the source": folder / "__pycache__", "home": home, "NUMBA_CACHE_DIR": named}
    assert [name for name, place in used.items() if list(place.rglob("*.nbi"))] == [where]
    (folder / "called.py").write_text(CALLED.format(20))
    assert answer(tmp_path, home, kept) == ("40", 0)
    if where != "beside the source":  # the sources of a job, in another place at another time
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(folder, elsewhere / "inner", copy_function=shutil.copyfile)
        assert answer(elsewhere, home, kept) == ("40", 1)


ENCODING = """
import re, sys, warnings
import numpy as np
from rollout.policies.reactive.cpu import layers
from rollout.policies.reactive.cpu.products import linear_of, pack
from rollout.policies.reactive.cpu.sequences import Heads, Spans

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
kernel = r"_ZN7rollout8policies8reactive3cpu\\d+[a-z]+?\\d+([a-z_]+)B"
calls = re.findall(r"call [^@]*@\\"?" + kernel, code)
print(x.tobytes().hex(), sum(layers.encode.stats.cache_hits.values()), *set(calls))
"""


def test_a_kernel_contains_those_that_it_calls_and_gives_the_same_bits_wherever_it_was_compiled(
    tmp_path: Path,
) -> None:
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
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
