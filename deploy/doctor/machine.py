"""This machine: CPUs, memory, GPUs, `/dev/shm`, disk, paths, ports and file descriptors. Starts
nothing and imports neither torch nor Ray."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import resource
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.failures import InputError
from deploy.doctor.check import Check
from deploy.local_ray import OBJECT_STORE_BYTES, require_short_paths, scratch

MEMORY_BYTES = 4 * 2**30
"""Memory of a small run: Ray's own processes take half a gigabyte, each actor 200 MB or more."""
SHM_BYTES = OBJECT_STORE_BYTES + 2**26
FREE_BYTES = 5 * 2**30
FULL = 0.95
"""Ray writes no more objects to a disk that is fuller than this."""
DESCRIPTORS = 4096
"""Open files that a head with a few dozen actors may need."""
PORTS = {6379: "the cluster's state, with ray start --head", 8265: "Ray's dashboard and jobs"}
TOOLS = {
    "kubectl": ("deploys on Kubernetes", "https://kubernetes.io/docs/tasks/tools/"),
    "prometheus": ("keeps metrics", "apt-get install prometheus"),
}


def machine_checks(runs: Path) -> list[Check]:
    """All checks of this machine. runs: the folder in which runs are to lie."""
    return [
        cpu_check(),
        memory_check(),
        *gpu_checks(),
        shm_check(),
        *disk_checks(runs),
        path_check(),
        descriptor_check(),
        *(port_check(port, use) for port, use in PORTS.items()),
        *tool_checks(),
    ]


def cpu_check() -> Check:
    count = len(os.sched_getaffinity(0))
    if count < 2:
        return Check("CPUs", "warning", f"{count}; actors wait for one another", "two or more")
    return Check("CPUs", "ok", str(count))


def memory_check(cgroup: Path = Path("/sys/fs/cgroup")) -> Check:
    """Memory that this process may use: the machine's, or less in a container."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = (cgroup / name).read_text().strip() if (cgroup / name).is_file() else ""
        if text.isdigit():
            total = min(total, int(text))
    if total < MEMORY_BYTES:
        return Check(
            "memory",
            "warning",
            f"{gibibytes(total)}, small runs need {gibibytes(MEMORY_BYTES)}",
            "a larger machine, or a larger memory limit of the container",
        )
    return Check("memory", "ok", gibibytes(total))


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver: names of its GPUs, and the CUDA version that it serves."""

    gpus: Sequence[str]
    cuda: tuple[int, int]


def driver() -> Driver | None:
    """The NVIDIA driver of this machine; None where there is none, or none that works."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number, count = ctypes.c_int(), ctypes.c_int()
    if library.cuInit(0) or library.cuDriverGetVersion(ctypes.byref(number)):
        return None
    if library.cuDeviceGetCount(ctypes.byref(count)):
        return None
    names = []
    for index in range(count.value):
        handle, name = ctypes.c_int(), ctypes.create_string_buffer(100)
        size = ctypes.c_size_t()
        library.cuDeviceGet(ctypes.byref(handle), index)
        library.cuDeviceGetName(name, len(name), handle)
        library.cuDeviceTotalMem_v2(ctypes.byref(size), handle)
        names.append(f"{name.value.decode(errors='replace')} {gibibytes(size.value)}")
    return Driver(names, (number.value // 1000, number.value % 1000 // 10))


def torch_cuda() -> str | None:
    """CUDA version that the installed torch was built for; None: built for CPUs, or not there."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", text, re.MULTILINE)
    return match[1] if match else None


def gpu_checks() -> list[Check]:
    return judge_gpus(driver(), torch_cuda(), sorted(Path("/dev").glob("nvidia[0-9]*")))


def judge_gpus(found: Driver | None, built: str | None, devices: Sequence[Path]) -> list[Check]:
    """found: the driver; built: torch's CUDA version; devices: device files of GPUs."""
    if found is None:
        if devices:
            return [
                Check(
                    "GPUs",
                    "warning",
                    f"{len(devices)} of NVIDIA here, and their driver does not work",
                    "nvidia-smi says why; in a container: the NVIDIA container toolkit",
                )
            ]
        return [Check("GPUs", "ok", "none; runs compute on CPUs")]
    if not found.gpus:
        return [Check("GPUs", "warning", "none visible", "unset CUDA_VISIBLE_DEVICES")]
    names = f"{len(found.gpus)}: {', '.join(sorted(set(found.gpus)))}"
    served = ".".join(map(str, found.cuda))
    if built is None:
        return [
            Check(
                "GPUs",
                "warning",
                f"{names}; torch is built for CPUs and will not use them",
                "python -m pip install --force-reinstall --constraint constraints.txt torch, from "
                "an index of CUDA builds",
            )
        ]
    if int(built.partition(".")[0]) > found.cuda[0]:
        return [
            Check(
                "GPUs",
                "missing",
                f"{names}; torch is built for CUDA {built}, the driver serves {served}",
                "a newer NVIDIA driver, or a torch that is built for an older CUDA",
            )
        ]
    return [Check("GPUs", "ok", f"{names}; CUDA {built}, driver {served}")]


def shm_check(folder: Path = Path("/dev/shm")) -> Check:
    mend = "docker run --shm-size=2g; on Kubernetes an emptyDir with medium: Memory at /dev/shm"
    if not folder.is_dir():
        return Check(str(folder), "warning", "is not there: objects go to disk", mend)
    free = shutil.disk_usage(folder).free
    if free < SHM_BYTES:
        return Check(
            str(folder),
            "warning",
            f"{gibibytes(free)} free, a local run wants {gibibytes(SHM_BYTES)}: objects go to disk",
            mend,
        )
    return Check(str(folder), "ok", f"{gibibytes(free)} free")


def disk_checks(runs: Path) -> list[Check]:
    """Room for runs, and for Ray's own files where that is another disk."""
    folder, variable = scratch()
    checks = [disk_check("runs", runs, "runs=FOLDER on a larger disk")]
    checks.append(disk_check("Ray's files", Path(folder), f"{variable}=FOLDER on a larger disk"))
    return checks


def disk_check(name: str, folder: Path, mend: str) -> Check:
    """folder: may be one that is yet to be made."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(name, "missing", f"{folder} cannot be written to", mend)
    usage = shutil.disk_usage(there)
    share = 1 - usage.free / usage.total if usage.total else 1.0
    words = f"{gibibytes(usage.free)} free in {folder}"
    if share > FULL:
        return Check(name, "warning", f"{words}, {share:.0%} full: Ray stops at {FULL:.0%}", mend)
    if usage.free < FREE_BYTES:
        return Check(name, "warning", f"{words}, less than {gibibytes(FREE_BYTES)}", mend)
    return Check(name, "ok", words)


def path_check() -> Check:
    try:
        require_short_paths()
    except InputError as too_long:
        return Check("Ray's sockets", "missing", str(too_long), "RAY_TMPDIR=/tmp")
    return Check("Ray's sockets", "ok", f"short enough below {scratch()[0]}")


def descriptor_check() -> Check:
    # Ray raises the soft limit to the hard one by itself.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        return Check(
            "open files",
            "warning",
            f"at most {hard}, many actors need {DESCRIPTORS}",
            "ulimit -Hn 65536, as root; docker run --ulimit nofile=65536",
        )
    return Check("open files", "ok", "no limit" if hard == resource.RLIM_INFINITY else f"{hard:,}")


def port_check(port: int, use: str) -> Check:
    """Whether `ray start --head` can have the port; a local run takes free ones."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError as taken:
            return Check(
                f"port {port}",
                "warning",
                f"{taken.strerror}: {use}",
                f"ss -ltnp 'sport = :{port}' says by whom; a cluster that runs already is fine",
            )
    return Check(f"port {port}", "ok", f"free: {use}")


def tool_checks() -> list[Check]:
    checks = []
    for name, (use, source) in TOOLS.items():
        where = shutil.which(name)
        if where:
            checks.append(Check(name, "ok", where))
        else:
            checks.append(Check(name, "optional", f"not in PATH; {use}", source))
    return checks


def gibibytes(size: float) -> str:
    return f"{size / 2**30:,.3g} GiB"
