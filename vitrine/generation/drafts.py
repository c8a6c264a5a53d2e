"""N-gram drafts: the tokens that usually followed the last few ones in a text.

A draft costs microseconds and is always verified: `engine.Engine` computes all of its tokens in one pass, and continues
from the first one that was not chosen. Good drafts save passes; bad ones change nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ORDER = 4  # tokens that a draft looks back, at most
SAMPLE = 2**19  # tokens of the training text that are counted: a fifth of a second
SEEN = 2  # times that a context must have been there; of rarer ones, the shorter context knows more
LEAST_CHANCE = 0.2  # of a whole draft: a row of a product takes about a sixth of a pass
_FACTOR, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1


class Ngrams:
    """Of each context of 1 to ORDER tokens: the token that followed most often, and its share.

    Args:
        tokens: a text. A context is known by a hash of 64 bits; two that share one would make a bad draft.
    """

    def __init__(self, tokens: NDArray[np.unsignedinteger[Any]]) -> None:
        self.tokens = len(tokens)
        self._next: dict[int, tuple[int, float]] = {}
        ids = tokens.astype(np.uint64)
        for order in range(1, min(ORDER, len(ids) - 1) + 1):
            count = len(ids) - order
            contexts = np.full(count, order, np.uint64)
            for back in range(order):
                contexts = contexts * np.uint64(_FACTOR) + ids[back : back + count]
            following = ids[order:]
            _, first, times = np.unique(
                contexts * np.uint64(_FACTOR) + following, return_index=True, return_counts=True
            )
            by_context = np.lexsort((times, contexts[first]))  # the most frequent one last
            first, times = first[by_context], times[by_context]
            ends = np.flatnonzero(np.append(np.diff(contexts[first]) != 0, True))
            totals = np.diff(np.cumsum(times)[ends], prepend=0)
            kept = totals >= SEEN
            best = first[ends[kept]]
            shares = times[ends[kept]] / (totals[kept] + 1)
            self._next |= zip(
                contexts[best].tolist(), zip(following[best].tolist(), shares.tolist(), strict=True), strict=True
            )

    def draft(self, text: Sequence[int], limit: int) -> list[int]:
        """Up to `limit` tokens that may follow a text: as many as are likely to be all of them right."""
        recent, drafted, chance = list(text[-ORDER:]), list[int](), 1.0
        while len(drafted) < limit:
            token, share = self._following(recent)
            chance *= share
            if chance < LEAST_CHANCE:
                break
            drafted.append(token)
            recent = [*recent[-ORDER + 1 :], token]
        return drafted

    def _following(self, recent: Sequence[int]) -> tuple[int, float]:
        """By the longest context that is known."""
        for order in range(len(recent), 0, -1):
            context = order
            for token in recent[-order:]:
                context = (context * _FACTOR + token) & _MASK
            if found := self._next.get(context):
                return found
        return 0, 0.0
