"""Compiled kernels that are kept on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CALLED = "from common.compiling import kernel\n\n\n@kernel\ndef two() -> int:\n    return {}\n"
CALLING = "from common.compiling import kernel\nfrom inner.called import two\n\n\n@kernel\ndef doubled() -> int:\n    return 2 * two()\n"


def answer(folder: Path, home: Path) -> tuple[str, int]:
    """What a new process prints, and how often it took what was kept."""
    code = "from inner.calling import doubled; print(doubled(), sum(doubled.stats.cache_hits.values()))"
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(folder), str(root)])
    environment = {**os.environ, "PYTHONPATH": path, "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True)
    value, hits = done.stdout.split()
    return value, int(hits)


def test_a_kernel_is_compiled_anew_when_a_file_that_it_calls_changes(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "called.py").write_text(CALLED.format(2))
    (folder / "calling.py").write_text(CALLING)
    assert answer(tmp_path, tmp_path) == ("4", 0)
    assert answer(tmp_path, tmp_path) == ("4", 1)
    (folder / "called.py").write_text(CALLED.format(20))
    assert answer(tmp_path, tmp_path) == ("40", 0)
