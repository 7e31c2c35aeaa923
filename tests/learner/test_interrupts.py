"""A first interrupt is counted wherever it arrives; a second one ends what is going on."""

from __future__ import annotations

import signal
import threading

import pytest

from learner.interrupts import SIGNALS, counted


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_counted_and_raises_nothing_and_the_second_raises(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with counted() as interrupts:
        signal.raise_signal(number)
        assert interrupts.count == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.count == 2
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_one_that_arrives_where_python_drops_exceptions_is_counted_all_the_same() -> None:
    class Dropping:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with counted() as interrupts:
        Dropping()
        assert interrupts.count == 1


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    inside: list[object] = []

    def work() -> None:
        with counted() as interrupts:
            inside.extend((signal.getsignal(signal.SIGINT), interrupts.count))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert inside == [before, 0]
