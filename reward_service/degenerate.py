"""Rewards under a mix of answers that need no memory: copies, lists of values, empty ones.

A mix under which one of them earns more than the right answer teaches a policy to give it. The
table is over a few conversations made here, with an embedding of random vectors, so it does not
depend on a model: `python -m reward_service.degenerate [CONFIG …]` prints it (docs/rewards.md).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from common.config.loader import load_run
from common.config.rewards import Rewards
from common.data.tokenizer import EOS, SPECIAL_TOKENS, ConversationTokenizer, train_tokenizer
from common.episode import Episode, Fact, Interaction, Row, Strategy, Turn
from reward_service.comparison import comparisons, remembered_text
from reward_service.copies import copies, earned, right_answer

RIGHT = "right answer"
VOCABULARY = 300
"""Tokens of the tokenizer. So few that most values are several tokens, which pays hedging best:
BLEU sees the right value among them, and a short wrong one is far from a long right one."""

VALUES = {
    "dog is called": "Rex Bella Charlie Luna Max Rocky Daisy Bruno Toby Coco Rusty Buddy",
    "home is in": "Oslo Paris Warsaw London Madrid Vienna Dublin Lisbon Prague Athens Rome Berlin",
    "favourite sport is": "chess rowing tennis karate golf hockey boxing rugby skiing swimming "
    "football cycling",
}
"""Values of each kind of fact in the conversations below, all equally likely."""
ANSWERS = {
    "dog is called": "I remember that your dog is called {}.",
    "home is in": "your home is in {}",
    "favourite sport is": "{}",
}
TALK = Interaction("how are you today?", "I am fine, thank you.", role="distract")


def _tell(kind: str, value: str, answer: str) -> Interaction:
    return Interaction(f"hello, my {kind} {value}", answer, role="remember")


def _ask(kind: str, value: str, said_in: int) -> Interaction:
    answer = ANSWERS[kind].format(value)
    return Interaction(
        f"do you know what my {kind}?", answer, role="recall", facts=(Fact(value, said_in),)
    )


def _rows() -> Iterator[Row]:
    """Conversations of all strategies and forms. The saved interaction holds the value asked for,
    or that of another kind, or none."""
    kinds = list(VALUES)
    for i, kind in enumerate(kinds):
        other = kinds[i - 1]
        for value, another in zip(
            VALUES[kind].split()[::4], VALUES[other].split()[1::4], strict=True
        ):
            first = _tell(kind, value, "Good to know.")
            second = _tell(other, another, "That is new to me.")
            turns: dict[Strategy, tuple[Interaction, ...]] = {
                "single": (_ask(kind, value, 0),),
                "cumulative": (_ask(kind, value, 0), TALK, second, _ask(other, another, 3)),
                "long_term": (
                    _ask(kind, value, 0),
                    TALK,
                    _ask(kind, value, 1),
                    second,
                    _ask(kind, value, 3),
                ),
            }
            for strategy, follow_ups in turns.items():
                yield Row(first.query, first.answer, follow_ups, strategy=strategy)


def _place(strategy: Strategy, turn: int, form: str, asks: bool) -> str:
    if not asks:
        return "nothing asked"
    return (
        f"{strategy}, "
        f"{'first answer' if turn == 1 and form == 'standard' else form.replace('_', ' ')}"
    )


@dataclass(frozen=True, slots=True)
class Earnings:
    """The rewards of each kind of answer at one kind of turn: [conversations], in one order."""

    place: str
    by_answer: Mapping[str, np.ndarray]


def earnings(rewards: Rewards, embedding: np.ndarray | None = None) -> list[Earnings]:
    """The rewards of each kind of answer under all mixes of `rewards`, for each kind of turn that
    mixes tell apart.

    embedding: float32 [tokens, width] of at least VOCABULARY tokens; None: a random one.
    """
    rows = list(_rows())
    texts = [text for row in rows for turn in row.turns for text in (turn.query, turn.answer)]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    if embedding is None:
        embedding = np.random.default_rng(0).standard_normal((VOCABULARY, 64), dtype=np.float32)
    places: list[tuple[Episode, int]] = []
    answers: list[Turn] = []
    columns: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        episode = conversation(row, tokenizer)
        for comparison in comparisons(row.strategy, len(episode.turns)):
            turn, asks = comparison.turn, bool(episode.turns[comparison.turn].facts)
            column = columns.setdefault(_place(row.strategy, turn, comparison.form, asks), {})
            for name, answer in degenerate_answers(
                episode, turn, tokenizer, rewards.turns_back
            ).items():
                column.setdefault(name, []).append(len(places))
                places.append((episode, turn))
                answers.append(answer)
    known = [value for values in VALUES.values() for value in values.split()]
    got = earned(places, answers, rewards, embedding, range(len(SPECIAL_TOKENS)), known)
    return [
        Earnings(place, {name: got[numbers] for name, numbers in column.items()})
        for place, column in columns.items()
    ]


def guessing(one: Earnings, certainty: float, values: int) -> dict[str, np.ndarray]:
    """Expected rewards [conversations] of naming the likeliest value, and of what one could do
    instead of it.

    certainty: probability that it is the right one. values: how many there are; the others are
    equally likely.
    """
    of, second = one.by_answer, (1 - certainty) / (values - 1)
    either = certainty + second
    return {
        "one value": certainty * of[RIGHT] + (1 - certainty) * of["wrong value"],
        "two values": either * of["right and wrong value"] + (1 - either) * of["two wrong values"],
        **{
            name: of[name]
            for name in ("list of all values", "no value", "empty", '"okay" ten times')
        },
    }


def table(rewards: Rewards) -> str:
    """Mean rewards of the kinds of answers as a table of Markdown, one column per place."""
    columns = earnings(rewards)
    rows = [["answer", *(column.place for column in columns)], ["---", *["---:"] * len(columns)]]
    for name in columns[0].by_answer:
        got = [column.by_answer.get(name) for column in columns]
        rows.append(
            [name, *("" if rewards is None else f"{rewards.mean():.3f}" for rewards in got)]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


# --- answers ---


def conversation(row: Row, tokenizer: ConversationTokenizer) -> Episode:
    """A row as if it had been played with all answers right."""
    turns = []
    for interaction in row.turns:
        ids = tokenizer.answer(interaction.answer, interaction.think)
        prompt = tokenizer.prompt(interaction.query, interaction.think is not None)
        turns.append(
            Turn(
                prompt, ids, [], ids, interaction.role, interaction.facts,
                query=interaction.query, answer=interaction.answer, reference=interaction.answer,
            )
        )  # fmt: skip
    return Episode("row", "row", 0, tuple(turns), 0, strategy=row.strategy)


def said(turn: Turn, text: str, tokenizer: ConversationTokenizer) -> Turn:
    return replace(turn, answer=text, answer_ids=[*tokenizer.encode(text), EOS])


def degenerate_answers(
    episode: Episode, turn: int, tokenizer: ConversationTokenizer, turns_back: int = 1
) -> dict[str, Turn]:
    """Answers to a turn, by what they are. Those with a value only where the turn asks for one.
    turns_back: as in `comparisons`."""
    own, before, opening = episode.turns[turn], episode.turns[turn - 1], episode.turns[0]
    texts = {
        "empty": "",
        '"okay" ten times': " ".join(["okay"] * 10),
        "copy of the opening answer": opening.answer,
        "copy of the opening": remembered_text(opening),
        "copy of the last answer": before.answer,
        "copy of the last interaction": remembered_text(before),
    }
    if own.facts:
        right = own.facts[0].value
        listed = next(values.split() for values in VALUES.values() if right in values.split())
        first, second = [value for value in listed if value != right][:2]
        forms = {
            "wrong value": first,
            "no value": "",
            "right and wrong value": f"{right} or {first}",
            "two wrong values": f"{first} or {second}",
            "list of all values": ", ".join(listed),
        }
        texts = {
            name: _in_place_of(right, value, own.reference) for name, value in forms.items()
        } | texts
    saved_answer, saved = copies(episode, turn, turns_back)
    return {
        RIGHT: right_answer(own),
        **{name: said(own, text, tokenizer) for name, text in texts.items()},
        "copy of the saved answer": saved_answer,
        "copy of the saved interaction": saved,
    }


def _in_place_of(right: str, value: str, reference: str) -> str:
    return " ".join(reference.replace(right, value).replace(" .", ".").split())


if __name__ == "__main__":
    # Configurations composed as for `engram train`; without any, the mix of a run that says
    # nothing.
    print(table(load_run(sys.argv[1:]).rewards if len(sys.argv) > 1 else Rewards()), end="")
