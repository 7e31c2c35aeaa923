"""Rollouts and staleness: how conversations are played, how old the weights are, how far an update
goes."""

from __future__ import annotations

from deploy.monitoring.panels import Dashboard, Panel, Row, query

PLAY = Row(
    "How are conversations played?",
    (
        Panel(
            "How many tokens per second?",
            "tokens/s",
            "Steady within a curriculum step.",
            "Falling: occupancy and turn latency say whether slots are empty or slow.",
            "Throughput fell",
            (
                query("<rollout/tokens_per_second>", "{{run}}: while generating"),
                query("rate(<rollout/tokens>[$__rate_interval])", "{{run}}: of all time"),
            ),
        ),
        Panel(
            "Are slots full?",
            "percentunit",
            "Above 80 %.",
            "Lower: fewer slots, or more episodes per iteration.",
            "Throughput fell",
            (query("<rollout/slot_occupancy>"),),
            low=0,
            high=1,
            warn=0.8,
            alarm=0.5,
        ),
        Panel(
            "How long does a turn take?",
            "s",
            "Grows with the length of answers and with slots.",
            "Growing while answers do not: see host memory and other programs.",
            "Throughput fell",
            (query("<rollout/turn_seconds>"),),
        ),
        Panel(
            "How long are answers?",
            "none",
            "Near the length of references.",
            "At the limit: see “Do answers end?” among rewards.",
            "Reward hacking",
            (
                query(
                    "histogram_quantile(0.95, sum by (le, run) "
                    "(rate(<rollout/answer_tokens:bucket>[$__rate_interval])))",
                    "{{run}}: p95",
                ),
                query(
                    "histogram_quantile(0.5, sum by (le, run) "
                    "(rate(<rollout/answer_tokens:bucket>[$__rate_interval])))",
                    "{{run}}: p50",
                ),
            ),
        ),
        Panel(
            "How are lengths of answers distributed?",
            "ops",
            "One hump that moves slowly.",
            "A second hump at the limit: answers that do not end.",
            "Reward hacking",
            (
                query(
                    "sum by (le) (increase(<rollout/answer_tokens:bucket>[$__rate_interval]))",
                    "{{le}}",
                ),
            ),
            kind="heatmap",
        ),
        Panel(
            "Where does the workers' time go?",
            "percentunit",
            "Mostly decoding.",
            "Mostly wait: the learner is the bottleneck; mostly load_weights: sync is.",
            "Throughput fell",
            (
                query(
                    'sum by (run, phase) (rate(<time/phase_seconds role="rollout">'
                    "[$__rate_interval]))",
                    "{{run}}: {{phase}}",
                ),
            ),
            stacked=True,
        ),
    ),
)

STALENESS = Row(
    "How old are the weights that played?",
    (
        Panel(
            "How many versions behind are episodes?",
            "none",
            "0 in a synchronous run; within the bound otherwise.",
            "At the bound: generation is the bottleneck; more rollout.workers.",
            "Staleness",
            (
                query("<rollout/staleness>", "{{run}}: mean"),
                query("<rollout/staleness_max>", "{{run}}: oldest"),
            ),
            low=0,
            alarm=4,
        ),
        Panel(
            "How long does a weight broadcast take?",
            "s",
            "A small share of an iteration.",
            "Growing: see the network and the number of workers.",
            "Weights not taken",
            (
                query(
                    "histogram_quantile(0.95, sum by (le, run) "
                    "(rate(<sync/seconds:bucket>[$__rate_interval])))",
                    "{{run}}: p95",
                ),
                query(
                    "rate(<sync/seconds:sum>[$__rate_interval]) / "
                    "rate(<sync/seconds:count>[$__rate_interval])",
                    "{{run}}: mean",
                ),
            ),
        ),
        Panel(
            "How much is broadcast?",
            "Bps",
            "The size of the model, once per iteration.",
            "More: versions are published that nobody asks for.",
            "Weights not taken",
            (query("rate(<sync/bytes>[$__rate_interval])"),),
        ),
        Panel(
            "Did every worker confirm its weights?",
            "none",
            "No failures; the version rises with the steps.",
            "Failures: the workers were lost or got other bytes; see their logs.",
            "Weights not taken",
            (
                query("<sync/failures>", "{{run}}: workers left behind"),
                query("<sync/version>", "{{run}}: version"),
            ),
        ),
        Panel(
            "Do learner and rollout agree on probabilities?",
            "nats",
            "Below 0.0001 in float32, below 0.01 in bfloat16.",
            "More: they compute different models; stop the run.",
            "Learner and rollout disagree",
            (
                query("<ppo/log_prob_max_difference>", "{{run}}: log-probability"),
                query("<ppo/ratio_max_deviation_first>", "{{run}}: first ratio - 1"),
            ),
            warn=0.0001,
            alarm=0.01,
        ),
    ),
)

UPDATE = Row(
    "How far does an update go?",
    (
        Panel(
            "How far is the policy from the one that sampled?",
            "nats",
            "Below 0.05.",
            "More: fewer epochs, a lower learning rate, or stop_kl.",
            "KL too high",
            (
                query("<ppo/approx_kl>", "{{run}}: k2"),
                query("<ppo/approx_kl_k3>", "{{run}}: k3"),
            ),
            alarm=0.1,
        ),
        Panel(
            "How much is clipped?",
            "percentunit",
            "Below 30 %.",
            "More: the same as for KL.",
            "KL too high",
            (
                query("<ppo/clip_fraction>", "{{run}}: policy"),
                query("<ppo/value_clip_fraction>", "{{run}}: critic"),
                query("<ppo/minibatches_skipped>", "{{run}}: minibatches skipped"),
            ),
            low=0,
            high=1,
        ),
        Panel(
            "What do KL and its coefficient do?",
            "none",
            "The coefficient settles.",
            "At an end: the target of adaptive KL cannot be met.",
            "KL too high",
            (
                query("<ppo/kl_coefficient>", "{{run}}: coefficient"),
                query("<objective/kl_per_token>", "{{run}}: KL per token"),
            ),
        ),
        Panel(
            "Does the critic learn?",
            "none",
            "Explained variance rises towards 1; below 0 it is worse than a constant.",
            "Below 0 for long: more critic updates, or a higher rate of the critic.",
            "KL too high",
            (
                query("<critic/explained_variance>", "{{run}}: explained variance"),
                query("<critic/loss>", "{{run}}: loss"),
            ),
        ),
        Panel(
            "On which turns does the critic fail?",
            "none",
            "Alike over turns.",
            "Late turns low: the critic does not see what memory holds.",
            "KL too high",
            (query("<critic/explained_variance_by_turn>", "{{run}}: turn {{turn}}"),),
            kind="bargauge",
            low=-1,
            high=1,
        ),
        Panel(
            "What do the policy's losses do?",
            "reward",
            "Near 0, noisy; it is no measure of quality.",
            "Not a number: see the section.",
            "Values that are not numbers",
            (
                query("<ppo/loss_policy>", "{{run}}: PPO"),
                query("<a2c/loss_policy>", "{{run}}: A2C"),
                query("<reinforce/loss_policy>", "{{run}}: REINFORCE"),
                query("<rloo/loss_policy>", "{{run}}: RLOO"),
                query("<grpo/loss_policy>", "{{run}}: GRPO"),
                query("<rejection/loss_policy>", "{{run}}: rejection sampling"),
            ),
        ),
        Panel(
            "Do generator and learner compute the same?",
            "none",
            "Rounding, below 0.0001, where workers compute as the learner does.",
            "More: another engine generates; correct it by the algorithm's mismatch.correct.",
            "Learner and rollout disagree",
            (
                query("<mismatch/log_prob_difference>", "{{run}}: mean distance of log-probs"),
                query("<mismatch/kl>", "{{run}}: KL"),
                query("<mismatch/corrected>", "{{run}}: share of tokens corrected"),
            ),
        ),
        Panel(
            "Do samples of a task differ?",
            "percentunit",
            "Few tasks whose samples all earn the same; none left out.",
            "Most alike: tasks are too easy or too hard, or the temperature too low.",
            "Reward alarms",
            (
                query("<objective/tasks_alike>", "{{run}}: all samples alike"),
                query("<objective/tasks_incomplete>", "{{run}}: a sample failed"),
                query("<rejection/kept>", "{{run}}: kept by rejection sampling"),
            ),
            low=0,
            high=1,
        ),
    ),
)

ROLLOUTS = Dashboard(
    "engram-rollouts",
    "engram: Rollouts and staleness",
    "How are conversations played, how old are the weights, and how far does an update go?",
    (PLAY, STALENESS, UPDATE),
)
