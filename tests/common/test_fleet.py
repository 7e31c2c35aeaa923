from common.fleet import Fleet, Health


def dead_and_answering(fleet: Fleet, actor: int) -> None:
    assert fleet.died(actor, fleet.members[actor].life, "killed")
    assert fleet.probing() == [actor]
    fleet.probed([actor])


def test_least_loaded_healthy_actor_is_picked_up_to_the_cap() -> None:
    fleet = Fleet(range(2), cap=2)
    picked = []
    while (actor := fleet.pick()) is not None:
        fleet.began(actor)
        picked.append(actor)
    assert picked == [0, 1, 0, 1]
    fleet.ended(1, 0)
    assert fleet.pick() == 1


def test_an_actor_that_failed_a_call_is_avoided_while_there_is_another() -> None:
    fleet = Fleet(range(2))
    assert fleet.pick(avoid=[0]) == 1
    fleet.died(1, 0, "killed")
    assert fleet.pick(avoid=[0]) == 0


def test_dead_actor_is_not_eligible_until_it_was_refreshed() -> None:
    fleet = Fleet(range(1))
    dead_and_answering(fleet, 0)
    assert fleet.members[0].health is Health.STALE
    assert fleet.pick() is None
    assert fleet.refreshed(fleet.begin_refresh(0))
    assert fleet.pick() == 0


def test_silent_actor_stays_dead() -> None:
    fleet = Fleet(range(1))
    fleet.died(0, 0, "killed")
    fleet.probing()
    assert fleet.members[0].health is Health.RESTARTING
    fleet.probed([])
    assert fleet.members[0].health is Health.DEAD


def test_refresh_that_began_before_the_latest_announcement_does_not_count() -> None:
    fleet = Fleet(range(1))
    dead_and_answering(fleet, 0)
    refresh = fleet.begin_refresh(0)
    fleet.announce()
    assert not fleet.refreshed(refresh)
    assert fleet.pick() is None


def test_actor_that_died_during_its_refresh_stays_dead() -> None:
    fleet = Fleet(range(1))
    dead_and_answering(fleet, 0)
    refresh = fleet.begin_refresh(0)
    fleet.died(0, 1, "killed again")
    dead = fleet.probing()
    fleet.probed(dead)
    assert not fleet.refreshed(refresh)


def test_late_failure_of_an_earlier_life_does_not_bury_the_new_one() -> None:
    fleet = Fleet(range(1))
    life = fleet.began(0)
    fleet.began(0)
    dead_and_answering(fleet, 0)
    fleet.refreshed(fleet.begin_refresh(0))
    assert not fleet.died(0, life, "the other call of the first life")
    fleet.ended(0, life)
    assert fleet.members[0].load == 0
    assert fleet.pick() == 0


def test_actor_that_missed_new_weights_is_stale_and_says_why() -> None:
    fleet = Fleet(range(2))
    fleet.outdated(1, "refused weights 3")
    assert fleet.having(Health.STALE) == [1]
    assert "refused weights 3" in fleet.describe()
