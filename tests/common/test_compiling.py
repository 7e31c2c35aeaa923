"""Compiled kernels that are kept on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLED = "from common.compiling import kernel\n\n\n@kernel\ndef two() -> int:\n    return {}\n"
CALLING = "from common.compiling import kernel\nfrom inner.called import two\n\n\n@kernel\ndef doubled() -> int:\n    return 2 * two()\n"


def answer(folder: Path, home: Path, **variables: str) -> tuple[str, int]:
    """What a new process prints, and how often it took what was kept."""
    code = "from inner.calling import doubled; print(doubled(), sum(doubled.stats.cache_hits.values()))"
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(folder), str(root)])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment = {**inherited, "PYTHONPATH": path, "HOME": str(home), "XDG_CACHE_HOME": str(home), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True)
    value, hits = done.stdout.split()
    return value, int(hits)


@pytest.mark.parametrize("own_folder", [False, True], ids=["beside the source", "NUMBA_CACHE_DIR"])
def test_a_kernel_is_compiled_anew_when_a_file_that_it_calls_changes(tmp_path: Path, own_folder: bool) -> None:
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
    code = "import common.compiling; from numba import config; print(repr(config.CACHE_LOCATOR_CLASSES))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "''"
