"""Inner loops of rewards: what numpy takes many passes over a batch for, text by text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

kernel = njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}, cache=True)
"""Compiled at the first call, once per machine."""

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
    to a longest n. standing: see clipped_matches."""
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
    order, documents = out.shape[2], len(groups)
    longest, most_words, most = 0, 0, 0
    for r in range(len(lengths)):
        words = _words(lengths, document_lengths, r)
        longest, most_words, most = (
            max(longest, lengths[r]),
            max(most_words, words),
            max(most, lengths[r] * words),
        )
    places = 2
    while places <= 2 * longest:
        places *= 2
    # The different tokens of a candidate have numbers, which stand at their hash in the table or
    # past it, where -1 is an empty place.
    table, tokens, numbers = (
        np.empty(places, np.int32),
        np.empty(longest, np.int32),
        np.empty(longest, np.int32),
    )
    # Of each number, where its token stands in each text, the last of which is the candidate (as
    # many words as this row takes); of each text, where the n-grams stand that begin at the
    # candidate's position in turn. All as bit sets, the latter with a word of zeros behind.
    positions = np.empty(most * (documents + 1), np.uint64)
    standing = np.zeros((documents + 1, order, most_words + 1), np.uint64)
    reach = np.empty(documents, np.int64)  # the longest n whose n-gram stands in a document
    found = np.zeros((out.shape[0], order), np.int64)
    for r in range(len(lengths)):
        length, words, different = lengths[r], _words(lengths, document_lengths, r), 0
        for place in range(places):
            table[place] = -1
        for i in range(length):
            token = flat[starts[r] + i]
            place = _place(table, tokens, token)
            if table[place] < 0:
                table[place], tokens[different] = different, token
                different += 1
            numbers[i] = table[place]
        stride = (documents + 1) * words
        for cell in range(different * stride):
            positions[cell] = _NONE
        for d in range(documents):
            _mark(
                flat,
                document_starts[d, r],
                document_lengths[d, r],
                table,
                tokens,
                positions,
                d * words,
                stride,
            )
        _mark(flat, starts[r], length, table, tokens, positions, documents * words, stride)
        standing[:] = 0
        reach[:] = 0
        for i in range(length - 1, -1, -1):
            here = numbers[i] * stride
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
                for g in range(out.shape[0]):
                    out[g, r, n] += earlier < found[g, n]
                    found[g, n] = 0


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
