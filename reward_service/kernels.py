"""Inner loops of rewards: what numpy takes many passes over a batch for, text by text."""

from __future__ import annotations

import numpy as np

from common.compiling import kernel


@kernel
def _extend(runs: np.ndarray, tokens: np.ndarray, token: int, most: int) -> None:
    """From how long the texts from a candidate's next position on, and from each position of `tokens` on, are the same, to the same for
    the position before, which holds `token`; at most `most`. runs: int32 [at least len(tokens) + 1], 0 at len(tokens)."""
    for j in range(len(tokens)):
        longer = min(runs[j + 1] + 1, most)
        runs[j] = longer if tokens[j] == token else 0


@kernel
def _reaching(runs: np.ndarray, length: int, n: int) -> int:
    """How many of the first `length` runs are at least n long."""
    count = 0
    for j in range(length):
        count += runs[j] >= n
    return count


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
    """Matched n-grams of each candidate, clipped at the largest count in any one document of a group.

    flat: int32 tokens, of which candidate r is flat[starts[r] : starts[r] + lengths[r]], and so is its document d by document_starts [d, r]
    and document_lengths; groups: int64 [documents], the group of each; out: int64 [groups, candidates, order], zeros.

    An occurrence of an n-gram is matched where fewer came before it than a document of the group holds, which sums up to the clipped count.
    """
    order, documents = out.shape[2], len(groups)
    longest = 0
    for r in range(len(lengths)):
        longest = max(longest, lengths[r])
        for d in range(documents):
            longest = max(longest, document_lengths[d, r])
    own, runs = np.zeros(longest + 1, np.int32), np.zeros((documents, longest + 1), np.int32)
    found = np.zeros((out.shape[0], order), np.int64)
    for r in range(len(lengths)):
        own[:] = 0
        runs[:] = 0
        candidate = flat[starts[r] : starts[r] + lengths[r]]
        for i in range(lengths[r] - 1, -1, -1):
            token = candidate[i]
            _extend(own, candidate[:i], token, order)
            found[:] = 0
            for d in range(documents):
                length = document_lengths[d, r]
                _extend(runs[d], flat[document_starts[d, r] : document_starts[d, r] + length], token, order)
                for n in range(order):
                    count = _reaching(runs[d], length, n + 1)
                    if count == 0:
                        break
                    found[groups[d], n] = max(found[groups[d], n], count)
            for n in range(order):
                earlier = -1
                for g in range(out.shape[0]):
                    if found[g, n] > 0:
                        if earlier < 0:
                            earlier = _reaching(own, i, n + 1)
                        out[g, r, n] += earlier < found[g, n]


@kernel
def embedding_sums(embedding: np.ndarray, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
    """Sum of each text's rows of `embedding` [vocabulary, width]: out float32 [texts, width], zeros. Tokens must lie inside."""
    for r in range(len(starts)):
        for i in range(starts[r], starts[r] + lengths[r]):
            token = flat[i]
            for d in range(out.shape[1]):
                out[r, d] += embedding[token, d]
