"""A first interrupt is counted wherever it arrives, and ends what is going on where that is asked
for; a second one always does."""

from __future__ import annotations

import signal
import threading

import pytest

from learner.interrupts import SIGNALS, counted


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_counted_and_raises_nothing_and_the_second_raises(
    number: signal.Signals,
) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with counted() as interrupts:
        signal.raise_signal(number)
        assert interrupts.count == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.count == 2
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_at_once_the_first_raises_too(number: signal.Signals) -> None:
    reached = False
    with counted() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.at_once():  # noqa: PT012 - where it raises is the point
        signal.raise_signal(number)
        reached = True
    assert (interrupts.count, reached) == (1, False)


def test_blocks_nest_and_one_inside_at_once_only_counts_again() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), counted() as interrupts, interrupts.at_once():  # noqa: PT012 - raises on leaving at_once
        with counted() as inner:
            signal.raise_signal(signal.SIGINT)
            assert (inner is interrupts, inner.count) == (True, 1)
        reached = True
    assert reached


def test_at_once_does_not_begin_after_an_interrupt() -> None:
    began = False
    with counted() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), interrupts.at_once():
            began = True
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert not began
    with counted() as next_one:
        assert next_one.count == 0


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
