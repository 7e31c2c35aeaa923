"""Reward functions that would take their caller down, or hold it: what they do costs the turn that
they are called for, and no other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config.components import FunctionReward
from common.config.rewards import RewardMix, Rewards
from common.episode import Fact, Interaction, Row, Turn
from common.failures import EXIT_BAD_INPUT, EXIT_DONE, InputError
from deploy.cli import run_command
from reward_service.components import function as custom
from reward_service.components.function import close_functions, function_rewards, try_function
from reward_service.components.function_process import TOGETHER
from reward_service.preflight import require_rewards

ROOT = Path(__file__).resolve().parents[2]
SOON = 8.0
"""Seconds in which a process starts on a busy machine, and far less than the deadline of the
functions below."""

Write = Callable[..., FunctionReward]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """A section for `judge` of a file with this text."""

    def write(text: str, **settings: Any) -> FunctionReward:
        file = tmp_path / f"judge_{len(list(tmp_path.iterdir()))}.py"
        file.write_text(textwrap.dedent(text))
        return FunctionReward(
            **{"name": "judge", "path": f"{file}:judge", "deadline": 60, **settings}
        )

    yield write
    close_functions()


def turns(*answers: str) -> list[Turn]:
    return [
        Turn(
            [2, 9, 6],
            [10, 3],
            [-1.0] * 2,
            [10, 3],
            query="how?",
            answer=answer,
            facts=(Fact("Rex", 0),),
        )
        for answer in answers
    ]


def gone(pid: int) -> bool:
    """Whether the process has ended: nothing is left of it, or its exit code alone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


ENDINGS = {
    "raise SystemExit('no licence')": "SystemExit: no licence",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise GeneratorExit": "GeneratorExit",
    "import asyncio; raise asyncio.CancelledError('client "
    "closed')": "CancelledError: client closed",
    "raise type('Panic', (BaseException,), {})('of another "
    "language')": "Panic: of another language",
    "exit(0)": "SystemExit: 0",
    "import os; os._exit(0)": "ended, with exit code 0",
    "import os; os.abort()": r"ended, by signal 6 \(SIGABRT\)",
    "import ctypes; ctypes.string_at(1)": r"ended, by signal 11 \(SIGSEGV\)",
    "import os; os.kill(os.getpid(), 9)": r"ended, by signal 9 \(SIGKILL\)",
    "import os; os.closerange(3, 65536)": "ended",
    # A process that it left behind keeps its pipes open.
    "import os, time; os.fork() or time.sleep(90); os._exit(3)": "ended, with exit code 3",
}


@pytest.mark.parametrize("statement", ENDINGS)
def test_whatever_ends_a_call_is_the_failure_of_its_turn_at_once(
    write: Write, statement: str
) -> None:
    section = write(f"""\
        def judge(turn):
            if turn.answer == "end":
                {statement}
            return len(turn.answer)
    """)
    began = time.monotonic()
    before, failed, after = function_rewards(section, turns("a", "end", "bcd"))
    assert time.monotonic() - began < SOON
    assert (before, after) == (1.0, 3.0)
    assert isinstance(failed, str)
    assert re.search(ENDINGS[statement], failed), failed
    assert "query 'how?' and answer 'end'" in failed
    assert "no value within" not in failed


HOLDS = {
    "a regular expression": "import re; re.fullmatch(r'(a|a?)+b', 'a' * 64)",
    "signals ignored": "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (2, "
    "15)]; time.sleep(90)",
    "a process that stops": "import os; os.kill(os.getpid(), 19)",
    "a nonsense answer": "import os; [os.write(fd, b'x' * 99) for fd in range(3, 9) if "
    "writes(fd)]; time.sleep(90)",
}


@pytest.mark.parametrize("how", HOLDS)
def test_a_call_that_holds_its_process_is_over_at_its_deadline(write: Write, how: str) -> None:
    section = write(
        f"""\
import time

def writes(fd):
    import fcntl
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL) & 3 == 1
    except OSError:
        return False

def judge(turn):
    if turn.answer == "hold":
        import os
        with open(__file__ + ".pid", "w") as file:
            file.write(str(os.getpid()))
        {HOLDS[how]}
    return 1
""",
        deadline=1.5,
    )
    began = time.monotonic()
    outcomes = function_rewards(section, turns("a", "hold", "b"))
    assert time.monotonic() - began < 1.5 + SOON
    assert (outcomes[0], outcomes[2]) == (1.0, 1.0)
    assert "answer 'hold'" in str(outcomes[1])
    assert gone(int(Path(section.path.removesuffix(":judge") + ".pid").read_text()))


def test_a_function_is_kept_between_calls_with_what_it_has_learnt_and_what_it_prints_is_no_answer(
    write: Write,
) -> None:
    section = write("""\
        import os, sys
        seen = []

        def judge(turn, step=1):
            seen.append(turn)
            print("a line of its own" * 9999)
            os.write(1, b"and another")
            return step * len(seen) + turn.facts[0].said_in
    """)
    assert function_rewards(section, turns("a", "b")) == [1.0, 2.0]
    assert function_rewards(section, turns("c")) == [3.0]
    many = turns(*"x" * (2 * TOGETHER + 1))
    assert function_rewards(section, many) == [float(i) for i in range(4, 4 + len(many))]
    # Other arguments, another process.
    assert function_rewards(section.model_copy(update={"arguments": {"step": 10}}), turns("d")) == [
        10.0
    ]


def test_threads_that_call_one_function_get_the_outcomes_of_their_own_turns(write: Write) -> None:
    section = write(
        "import time\ndef judge(turn):\n    time.sleep(0.001)\n    return float(turn.answer)\n"
    )
    found: dict[int, list[Any]] = {}
    function_rewards(
        section, turns("0")
    )  # or each would start a process, before one of them is kept

    def ask(number: int) -> None:
        found[number] = function_rewards(section, turns(*[str(number)] * 40))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [float(number)] * 40 for number in range(5)}


def test_a_function_may_be_asynchronous(write: Write) -> None:
    section = write(
        """\
        import asyncio
        loops = set()

        async def judge(turn):
            await asyncio.sleep(0.001)
            loops.add(id(asyncio.get_running_loop()))
            if turn.answer == "cancelled":
                asyncio.current_task().cancel()
                await asyncio.sleep(1)
            if turn.answer == "hang":
                await asyncio.sleep(90)
            return None if turn.answer == "none" else len(loops)
        """,
        deadline=1.5,
    )
    one, none, cancelled, again, hung = function_rewards(
        section, turns("a", "none", "cancelled", "b", "hang")
    )
    assert (one, none, again) == (
        1.0,
        None,
        1.0,
    )  # one loop for all: a client that is kept goes on working
    assert "CancelledError" in str(cancelled)
    assert "no value within 1.5 s" in str(hung)


@pytest.mark.parametrize("holding", ["import re; re.fullmatch(r'(a|a?)+b', 'a' * 64)", "pass"])
def test_a_function_and_what_it_started_end_with_the_process_that_it_works_for(
    write: Write, holding: str
) -> None:
    section = write(f"""\
        import os, subprocess

        def judge(turn):
            started = subprocess.Popen(["sleep", "300"])
            with open(__file__ + ".tmp", "w") as file:
                file.write(f"{{os.getpid()}} {{started.pid}}")
            os.rename(__file__ + ".tmp", __file__ + ".pids")
            {holding}
    """)
    pids = Path(section.path.removesuffix(":judge") + ".pids")
    asking = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(f"""\
            import time
            from common.config.components import FunctionReward
            from common.episode import Turn
            from reward_service.components.function import function_rewards
            function = FunctionReward(name="f", path={section.path!r})
            function_rewards(function, [Turn([], [], [], [])])
            time.sleep(300)
        """)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    until(pids.exists)
    function, started = map(int, pids.read_text().split())
    assert not gone(function)
    assert not gone(started)
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    until(lambda: gone(function) and gone(started))


# --- at the door ----------------------------------------------------------------------------------

AT_IMPORT = {
    "sys.exit(0)": "SystemExit: 0, which would end the run",
    "sys.exit('done')": "SystemExit: done",
    "os._exit(0)": "ended the process that imported it, with exit code 0",
    "os.kill(os.getpid(), 15)": r"ended the process that imported it, by signal 15 \(SIGTERM\)",
    "raise KeyboardInterrupt": "cannot be imported: KeyboardInterrupt",
    "raise GeneratorExit": "cannot be imported: GeneratorExit",
    "1 / 0": "cannot be imported: ZeroDivisionError: division by zero",
    "input()": "cannot be imported: EOFError",
    "this is no Python": "cannot be imported: .*SyntaxError: invalid syntax",
    "time.sleep(90)": r"was not imported within 3 s; raise the function's `load_deadline`",
}


@pytest.mark.parametrize("statement", AT_IMPORT)
def test_a_file_that_cannot_be_imported_is_refused_by_its_name(
    write: Write, statement: str
) -> None:
    section = write(
        f"import os, sys, time\ndef judge(turn):\n    return 1\n{statement}\n", load_deadline=3
    )
    file = section.path.removesuffix(":judge")
    for attempt in (
        lambda: try_function(section, None),
        lambda: function_rewards(section, turns("a")),
    ):
        with pytest.raises(InputError, match=rf"(?s)^{file}: .*{AT_IMPORT[statement]}"):
            attempt()


def test_a_file_that_could_not_be_imported_is_not_tried_for_every_part_of_a_batch(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = write("""\
        with open(__file__ + ".tries", "a") as file:
            print("tried", file=file)
        import nothing_of_that_name
    """)
    tries = Path(section.path.removesuffix(":judge") + ".tries")
    for _ in range(3):
        with pytest.raises(InputError, match="nothing_of_that_name"):
            function_rewards(section, turns("a"))
    assert len(tries.read_text().splitlines()) == 1
    monkeypatch.setattr(custom, "LOAD_AGAIN_SECONDS", 0.0)
    with pytest.raises(InputError, match="nothing_of_that_name"):
        function_rewards(section, turns("a"))
    assert len(tries.read_text().splitlines()) == 2


def rows() -> list[Row]:
    told = Interaction(
        "what is it called?", "it is called Rex", role="recall", facts=(Fact("Rex", 0),)
    )
    asked = Interaction("how old is it?", "it is 7", role="recall", facts=(Fact("7", 0),))
    return [
        Row("my dog is called Rex", "okay", (told,)),
        Row("my cat is 7", "okay", (asked,), strategy="single"),
    ]


def test_functions_are_tried_on_a_turn_of_the_data_that_they_are_for(write: Write) -> None:
    """A function that only fits the data of its own mix is not refused for what it makes of another
    turn."""
    numeric = write(
        "def judge(turn):\n    return float(turn.reference.split()[-1]) / len(turn.answer_ids) "
        "+ turn.facts[0].said_in\n"
    )
    require_rewards(Rewards(single=RewardMix(functions=(numeric,))), rows())
    with pytest.raises(
        InputError,
        match=r"(?s)fails on a sample turn: Traceback.*could not convert string to float: 'Rex'",
    ):
        require_rewards(Rewards(cumulative=RewardMix(functions=(numeric,))), rows())
    # Without a conversation to take a turn from there is nothing to try it on.
    require_rewards(Rewards(cumulative=RewardMix(functions=(numeric,))), [])
    require_rewards(
        Rewards(long_term=RewardMix(functions=(write("def judge(turn):\n    return None\n"),))),
        rows(),
    )


def test_a_function_that_fails_its_trial_is_refused_with_what_it_said(write: Write) -> None:
    sample = turns("yes")[0]
    for body, what in {
        "raise LookupError('no such "
        "mood')": r"fails on a sample turn: Traceback .*LookupError: no such mood",
        "return 'text'": "could not convert string to float",
        "return float('nan')": "the value is nan",
        "import os; os._exit(4)": "ended, with exit code 4",
        "import time; time.sleep(90)": r"no value within 1 s .*; raise its `deadline`, or have "
        r"it do what takes long when its file",
    }.items():
        section = write(f"def judge(turn):\n    {body}\n", deadline=1)
        with pytest.raises(InputError, match=rf"(?s)^{section.path}: .*{what}"):
            try_function(section, sample)


def test_plan_refuses_a_function_that_does_not_work(
    write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    def plan(section: FunctionReward) -> int:
        functions = f"rewards.cumulative.functions=[{{name: f, path: '{section.path}'}}]"
        return run_command(
            [
                "plan",
                str(ROOT / "configs" / "demo.yaml"),
                "data.train=50",
                "data.eval=10",
                functions,
            ]
        )

    assert plan(write("def judge(turn):\n    return 1\nprint('said')\nexit()\n")) == EXIT_BAD_INPUT
    out, err = capfd.readouterr()
    assert "judge_0.py: cannot be imported: SystemExit" in err
    assert out == ""
    assert plan(write("async def judge(turn):\n    print('said')\n    return 1\n")) == EXIT_DONE
    assert "said" not in capfd.readouterr().out
