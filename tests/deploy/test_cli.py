"""The command line, mostly in process; a few times as the process that a shell would see."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from common.failures import DeadlineExceeded, Drained, InputError
from deploy import cli
from tests.terminal import sentences

ROOT = Path(__file__).resolve().parent.parent.parent


def engram(*words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "here",
                "runs": str(tmp_path),
                "data": {"kind": "synth"},
                "stages": [{"stage": "sft", "steps": 3}],
            }
        )
    )
    return path


def test_help_lists_every_command_without_importing_torch_or_ray() -> None:
    done = engram("--help")
    assert done.returncode == 0
    for command in ("demo", "train", "plan", "submit", "eval", "chat", "data"):
        assert command in done.stdout
    script = (
        "import sys, deploy.cli; sys.exit(bool({'torch', 'ray', 'transformers', "
        "'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["train", "absent.yaml"],
        ["plan", "absent.yaml"],
        ["submit", "absent.yaml", "--address", "http://127.0.0.1:1"],
    ],
)
def test_absent_config_ends_with_2_and_one_sentence(words: list[str]) -> None:
    done = engram(*words)
    assert done.returncode == 2
    assert len(sentences(done.stderr)) == 1
    assert "absent.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_key_is_answered_at_once_with_the_nearest_one(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    assert cli.run_command(["train", str(config), "learner.rank=2"]) == 2
    assert time.monotonic() - start < 5
    error = capsys.readouterr().err
    assert "learner.rank" in error
    assert "ranks" in error
    assert len(sentences(error)) == 1


def test_a_command_line_without_a_config_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["train", "seed=1"]) == 2
    assert "no config file" in capsys.readouterr().err


def test_words_that_typer_does_not_know_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["trian"]) == 2
    assert cli.run_command(["plan", "--fast"]) == 2
    capsys.readouterr()


def test_cluster_that_does_not_answer_ends_with_1_and_names_it(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command(["train", str(config), "--address", "127.0.0.1:1"]) == 1
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err


def test_a_python_without_the_dependencies_ends_with_2_and_says_which_one_it_is() -> None:
    """As in a job on a head that was started without the environment of engram."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "deploy", "train", "absent.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    (said,) = sentences(done.stderr)
    assert said.startswith(f"engram: {sys.executable} has no package typer")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_interrupts_the_end_of_a_command_gives_it_no_other_exit_code(
    number: signal.Signals,
) -> None:
    """A second SIGTERM comes while Ray and the interpreter are taken down."""
    script = (
        "import atexit, signal, sys; from deploy.__main__ import main\n"
        f"atexit.register(signal.raise_signal, {int(number)}); sys.argv = ['engram', 'train', "
        "'absent.yaml']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert len(sentences(done.stderr)) == 1


def test_a_second_interrupt_while_modules_are_imported_ends_with_75_too() -> None:
    script = (
        "import signal, sys; from deploy.__main__ import main\n"
        "def twice(event, args):\n"
        "    if event == 'import' and args[0] == 'deploy.cli':\n"
        f"        for _ in range(2): signal.raise_signal({int(signal.SIGTERM)})\n"
        "sys.addaudithook(twice); sys.argv = ['engram', 'demo']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 75, done.stderr
    assert done.stderr == "engram: stopped; the same command goes on from there\n"


def test_an_interrupt_of_a_text_that_is_executed_ends_with_75_too(tmp_path: Path) -> None:
    """As in an import that makes a data class: `python -m` would end by SIGINT, with -2."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\n"
        "from deploy import __main__ as entry\n"
        "entry.run = lambda: exec('raise KeyboardInterrupt')\n"
        "sys.argv = ['engram', 'demo']\n"
        "entry.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 75, done.stderr


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("number", "delay"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 2.0), (signal.SIGTERM, 4.5)]
)
def test_training_interrupted_before_there_is_anything_of_it_ends_with_75(
    config: Path, number: signal.Signals, delay: float
) -> None:
    """While modules are imported, while Ray starts, while the run is set up: when exactly depends
    on the machine."""
    command = [sys.executable, "-m", "deploy", "train", str(config), "data.train=20000"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until_taken(signal.SIGTERM, process)
        time.sleep(delay)
        process.send_signal(number)
        _, error = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 75, error
    assert error.splitlines()[-1] == "engram: stopped; the same command goes on from there"
    assert "Traceback" not in error


def wait_until_taken(number: signal.Signals, process: subprocess.Popen[str]) -> None:
    """Until a process has a handler for a signal, as the kernel says."""
    for _ in range(600):
        line = next(
            line
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if line.startswith("SigCgt:")
        )
        if int(line.split()[1], 16) >> (number - 1) & 1:
            return
        time.sleep(0.05)
    raise AssertionError(f"{number.name} was never taken")


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_address_of_a_job_server_is_sent_to_submit(
    config: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command(["train", str(config), "--address", address]) == 2
    assert "engram submit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "code", "traceback"),
    [
        (InputError("rows.jsonl:3", "no\nquery"), 2, False),
        (Drained("stopped at step 4; start it again to go on"), 75, False),
        (DeadlineExceeded("a batch of episodes", 60.0), 1, False),
        (ZeroDivisionError("division by zero"), 1, True),
    ],
)
def test_failures_become_exit_codes(
    failure: Exception,
    code: int,
    traceback: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(cli, "train_run", fail)
    assert cli.run_command(["demo"]) == code
    error = capsys.readouterr().err
    assert ("Traceback" in error) == traceback
    assert " ".join(str(failure).split()) in error


def test_the_traceback_of_a_users_code_keeps_its_lines() -> None:
    trace = 'Traceback (most recent call last):\n  File "mine.py", line 2, in score\nNameError: x'
    failure = InputError("mine.py:score", f"fails on\n a turn: {trace}")
    assert cli.one_sentence(failure) == f"mine.py:score: fails on a turn: {trace}"


def test_split_takes_words_with_equals_as_overrides_unless_a_file_has_that_name(
    tmp_path: Path,
) -> None:
    odd = tmp_path / "lr=1.yaml"
    odd.write_text("")
    assert cli.split(["a.yaml", "seed=1", str(odd), "b.yaml"]) == (
        ["a.yaml", str(odd), "b.yaml"],
        ["seed=1"],
    )


def test_plan_shows_what_would_run_and_writes_nothing(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.run_command(["plan", str(config), "--full", "stages.0.batch_size=6", "learner.ranks=2"])
        == 0
    )
    out = capsys.readouterr().out
    for part in (
        "name: here",
        "learner rank",
        "Batches",
        "optimiser steps",
        "Parameters",
        "Memory of a learner rank",
    ):
        assert part in out
    assert not (config.parent / "here").exists()


def test_the_version_is_that_of_the_package() -> None:
    done = engram("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "engram")
    assert done.stdout.split()[1] == importlib.metadata.version("engram-rl")
