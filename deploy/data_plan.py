"""The data of a run as `engram plan` sees them: how long they are in the model's tokens, which
conversations a step takes part in, and how often a stage passes over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

from common.config.mrl import CurriculumStep
from common.config.run import Run
from common.config.stages import StageSettings
from common.data.conversations import up_to
from common.data.corpus import Corpus
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.episode import Interaction, Row
from common.failures import InputError
from common.models.reactive.config import RxTConfig
from common.storage.checkpoint import open_checkpoint
from learner.fit import require_fit
from learner.stages.stage import definition_of
from rollout.environments.table import ENVIRONMENTS
from rollout.tasks import fitting, fitting_any, own_selections

CHARACTERS = 20_000_000
"""Characters of text that a tokenizer is trained on here: a few seconds. Of more text, a sample."""
CANDIDATES = 500
"""Interactions, the longest in characters, of which the longest in tokens is sought."""
SAMPLE = 2000
"""Examples that a mean length is of."""
READ = "read"
"""Pairs of turns of the training conversations, the second of which is answered from the first."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of the data in tokens."""

    longest: int
    """Tokens of the longest interaction."""
    where: str
    """Its beginning, for a reader to find it."""
    exact: bool
    """Whether the tokenizer is the one that the run would use."""
    tokenizer: ConversationTokenizer

    def of_example(self, part: str, examples: Sequence[Any]) -> float:
        """Mean tokens of an example of this part of a corpus."""
        chosen = evenly(examples, SAMPLE)
        return sum(_TOKENS[part](self.tokenizer, each) for each in chosen) / max(1, len(chosen))


def _text(tokenizer: ConversationTokenizer, text: str) -> int:
    return len(tokenizer.text(text))


def _turns(tokenizer: ConversationTokenizer, turns: Sequence[Interaction]) -> int:
    return sum(len(tokenizer.interaction(turn)) for turn in turns)


_TOKENS: dict[str, Callable[[ConversationTokenizer, Any], int]] = {
    "texts": _text,
    "pairs": lambda tokenizer, pair: _turns(tokenizer, [pair]),
    "train": lambda tokenizer, row: _turns(tokenizer, row.turns),
    READ: lambda tokenizer, pair: _turns(tokenizer, pair),
    "preferences": lambda tokenizer, each: _turns(tokenizer, (*each.earlier, *each.answered)),
}
"""Tokens of one example, by the part of a corpus that it is from, or `READ`."""


def evenly(items: Sequence[Any], count: int) -> Sequence[Any]:
    """At most `count` items, from all over."""
    return items[:: -(-len(items) // count)] if len(items) > count else items


def lengths(run: Run, corpus: Corpus) -> Lengths:
    """Lengths by the tokenizer that the run would use, or by one trained on a sample of its
    texts."""
    tokenizer, exact = _tokenizer(run, corpus)

    def characters(turn: Interaction) -> int:
        return len(turn.query) + len(turn.answer) + len(turn.think or "")

    candidates = nlargest(CANDIDATES, _interactions(corpus), key=characters)
    counted = [(len(tokenizer.interaction(turn)), turn) for turn in candidates]
    longest, turn = max(counted, key=lambda each: each[0])
    return Lengths(longest, " ".join(turn.query.split()[:6]), exact, tokenizer)


def _interactions(corpus: Corpus) -> Iterator[Interaction]:
    """Everything that has to fit the model whole."""
    for row in (*corpus.train, *corpus.eval):
        yield from row.turns
    yield from corpus.pairs
    for preference in (*corpus.preferences, *corpus.held_preferences):
        yield from (*preference.earlier, *preference.answered)


def _tokenizer(run: Run, corpus: Corpus) -> tuple[ConversationTokenizer, bool]:
    if run.model.checkpoint is not None:
        with open_checkpoint(run.model.checkpoint).folder() as folder:
            return ConversationTokenizer.load(folder), True
    if run.tokenizer.path is not None:
        return ConversationTokenizer.load(run.tokenizer.path), True
    size = sum(map(len, corpus.texts))
    count = max(1, int(len(corpus.texts) * min(1.0, CHARACTERS / max(1, size))))
    texts = evenly(corpus.texts, count)
    return train_tokenizer(texts, run.tokenizer.vocab_size), len(texts) == len(corpus.texts)


@dataclass(frozen=True, slots=True)
class Work:
    """One stage, or one step of a curriculum, over its data."""

    name: str
    stage: StageSettings
    part: str
    """Part of the corpus that it learns from, or `READ`."""
    examples: Sequence[Any]
    left_out: str
    """How many conversations sit out, and why; empty where none does."""
    batch: int
    steps: int
    rule: str = ""
    """When a curriculum step is over before its steps are done; empty: never."""

    @property
    def passes(self) -> float | None:
        """Times that each example is learnt from; None where an environment makes them up."""
        return self.batch * self.steps / len(self.examples) if self.examples else None


def works(run: Run, corpus: Corpus) -> list[Work]:
    """Every stage over its data. Raises InputError where one has nothing to learn from."""
    found = []
    plays_rows = ENVIRONMENTS[run.environment.kind].plays_rows
    for index, stage in enumerate(run.stages):
        definition = definition_of(stage)
        part = definition.data[0]
        examples = getattr(corpus, part)
        if not examples:
            raise InputError(run.stage_key(index), f"learns from {part!r}, and the data have none")
        if definition.pairs is not None:
            part, examples = READ, definition.pairs(corpus)
        if not stage.curriculum_steps:
            why = ""
            if part == "train" and stage.longest is not None:
                taken = up_to(examples, stage.longest)
                if len(taken) < len(examples):
                    why = (
                        f"{len(examples) - len(taken):,} with more than {stage.longest} follow-ups"
                    )
                examples = taken
            found.append(
                Work(stage.stage, stage, part, examples, why, stage.batch, stage.total_steps)
            )
            continue
        for step in stage.curriculum_steps:
            rows, why = _taking_part(step, examples) if plays_rows else ([], "")
            name = f"{stage.stage}: {step.name}"
            found.append(
                Work(name, stage, part, rows, why, stage.batch, step.iterations, _rule(step))
            )
    return found


def _rule(step: CurriculumStep) -> str:
    """The rule of a curriculum step: "until rollout/recall is 0.9, twice in a row"."""
    if not step.until:
        return ""
    wanted = " and ".join(f"{name} is {value:g}" for name, value in step.until.items())
    times = "" if step.times == 1 else f", {step.times} times in a row"
    patience = (
        ""
        if step.patience is None
        else f"; given up after {step.patience} measurements without a new best"
    )
    return f"until {wanted}{times}{patience}"


def _taking_part(step: CurriculumStep, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """The conversations of a curriculum step, and why the others sit out."""
    wanted = step.strategies
    own = [row for row in rows if not step.sources or row.source in step.sources]
    of_strategy = [
        row for row in own if None in wanted or row.strategy_open or row.strategy in wanted
    ]
    for selection in own_selections(step):
        fitting(rows, step.name, selection)
    taken = fitting_any(rows, [step])
    reasons = {
        f"with more than {step.max_steps} follow-ups": sum(
            len(row.interactions) > step.max_steps for row in of_strategy
        ),
        f"with fewer than {step.min_steps} follow-ups": sum(
            len(row.interactions) < step.min_steps for row in of_strategy
        ),
        "of another strategy": len(own) - len(of_strategy),
        "of other sources": len(rows) - len(own),
    }
    return taken, ", ".join(f"{count:,} {why}" for why, count in reasons.items() if count)


def require_lengths(found: Lengths, corpus: Corpus, config: RxTConfig) -> str | None:
    """Raises InputError where an interaction does not fit the model; a warning where the lengths
    are an estimate."""
    if found.longest <= config.max_tokens:
        return None
    if found.exact:
        require_fit(corpus, found.tokenizer, config.max_tokens)
    return (
        f"an interaction ({found.where!r} …) may have {found.longest} tokens, "
        f"model.max_tokens is {config.max_tokens}"
    )
