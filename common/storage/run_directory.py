"""The folder of one run, on a local disk or behind any URI that fsspec understands: what lies
where, and how it is written.

Invariant: a reader sees a whole file or the one before it. Local files are written beside their
place, synced and renamed; object stores replace a file as a whole anyway. Only `append_line` grows
a file, and its readers drop a torn last line.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import fsspec
import yaml
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from common.config.errors import sentence
from common.config.run import Run
from common.config.yaml_values import parse_yaml
from common.failures import InputError
from common.storage.formats import CONFIG, require_format

REPORTED_PACKAGES = [
    "engram-rl",
    "ray",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "pyarrow",
    "fsspec",
    "numpy",
    "prometheus-client",
    "pydantic",
    "vllm",
    "peft",
    "textworld",
]
_GIT_DEADLINE = 5.0
LONGEST_NAME = 200
"""Bytes of a run's name. File systems take 255, and Ray and the files beside the folder add to
it."""


def run_near(where: str) -> str:
    """ "; did you mean runs/demo?" for a folder that is no run, where the default folder of runs
    has one of that name, or a run beside it is called nearly so; empty where there is none."""
    path = Path(where)
    of_default = Path(str(Run.model_fields["runs"].default), path.name)
    beside = {each.parent.name: each.parent for each in path.parent.glob("*/config.yaml")}
    close = difflib.get_close_matches(path.name, beside, n=1)
    found = [of_default] if (of_default / "config.yaml").is_file() else []
    found += [beside[name] for name in close]
    return f"; did you mean {found[0]}?" if found and found[0] != path else ""


class WriteGuard(Protocol):
    """A driver's hold on the run (`common/storage/lease_records.py`)."""

    @property
    def owner(self) -> str:
        """Differs from driver to driver."""

    def require(self, directory: RunDirectory) -> None:
        """Raises LeaseLost where another driver has taken over."""


@dataclass(frozen=True)
class RunDirectory:
    """Where run `name` lies under `root`. A plain value: it pickles to actors, and every method
    names files relative to the run.

    With a `term`, nothing is written once that term is over.
    """

    root: str
    name: str
    term: WriteGuard | None = None

    def __post_init__(self) -> None:
        require_folder_name(self.name)
        try:
            files, inner = fsspec.core.url_to_fs(self.root)
        except (ValueError, ImportError) as unknown:
            raise InputError(
                "runs", f"{self.root!r} is no place that fsspec can write to ({unknown})"
            ) from unknown
        if isinstance(files, LocalFileSystem):
            # Absolute from here on: an actor that unpickles this works in another folder.
            object.__setattr__(self, "root", os.path.abspath(inner))
        elif not self.root.endswith("://"):
            object.__setattr__(self, "root", self.root.rstrip("/"))

    @classmethod
    def existing(cls, where: str) -> RunDirectory:
        """The run that a user named by its folder; InputError where it is not one."""
        root, slash, name = where.rstrip("/").rpartition("/")
        run = cls(root + slash or ".", name)
        if not run.exists("config.yaml"):
            what = f"is not a run directory: it has no config.yaml{run_near(where)}"
            raise InputError(where, what)
        return run

    def run(self) -> Run:
        """The configuration that the run was started with; InputError where its file is damaged, or
        of another format."""
        where = self.path("config.yaml")
        try:
            settings = parse_yaml(self.read_text("config.yaml"), where)
        except UnicodeDecodeError as broken:
            raise InputError(where, f"cannot be read: {broken}") from None
        if isinstance(settings, dict):
            require_format(where, settings.get("format"), CONFIG)
        try:
            return Run.model_validate(settings)
        except ValidationError as invalid:
            tree = settings if isinstance(settings, dict) else {}
            raise sentence(Run, invalid, tree, {}, where) from None

    # --- places -----------------------------------------------------------------------------------

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        return fsspec.core.url_to_fs(self.root)[0]

    @property
    def local(self) -> Path | None:
        """The run's folder where it is on this machine's disk, else None."""
        return Path(self.root, self.name) if isinstance(self.filesystem, LocalFileSystem) else None

    def path(self, relative: str = "") -> str:
        """Absolute local path or URI of a file of the run."""
        base = self.root if self.root.endswith("/") else f"{self.root}/"
        return base + self.name + (f"/{relative}" if relative else "")

    def inner(self, relative: str = "") -> str:
        """The same for calls of `filesystem`, which take no protocol."""
        return str(fsspec.core.url_to_fs(self.path(relative))[1])

    # --- reading and writing ----------------------------------------------------------------------

    def exists(self, relative: str = "") -> bool:
        return bool(self.filesystem.exists(self.inner(relative)))

    def names(self, relative: str = "") -> list[str]:
        """Names of what lies in a folder of the run, sorted; empty where there is no such
        folder."""
        folder = self.inner(relative)
        files = self.filesystem
        files.invalidate_cache()
        if not files.isdir(folder):
            return []
        return sorted(
            entry.rstrip("/").rpartition("/")[2] for entry in files.ls(folder, detail=False)
        )

    def read_text(self, relative: str) -> str:
        return self.filesystem.cat_file(self.inner(relative)).decode()

    def require_lease(self) -> None:
        """Raises LeaseLost where this is a driver's directory, and another driver has taken over.

        For writers that do not go through `write_text`, `append_line` and `remove`, which ask for
        themselves.
        """
        if self.term is not None:
            self.term.require(self)

    def write_text(self, relative: str, text: str) -> None:
        """Replace a file as a whole."""
        self.require_lease()
        if self.local is not None:
            write_atomically(self.local / relative, text.encode())
            return
        self.filesystem.makedirs(self.inner(relative).rpartition("/")[0], exist_ok=True)
        self.filesystem.pipe_file(self.inner(relative), text.encode())

    def write_json(self, relative: str, value: Mapping[str, Any]) -> None:
        self.write_text(
            relative, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def append_line(self, relative: str, line: str) -> None:
        """Add a line and wait until it is durable. Remote stores cannot append: the file is written
        anew, so keep it small."""
        self.require_lease()
        if self.local is None:
            before = self.read_text(relative) if self.exists(relative) else ""
            self.write_text(relative, before + line + "\n")
            return
        target = self.local / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self, relative: str) -> None:
        """Remove a file or a folder with all that is in it."""
        self.require_lease()
        if self.local is not None:
            target = self.local / relative
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink()
        else:
            self.filesystem.rm(self.inner(relative), recursive=True)

    # --- the run's own files ----------------------------------------------------------------------

    def write_config(self, run: Run) -> None:
        """The resolved configuration, as `engram train` would read it again."""
        self.write_text(
            "config.yaml",
            yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        )

    def keep_config(self, step: int) -> str:
        """Keep `config.yaml`, in force until `step`, before another is written; where.

        Kept ones sort in the order in which they were in force.
        """
        text = self.read_text("config.yaml")
        kept = self.names("configs")
        if kept and self.read_text(f"configs/{kept[-1]}") == text:
            return f"configs/{kept[-1]}"  # ended between keeping it and writing the other
        number = 1 + (int(kept[-1].split("-")[1]) if kept else 0)
        name = f"configs/config-{number:04d}-until-step-{step:08d}.yaml"
        self.write_text(name, text)
        return name

    def write_environment(self) -> None:
        self.write_json("environment.json", describe_environment())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self.write_json("summary.json", summary)

    def write_reward_model(self, report: Mapping[str, Any]) -> None:
        """Results of the reward model of the run on held-out preferences
        (learner/evaluation/preferences.py)."""
        self.write_json("reward_model.json", report)


def require_folder_name(name: str) -> None:
    """Raises InputError where no folder of a run can have this name."""
    if name in ("", ".", "..") or any(c in "/\\" or ord(c) < 32 for c in name):
        raise InputError(
            "name", f"{name!r} cannot name a run directory: give one plain folder name"
        )
    if len(name.encode()) > LONGEST_NAME:
        raise InputError(
            "name",
            f"{name[:20]!r}… has {len(name.encode())} bytes, more than the {LONGEST_NAME} that the "
            "name of a run may have",
        )


def write_atomically(target: Path, content: bytes) -> None:
    """Write beside the target, sync, rename over it: a crash leaves the old file or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp, whose file is its owner's alone whatever the umask allows.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(target.parent)


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_environment() -> dict[str, Any]:
    """The environment that a run was made with: versions, interpreter, machine, and the commit of
    the code where there is one."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "packages": package_versions(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result; those not installed are left
    out."""
    installed = {}
    for package in REPORTED_PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _git(*arguments: str) -> str | None:
    """Output of git in the folder of the code; None where the code was shipped without its
    history."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_GIT_DEADLINE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
