"""The reward of configs/sentiment_small.yaml: words of praise against words of blame."""

import re
from typing import Any

PRAISE = frozenset(
    [
        "good",
        "great",
        "best",
        "better",
        "love",
        "loved",
        "fun",
        "funny",
        "beautiful",
        "wonderful",
        "charming",
        "delightful",
        "moving",
        "warm",
        "fresh",
        "smart",
        "rich",
        "powerful",
        "enjoyable",
        "entertaining",
        "brilliant",
        "engaging",
        "perfect",
        "strong",
    ]
)
BLAME = frozenset(
    [
        "bad",
        "worst",
        "worse",
        "dull",
        "boring",
        "awful",
        "terrible",
        "poor",
        "mess",
        "flat",
        "stupid",
        "silly",
        "tedious",
        "lifeless",
        "predictable",
        "tired",
        "weak",
        "bland",
        "pointless",
        "ugly",
        "fails",
        "failure",
        "lame",
        "shallow",
    ]
)


def score(turn: Any) -> float:
    """(praise - blame) / (praise + blame) of the answer's words; 0 where there are none."""
    words = re.findall(r"[a-z]+", turn.answer.lower())
    praise, blame = (sum(word in those for word in words) for those in (PRAISE, BLAME))
    return (praise - blame) / (praise + blame) if praise + blame else 0.0
