"""Changes one line of the product at a time and runs the tests that must notice.

    python -m tests.mutate [--sample] [PART OF A NAME …]

The list is tests/mutants.toml. A mutant is caught when one of its tests fails. One that survives,
one whose line is no longer there and one whose tests break otherwise (a wrong name, the deadline)
are reported by name, and the exit code is 1. The changes are made in copies of the tree.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    "common", "rollout", "reward_service", "learner", "deploy", "benchmarks", "tests", "configs",
    "docs", "pyproject.toml",
)  # fmt: skip
DEADLINE = 240.0
"""Seconds for the tests of one mutant, on two cores that have nothing else to do."""
FAILED = 1
"""Exit code of pytest where tests ran and some failed."""


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    """Stands once in the file."""
    new: str
    tests: list[str]
    """Node ids as pytest takes them, of which one at least must fail."""
    sample: bool = False
    """Whether `make test` tries it."""


def mutants() -> list[Mutant]:
    table = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())
    return [Mutant(name, **entry) for name, entry in table.items()]


def changed(mutant: Mutant, source: str) -> str:
    """The file's text with the mutant's change. Raises LookupError where its line is not there."""
    count = source.count(mutant.old)
    if count != 1:
        raise LookupError(
            f"{mutant.name}: {mutant.file} holds {mutant.old!r} {count} times, not once"
        )
    return source.replace(mutant.old, mutant.new)


def run_tests(tree: Path, tests: Sequence[str], deadline: float) -> tuple[int | None, str]:
    """Exit code of pytest and its output; None at the deadline."""
    settings = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    process = subprocess.Popen(
        command,
        cwd=tree,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, ""
    return process.returncode, output


def outcome(mutant: Mutant, tree: Path, deadline: float) -> str:
    """ "caught", or what is wrong. The tree is as before afterwards."""
    path = tree / mutant.file
    source = path.read_text()
    try:
        path.write_text(changed(mutant, source))
    except LookupError as missing:
        return str(missing)
    try:
        code, output = run_tests(tree, mutant.tests, deadline)
    finally:
        path.write_text(source)
    if code == FAILED:
        return "caught"
    if code == 0:
        return f"{mutant.name}: SURVIVED {', '.join(mutant.tests)}"
    reason = f"not done after {deadline:.0f} s" if code is None else f"pytest ended with {code}"
    return f"{mutant.name}: {reason}\n{output[-2000:]}"


@contextmanager
def copies(count: int) -> Iterator[SimpleQueue[Path]]:
    """Copies of the tree, for as many workers."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        free: SimpleQueue[Path] = SimpleQueue()
        for number in range(count):
            tree = Path(folder) / str(number)
            for name in COPIED:
                if (ROOT / name).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / name, tree / name, ignore=ignored)
                else:
                    shutil.copy2(ROOT / name, tree / name)
            free.put(tree)
        yield free


def try_all(chosen: Sequence[Mutant], jobs: int, deadline: float = DEADLINE) -> list[str]:
    """What is wrong, of each mutant that was not caught. Progress goes to stdout."""
    with copies(jobs) as free, ThreadPoolExecutor(jobs) as pool:

        def one(mutant: Mutant) -> str:
            tree, started = free.get(), time.monotonic()
            try:
                found = outcome(mutant, tree, deadline)
            finally:
                free.put(tree)
            state = "caught" if found == "caught" else "NOT CAUGHT"
            print(f"{state} in {time.monotonic() - started:.0f} s: {mutant.name}", flush=True)
            return found

        return [found for found in pool.map(one, chosen) if found != "caught"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="try mutants whose names contain one of these")
    parser.add_argument("--sample", action="store_true", help="try those that `make test` tries")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds for each mutant")
    arguments = parser.parse_args()
    chosen = [
        mutant
        for mutant in mutants()
        if (mutant.sample or not arguments.sample)
        and (not arguments.names or any(part in mutant.name for part in arguments.names))
    ]
    started = time.monotonic()
    with copies(1) as free:
        # A test that fails anyhow would catch every mutant.
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        code, output = run_tests(free.get(), tests, 4 * arguments.deadline)
    if code != 0:
        print(f"the tests fail without any change:\n{output}")
        return 1
    wrong = try_all(chosen, arguments.jobs, arguments.deadline)
    print("\n".join(wrong))
    caught = len(chosen) - len(wrong)
    print(f"{caught} of {len(chosen)} caught in {time.monotonic() - started:.0f} s")
    return 1 if wrong or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
