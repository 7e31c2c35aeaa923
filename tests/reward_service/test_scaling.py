"""When a reward worker is started and when one is ended. Seconds here are numbers, not time."""

from reward_service.autoscaler import IDLE_OVER_QUEUE, Scaling


def scaling() -> Scaling:
    return Scaling(least=1, most=3, queue_seconds=2.0)


def test_a_worker_is_started_once_a_batch_has_waited_too_long_and_not_before() -> None:
    wants = [
        scaling().wants(now, workers=1, starting=0, waiting_since=10.0, idle_since=None)
        for now in (10.0, 11.9, 12.1)
    ]
    assert wants == [0, 0, 1]


def test_there_are_never_more_than_the_most() -> None:
    assert scaling().wants(100.0, workers=3, starting=0, waiting_since=10.0, idle_since=None) == 0


def test_one_is_started_at_a_time_and_gets_its_time_with_the_queue() -> None:
    one = scaling()
    assert one.wants(12.1, workers=1, starting=0, waiting_since=10.0, idle_since=None) == 1
    # It may wait for a place on the cluster as long as it takes: no second one joins it there.
    assert [
        one.wants(now, workers=2, starting=1, waiting_since=10.0, idle_since=None)
        for now in (13.0, 20.0, 60.0)
    ] == [0, 0, 0]
    assert [
        one.wants(now, workers=2, starting=0, waiting_since=10.0, idle_since=None)
        for now in (61.0, 61.9, 62.1)
    ] == [0, 0, 1]


def test_an_idle_worker_is_ended_after_long_and_never_one_of_the_least() -> None:
    late = 10.0 + IDLE_OVER_QUEUE * 2.0
    wants = [
        scaling().wants(now, workers=2, starting=0, waiting_since=None, idle_since=10.0)
        for now in (10.0, late - 0.1, late + 0.1)
    ]
    assert wants == [0, 0, -1]
    assert (
        scaling().wants(late + 0.1, workers=1, starting=0, waiting_since=None, idle_since=10.0) == 0
    )


def test_none_is_ended_while_a_batch_waits_or_all_are_busy() -> None:
    assert scaling().wants(1000.0, workers=2, starting=0, waiting_since=999.0, idle_since=10.0) == 0
    assert scaling().wants(1000.0, workers=2, starting=0, waiting_since=None, idle_since=None) == 0


def test_one_that_never_found_a_place_is_ended_when_the_work_is_gone() -> None:
    assert (
        scaling().wants(1000.0, workers=2, starting=1, waiting_since=None, idle_since=900.0) == -1
    )
