"""The cluster a run opens on a laptop, in processes of its own: this one may already hold a Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.config.run import Run
from common.failures import InfraFailure, InputError
from common.telemetry.progress import QuietProgress
from deploy.cluster import connect, keep_actor_logs, lacking, require_room, start_ray

ROOT = Path(__file__).resolve().parent.parent.parent

PRELUDE = """
import os, signal, sys
from common.config.run import Run
from deploy.cluster import connect

run = Run.model_validate_json(sys.argv[1])
"""

WORKS = """
try:
    with connect(run):
        import ray

        @ray.remote
        class Speaker:
            def say(self):
                print("words of an actor")
                return os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]

        print("cpus", ray.cluster_resources()["CPU"])
        speaker = Speaker.remote()
        print("interval", ray.get(speaker.say.remote()))
        os.kill(os.getpid(), signal.SIGTERM)
        print("not stopped")
except KeyboardInterrupt:
    print("stopped in order", ray.is_initialized())
"""

LEAVES = """
import atexit, threading, time
import deploy.__main__ as entry
from learner.learner_thread import LEARNER_THREAD

def run_and_leave():
    import ray

    atexit.register(print, "the interpreter ended, and Ray with it")
    try:
        with connect(run, sys.argv.pop()):
            @ray.remote(num_cpus=0)
            class Controller:
                def began(self):
                    return True

                def run(self):
                    time.sleep(60)

            controller = Controller.remote()
            ray.get(controller.began.remote())
            never = controller.run.remote()
            wait = {"target": ray.get, "args": (never,), "daemon": True}
            threading.Thread(name=LEARNER_THREAD, **wait).start()
            raise OSError("the driver cannot go on")
    except OSError as error:
        print(error, "shut down:", not ray.is_initialized())
        return 7

entry.run = run_and_leave
entry.main()
"""


def python(script: str, run: Run) -> str:
    # Settings of this test session must not stand in for those that connect() makes.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_ADDRESS")
    }
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, run.model_dump_json()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def small_run(folder: Path, **learner: int) -> Run:
    mrl = {"stage": "mrl", "curriculum": [{"name": "all", "iterations": 1, "max_steps": 1}]}
    return Run.model_validate(
        {
            "name": "laptop",
            "runs": str(folder),
            "data": {"kind": "synth"},
            "stages": [mrl],
            "learner": learner,
            "rollout": {"workers": 5},
        }
    )


@pytest.mark.cluster
def test_a_laptops_cluster_admits_all_actors_keeps_their_words_and_stops_in_order(
    tmp_path: Path,
) -> None:
    out = python(WORKS, small_run(tmp_path, ranks=2))
    cpus = float(out.split("cpus ")[1].split()[0])
    assert cpus >= 5 + 2 + 0.5 + 0.25
    assert "interval 0.1" in out
    assert "stopped in order False" in out
    assert "not stopped" not in out
    assert (tmp_path / "laptop" / "logs" / "speaker.out").read_text() == "words of an actor\n"


class Told(QuietProgress):
    def __init__(self) -> None:
        self.done: list[str] = []

    def doing(self, what: str) -> AbstractContextManager[None]:
        self.done.append(what)
        return nullcontext()


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_a_driver_that_leaves_a_running_learner_group_ends_with_its_own_exit_code(
    tmp_path: Path,
) -> None:
    """Ray's shutdown frees what the group's thread is in, which ends many a process by SIGSEGV."""
    import ray

    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + LEAVES, small_run(tmp_path).model_dump_json(), address],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == "the driver cannot go on shut down: False\n"


@pytest.mark.usefixtures("ray_local")
def test_a_cluster_that_lacks_gpus_says_what_is_missing(tmp_path: Path) -> None:
    require_room(small_run(tmp_path), "local", patience=0)
    start, told = time.monotonic(), Told()
    with pytest.raises(
        InfraFailure, match="too small for this run: GPU 64 needed, 0 there; add nodes"
    ):
        require_room(small_run(tmp_path, gpus_per_rank=64), "local", patience=1, progress=told)
    assert 1 <= time.monotonic() - start < 10
    assert told.done == [
        "waiting at most 1 s for room (learner.start_deadline): GPU 64 needed, 0 there"
    ]


def test_room_is_counted_on_nodes_with_the_labels_that_a_role_wants(tmp_path: Path) -> None:
    def node(cpus: float, alive: bool = True, **labels: str) -> dict[str, Any]:
        return {"Alive": alive, "Resources": {"CPU": cpus}, "Labels": labels}

    run = small_run(tmp_path, ranks=2, node_labels={"group": "learner"})
    nodes = [node(8, group="rollout"), node(2, group="learner")]
    assert lacking(run, nodes) == []
    assert lacking(run, [node(8), node(8, alive=False, group="learner")]) == [
        "CPU 2 needed on nodes with group=learner (learner rank), 0 there"
    ]
    assert lacking(run, [node(1, group="learner")])[-1].endswith(
        "2 needed on nodes with group=learner (learner rank), 1 there"
    )


def test_an_address_without_a_port_is_bad_input(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="HOST:PORT"),
        connect(small_run(tmp_path), "somewhere:port"),
    ):
        pass


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        (Exception("the node timed out"), InfraFailure, "not start on this machine: the node"),
        (ConnectionError("nobody there"), InfraFailure, "machine: nobody there; on a machine that"),
        (OSError(28, "No space left on device"), InputError, "No space left on device; set RAY_T"),
    ],
)
def test_whatever_ray_raises_at_its_start_is_one_sentence(
    raised: Exception,
    kind: type[Exception],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(kind, match=says):
        start_ray(small_run(tmp_path), "local")


def test_a_node_that_is_late_is_started_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = iter([Exception("The current node timed out during startup."), None])

    def start(**_: object) -> SimpleNamespace:
        late = next(tries)
        if late is not None:
            raise late
        return SimpleNamespace(address_info={"session_dir": "here"})

    monkeypatch.setattr("ray.init", start)
    assert start_ray(small_run(tmp_path), "local") == "here"


def test_only_words_that_actors_really_said_are_kept(tmp_path: Path) -> None:
    session = tmp_path / "session"
    session.mkdir()
    said = {
        "worker-a-01-77.out": ":job_id:01\n:actor_name:Rollout\n:actor_name:rollout-worker-1\nhi\n",
        "worker-a-01-77.err": ":job_id:01\n:actor_name:Rollout\n",
        "worker-b-01-78.err": "crashed\n",
        "worker-c-01-79.out": ":actor_name:rollout-worker-1\nback again\n",
        "worker-d-01-80.err": ":actor_name:TrainController\nstarted\n",
        "raylet.out": "noise\n",
    }
    for name, text in said.items():
        (session / name).write_text(text)
    keep_actor_logs(session, tmp_path / "logs")
    assert {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()} == {
        "rollout-worker-1.out": "hi\nback again\n",
        "worker.err": "crashed\n",
        "train-controller.err": "started\n",
    }
