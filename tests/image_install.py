"""Carries out the steps of the CPU image in a clean virtual environment, where no image can be
built: `python -m tests.image_install [--torch-index URL]`.

It reads deploy/docker/Dockerfile: the RUN and COPY lines of the first stage, with a folder of its
own in place of /opt/venv and /build, and the folders of code of the second. Then it looks whether
every package that is installed has its tested version (constraints.txt), and starts `engram` from
there, as the image's health command does. Nothing of this checkout or of the environment that calls
it is used. It downloads some 500 MB and takes minutes; `make test` does not call it.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
CLEARED = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")


def stages() -> list[list[tuple[str, str]]]:
    """Instructions of each stage as (word, rest), comments left out and continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    found: list[list[tuple[str, str]]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            found.append([])
        if word and found:
            found[-1].append((word, rest.strip()))
    return found


def copied(rest: str, place: Path) -> None:
    """A COPY of files or folders of the repository; its target is relative to `place`."""
    *sources, target = shlex.split(rest)
    for source in sources:
        to = place / target / source if target.endswith("/") else place / target
        to.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, to)


def install(folder: Path, arguments: Mapping[str, str]) -> Path:
    """Carry out the first stage below `folder`; the virtual environment that it makes."""
    venv, build = folder / "venv", folder / "build"
    build.mkdir()
    environment = clean(venv) | dict(arguments)
    for word, rest in stages()[0]:
        if word == "ARG":
            name, _, value = rest.partition("=")
            environment.setdefault(name, value.strip('"'))
        elif word == "COPY":
            copied(rest, build)
        elif word == "RUN":
            command = re.sub(r"^--mount=\S+\s+", "", rest).replace("/opt/venv", str(venv))
            call(["sh", "-ec", command], build, environment)
    return venv


def clean(venv: Path) -> dict[str, str]:
    """The environment of the steps: pip's own settings, and no other Python's."""
    kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
    base = Path(sys.base_prefix) / "bin"
    return kept | {"PATH": f"{venv / 'bin'}:{base}:/usr/local/bin:/usr/bin:/bin"}


def call(words: Sequence[str], where: Path, environment: Mapping[str, str]) -> str:
    """What a command prints, which must succeed."""
    print(f"+ {shlex.join(words)}", flush=True)
    done = subprocess.run(
        words, cwd=where, env=dict(environment), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def differences(frozen: str) -> Iterator[str]:
    """Packages that `pip freeze` lists at another version than the tested one."""
    tested = dict(
        pinned(line)
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    for line in frozen.splitlines():
        name, version = pinned(line)
        # A CPU build of torch is 2.13.0+cpu; the code itself is no pinned line.
        if version and version.partition("+")[0] != tested.get(name):
            yield f"{name} {version}, tested with {tested.get(name)}"


def pinned(line: str) -> tuple[str, str]:
    """Name, as package indices compare names, and version of a line of pip's; "" for no version."""
    name, _, version = line.partition("==")
    return re.sub(r"[-_.]+", "-", name.strip()).lower(), version.partition(";")[0].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-index", default="", help="index of CPU builds of torch")
    index = parser.parse_args().torch_index
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="engram-image-") as scratch:
        folder = Path(scratch)
        venv = install(folder, {"TORCH_INDEX": index})
        code = folder / "code"
        for word, rest in stages()[1]:
            if word == "COPY" and not rest.startswith("--from"):
                copied(rest, code)
        environment = clean(venv) | {"PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}
        frozen = call(["pip", "freeze"], code, environment)
        wrong = list(differences(frozen))
        if wrong:
            sys.exit("not at their tested versions: " + "; ".join(wrong))
        found = call(["python", "-c", "import deploy; print(deploy.__file__)"], folder, environment)
        if not found.startswith(str(code)):
            sys.exit(f"the code is found at {found}")
        call(["engram", "doctor", "--runs", str(folder / "runs")], code, environment)
        call(["engram", "plan", "configs/demo.yaml", f"runs={folder / 'runs'}"], code, environment)
        packages = len(frozen.splitlines())
    print(f"{packages} packages at their tested versions in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
