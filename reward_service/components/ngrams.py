"""Inner loops of rewards: what numpy takes many passes over a batch for, text by text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from common.storage.kernel_cache import keep_compiled

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


def kernel(function: Function) -> Function:
    """Compile at the first call, once per machine."""
    compiled: Function = keep_compiled(njit(nogil=True, **_OPTIONS)(function))
    return compiled


# --- matched n-grams ------------------------------------------------------------------------------

WORD = 64
"""Positions of a text in one word of a bit set."""
_NONE, _ONE, _LAST = np.uint64(0), np.uint64(1), np.uint64(WORD - 1)


@intrinsic
def _count(_: Any, word: types.Type) -> tuple[Any, Any]:
    """How many bits of a uint64 are set."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(word), code


@kernel
def _place(table: np.ndarray, tokens: np.ndarray, token: int) -> int:
    """Where the number of a token stands in the table, or would. tokens: the token of each
    number."""
    last = len(table) - 1
    place = (token * 40503 >> 4) & last
    while table[place] >= 0 and tokens[table[place]] != token:
        place = (place + 1) & last
    return place


@kernel
def _mark(
    flat: np.ndarray,
    start: int,
    length: int,
    table: np.ndarray,
    tokens: np.ndarray,
    positions: np.ndarray,
    first: int,
    stride: int,
) -> None:
    """Note where in a text, `flat[start : start + length]`, each token of the table stands: in
    `stride` words a number, from `first` on."""
    for j in range(length):
        number = table[_place(table, tokens, flat[start + j])]
        if number >= 0:
            positions[first + number * stride + j // WORD] |= _ONE << np.uint64(j % WORD)


@kernel
def _extend(
    standing: np.ndarray, text: int, longest: int, words: int, positions: np.ndarray, first: int
) -> None:
    """From where in a text the n-grams stand that begin at a candidate's next position, to where
    those stand that begin at this one, whose token stands at positions[first : first + words]; up
    to a longest n. standing: see `_Room`."""
    for n in range(longest - 1, 0, -1):
        for w in range(words):
            before = (standing[text, n - 1, w] >> _ONE) | (standing[text, n - 1, w + 1] << _LAST)
            standing[text, n, w] = before & positions[first + w]
    for w in range(words):
        standing[text, 0, w] = positions[first + w]


@kernel
def _size(standing: np.ndarray, text: int, n: int, words: int) -> int:
    """In how many places of a text the n-gram stands."""
    count = 0
    for w in range(words):
        count += _count(standing[text, n, w])
    return count


@kernel
def _size_before(standing: np.ndarray, text: int, n: int, position: int) -> int:
    """In how many places before a position."""
    word = position // WORD
    return _size(standing, text, n, word) + _count(
        standing[text, n, word] & ((_ONE << np.uint64(position % WORD)) - _ONE)
    )


@kernel
def _words(lengths: np.ndarray, document_lengths: np.ndarray, row: int) -> int:
    """Words of a bit set over the longest text of a row."""
    longest = lengths[row]
    for d in range(len(document_lengths)):
        longest = max(longest, document_lengths[d, row])
    return (longest + WORD - 1) // WORD


class _Room(NamedTuple):
    """Scratch of `clipped_matches` for one candidate at a time. Texts are the documents and then
    the candidate."""

    table: np.ndarray
    """Hash table of the candidate's different tokens: the number of each at its hash or past it, -1
    at an empty place."""
    tokens: np.ndarray
    """The token of each number."""
    numbers: np.ndarray
    """The number of the token at each of the candidate's positions."""
    positions: np.ndarray
    """Bit sets of `words` words for each number and text: where the token stands in the text."""
    standing: np.ndarray
    """[texts, order, words + 1] bit sets: where in each text the n-grams stand that begin at the
    candidate's current position. The last word is 0."""
    reach: np.ndarray
    """[documents]: the longest n whose n-gram stands in the document."""
    found: np.ndarray
    """[groups, order]: the largest count of the n-gram in one document of the group."""


@kernel
def _room(lengths: np.ndarray, document_lengths: np.ndarray, groups: int, order: int) -> _Room:
    """Scratch that is large enough for every candidate of the batch."""
    texts, longest, most_words, most = len(document_lengths) + 1, 0, 0, 0
    for r in range(len(lengths)):
        words = _words(lengths, document_lengths, r)
        longest, most_words = max(longest, lengths[r]), max(most_words, words)
        most = max(most, lengths[r] * words)
    places = 2
    while places <= 2 * longest:
        places *= 2
    return _Room(
        np.empty(places, np.int32),
        np.empty(longest, np.int32),
        np.empty(longest, np.int32),
        np.empty(most * texts, np.uint64),
        np.zeros((texts, order, most_words + 1), np.uint64),
        np.empty(texts - 1, np.int64),
        np.zeros((groups, order), np.int64),
    )


@kernel
def _number_tokens(flat: np.ndarray, start: int, length: int, room: _Room) -> int:
    """Give each different token of a candidate a number; returns how many there are."""
    different = 0
    room.table[:] = -1
    for i in range(length):
        token = flat[start + i]
        place = _place(room.table, room.tokens, token)
        if room.table[place] < 0:
            room.table[place], room.tokens[different] = different, token
            different += 1
        room.numbers[i] = room.table[place]
    return different


@kernel
def _match(length: int, words: int, groups: np.ndarray, room: _Room, matches: np.ndarray) -> None:
    """Add the matched n-grams of the candidate whose token numbers and positions are in `room` to
    matches [groups, order]."""
    documents, order = len(groups), matches.shape[1]
    numbers, positions, standing = room.numbers, room.positions, room.standing
    reach, found = room.reach, room.found
    standing[:] = 0
    reach[:] = 0
    for i in range(length - 1, -1, -1):
        here = numbers[i] * (documents + 1) * words
        _extend(standing, documents, order, words, positions, here + documents * words)
        furthest = 0
        for d in range(documents):
            longer, reach[d] = min(reach[d] + 1, order), 0
            _extend(standing, d, longer, words, positions, here + d * words)
            for n in range(longer):
                count = _size(standing, d, n, words)
                if count == 0:
                    break
                found[groups[d], n] = max(found[groups[d], n], count)
                reach[d] = n + 1
            furthest = max(furthest, reach[d])
        for n in range(furthest):
            earlier = _size_before(standing, documents, n, i)
            for g in range(matches.shape[0]):
                matches[g, n] += earlier < found[g, n]
                found[g, n] = 0


@kernel
def clipped_matches(
    flat: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    document_starts: np.ndarray,
    document_lengths: np.ndarray,
    groups: np.ndarray,
    out: np.ndarray,
) -> None:
    """Matched n-grams of each candidate, clipped at the largest count in any one document of a
    group.

    flat: int32 tokens, of which candidate r is flat[starts[r] : starts[r] + lengths[r]], and so is
    its document d by document_starts [d, r] and document_lengths; groups: int64 [documents], the
    group of each; out: int64 [groups, candidates, order], zeros.

    An occurrence of an n-gram is matched where fewer came before it than a document of the group
    holds, which sums up to the clipped count.
    """
    documents = len(groups)
    room = _room(lengths, document_lengths, out.shape[0], out.shape[2])
    table, tokens, positions = room.table, room.tokens, room.positions
    for r in range(len(lengths)):
        start, length, words = starts[r], lengths[r], _words(lengths, document_lengths, r)
        stride = (documents + 1) * words
        positions[: _number_tokens(flat, start, length, room) * stride] = _NONE
        for d in range(documents):
            own, size = document_starts[d, r], document_lengths[d, r]
            _mark(flat, own, size, table, tokens, positions, d * words, stride)
        _mark(flat, start, length, table, tokens, positions, documents * words, stride)
        _match(length, words, groups, room, out[:, r])


# --- embeddings -----------------------------------------------------------------------------------


@kernel
def embedding_sums(
    embedding: np.ndarray,
    flat: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    out: np.ndarray,
) -> None:
    """Sum of each text's rows of `embedding` [vocabulary, width]: out float32 [texts, width],
    zeros. Tokens must lie inside."""
    for r in range(len(starts)):
        start, stop = starts[r], starts[r] + lengths[r]
        # Four tokens at a time, for each pass over the sum has a cost of its own.
        fours = stop - lengths[r] % 4
        for i in range(start, fours, 4):
            a, b, c, d = flat[i], flat[i + 1], flat[i + 2], flat[i + 3]
            for column in range(out.shape[1]):
                out[r, column] += (embedding[a, column] + embedding[b, column]) + (
                    embedding[c, column] + embedding[d, column]
                )
        for i in range(fours, stop):
            token = flat[i]
            for column in range(out.shape[1]):
                out[r, column] += embedding[token, column]
