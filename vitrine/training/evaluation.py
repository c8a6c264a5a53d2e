"""Evaluation: the loss of a model on text that it was not trained on."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vitrine.errors import CorpusError
from vitrine.model.decoder import Decoder
from vitrine.model.loss import wide

# Tokens in one batch: what fits a processor's cache, or keeps a GPU busy.
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 65_536, "mps": 16_384}
LOGITS_AT_ONCE = 2**28  # one gigabyte, so that a large vocabulary does not fill a GPU


@dataclass(frozen=True)
class Evaluation:
    """Losses in nats per token, and per byte of text, which is comparable between tokenizers."""

    loss: float
    tokens: int
    bits_per_byte: float | None

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely tokens that would be as hard to predict."""
        return math.exp(min(self.loss, 700.0))

    def to_json(self) -> dict[str, Any]:
        """What `evaluate --json` prints."""
        return vars(self) | {"perplexity": self.perplexity}


def evaluate(
    model: Decoder,
    tokens: NDArray[np.unsignedinteger],
    size_bytes: int = 0,
    at_most: int = 0,
    share: tuple[int, int] = (0, 1),
    between: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Mean loss over non-overlapping windows of the model's context, each target once.

    Args:
        tokens: (n,) token ids; tokens 1 to n - 1 are the targets.
        size_bytes: UTF-8 bytes of the text that the tokens stand for; 0: no bits per byte.
        at_most: measure about this many tokens, in evenly spaced windows; 0: all.
        share: (rank, world size): each of several processes sums up its share of the windows.
        between: called before each batch, equally often in every process, with the windows measured so far and in all.
            An exception that it raises ends the evaluation.
    """
    if len(tokens) < 2:
        raise CorpusError(
            f"A loss needs a token and the one after it: got {len(tokens)} tokens to measure. Give a longer text."
        )
    context = model.config.context
    starts = np.arange(0, len(tokens) - 1, context)
    if at_most and at_most < len(tokens) - 1:
        starts = starts[np.linspace(0, len(starts) - 1, max(1, at_most // context)).round().astype(np.int64)]
    total, count = _sum(model, tokens, starts, share, between)
    if share[1] > 1:
        sums = torch.tensor([total, float(count)], dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        total, count = float(sums[0]), int(sums[1])
    loss = total / count
    per_byte = loss / math.log(2) * len(tokens) / size_bytes if size_bytes else None
    return Evaluation(loss, count, per_byte)


@torch.no_grad()
def _sum(
    model: Decoder,
    tokens: NDArray[np.unsignedinteger],
    starts: NDArray[np.int64],
    share: tuple[int, int],
    between: Callable[[int, int], None],
) -> tuple[float, int]:
    """Sum of the losses of this process's windows, in float64, and the number of targets."""
    context, device = model.config.context, model.embedding.weight.device
    total, count = 0.0, 0
    rank, size = share
    whole = [int(s) for s in starts[rank::size] if s + context < len(tokens)]
    rest = [int(s) for s in starts[rank::size] if s + context >= len(tokens)]
    at_once = min(TOKENS_AT_ONCE[device.type], LOGITS_AT_ONCE // model.config.vocab_size)
    rows = max(1, at_once // context)
    batches = [whole[i : i + rows] for i in range(0, len(whole), rows)] + [[s] for s in rest]
    rounds = -(-len(starts) // (size * rows)) + 1  # no process has more batches than this, the last window included
    for number in range(rounds):
        between(min(number * size * rows, len(starts)), len(starts))
        if number >= len(batches):
            continue
        batch = batches[number]
        windows = np.stack([tokens[s : s + context + 1].astype(np.int64) for s in batch])
        windows_on = torch.from_numpy(windows).to(device)
        logits = model(windows_on[:, :-1])
        losses = F.cross_entropy(wide(logits.flatten(0, 1)), windows_on[:, 1:].flatten(), reduction="sum")
        total += float(losses)
        count += windows[:, 1:].size
    return total, count
