"""Run overview: is it going on, does it learn, and what stands in its way."""

from __future__ import annotations

from deploy.monitoring.panels import Dashboard, Panel, Row, query

PROGRESS = Row(
    "Is it going on?",
    (
        Panel(
            "How much of the run is done?",
            "percentunit",
            "Rises with every step, up to 100 %.",
            "See whether a step is long or nothing moves: the panel beside it tells them apart.",
            "No progress",
            (query("<run/progress>"),),
            kind="bargauge",
            width=6,
            height=6,
            low=0,
            high=1,
        ),
        Panel(
            "How long ago was the last step?",
            "s",
            "Less than a few times what a step takes; a run that is done keeps counting until its "
            "driver ends.",
            "Read what each actor waits for in logs/driver.log.",
            "No progress",
            (query("time() - <time/last_step>"),),
            kind="stat",
            width=6,
            height=6,
            warn=600,
            alarm=1800,
        ),
        Panel(
            "How long ago was the last checkpoint?",
            "s",
            "Less than learner.checkpoint_every steps take: this much work a crash would cost.",
            "Lower learner.checkpoint_every, or see whether checkpoints have become slow.",
            "Checkpoint too old",
            (query("time() - <checkpoint/last_saved>"),),
            kind="stat",
            width=6,
            height=6,
            warn=1800,
            alarm=3600,
        ),
        Panel(
            "What went wrong in the last hour?",
            "none",
            "All zero.",
            "Take the first that is not: each has a section of its own.",
            "Where to begin",
            (
                query("changes(<run/resumes>[1h])", "{{run}}: resumes"),
                query("sum by (run) (increase(<run/not_finite>[1h]))", "{{run}}: not finite"),
                query("sum by (run) (increase(<sync/failures>[1h]))", "{{run}}: weights not taken"),
                query("<conductor/lost>", "{{run}}: episodes lost"),
            ),
            kind="stat",
            width=6,
            height=6,
            warn=1,
            alarm=3,
        ),
    ),
)

LEARNING = Row(
    "Does it learn?",
    (
        Panel(
            "Does reward rise?",
            "reward",
            "Rises and levels off, together with recall.",
            "Flat from the start: look at the spread of advantages. Rising while recall falls: "
            "look at the rewards.",
            "Recall falls while reward rises",
            (
                query("<objective/scores>", "{{run}}: training"),
                query("<eval/scores>", "{{run}}: held out"),
            ),
        ),
        Panel(
            "Does recall rise?",
            "percentunit",
            "Rises with reward; held-out recall follows that of training.",
            "If held-out recall stays behind, the model learns conversations by heart: more data.",
            "Recall falls while reward rises",
            (
                query("<rollout/recall>", "{{run}}: training"),
                query('<eval/recall memory="kept",distance="all">', "{{run}}: held out"),
                query('<eval/recall memory="erased",distance="all">', "{{run}}: memory erased"),
            ),
            low=0,
            high=1,
        ),
        Panel(
            "Do the supervised losses fall?",
            "nats",
            "Falls within each stage; begins anew where a stage begins.",
            "Rising or jumping: lower the learning rate of the stage.",
            "Values that are not numbers",
            (
                query("<train/loss_lm>", "{{run}}: next token"),
                query("<train/loss_masked_lm>", "{{run}}: masked token"),
            ),
        ),
        Panel(
            "Does the policy stay near its reference?",
            "nats",
            "Stays near the target of adaptive KL, or levels off; a few nats per answer.",
            "Raise ppo.kl, or lower the learning rate.",
            "KL too high",
            (query("<objective/kl>"),),
        ),
        Panel(
            "Does the policy still explore?",
            "nats",
            "Falls slowly; above 0 to the end.",
            "A sudden fall to 0: lower the learning rate, or add entropy to the loss.",
            "KL too high",
            (query("<objective/entropy>"),),
        ),
        Panel(
            "Is the gradient of ordinary size?",
            "none",
            "Of one order of magnitude; single peaks are clipped.",
            "If most steps are clipped, lower the learning rate.",
            "Values that are not numbers",
            (
                query("<train/gradient_norm>", "{{run}}: policy"),
                query("<train/part_gradient_norm>", "{{run}}: {{part}}"),
                query("<ppo/gradient_norm_critic>", "{{run}}: critic"),
            ),
        ),
    ),
)

PACE = Row(
    "How fast is it, and what does it wait for?",
    (
        Panel(
            "How many tokens per second are generated and trained on?",
            "tokens/s",
            "Steady within a curriculum step.",
            "If it falls, see which role is idle.",
            "Throughput fell",
            (
                query("<rollout/tokens_per_second>", "{{run}}: generated"),
                query("<train/tokens_per_second>", "{{run}}: trained on"),
            ),
        ),
        Panel(
            "Which actors wait?",
            "percentunit",
            "A synchronous run always has some: workers wait while the learner updates.",
            "Learner idle most of the time: more rollout.workers; rewards hardly idle: more "
            "rewards.workers.",
            "Throughput fell",
            (query("<time/idle_fraction>", "{{run}}: {{role}}"),),
            low=0,
            high=1,
        ),
        Panel(
            "Where does the learner's time go?",
            "percentunit",
            "update and collect take most of it.",
            "checkpoint or publish on top: see disk and network.",
            "Throughput fell",
            (
                query(
                    'sum by (run, phase) (rate(<time/phase_seconds role="learner">'
                    "[$__rate_interval]))",
                    "{{run}}: {{phase}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Which stage and curriculum step is it in?",
            "none",
            "Rises step by step, as the rule of each says.",
            "If it does not leave a step, compare curriculum/recall with the rule.",
            "Curriculum does not advance",
            (
                query("<run/stage>", "{{run}}: stage"),
                query("<run/curriculum_step>", "{{run}}: curriculum step"),
            ),
            width=12,
        ),
        Panel(
            "How many steps are done?",
            "steps",
            "Rises steadily.",
            "Flat: nothing moves.",
            "No progress",
            (query("<run/step>", "{{run}}: steps"), query("<run/iteration>", "{{run}}: iteration")),
            width=12,
        ),
    ),
)

OVERVIEW = Dashboard(
    "engram-overview",
    "engram: Run overview",
    "Is the run going on, does it learn, and what does it wait for?",
    (PROGRESS, LEARNING, PACE),
)
