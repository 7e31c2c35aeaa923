"""The actor that tests of pools call. Its module imports little, because every actor imports it:
with RLlib, which the pool itself needs, a start takes seven seconds of CPU."""

from __future__ import annotations

import os
import signal
import time

import ray

from common.actors.actor import PooledActor
from common.failures import DataFailure, InfraFailure, InputError


@ray.remote(num_cpus=0.1, max_restarts=-1, max_task_retries=0)
class Worker(PooledActor):
    def __init__(self) -> None:
        self.version = -1

    def pid(self) -> int:
        return os.getpid()

    def add(self, a: int, b: int) -> int:
        return a + b

    def sleep(self, seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    def refuse(self, how: str) -> None:
        raise {
            "data": DataFailure("bad row"),
            "input": InputError("row 3", "no query"),
            "bug": KeyError("x"),
            "infra": InfraFailure("disk"),
        }[how]

    def set_version(self, version: int) -> int:
        self.version = version
        return version

    def served_with(self) -> int:
        return self.version

    def die(self, seconds: float = 0) -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)
