"""Statements that replace an earlier one: "My dog is called Rex." … "My dog is now called Max."

A statement replaces another if it repeats its words with another value in place and says that
something changed (now, actually, no longer, …). "I like tea." and "I like coffee." change nothing.
What is doubtful is no change: "my car is red" and "my car is now broken" may both be true.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from common.text.characters import normalised
from common.text.values import contains_value, value_words, words

_SENTENCE = re.compile(r"(?<=\w\w\w[.!?])\s+|(?<=\W[.!?])\s+|(?<=[!?。！？])\s*|[;\n]+")
_CLAUSE = re.compile(r"[,:()–—]\s|\s-+\s|\b(?:but|and|because)\b")

_CHANGE = re.compile(
    r"\b(?:now(?:adays)?|jetzt|maintenant|ahora|agora|adesso|теперь|сейчас|(?<=\bmy )new"
    r"|forget (?:that|it)|update"
    r"|actually|instead|henceforth|meanwhile|currently|correction|sorry|by now|renamed"
    r"|from (?:now|today|tomorrow) on|as of (?:now|today)|these days|at the moment|turns out"
    r"|i (?:changed my mind|was wrong|made a mistake|meant?)|scratch that|on second thoughts?"
    r"|no longer|not any ?more|any ?more|changed|became|become|switched to|moved to)\b|^no\b"
)
_ADDED = re.compile(r"\b(?:also|too|as well|another|second|both|besides|in addition)\b")
_ASKING = re.compile(
    r"\?\W*$|^\W*(?:now |so |and )?(?:can|could|would|will|do|does|is|are|what|where|who)\b",
    re.IGNORECASE,
)
_PAST = re.compile(
    r"\b(?:was|were|before|used to|use to|at first|(?:did|do|told|said) .*\bfirst"
    r"|(?<!how )old(?! (?:am|are|is|do|was)\b)"
    r"|previous(?:ly)?|earlier|former(?:ly)?|original(?:ly)?|initial(?:ly)?|ago|until"
    r"|back then|no longer"
    r"|any ?more|replaced)\b(?!.*\bagain$)"
)
_DENIED = re.compile(
    r"\b(?:not|no longer|any ?more|instead of|rather than|was|were|used to|former(?:ly)?|from"
    r"|previous(?:ly)?|before|(?<!year )(?<!years )(?<!months )(?<!weeks )(?<!days )old)\b|n't\b"
)
_ENDED = re.compile(r"\b(?:no longer|not (?:.* )?any ?more|any ?more)\b|n't (?:.* )?any ?more\b")
_REWORDED = (
    (re.compile(r"'m\b"), " am"),
    (re.compile(r"'s\b"), " is"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'ve\b"), " have"),
    (
        re.compile(
            r"\b(?:(?:have|has|is|was|just) )*(?:changed (?:it )?to|became|become|switched to)\b"
        ),
        "is",
    ),
    (re.compile(r"\b(?:(?:have|just) )*moved to\b"), "live in"),
    (re.compile(r"\b(?:called|named|name is)\b"), "name"),
    (re.compile(r"\bi have an? (.+) name\b"), r"my \1 is name"),
)
_FILLER = re.compile(
    r"\b(?:you know|by the way|btw|i think|guess what"
    r"|well|hey|hi|hello|oh|ok|okay|please|just|so|then|yes|no"
    r"|today|remember(?: that)?|note(?: that)?|that)\b"
)
_PLAIN = frozenset(
    re.findall(
        r"\w+",
        "a an the i you he she it we they me my your his her its our their is are am be been do "
        "does did have has"
        " had in on at to of for with from as by and or not what which who whom whose where when "
        "why how tell can"
        " could will would should say said know please",
    )
)
_NO_NAME = frozenset(
    re.findall(
        r"\w+",
        "a an the my your his her our their some no to not that very really too more less lots "
        "so all in on at of for with from by",
    )
)
"""Words that a new value does not begin with, unless it is a known value."""
_COPULAS = frozenset(("is", "are", "am", "be"))
_PRONOUNS = frozenset(("he", "she", "it", "they"))
LONGEST = 5
"""Words of a value that is taken for the new one of a statement."""


@dataclass(frozen=True, slots=True)
class Clause:
    """A part of a sentence, lower-cased words joined by spaces, and the sentence and turn it is
    of."""

    turn: int
    sentence: int
    text: str
    written: str
    changes: bool
    """Whether its sentence says that something changed."""


def clauses(queries: Sequence[str]) -> list[Clause]:
    """The clauses of what was said in each turn, in order."""
    return [clause for turn, query in enumerate(queries) for clause in _clauses(turn, query)]


def _clauses(turn: int, query: str) -> Iterator[Clause]:
    for number, sentence in enumerate(_SENTENCE.split(normalised(query))):
        if sentence and sentence.strip():
            plain = " ".join(words(sentence))
            stated = _ASKING.search(sentence) is None and _ADDED.search(plain) is None
            changes = stated and _CHANGE.search(plain) is not None
            for part in _CLAUSE.split(sentence):
                if part.strip():
                    yield Clause(turn, number, " ".join(words(part)), part.strip(), changes)


def asks_of_the_past(query: str) -> bool:
    """Whether a question may be about what was before: its answer is not out of date."""
    return _PAST.search(" ".join(words(query))) is not None


def says_change(query: str) -> bool:
    return any(clause.changes for clause in _clauses(0, query))


def content(text: str) -> frozenset[str]:
    """Words that tell what a text is about."""
    return frozenset(_reworded(" ".join(words(text))).split()) - _PLAIN


def replacement(
    said: Sequence[Clause], value: str, question: str, known: Collection[str]
) -> Clause | None:
    """The statement that put another value in place of this one, or took it back.

    said: all clauses before the question. known: other values of the conversation, which vouch for
    a new one. None where the value was said again after the change.
    """
    mentions = [clause for clause in said if contains_value(clause.written, value)]
    told = [clause for clause in mentions if not _DENIED.search(clause.text)]
    if not told:
        return None
    asked = content(question)
    forms = [form for clause in told if (form := _Form.of(clause, value)) is not None]
    forms = [form for form in forms if form.content & asked] or forms
    last = (told[-1].turn, told[-1].sentence)
    for clause in said:
        if clause.changes and (clause.turn, clause.sentence) >= last and clause not in told:
            if any(form.ended(clause) or form.refilled(clause, asked, known) for form in forms):
                return clause
            if "renamed" in clause.text and "name" in asked and asked & content(clause.text):
                return clause
    return None


@dataclass(frozen=True, slots=True)
class _Form:
    """A statement with a gap where its value stood."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    value: str

    @staticmethod
    def of(clause: Clause, value: str) -> _Form | None:
        tokens, gap = _reworded(clause.text).split(), words(value)
        for i in range(len(tokens) - len(gap) + 1):
            before, after = tuple(tokens[:i]), tuple(tokens[i + len(gap) :])
            if tokens[i : i + len(gap)] == gap and len(before) + len(after) > 1:
                # "tennis is my sport" says "my sport is tennis".
                return (
                    _Form((*after[1:], "is"), (), value)
                    if not before and after[0] == "is"
                    else _Form(before, after, value)
                )
        return None

    @property
    def content(self) -> frozenset[str]:
        return frozenset(self.before + self.after) - _PLAIN

    def ended(self, clause: Clause) -> bool:
        """Whether the clause takes the statement back: "I no longer live in Rome"."""
        if _ENDED.search(clause.text) is None or not contains_value(clause.written, self.value):
            return False
        return bool(self.content) and self.content <= content(clause.text)

    def refilled(self, clause: Clause, asked: frozenset[str], known: Collection[str]) -> bool:
        """Whether the clause is the statement with another value in the gap."""
        tokens = tuple(_reworded(clause.text).split())
        starts = [self.before]
        if tokens and tokens[0] in _PRONOUNS:
            # "she is called Milo now", of "my cat is called Luna"
            rests = (self.before[i:] for i in range(1, len(self.before)))
            starts += [
                (tokens[0], *rest)
                for rest in rests
                if frozenset(rest) - _PLAIN and rest[0] in _COPULAS
            ]
        end = len(tokens) - len(self.after)
        for start in starts:
            new = " ".join(tokens[len(start) : end])
            if tokens[: len(start)] != start or tokens[end:] != self.after:
                continue
            if 0 < end - len(start) <= LONGEST and not contains_value(new, self.value):
                return self._fits(new, clause, asked, known)
        return False

    def _fits(
        self, new: str, clause: Clause, asked: frozenset[str], known: Collection[str]
    ) -> bool:
        """Whether what stands in the gap is surely a value of the same kind."""
        if any(value_words(new) == value_words(each) for each in known):
            return True
        first = new.split()[0]
        if not self.content or first in _NO_NAME:
            return False
        found = re.search(rf"(?i:(?<!\w){re.escape(first)})", clause.written)
        alike = found is not None and found[0][:1].isupper() and self.value[:1].isupper()
        if self.value[:1].isupper() and not alike and clause.written != clause.written.lower():
            return False
        copula = bool(self.before) and self.before[-1] in _COPULAS
        return not copula or alike or asked <= self.content


def _reworded(text: str) -> str:
    """A clause without words of change and fillers, its contractions and changes put plainly."""
    for pattern, plain in _REWORDED:
        text = pattern.sub(plain, text)
    return " ".join(_FILLER.sub(" ", _CHANGE.sub(" ", text)).split())
