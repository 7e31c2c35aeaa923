"""A run that was refused on the cluster is refused again at once, with the same sentence, while its
settings and files are the same.

Whoever tries a failed job again without looking at its exit code (a RayJob's backoffLimit) would
otherwise pay for a cluster each time. Refusals from before a cluster starts are not kept: to find
them again takes seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from common.config.run import Run
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import Progress
from common.version import VERSION

REFUSED = "refused.json"


def fingerprint(run: Run, places: Mapping[str, str]) -> str:
    """Hash of all that can mend a refusal: settings, version, and the files that settings name,
    by size and time. places: absolute paths of those files and folders."""
    found = hashlib.sha256(f"{VERSION}\n{run.model_dump_json()}".encode())
    for place in sorted(set(places.values())):
        path = Path(place)
        if place == run.runs or not path.exists():
            continue
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                status = file.stat()
                found.update(f"\n{file} {status.st_size} {status.st_mtime_ns}".encode())
    return found.hexdigest()


def require_not_refused(directory: RunDirectory, mark: str, progress: Progress) -> None:
    """Raise the kept refusal while `mark`, the fingerprint, is the same; take an older one away."""
    if not directory.exists(REFUSED):
        return
    held = _read(directory)
    if held is not None and held["mark"] == mark:
        progress.note(
            f"run {directory.name} was refused before, and neither its settings nor its files have "
            f"changed since; to try all the same, remove {directory.path(REFUSED)}"
        )
        raise InputError(held["where"], held["what"])
    directory.remove(REFUSED)


@contextmanager
def remembered(directory: RunDirectory, mark: str) -> Iterator[None]:
    """Keep an InputError that ends the block as RUN/refused.json. The caller holds the run's
    lease."""
    try:
        yield
    except InputError as refused:
        kept = {"mark": mark, "where": refused.where, "what": refused.what}
        directory.write_json(REFUSED, kept)
        raise


def _read(directory: RunDirectory) -> dict[str, str] | None:
    """The kept refusal; None for a file that is damaged, which refuses nothing."""
    try:
        held = json.loads(directory.read_text(REFUSED))
    except ValueError:
        return None
    fits = isinstance(held, dict) and all(
        isinstance(held.get(key), str) for key in ("mark", "where", "what")
    )
    return held if fits else None
