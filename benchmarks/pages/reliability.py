"""docs/reliability.md: what runs do while parts of them fail."""

from __future__ import annotations

from benchmarks.pages.text import Results, document, measured, number, points, prose, table

CHAOS = {
    "undisturbed_turns_per_second": "undisturbed, turns/s",
    "disturbed_turns_per_second": "under kills, turns/s",
    "disturbed_over_undisturbed": "ratio",
    "kills": "workers killed",
    "calls_lost": "calls lost with them and made again",
}


def page(results: Results) -> str:
    chaos = results["reward_chaos"]
    figures = [
        (what, f"{value:,}" if isinstance(value := chaos["figures"][name], int) else number(value))
        for name, what in CHAOS.items()
    ]
    return document(
        "# Reliability",
        prose("""What was measured, and what tests assert, while workers, endpoints and drivers
            fail. What follows each kind of failure is in
            [architecture.md](architecture.md#when-something-fails). This page is made from
            `benchmarks/results/` by `python -m benchmarks.pages`; earlier measurements are in
            [benchmarks/LOG.md](../benchmarks/LOG.md)."""),
        "## The reward service under kills",
        measured(chaos),
        prose("""20,000 turns in 5,000 episodes go through a pool of 10 reward workers twice:
            undisturbed, and while one worker after another is killed by SIGKILL, one every two
            seconds. A user's function raises on 200 turns and hangs on 100 others, each of
            which is given up after 1.5 s. The benchmark fails unless, in both parts,"""),
        points(
            "every turn of every episode comes back once, in order;",
            """the turns that raise fail with their own exception, the turns that hang fail with
            the message of the deadline, and no other turn fails;""",
            "the rewards of both parts are equal;",
            "both parts together end within 500 s.",
        ),
        table(("figure", "measured"), figures),
        prose("""For a user: killed workers cost rate and nothing else. The turns that hang bound
            the rate: their deadlines add up to 15 s over 10 workers. A worker is back 1.3 to 1.6
            s after a kill. `tests/reward_service/test_reward_chaos.py` asserts the same on 2,400
            turns. With many other programs on the machine, workers can be killed faster than
            they restart; the benchmark then ends with a timeout."""),
        "## A reward endpoint that is away",
        prose("""`tests/learner/test_endpoint_outage.py` runs MRL on two ranks against three
            endpoints:"""),
        points(
            """one answers 503 for four seconds: the run waits and ends with the results of an
            undisturbed run;""",
            """one goes away for good during the run: the run stops with a checkpoint and exit
            code 75; started again with the endpoint back, it trains every episode once;""",
            """one never answers: the run stops before its first iteration, with recall
            measured.""",
        ),
        prose("""`tests/reward_service/test_endpoint.py` covers thirteen ways to break off an
            answer."""),
        "## Two drivers for one run",
        prose("""One run has one driver. `tests/deploy/test_one_driver.py` starts the same command
            twice and checks the journal: each task trained once, no episode twice in the Parquet
            files, no step twice in `metrics.jsonl`."""),
        points(
            "The second driver ends with code 2, within about two seconds, and names the first.",
            """After the first driver is killed by SIGKILL, the next one takes over. It waits for
            the killed driver's actors, which live on for 2 to 6 s.""",
            """`tests/common/test_lease.py` covers races, stopped and killed drivers, reused
            process ids, and a driver that loses its lease.""",
        ),
        prose("""Not covered: an object store has no lock that shows that the actors of a killed
            driver are gone. Each actor checks the lease before it writes; a write under way at
            that moment is finished."""),
    )
