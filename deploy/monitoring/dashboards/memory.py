"""Memory learning: what is remembered, for how long, and what memory does meanwhile."""

from __future__ import annotations

from deploy.monitoring.panels import Dashboard, Panel, Row, query

RECALL = Row(
    "What is remembered?",
    (
        Panel(
            "Does recall hold over distance?",
            "percentunit",
            "All lines rise; far ones lie below near ones.",
            "If only near ones rise, train longer conversations: a curriculum step with more "
            "interactions.",
            "Recall falls while reward rises",
            (query('<eval/recall memory="kept",distance!="all">', "{{run}}: {{distance}} apart"),),
            low=0,
            high=1,
        ),
        Panel(
            "Does memory do it?",
            "percentunit",
            "Far above 0: recall with memory kept, less recall with memory erased.",
            "Near 0: answers are guessed from the question; ask for values that vary more.",
            "Recall falls while reward rises",
            (
                query(
                    '<eval/recall memory="kept",distance="all"> - on(run) '
                    '<eval/recall memory="erased",distance="all">',
                    "{{run}}: kept - erased",
                ),
            ),
            low=-1,
            high=1,
        ),
        Panel(
            "Is it learnt by heart?",
            "percentunit",
            "The two lie together.",
            "Training far above held out: more conversations, fewer iterations.",
            "Recall falls while reward rises",
            (
                query('<eval/training_recall distance="all">', "{{run}}: training"),
                query('<eval/recall memory="kept",distance="all">', "{{run}}: held out"),
            ),
            low=0,
            high=1,
        ),
        Panel(
            "Are whole answers right?",
            "percentunit",
            "Rises with recall.",
            "Recall high and exact low: answers list values; raise recall.false_recall.",
            "Reward hacking",
            (
                query('<eval/exact distance="all">', "{{run}}: exact"),
                query('<eval/precision distance="all">', "{{run}}: precision"),
                query('<eval/f1 memory="kept">', "{{run}}: F1 of words"),
            ),
            low=0,
            high=1,
        ),
        Panel(
            "Are changed facts kept up to date?",
            "percentunit",
            "changed rises, outdated stays low.",
            "outdated high: memory keeps the first value; train more conversations with changes.",
            "Recall falls while reward rises",
            (
                query('<eval/changed distance="all">', "{{run}}: new value"),
                query('<eval/outdated distance="all">', "{{run}}: old value"),
            ),
            low=0,
            high=1,
        ),
        Panel(
            "Is what was told first still known?",
            "percentunit",
            "Bars of about the same length.",
            "First ones short: later turns overwrite memory; see its rank and openness below.",
            "Memory grows or collapses",
            (query('<eval/by_order order!="all">', "{{run}}: told as number {{order}}"),),
            kind="bargauge",
            low=0,
            high=1,
        ),
    ),
)

STATE = Row(
    "What does memory do?",
    (
        Panel(
            "How large is memory after so many writes?",
            "none",
            "Levels off with more writes.",
            "Doubling from line to line: set model.gate_activation to sigmoid.",
            "Memory grows or collapses",
            (query("<memory/norm>", "{{run}}: {{writes}} writes"),),
        ),
        Panel(
            "How many directions do slots use?",
            "none",
            "Well above 1, and not falling with more writes.",
            "Near 1: all slots say the same; lower the learning rate of memory attention.",
            "Memory grows or collapses",
            (query("<memory/effective_rank>", "{{run}}: {{writes}} writes"),),
        ),
        Panel(
            "How much does a write replace?",
            "percentunit",
            "Between a few per cent and a half.",
            "Near 100 %: nothing survives many turns; near 0: nothing is written.",
            "Memory grows or collapses",
            (query("<memory/openness>", "{{run}}: layer {{layer}}"),),
            low=0,
            high=1,
        ),
        Panel(
            "How many slots stay as they are?",
            "percentunit",
            "0 without gates that shut; in between with them.",
            "1: memory is frozen.",
            "Memory grows or collapses",
            (query("<memory/slots_kept>"),),
            low=0,
            high=1,
        ),
        Panel(
            "Does a write make memory grow?",
            "none",
            "Near 0 doublings per write.",
            "Above 0.25: memory overflows in long conversations.",
            "Memory grows or collapses",
            (
                query("<memory/growth>", "{{run}}: growth"),
                query("<memory/replaced>", "{{run}}: replaced"),
            ),
            alarm=0.25,
        ),
        Panel(
            "Do generation and learner compute the same memory?",
            "none",
            "Rounding: below 0.0001 in float32.",
            "More: they compute different models; stop the run.",
            "Learner and rollout disagree",
            (query("<memory/drift>"),),
            warn=0.0001,
            alarm=0.01,
        ),
    ),
)

CURRICULUM = Row(
    "Does the curriculum advance?",
    (
        Panel(
            "Which step, by its rule?",
            "none",
            "Rises.",
            "If it stays, compare the figures beside it with the rule of the step.",
            "Curriculum does not advance",
            (query("<run/curriculum_step>"),),
        ),
        Panel(
            "What does the rule of the step measure?",
            "percentunit",
            "Rises within a step, falls when the next begins.",
            "Flat: the step is too hard from where the last one ended.",
            "Curriculum does not advance",
            (
                query("<curriculum/recall>", "{{run}}: recall"),
                query("<curriculum/exact>", "{{run}}: exact"),
            ),
            low=0,
            high=1,
        ),
        Panel(
            "How many turns does an episode have?",
            "none",
            "Rises with the curriculum.",
            "Below what the step says: episodes fail; see the conductor's books.",
            "Curriculum does not advance",
            (query("<rollout/episode_turns>"),),
        ),
    ),
)

MEMORY = Dashboard(
    "engram-memory",
    "engram: Memory learning",
    "What is remembered, for how long, and what does memory do meanwhile?",
    (RECALL, STATE, CURRICULUM),
)
