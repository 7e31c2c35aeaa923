"""Results of benchmarks as files: benchmarks/results/NAME.json, read by `benchmarks.pages`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

from common.storage.run_directory import describe_environment

RESULTS = Path(__file__).parent / "results"


def record(name: str, command: str, measured: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write what `command` measured, with date, machine, versions and commit. Returns the file."""
    result = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine(),
        "environment": describe_environment(),
    } | dict(measured)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def machine() -> str:
    """Processor, cores, memory and GPU of this machine, in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores of {_processor()}, {memory:.0f} GB, {gpu}"


def _processor() -> str:
    """The model name with family and model number, which tell processors of one name apart."""
    fields = {}
    info = Path("/proc/cpuinfo")
    for line in info.read_text().split("\n\n")[0].splitlines() if info.is_file() else ():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    name = fields.get("model name", "an unknown processor")
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return f"{name} ({', '.join(numbers)})" if numbers else name
