"""One episode turn by turn, as plain values for the page: texts cut where values stand in them, how
each reward entered the total, log-probabilities by token, and what became of the episode.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.data.special_tokens import SPECIAL_TOKENS
from common.data.tokenizer import ConversationTokenizer
from common.episode import Episode, Turn
from common.episode_arrow import from_table
from common.failures import EngramError
from common.text.values import contains_value, value_words
from deploy.view.answers import judged, known_values, segments
from deploy.view.watched import WatchedRun
from rollout.journal.journal import outcomes


def conversation(watched: WatchedRun, episode_id: str) -> dict[str, Any] | None:
    """Everything about one episode; None where there is none of this id."""
    index = watched.episodes.find(episode_id)
    if index is None:
        return None
    table = watched.episodes.whole(index)
    episode = from_table(table)[0]
    deal = {name: table[name][0].as_py() for name in ("stage", "attempt")}
    tokenizer = _tokenizer(watched)
    outcome = _outcome(watched, episode, deal)
    version = outcome.get("version")
    changes = [
        [[_finite(round(share, 4)) for share in slots] for slots in layers]
        for layers in episode.memory_change
    ]
    written = {write.turn: {"text": write.text, "cut": write.cut} for write in episode.writes}
    return {
        "id": episode.id,
        **deal,
        "iteration": episode.iteration,
        "step": episode.step,
        "strategy": episode.strategy,
        "status": episode.status,
        "outcome": outcome.get("status"),
        "reason": outcome.get("reason"),
        "worker": episode.worker,
        "backend": episode.backend,
        "environment": episode.environment,
        "seed": str(episode.seed),
        "memory_hash": episode.memory_hash,
        "carried_memory": episode.initial_memory is not None,
        "truncated": episode.truncated,
        "weights_version": episode.weights_version,
        "trained_version": version,
        "staleness": None if version is None else version - 1 - episode.weights_version,
        "replay": f"engram replay {_quoted(watched.directory.path())} {_quoted(episode.id)}",
        "memory_recorded": bool(changes),
        "turns": [
            _turn(number, episode.turns, tokenizer)
            | {
                "memory_change": changes[number] if number < len(changes) else None,
                "memory": written.get(number),
            }
            for number in range(len(episode.turns))
        ],
    }


def _turn(
    number: int, turns: Sequence[Turn], tokenizer: ConversationTokenizer | None
) -> dict[str, Any]:
    turn = turns[number]
    right, wrong = judged(turn, known_values(turns)) if number and turn.facts else (set(), set())
    told = [fact.value for later in turns for fact in later.facts if fact.said_in == number]
    asked = [fact.value for fact in turn.facts]
    recalled = [value for value in asked if value_words(value) in right]
    wrong_values = sorted(
        {
            value
            for other in turns
            for fact in other.facts
            for value in (fact.value, *fact.outdated)
            if value_words(value) in wrong
        }
    )
    return {
        "number": number,
        "role": turn.role,
        "query": segments(turn.query, {"told": told}),
        "thought": turn.thought,
        "answer": segments(
            turn.answer,
            {"recalled": recalled, "wrong": wrong_values, "told": told}
            if number
            else {"told": told},
        ),
        "reference": segments(turn.reference, {"asked": asked}),
        "facts": [
            {
                "value": fact.value,
                "said_in": fact.said_in,
                "distance": number - fact.said_in,
                "recalled": value_words(fact.value) in right,
                "outdated": list(fact.outdated),
                "outdated_named": [
                    value for value in fact.outdated if contains_value(turn.answer, value)
                ],
            }
            for fact in turn.facts
        ]
        if number
        else [],
        "wrong": wrong_values,
        "rewards": rewards_of(turn),
        "reward": turn.reward,
        "reward_std": turn.reward_std,
        "failure": turn.failure,
        "done": turn.done,
        "teacher_forced": turn.teacher_forced,
        "tokens": tokens_of(turn, tokenizer),
    }


def rewards_of(turn: Turn) -> list[dict[str, Any]]:
    """How each component entered the total of a turn: raw, held to its range, normalised, weighted,
    and its share of the weighted mean. A component without a term was looked at only."""
    total = sum(term.weight for term in turn.terms.values())
    found = []
    for name, raw in turn.rewards.items():
        term = turn.terms.get(name)
        if term is None:
            found.append({"name": name, "raw": _finite(raw), "weight": None, "share": None})
            continue
        value = float(term.values(np.array(raw, np.float64)))
        found.append(
            {
                "name": name,
                "raw": _finite(raw),
                "low": _finite(term.low),
                "high": _finite(term.high),
                "mean": _finite(term.mean),
                "std": _finite(term.std),
                "value": _finite(value),
                "weight": _finite(term.weight),
                "share": _finite(term.weight * value / total) if total else 0.0,
                "version": term.version,
            }
        )
    return found


def tokens_of(turn: Turn, tokenizer: ConversationTokenizer | None) -> list[dict[str, Any]]:
    """Text and log-probability of each generated token; the id for a text where the run has no
    tokenizer."""
    return [
        {"id": token, "text": _token_text(token, tokenizer), "log_prob": _finite(log_prob)}
        for token, log_prob in zip(turn.answer_ids, turn.log_probs, strict=False)
    ]


def _token_text(token: int, tokenizer: ConversationTokenizer | None) -> str | None:
    if 0 <= token < len(SPECIAL_TOKENS):
        return SPECIAL_TOKENS[token]
    return None if tokenizer is None else tokenizer.token_bytes(token).decode(errors="replace")


def _tokenizer(watched: WatchedRun) -> ConversationTokenizer | None:
    """That of the newest checkpoint on this machine; None where there is none."""
    folder = watched.directory.local
    if folder is None:
        return None
    for path in sorted((folder / "checkpoints").glob("step_*/tokenizer.json"), reverse=True):
        try:
            return ConversationTokenizer.load(path.parent)
        except (EngramError, OSError, ValueError, KeyError):
            continue
    return None


def _outcome(watched: WatchedRun, episode: Episode, deal: Mapping[str, int]) -> dict[str, Any]:
    """Its end by the journal; empty where that cannot be read."""
    folder = watched.directory.local
    if folder is None or not (folder / "episodes" / "_status.log").is_file():
        return {}
    try:
        found = outcomes(folder).to_pylist()
    except (EngramError, OSError, KeyError, ValueError):
        return {}
    wanted = {"task": episode.task, "iteration": episode.iteration, **deal}
    rows = (row for row in found if all(row[name] == value for name, value in wanted.items()))
    return next(rows, {})


def _quoted(word: str) -> str:
    """A word for a shell."""
    return shlex.quote(word)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
