"""Which windows of text a step learns from: a pure function of (seed, step). Nothing has to be remembered.

Each epoch reads every source once, in windows that do not overlap, in a new order and from a new offset.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrine.randomness import keyed_hash, permute

MIXTURE_CYCLE = 1000  # windows after which a mixture's shares have been met exactly (to 1 in 1000)


@dataclass(frozen=True)
class Windows:
    """The windows of one micro-batch.

    tokens: (batch, context + 1) of int64; inputs are all but the last column, targets all but the first.
    keys: (batch,) of int32, the key of each window's dropout.
    """

    tokens: NDArray[np.int64]
    keys: NDArray[np.int32]


class Batches:
    """The training windows of a corpus.

    Args:
        sources: token arrays, each at least context + 1 long.
        weights: how often each source is drawn; empty: in proportion to its length.
        max_tokens: of all sources together, use the first so many tokens (0: all).
    """

    def __init__(
        self,
        sources: Sequence[NDArray[np.unsignedinteger]],
        weights: Sequence[float],
        context: int,
        batch_size: int,
        accumulation: int,
        seed: int,
        max_tokens: int = 0,
    ) -> None:
        total = sum(len(source) for source in sources)
        keep = min(1.0, max_tokens / total) if max_tokens else 1.0
        self.sources = [source[: max(context + 1, int(len(source) * keep))] for source in sources]
        self.context, self.batch_size, self.accumulation, self.seed = context, batch_size, accumulation, seed
        self.windows = [max(1, (len(source) - context) // context) for source in self.sources]
        self.pattern = _mixture_pattern(weights or self.windows, seed)
        self.counts = np.bincount(self.pattern, minlength=len(sources))
        self.ranks = np.zeros_like(self.pattern)
        for source in range(len(sources)):
            mine = self.pattern == source
            self.ranks[mine] = np.arange(mine.sum())

    def micro_batch(self, step: int, index: int) -> Windows:
        """The windows of micro-batch `index` of a step."""
        first = (step * self.accumulation + index) * self.batch_size
        numbers = np.arange(first, first + self.batch_size)
        tokens = np.empty((self.batch_size, self.context + 1), dtype=np.int64)
        slots = numbers % len(self.pattern)
        draws = numbers // len(self.pattern) * self.counts[self.pattern[slots]] + self.ranks[slots]
        for row, (source, draw) in enumerate(zip(self.pattern[slots], draws, strict=True)):
            start = self._start(int(source), int(draw))
            tokens[row] = self.sources[source][start : start + self.context + 1]
        key = keyed_hash(self.seed, "dropout", step, index)
        rows = np.array([key + row * 0x9E3779B97F4A7C15 & 2**64 - 1 for row in range(self.batch_size)], np.uint64)
        return Windows(tokens, _mix64(rows).astype(np.uint32).view(np.int32))

    def _start(self, source: int, draw: int) -> int:
        """Where the draw-th window of a source begins."""
        count = self.windows[source]
        epoch, position = divmod(draw, count)
        slack = min(self.context, len(self.sources[source]) - count * self.context)
        offset = keyed_hash(self.seed, "offset", source, epoch) % max(1, slack)
        return permute(position, count, keyed_hash(self.seed, "order", source, epoch)) * self.context + offset

    @property
    def epoch_tokens(self) -> int:
        """Tokens in one pass over all sources."""
        return sum(self.windows) * self.context


def _mixture_pattern(weights: Sequence[float], seed: int) -> NDArray[np.int64]:
    """Which source each window of a cycle comes from, each source as often as its weight says."""
    if len(weights) == 1:
        return np.zeros(1, dtype=np.int64)
    shares = np.array(weights, dtype=np.float64) / sum(weights) * MIXTURE_CYCLE
    counts = np.maximum(1, np.floor(shares)).astype(np.int64)
    while counts.sum() < MIXTURE_CYCLE:
        counts[np.argmax(shares - counts)] += 1
    pattern = np.repeat(np.arange(len(weights)), counts)
    order = [permute(i, len(pattern), keyed_hash(seed, "mixture")) for i in range(len(pattern))]
    return pattern[order]


def _mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
