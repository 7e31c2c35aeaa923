"""Which process on which host: enough to tell, later and from another process, if it is still
there.

A process id alone does not say: it is used again. Within one boot of one kernel and one namespace
of process ids, the id and the moment at which the process started do.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_STATE, _STARTED = 0, 19
"""Fields of /proc/PID/stat after the command's closing bracket: `state` and `starttime` (3 and 22
in proc_pid_stat(5))."""
_ENDED = ("Z", "X", "x")
"""Zombies run nothing any more: only their parent has not asked for their exit code yet."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    host: str
    """The kernel's boot and the namespace of process ids: containers on one machine share the boot
    and may share a host name, yet process 7 of one is not process 7 of the other."""
    host_name: str
    """For readers only."""
    pid: int
    started: str
    """Clock ticks after the boot."""

    @classmethod
    def own(cls) -> ProcessIdentity:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        host = f"{boot} {os.readlink('/proc/self/ns/pid')}"
        return cls(host, socket.gethostname(), os.getpid(), _stat(os.getpid())[_STARTED])

    def lives(self) -> bool | None:
        """Whether the process is there, stopped (SIGSTOP) or not; None where it cannot be seen."""
        if self.host != ProcessIdentity.own().host:
            return None
        try:
            stat = _stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            # Other users' processes may be hidden in /proc (option hidepid); signal 0 finds them.
            return None if _takes_signals(self.pid) else False
        return stat[_STARTED] == self.started and stat[_STATE] not in _ENDED


def _stat(pid: int) -> list[str]:
    # The command stands in brackets and may hold spaces and brackets itself.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _takes_signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
