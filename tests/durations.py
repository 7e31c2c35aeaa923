"""How long tests take, by which targets of the Makefile choose them.

    pytest … --durations=0 --durations-min=0.5 > LOG
    python -m tests.durations LOG …

writes tests/durations.json of what pytest said at the end of these runs: for each test function the
seconds of its slowest case, and for each file those of its dearest set-up, which its tests share.
What no log names keeps its seconds while it is there. `tests/conftest.py` marks by it.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

FILE = Path(__file__).with_name("durations.json")
LINE = re.compile(r"^([0-9.]+)s (call|setup) +(\S+?)(?:\[.*)?$")
LEAST = 0.5


def function_of(node: str) -> str:
    """The function of a node id, without its parameters."""
    return node.partition("[")[0]


def file_of(node: str) -> str:
    """The file of a node id."""
    return node.partition("::")[0]


def seconds_of(durations: Mapping[str, float], node: str) -> float:
    """Seconds that a test takes by itself: its own, or the set-up of its file."""
    own, shared = durations.get(function_of(node), 0.0), durations.get(file_of(node), 0.0)
    return max(own, shared)


def read(logs: Iterable[str]) -> dict[str, float]:
    """Seconds by function and by file, of all that the logs say."""
    slowest: dict[str, float] = defaultdict(float)
    for log in logs:
        for line in Path(log).read_text(encoding="utf-8").splitlines():
            found = LINE.match(line)
            if found:
                name = found[3] if found[2] == "call" else file_of(found[3])
                slowest[name] = max(slowest[name], float(found[1]))
    return dict(slowest)


def is_there(name: str) -> bool:
    file, _, function = name.partition("::")
    path = FILE.parent.parent / file
    return path.is_file() and (
        not function or f"def {function}(" in path.read_text(encoding="utf-8")
    )


if __name__ == "__main__":
    before = json.loads(FILE.read_text()) if FILE.is_file() else {}
    after = before | read(sys.argv[1:])
    kept = {name: round(after[name], 1) for name in sorted(after) if is_there(name)}
    chosen = {name: seconds for name, seconds in kept.items() if seconds >= LEAST}
    FILE.write_text(json.dumps(chosen, indent=1) + "\n")
    print(f"{len(chosen)} names")
