"""Cluster and failures: who is alive, what became of every task, and what room is left. Ray's own
dashboards have nodes, actors and the object store; this one has what they do not know."""

from __future__ import annotations

from deploy.monitoring.panels import Dashboard, Panel, Row, query

ACTORS = Row(
    "Who is alive?",
    (
        Panel(
            "How many workers serve?",
            "none",
            "All healthy.",
            "dead or restarting for minutes: see Ray's dashboard, tab Actors.",
            "Workers down",
            (
                query(
                    'sum by (run, pool, state) (<fleet/workers state=~"healthy|dead|restarting">)',
                    "{{run}}: {{pool}} {{state}}",
                ),
            ),
        ),
        Panel(
            "How often were actors restarted?",
            "none",
            "0, or as often as nodes were lost.",
            "Several in an hour: the out-of-memory killer, or a fault in data or code.",
            "Restarts",
            (
                query("sum by (run, pool) (<fleet/restarts>)", "{{run}}: {{pool}}"),
                query("<run/resumes>", "{{run}}: driver"),
            ),
        ),
        Panel(
            "How many calls were tried again?",
            "none",
            "Few.",
            "Rising without restarts: calls run into their deadline.",
            "Restarts",
            (query("sum by (run, pool) (<fleet/retries>)", "{{run}}: {{pool}}"),),
        ),
        Panel(
            "What did the watchdog wait for?",
            "none",
            "Nothing.",
            "The phase named is where the run stood for more than two minutes.",
            "No progress",
            (query("<run/watchdog>", "{{run}}: {{waiting_for}}"),),
        ),
        Panel(
            "Were there values that are no numbers?",
            "none",
            "None.",
            "logs/recorder.log names them.",
            "Values that are not numbers",
            (query("<run/not_finite>"),),
            alarm=1,
        ),
        Panel(
            "What does the conductor wait for?",
            "percentunit",
            "play most of the time; phases overlap.",
            "score on top: the reward service is the bottleneck.",
            "Throughput fell",
            (
                query(
                    'sum by (run, phase) (rate(<time/phase_seconds role="conductor">'
                    "[$__rate_interval]))",
                    "{{run}}: {{phase}}",
                ),
            ),
        ),
    ),
)

BOOKS = Row(
    "What became of every task?",
    (
        Panel(
            "Which tasks were dealt, trained on, dropped, failed?",
            "none",
            "trained on follows dealt.",
            "failed rising: read episodes with engram episodes RUN --failed.",
            "Episodes failed or lost",
            (
                query("<conductor/dealt>", "{{run}}: dealt"),
                query("<conductor/trained>", "{{run}}: trained on"),
                query("sum by (run) (<conductor/dropped>)", "{{run}}: dropped"),
                query("sum by (run) (<conductor/failed>)", "{{run}}: failed"),
                query("<conductor/in_flight>", "{{run}}: in flight"),
            ),
            width=12,
        ),
        Panel(
            "Why were they dropped or failed?",
            "none",
            "Few, for reasons that are known.",
            "The data of a task is at fault, or its environment.",
            "Episodes failed or lost",
            (
                query("<conductor/dropped>", "{{run}}: dropped, {{reason}}"),
                query("<conductor/failed>", "{{run}}: failed, {{reason}}"),
            ),
            width=8,
        ),
        Panel(
            "Is an episode lost?",
            "none",
            "0, always.",
            "A fault of engram's books: keep the run directory and report it.",
            "Episodes failed or lost",
            (query("<conductor/lost>"),),
            kind="stat",
            width=4,
            alarm=1,
        ),
    ),
)

ROOM = Row(
    "Is there room left?",
    (
        Panel(
            "How full is the memory of the hosts?",
            "percentunit",
            "Below 90 %.",
            "Fewer slots or workers on the host, or smaller batches.",
            "Host memory",
            (query("<host/memory_used>", "{{run}}: hosts of {{role}}"),),
            low=0,
            high=1,
            warn=0.85,
            alarm=0.92,
        ),
        Panel(
            "How much disk is left for the run?",
            "bytes",
            "More than ten checkpoints.",
            "Remove old runs, or lower learner.keep_checkpoints.",
            "Disk",
            (query("<host/disk_free_bytes>"),),
            low=0,
        ),
        Panel(
            "What share of the disk is left?",
            "percentunit",
            "Above 10 %.",
            "Remove old runs, or lower learner.keep_checkpoints.",
            "Disk",
            (query("<host/disk_free>"),),
            kind="bargauge",
            low=0,
            high=1,
            warn=0.1,
            alarm=0.03,
        ),
        Panel(
            "How long does a checkpoint take?",
            "s",
            "A small share of the steps between two.",
            "Growing: the disk is slow or full.",
            "Checkpoint too old",
            (
                query(
                    "histogram_quantile(0.95, sum by (le, run) "
                    "(rate(<checkpoint/seconds:bucket>[$__rate_interval])))",
                    "{{run}}: p95",
                ),
                query(
                    "<checkpoint/seconds:sum> / <checkpoint/seconds:count>", "{{run}}: mean of all"
                ),
            ),
            width=12,
        ),
        Panel(
            "How many checkpoints were saved?",
            "none",
            "Rises steadily.",
            "Flat: the run does not reach its next checkpoint.",
            "Checkpoint too old",
            (query("<checkpoint/saved>"),),
            width=12,
        ),
    ),
)

CLUSTER = Dashboard(
    "engram-cluster",
    "engram: Cluster and failures",
    "Who is alive, what became of every task, and what room is left? Beside Ray's own dashboards.",
    (ACTORS, BOOKS, ROOM),
)
