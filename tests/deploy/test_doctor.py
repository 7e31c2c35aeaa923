"""`engram doctor`: on this machine as it is, and on machines that lack something."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from common.failures import EXIT_FAILED, InputError
from deploy.cli import run_command
from deploy.doctor.check import Check, checks_text, healthy, verdict
from deploy.doctor.cluster import cluster_checks, room_check, version_check
from deploy.doctor.machine import (
    Driver,
    disk_check,
    judge_gpus,
    memory_check,
    path_check,
    port_check,
    shm_check,
)
from deploy.doctor.packages import Declared, declared, extra_checks, package_checks
from tests.job_server import token_head

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_this_machine_is_judged_without_torch_ray_or_a_file(tmp_path: Path) -> None:
    code = (
        "import sys, resource\n"
        "from deploy.cli import run_command\n"
        "code = run_command(['doctor', '--json'])\n"
        "heavy = {'torch', 'ray', 'transformers', 'pyarrow'} & sys.modules.keys()\n"
        "sys.stderr.write(f'heavy {sorted(heavy)}\\n')\n"
        "sys.exit(code)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "heavy []" in done.stderr
    assert list(tmp_path.iterdir()) == []
    found = json.loads(done.stdout)
    assert found["healthy"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert {"Python", "torch", "ray", "GPUs", "/dev/shm", "runs", "extra vllm"} <= checks.keys()
    assert checks["torch"]["found"] == metadata.version("torch")
    # Seconds of CPU, which do not depend on what else the machine does.
    assert after.ru_utime - before.ru_utime < 3


def test_the_table_has_a_mend_for_all_that_is_not_ok(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "--address", "127.0.0.1:1"]) == EXIT_FAILED
    said = capsys.readouterr().out
    assert said.endswith("\nruns would fail here: cluster\n")
    lines = said.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("  missing ", "  warning ", "  optional ")):
            assert "→" in lines[number + 1], line


def test_a_check_that_is_missing_decides() -> None:
    fine, worse = Check("a", "ok", "1"), Check("b", "warning", "2", "do this")
    gone, extra = Check("c", "missing", "3", "do that"), Check("d", "optional", "4", "or so")
    assert healthy([fine, worse, extra])
    assert not healthy([fine, gone])
    assert verdict([fine, extra]) == "runs can start here"
    assert verdict([worse]) == "runs can start here; 1 warning above"
    assert verdict([worse, gone]) == "runs would fail here: c"
    assert checks_text("All", [fine, gone]).splitlines() == [
        "All",
        "  ok        a  1",
        "  missing   c  3",
        "               → do that",
    ]


def only(requirement: str, pin: str | None = None) -> Check:
    wanted = Requirement(requirement)
    pins = {wanted.name: Version(pin)} if pin else {}
    return package_checks(Declared([wanted], {}, pins))[0]


def test_packages_are_judged_by_range_pin_and_extra() -> None:
    here = metadata.version("pydantic")
    assert only("pydantic>=2", here) == Check("other packages", "ok", "1 as tested")
    older = only("pydantic>=2", "2.0.0")
    assert (older.state, older.found) == ("warning", f"{here}, tested with 2.0.0")
    assert older.mend == "python -m pip install --constraint constraints.txt 'pydantic==2.0.0'"
    wrong = only("pydantic>=90", "90.1")
    assert (wrong.state, wrong.found) == ("missing", f"{here}, needs >=90")
    gone = only("no-such-package>=1")
    assert (gone.state, gone.found) == ("missing", "not installed")
    assert "'no-such-package>=1'" in gone.mend
    torch = only("torch", Version(metadata.version("torch")).public)
    assert torch.state == "ok", "a build for CPUs is of the same version"
    # An extra of Ray that needs CUDA, which no test has.
    lacking = only("ray[adag]")
    assert lacking.state == "missing"
    assert "without cupy-cuda12x of [adag]" in lacking.found


def test_an_extra_is_optional_unless_it_is_there_in_a_wrong_version() -> None:
    here = metadata.version("pytest")
    extras = {
        "fine": [Requirement("pytest")],
        "gone": [Requirement("pytest"), Requirement("no-such-package")],
        "old": [Requirement("pytest>=900")],
    }
    fine, gone, old = extra_checks(Declared([], extras, {}))
    assert (fine.state, fine.found) == ("ok", f"pytest {here}")
    assert (gone.state, gone.found) == ("optional", "without no-such-package")
    assert gone.mend.endswith("'.[gone]'")
    assert (old.state, old.found) == ("warning", f"pytest {here}, needs >=900")


def test_without_a_checkout_the_metadata_say_what_is_asked_for(tmp_path: Path) -> None:
    found, checkout = declared(tmp_path), declared(ROOT)
    assert {each.name for each in found.runtime} >= {"ray", "torch", "transformers"}
    assert found.extras.keys() >= {"vllm", "peft"}
    assert all(each.name != "vllm" for each in found.runtime)
    assert found.pins == {}
    assert checkout.pins["torch"] == Version("2.13.0")
    (check,) = [each for each in package_checks(found) if each.name == "tested versions"]
    assert check.state == "warning"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("constraints.txt", "# fine\ntorch>2\n", r"constraints\.txt:2: 'torch>2' is no pinned"),
        ("constraints.txt", "torch==2.13.0\n-e .\n", r"constraints\.txt:2: '-e \.' is no pinned"),
        ("pyproject.toml", "[project\n", r"pyproject\.toml: cannot be read"),
        ("pyproject.toml", "[project]\nname = 'x'\n", r"pyproject\.toml: cannot be read"),
        ("pyproject.toml", "[project]\ndependencies = ['a b']\n", r"pyproject\.toml: cannot be"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        declared(tmp_path)


def test_gpus_are_judged_with_the_torch_that_would_use_them() -> None:
    h200 = Driver(["H200 140 GiB"] * 2, (12, 8))

    def judged(found: Driver | None, built: str | None, *devices: str) -> Check:
        (check,) = judge_gpus(found, built, [Path(device) for device in devices])
        return check

    assert judged(None, None).state == "ok"
    assert judged(None, "12.8", "/dev/nvidia0").state == "warning"
    assert judged(h200, "12.9") == Check("GPUs", "ok", "2: H200 140 GiB; CUDA 12.9, driver 12.8")
    assert "built for CPUs" in judged(h200, None).found
    assert judged(h200, "13.0").state == "missing"
    assert judged(Driver([], (12, 8)), "12.8").mend == "unset CUDA_VISIBLE_DEVICES"


def test_a_place_that_cannot_hold_runs_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert disk_check("runs", tmp_path / "new" / "runs", "").state in ("ok", "warning")
    assert not (tmp_path / "new").exists()
    check = disk_check("runs", tmp_path / "file" / "runs", "elsewhere")
    assert (check.state, check.mend) == ("missing", "elsewhere")


def test_limits_of_a_container_count(tmp_path: Path) -> None:
    assert memory_check(tmp_path).state == memory_check().state
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_check(tmp_path) == memory_check(tmp_path / "none")
    (tmp_path / "memory.max").write_text(f"{2 * 2**30}\n")
    check = memory_check(tmp_path)
    assert (check.state, check.found) == ("warning", "2 GiB, small runs need 4 GiB")
    assert shm_check(tmp_path / "shm").found == "is not there: objects go to disk"


def test_a_port_in_use_and_a_long_path_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        check = port_check(port, "Ray's dashboard")
        assert check.state == "warning"
        assert check.found == "Address already in use: Ray's dashboard"
    assert port_check(port, "Ray's dashboard").state == "ok"
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 60}")
    assert path_check().state == "missing"
    assert "RAY_TMPDIR" in path_check().found


def test_a_cluster_that_does_not_fit_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version_check(metadata.version("ray")).state == "ok"
    assert version_check("2.40.0").found == f"ray 2.40.0 there, {metadata.version('ray')} here"
    assert room_check([{}, {"memory": 1}]).state == "missing"
    two = room_check([{"CPU": 3.0}, {"CPU": 8.0, "GPU": 1.0}])
    assert two.found.startswith("11 CPUs (at most 8 on a node), 1 GPUs (at most 1 on a node); ")
    for address, said in (
        ("http://127.0.0.1:1", "no Ray job server answers"),
        ("127.0.0.1:1", "no Ray cluster answers"),
        ("nonsense:port", "is not HOST:PORT"),
        ("ray://127.0.0.1:10001", "Ray Client address"),
    ):
        (check,) = cluster_checks(address)
        assert check.state == "missing"
        assert said in check.found


def test_the_environments_cluster_is_looked_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert run_command(["doctor", "--json"]) == EXIT_FAILED
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] is False
    assert found["checks"][-1]["name"] == "cluster"


@pytest.mark.cluster
def test_a_real_cluster_answers_by_both_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with token_head() as head:
        monkeypatch.delenv("RAY_AUTH_MODE")
        monkeypatch.setenv("HOME", str(head.home / "nobody"))
        (refused,) = cluster_checks(head.address)
        assert "asks for a token and there is none here" in refused.found
        monkeypatch.setenv("HOME", str(head.home))
        deadline = time.monotonic() + 60  # the head tells of its own node some seconds later
        while any(check.state != "ok" for check in cluster_checks(head.address)):
            assert time.monotonic() < deadline, cluster_checks(head.address)
            time.sleep(0.5)
        environment = os.environ | {"RAY_AUTH_MODE": "token"}
        done = subprocess.run(
            [sys.executable, "-m", "deploy", "doctor", "--json", "--address", head.gcs],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert found["cluster"]["found"] == f"{head.gcs}, 1 nodes"
        assert found["its room"]["found"].startswith("4 CPUs")
