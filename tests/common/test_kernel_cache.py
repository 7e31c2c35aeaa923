"""Kernels that are kept between processes, where what was kept is not whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
import sys
from numba import njit
from common.storage.kernel_cache import keep_compiled

@keep_compiled
@njit
def double(x):
    return 2 * x

assert double(21) == 42
print(sum(double.stats.cache_hits.values()))
"""


def hits(folder: Path) -> int:
    """How often a new process takes a kernel that was kept."""
    script = folder / "kernels.py"
    if not script.exists():
        script.write_text(SOURCE)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
def test_a_kernel_whose_files_are_damaged_is_compiled_again(tmp_path: Path, ending: str) -> None:
    assert [hits(tmp_path), hits(tmp_path)] == [0, 1]
    (file,) = (tmp_path / "cache").rglob(f"*{ending}")
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\0" * len(whole), whole[:-1] + b"?"):
        file.write_bytes(damaged)
        assert hits(tmp_path) == 0
        assert file.read_bytes() == whole or hits(tmp_path) == 1
