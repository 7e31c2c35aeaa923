"""The reward of benchmarks/sentiment.py: the mood of a film review by a lexicon (Hutto and Gilbert
2014), which nothing here was trained on."""

from __future__ import annotations

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from common.episode import Turn

_ANALYZER = SentimentIntensityAnalyzer()


def score(turn: Turn) -> float:
    """Compound score of prompt and answer, -1 to 1."""
    return mood(f"{turn.query} {turn.answer}")


def mood(text: str) -> float:
    return float(_ANALYZER.polarity_scores(text)["compound"])
