"""A reward of one's own: answers that say please."""


def polite(turn, word="please"):
    return float(word in turn.answer)
