"""The driver of a loop with people is killed by SIGKILL, as a shell sees it, on a local Ray: the
same command goes on, asks nothing twice and trains nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import yaml

from common.failures import EXIT_DRAINED
from common.storage.run_directory import RunDirectory
from deploy.feedback.answers import question_of, read_questions
from deploy.feedback.rounds import preferences_file, questions_file
from deploy.label.judgements import read_labels
from learner.summary import SUMMARY, last_status
from tests.deploy.test_feedback import label, loop_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.cluster
@pytest.mark.timeout(420)
@pytest.mark.usefixtures("ray_local")
def test_a_driver_that_is_killed_between_its_steps_loses_nothing_and_asks_nothing_twice(
    tmp_path: Path,
) -> None:
    loop = loop_of(tmp_path, compared=0.0)
    config = tmp_path / "loop.yaml"
    config.write_text(yaml.safe_dump(loop.model_dump(mode="json")))
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "deploy", "feedback", str(config), "--address", address]
    questions, labels = questions_file(loop, 1), tmp_path / "loop" / "labels.jsonl"

    killed_when(command, questions.is_file, tmp_path / "asking")
    asked = questions.read_bytes()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == EXIT_DRAINED, done.stderr
    assert questions.read_bytes() == asked, "who is shown a question is shown it again"

    first = label(loop)
    told = labels.read_bytes()
    reward = RunDirectory(str(tmp_path), "loop-round-1-reward")
    killed_when(
        command,
        lambda: reward.exists(SUMMARY) and last_status(reward) == "done",
        tmp_path / "training",
    )
    policy = RunDirectory(str(tmp_path), "loop-round-1")
    assert not policy.exists(SUMMARY) or last_status(policy) != "done"
    assert labels.read_bytes() == told
    rows = preferences_file(loop, 1).read_bytes()
    judge = {path: path.stat().st_mtime_ns for path in Path(reward.path()).rglob("*.safetensors")}
    assert judge

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == EXIT_DRAINED, done.stderr
    assert "round 2 waits for labels: 0 of " in " ".join(done.stderr.split())
    assert last_status(policy) == "done"
    assert (questions.read_bytes(), labels.read_bytes()) == (asked, told)
    assert preferences_file(loop, 1).read_bytes() == rows
    assert {path: path.stat().st_mtime_ns for path in judge} == judge, "trained once"
    (finished,) = json.loads((tmp_path / "loop" / "feedback.json").read_text())["rounds"]
    assert finished["judged"] == first

    again = {question_of(each).id for each in read_questions(loop, 2)}
    assert label(loop) == len(again - {question_of(each).id for each in read_questions(loop, 1)})
    judged = Counter(each.question.id for each in read_labels(labels).judgements)
    assert set(judged.values()) == {1}


def killed_when(command: list[str], holds: Callable[[], bool], log: Path) -> None:
    """Start the command, and kill it once something holds."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 180
        while not holds():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
