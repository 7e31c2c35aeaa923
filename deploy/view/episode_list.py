"""The episodes that a reader asks for: filtered, in an order, a page at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.config.section import LARGEST_NUMBER
from common.episode import Strategy
from common.failures import InputError, nearest
from deploy.view.answers import recalled_of
from deploy.view.episode_index import EpisodeIndex, Rows

Order = str
ORDERS = ("latest", "lowest", "highest")
"""By time, or by mean reward."""
LARGEST_PAGE = 500


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that hold together; None or empty: any."""

    step: str = ""
    strategy: str = ""
    worker: str = ""
    failed: bool = False
    """Only those that failed, or with a turn that did."""
    distance: int | None = None
    """Only those that ask for a fact so many turns after it was told."""
    reward_from: float | None = None
    reward_to: float | None = None
    """Bounds of the mean reward."""
    text: str = ""
    """Stands in a query or an answer, in any case; or is the id."""
    order: Order = "latest"
    start: int = 0
    count: int = 100

    @classmethod
    def of(cls, words: dict[str, str]) -> Filter:
        """From words such as those of a URL. Raises InputError for an unknown or a bad one."""
        kinds = {each.name: str(each.type) for each in fields(cls)}
        values: dict[str, Any] = {}
        for name, word in words.items():
            if name not in kinds:
                raise InputError(name, f"is no filter of episodes; {nearest(name, kinds)}")
            if word != "":
                values[name] = _value(name, word, kinds[name])
        found = cls(**values)
        for name, known in (("order", ORDERS), ("strategy", get_args(Strategy))):
            value = getattr(found, name)
            if value and value not in known:
                raise InputError(name, f"{value!r} is none; {nearest(value, known)}")
        if not 0 <= found.start <= LARGEST_NUMBER or not 1 <= found.count <= LARGEST_PAGE:
            raise InputError("count", f"a page has 1 to {LARGEST_PAGE} episodes from 0 on")
        return found


def _value(name: str, word: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[word]
        if "int" in kind:
            return int(word)
        if "float" in kind:
            number = float(word)
            if not np.isfinite(number):
                raise ValueError
            return number
    except (ValueError, KeyError):
        raise InputError(name, f"{word!r} is not what this filter takes ({kind})") from None
    return word


def episode_list(index: EpisodeIndex, wanted: Filter) -> dict[str, Any]:
    """{"total", "matching", "episodes": a page of them, "choices": what filters can be set to}."""
    rows = index.rows
    if not len(rows):
        return {"total": 0, "matching": 0, "episodes": [], "choices": {}}
    chosen = np.flatnonzero(_matching(index, rows, wanted))
    reward = rows.columns["reward"][chosen]
    if wanted.order == "latest":
        chosen = chosen[::-1]
    else:
        chosen, reward = chosen[~np.isnan(reward)], reward[~np.isnan(reward)]
        sign = 1 if wanted.order == "lowest" else -1
        chosen = chosen[np.argsort(sign * reward, kind="stable")]
    page = chosen[wanted.start : wanted.start + wanted.count]
    return {
        "total": len(rows),
        "matching": len(chosen),
        "episodes": _page(index, rows, page),
        "choices": _choices(rows),
    }


def _matching(index: EpisodeIndex, rows: Rows, wanted: Filter) -> np.ndarray:
    columns = rows.columns
    keep = np.ones(len(rows), bool)
    for name in ("step", "strategy", "worker"):
        if value := getattr(wanted, name):
            keep &= columns[name] == value
    if wanted.failed:
        keep &= columns["failed"]
    if wanted.distance is not None:
        bit = np.uint64(min(max(wanted.distance, 0), 63))
        keep &= (columns["distances"] >> bit) & np.uint64(1) > 0
    with np.errstate(invalid="ignore"):
        if wanted.reward_from is not None:
            keep &= columns["reward"] >= wanted.reward_from
        if wanted.reward_to is not None:
            keep &= columns["reward"] <= wanted.reward_to
    if wanted.text:
        keep &= _with_text(index, rows, wanted.text)
    return keep


def _with_text(index: EpisodeIndex, rows: Rows, text: str) -> np.ndarray:
    found = rows.columns["id"] == text
    for number, part in enumerate(rows.parts):
        turns = index.texts(part)["turns"].combine_chunks()
        flat = turns.flatten()
        offsets = turns.offsets.to_numpy() - turns.offsets[0].as_py()
        stands = np.zeros(len(flat), bool)
        for name in ("query", "answer"):
            texts: pa.Array = flat.field(flat.type.get_field_index(name))
            hits = pc.match_substring(texts, text, ignore_case=True)
            stands |= pc.fill_null(hits, False).to_numpy(zero_copy_only=False)
        owner = np.repeat(np.arange(len(turns)), np.diff(offsets))
        episodes = np.bincount(owner[stands], minlength=len(turns)) > 0
        own = rows.part == number
        found[own] |= episodes[rows.row[own]]
    return found


def _page(index: EpisodeIndex, rows: Rows, page: np.ndarray) -> list[dict[str, Any]]:
    columns = rows.columns
    recalled = _recalled(index, rows, page)
    found = []
    for each in page.tolist():
        facts = recalled.get(each)
        reward = float(columns["reward"][each])
        found.append(
            {
                "id": columns["id"][each],
                "stage": int(columns["stage"][each]),
                "step": columns["step"][each],
                "strategy": columns["strategy"][each],
                "iteration": int(columns["iteration"][each]),
                "attempt": int(columns["attempt"][each]),
                "weights_version": int(columns["weights_version"][each]),
                "worker": columns["worker"][each],
                "status": columns["status"][each],
                "turns": int(columns["turns"][each]),
                "reward": None if np.isnan(reward) else reward,
                "failed": bool(columns["failed"][each]),
                "asked": None if facts is None else len(facts),
                "recalled": None if facts is None else int(facts.sum()),
            }
        )
    return found


def _recalled(index: EpisodeIndex, rows: Rows, page: np.ndarray) -> dict[int, np.ndarray]:
    """Whether each fact that an episode of the page asks for was named, by the episode's index."""
    found: dict[int, np.ndarray] = {}
    for number in np.unique(rows.part[page]).tolist():
        part, own = rows.parts[number], page[rows.part[page] == number]
        unseen = [row for row in rows.row[own].tolist() if row not in part.named]
        if unseen:
            texts = index.texts(part)["turns"].take(pa.array(unseen))
            recalled = recalled_of(texts.to_pylist())
            for place, row in enumerate(unseen):
                part.named[row] = recalled.named[recalled.episode == place]
        found |= {each: part.named[int(rows.row[each])] for each in own.tolist()}
    return found


def _choices(rows: Rows) -> dict[str, list[Any]]:
    bits = int(np.bitwise_or.reduce(rows.columns["distances"]))
    return {
        **{
            name: sorted({str(value) for value in rows.columns[name].tolist() if value})
            for name in ("step", "strategy", "worker")
        },
        "distance": [distance for distance in range(64) if bits >> distance & 1],
    }
