"""Render every overlay with `kubectl kustomize` into deploy/kuberay/rendered/, for machines that
have no kubectl: `python -m deploy.kuberay.render`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from deploy.output import echo

FOLDER = Path(__file__).resolve().parent
OVERLAYS = (
    "kind/cluster",
    "kind/job",
    "cpu/cluster",
    "cpu/job",
    "gpu/cluster",
    "gpu/job",
    "nightly",
    "own-data",
    "options",
)
HEAD = "# Made by `python -m deploy.kuberay.render` of deploy/kuberay/overlays/{}; do not edit.\n"
DEADLINE = 60.0


def rendered(overlay: str) -> str:
    """Text of an overlay's documents. Raises CalledProcessError with kubectl's words in `stderr`,
    and FileNotFoundError where there is no kubectl."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    return HEAD.format(overlay) + done.stdout


def place(overlay: str) -> Path:
    """File that holds the rendered overlay."""
    return FOLDER / "rendered" / f"{overlay.replace('/', '-')}.yaml"


def main() -> None:
    for overlay in OVERLAYS:
        target = place(overlay)
        target.parent.mkdir(exist_ok=True)
        target.write_text(rendered(overlay), encoding="utf-8")
        echo(str(target.relative_to(FOLDER)))


if __name__ == "__main__":
    main()
