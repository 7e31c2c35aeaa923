"""How long tests take, by which targets of the Makefile choose them.

    pytest … --durations=0 --durations-min=0.5 > LOG
    python -m tests.durations LOG …

writes tests/durations.json of what pytest said at the end of these runs: for each test function the
seconds of its slowest case, set-up included. Functions that no log names keep theirs while they are
there. `tests/conftest.py` marks by it.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

FILE = Path(__file__).with_name("durations.json")
LINE = re.compile(r"^([0-9.]+)s (?:call|setup|teardown) +(\S+?)(\[.*)?$")
LEAST = 0.5


def function_of(node: str) -> str:
    """The function of a node id, without its parameters."""
    return node.partition("[")[0]


def read(logs: Iterable[str]) -> dict[str, float]:
    """Seconds by function, of all that the logs say."""
    cases: dict[tuple[str, str], float] = defaultdict(float)
    for log in logs:
        for line in Path(log).read_text(encoding="utf-8").splitlines():
            found = LINE.match(line)
            if found:
                cases[found[2], found[3] or ""] += float(found[1])
    slowest: dict[str, float] = defaultdict(float)
    for (function, _), seconds in cases.items():
        slowest[function] = max(slowest[function], seconds)
    return dict(slowest)


def is_there(function: str) -> bool:
    file, _, name = function.partition("::")
    path = FILE.parent.parent / file
    return path.is_file() and f"def {name.rpartition('::')[2]}(" in path.read_text(encoding="utf-8")


if __name__ == "__main__":
    before = json.loads(FILE.read_text()) if FILE.is_file() else {}
    after = before | read(sys.argv[1:])
    kept = {name: round(after[name], 1) for name in sorted(after) if is_there(name)}
    chosen = {name: seconds for name, seconds in kept.items() if seconds >= LEAST}
    FILE.write_text(json.dumps(chosen, indent=1) + "\n")
    print(f"{len(chosen)} functions")
