"""What a reader of the terminal is told of failed turns and alarms: once when it begins."""

from __future__ import annotations

from typing import get_args

from learner.alerts import MEANING, Alerts
from reward_service.monitor import Kind

FAILED = "reward/failed_turns{reason=judge}"
ALARM = "reward/alarms{component=bleu,kind=constant}"


def test_an_alarm_is_told_when_it_begins_and_again_only_after_it_had_stopped() -> None:
    alerts = Alerts()
    told = [
        bool(alerts.sentences(step, {ALARM: total, "objective/kl": 1.0}))
        for step, total in enumerate((0, 1, 2, 2, 3))
    ]
    assert told == [False, True, False, False, True]
    assert Alerts().sentences(7, {ALARM: 1}) == [
        "step 7: reward alarm: bleu constant: it is the same for all answers and teaches nothing; "
        "normal where all are right"
    ]
    assert MEANING.keys() == {*get_args(Kind)}


def test_failed_turns_are_told_at_the_first_and_at_every_tenfold() -> None:
    alerts = Alerts()
    told = [
        alerts.sentences(step, {FAILED: total})
        for step, total in enumerate((0, 3, 4, 29, 30, 299, 300))
    ]
    assert [bool(each) for each in told] == [False, True, False, False, True, False, True]
    assert told[4] == ["step 4: 30 turns failed so far: judge"]


def test_memory_that_grows_at_each_write_is_told_once() -> None:
    alerts = Alerts()
    rates = (0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.0)
    told = [alerts.sentences(step, {"memory/growth": rate}) for step, rate in enumerate(rates)]
    assert [bool(each) for each in told] == [False] * 4 + [True] + [False] * 2
    assert "each write makes memory 1.9 times as large" in told[4][0]
    assert "model.gate_activation=sigmoid" in told[4][0]
