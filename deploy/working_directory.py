"""The working directory that travels with a submitted job: the code, and the files of it that the
run's configuration names.

Ray leaves out what .gitignore and .rayignore name, and would let a run look for its rows on the
cluster in vain. So a named file travels all the same, up to a limit; anything else that cannot be
there is said before the job is submitted.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# Ray's own rules for what a working directory holds; there is no public way to ask for them.
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, create_package

from common.failures import InputError

EXCLUDES = [
    ".git/",
    "/.venv/",
    "/venv/",
    "/runs/",
    "/data/",
    "/shared/",
    "*.egg-info/",
    "**/__pycache__/",
    ".*_cache/",
    "*.safetensors",
]
"""Files that a job does not need unless its configuration names them, in .gitignore notation. With
a leading slash, since `common/data` is code."""
NAMED_BYTES = 64 * 2**20
"""Size of all files together that travel only because the configuration names them. Ray keeps the
package in the memory of the head, and refuses one of half a gigabyte."""
ELSEWHERE = "put it where every node reaches it, and name it by an absolute path or a URI"


def inside(written: str, folder: Path) -> str:
    """A path as seen from `folder`, whose contents travel. Raises InputError for another place."""
    path = Path(os.path.abspath(written))
    if not path.is_relative_to(folder):
        raise InputError(
            written, f"lies outside of {folder}, the folder that travels with the job; {ELSEWHERE}"
        )
    return str(path.relative_to(folder))


def pack(folder: Path, named: Mapping[str, str], archive: Path) -> list[str]:
    """Write what travels with a job to `archive`, a .zip; returns the named files that would have
    stayed behind otherwise, relative to `folder`.

    named: files and folders that the run needs, as the user wrote them, each with its absolute
    path. Raises InputError for one that is not there or cannot travel, and for a package that is
    larger than Ray takes.
    """
    if not (folder / "deploy" / "__main__.py").is_file():
        raise InputError(
            str(folder),
            "holds no engram, and travels with the job as its code: call engram submit in the "
            "folder of its checkout",
        )
    quiet = logging.Logger("quiet", logging.ERROR)
    create_package(
        str(folder), archive, include_gitignore=True, excludes=list(EXCLUDES), logger=quiet
    )
    with zipfile.ZipFile(archive, "a", strict_timestamps=False) as package:
        there, added, size = set(package.namelist()), [], 0
        for written, place in named.items():
            inside(written, folder)
            for path in _files(written, Path(place)):
                name = str(path.relative_to(folder))
                if name in there:
                    continue
                size += path.stat().st_size
                if size > NAMED_BYTES:
                    raise InputError(
                        written,
                        f"does not travel with a job, which takes {megabytes(NAMED_BYTES)} of the "
                        f"files that its configuration names; {ELSEWHERE}",
                    )
                package.write(path, name)
                there.add(name)
                added.append(name)
    if archive.stat().st_size >= GCS_STORAGE_MAX_SIZE:
        raise InputError(
            str(folder),
            f"is {megabytes(archive.stat().st_size)} packed, more than Ray sends; name what the "
            f"job does not need in .rayignore, such as {_largest(archive)}",
        )
    return added


def megabytes(size: float) -> str:
    return f"{size / 2**20:.3g} MiB"


def _files(written: str, place: Path) -> Sequence[Path]:
    if place.is_file():
        return [place]
    files = sorted(path for path in place.rglob("*") if path.is_file())
    if not files:
        what = "is an empty folder" if place.is_dir() else "there is no such file"
        raise InputError(written, what)
    return files


def _largest(archive: Path) -> str:
    with zipfile.ZipFile(archive) as package:
        return max(_sizes(package.infolist()).items(), key=lambda item: item[1])[0]


def _sizes(files: Iterable[zipfile.ZipInfo]) -> dict[str, int]:
    """Size of each entry of the top folder."""
    sizes: dict[str, int] = {}
    for file in files:
        top = file.filename.partition("/")[0]
        sizes[top] = sizes.get(top, 0) + file.file_size
    return sizes
