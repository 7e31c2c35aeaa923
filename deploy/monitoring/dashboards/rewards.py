"""Rewards: what is paid, for what, by whom, and what fails."""

from __future__ import annotations

from deploy.monitoring.panels import Dashboard, Panel, Row, query

PAID = Row(
    "What is paid?",
    (
        Panel(
            "Which component rises?",
            "reward",
            "All rise, or stay; none falls while the total rises.",
            "A component that falls is bought by another: change their weights.",
            "Reward hacking",
            (query('<reward/component cohort="all">', "{{run}}: {{component}}"),),
            width=12,
        ),
        Panel(
            "How high do the best answers of a component get?",
            "reward",
            "p95 lies above p50: answers differ, so there is something to learn.",
            "p95 and p50 alike: the component is constant; leave it out or make it harder.",
            "Reward alarms",
            (
                query(
                    "histogram_quantile(0.95, sum by (le, run, component) "
                    "(rate(<reward/value:bucket>[$__rate_interval])))",
                    "{{run}}: {{component}} p95",
                ),
                query(
                    "histogram_quantile(0.5, sum by (le, run, component) "
                    "(rate(<reward/value:bucket>[$__rate_interval])))",
                    "{{run}}: {{component}} p50",
                ),
            ),
            width=12,
        ),
        Panel(
            "Is a component at the end of its range?",
            "percentunit",
            "Below 95 %.",
            "High end: nothing left to learn; low end: nobody reaches it.",
            "Reward alarms",
            (query("<reward/saturated>", "{{run}}: {{component}} {{end}}"),),
            low=0,
            high=1,
            alarm=0.95,
        ),
        Panel(
            "Does reward fall along a conversation?",
            "reward",
            "Turns late in a conversation, and facts told long ago, earn nearly as much as others.",
            "What falls with distance is not remembered: train longer on shorter conversations.",
            "Recall falls while reward rises",
            (
                query("<reward/by_turn>", "{{run}}: turn {{turn}}"),
                query("<reward/by_distance>", "{{run}}: distance {{distance}}"),
            ),
            width=12,
        ),
        Panel(
            "Which component falls along a conversation?",
            "reward",
            "As the panel of the total: late turns and far facts earn nearly as much as others.",
            "The one that falls alone is what memory loses: recall or likeness to the reference.",
            "Recall falls while reward rises",
            (
                query("<reward/component_by_turn>", "{{run}}: {{component}}, turn {{turn}}"),
                query(
                    "<reward/component_by_distance>",
                    "{{run}}: {{component}}, distance {{distance}}",
                ),
            ),
            width=12,
        ),
        Panel(
            "Does a component go with recall?",
            "none",
            "Above 0 for every component with a weight.",
            "Below 0: it pays for not remembering; lower its weight.",
            "Recall falls while reward rises",
            (query("<reward/recall_correlation>", "{{run}}: {{component}}"),),
            low=-1,
            high=1,
        ),
        Panel(
            "Which alarms on rewards were raised?",
            "none",
            "None, or constant and saturated ones at the end of a run that has learnt.",
            "copies_pay: change the mix before the run goes on.",
            "Reward alarms",
            (query("<reward/alarms>", "{{run}}: {{component}} {{kind}}"),),
        ),
    ),
)

HACKING = Row(
    "Is reward earned by remembering?",
    (
        Panel(
            "Which signs of reward hacking were seen?",
            "none",
            "None.",
            "Read the answer that logs/recorder.log shows with the alarm.",
            "Reward hacking",
            (query("<hacking/alarms>", "{{run}}: {{kind}}"),),
        ),
        Panel(
            "Do answers list values?",
            "none",
            "Near 1 value named for each asked for.",
            "Above 1.5: recall.false_recall at 1 or above.",
            "Reward hacking",
            (query("<hacking/values_named>"),),
            alarm=1.5,
        ),
        Panel(
            "Do answers copy or repeat?",
            "percentunit",
            "Near what references do.",
            "copied above 10 %: less weight on likeness to the saved interaction.",
            "Reward hacking",
            (
                query("<hacking/copied>", "{{run}}: copied"),
                query("<hacking/repeated>", "{{run}}: repeated"),
                query("<hacking/repeated_in_references>", "{{run}}: repeated in references"),
                query("<hacking/open_repeated>", "{{run}}: repeated, without references"),
            ),
            low=0,
        ),
        Panel(
            "Are answers as long as references?",
            "none",
            "Between 0.7 and 1.5.",
            "Short: empty answers are paid; long: add the length component.",
            "Reward hacking",
            (query("<hacking/length>"),),
        ),
        Panel(
            "Do answers end?",
            "percentunit",
            "Below a tenth are cut at the limit.",
            "More: max_new_tokens large enough for references, or more KL.",
            "Reward hacking",
            (query("<rollout/no_eos_fraction>"),),
            low=0,
            high=1,
            alarm=0.1,
        ),
        Panel(
            "Is the spread of advantages more than noise?",
            "reward",
            "Above 0; falls as the critic learns.",
            "0: all answers earn the same, and nothing can be learnt.",
            "Reward alarms",
            (
                query("<objective/advantage_std>", "{{run}}: advantages"),
                query("<critic/explained_variance>", "{{run}}: explained by the critic"),
            ),
        ),
    ),
)

SERVICE = Row(
    "Does the reward service keep up?",
    (
        Panel(
            "How many turns per second are scored, and how many fail?",
            "ops",
            "No failed turns.",
            "By reason: the first word is the component that is to blame.",
            "Reward failures",
            (
                query("sum by (run) (rate(<reward/turns>[$__rate_interval]))", "{{run}}: scored"),
                query(
                    "sum by (run, reason) (rate(<reward/failed_turns>[$__rate_interval]))",
                    "{{run}}: failed, {{reason}}",
                ),
                query(
                    "sum by (run) (rate(<reward/unrewarded_turns>[$__rate_interval]))",
                    "{{run}}: without a reward",
                ),
            ),
            width=12,
        ),
        Panel(
            "Which component is the slowest?",
            "percentunit",
            "Seconds per second: below the number of reward workers in sum.",
            "Give the slowest a smaller batch, or more rewards.workers.",
            "Reward queue",
            (
                query(
                    "sum by (run, component) (rate(<reward/component_seconds>[$__rate_interval]))",
                    "{{run}}: {{component}}",
                ),
            ),
            width=12,
            stacked=True,
        ),
        Panel(
            "How long does a scoring call take?",
            "s",
            "Far below rewards.deadline.",
            "Near the deadline: smaller rewards.batch_tokens.",
            "Reward queue",
            (
                query(
                    "histogram_quantile(0.95, sum by (le, run) "
                    "(rate(<reward/batch_seconds:bucket>[$__rate_interval])))",
                    "{{run}}: p95",
                ),
                query(
                    "histogram_quantile(0.5, sum by (le, run) "
                    "(rate(<reward/batch_seconds:bucket>[$__rate_interval])))",
                    "{{run}}: p50",
                ),
            ),
        ),
        Panel(
            "How long does a call wait for a worker?",
            "s",
            "Below a second.",
            "More rewards.workers, or rewards.max_workers.",
            "Reward queue",
            (
                query(
                    "histogram_quantile(0.95, sum by (le, run) "
                    "(rate(<reward/queue_seconds:bucket>[$__rate_interval])))",
                    "{{run}}: p95",
                ),
            ),
        ),
        Panel(
            "How many episodes wait to be scored?",
            "none",
            "Empties within an iteration.",
            "Growing: more rewards.workers.",
            "Reward queue",
            (query("<reward/queue>"),),
            low=0,
        ),
    ),
)

REWARDS = Dashboard(
    "engram-rewards",
    "engram: Rewards",
    "What is paid, is it earned by remembering, and does the reward service keep up?",
    (PAID, HACKING, SERVICE),
)
