"""How wrong a prediction was: next-token cross-entropy."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)  # Apple's GPUs
AT_ONCE = 2**24  # logits that are widened to float32 at a time: 64 MiB


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log(probability given to the token that really came next), in nats.

    Args:
        logits: (batch, seq, vocab_size), in any number format; the loss is computed in float32 (of float64, in that).
        targets: (batch, seq) of int64: the token after each position.

    Returns:
        A scalar. A model that knows nothing has ln(vocab_size).
    """
    rows, following = logits.flatten(0, 1), targets.flatten()
    if rows.numel() <= AT_ONCE:
        return F.cross_entropy(wide(rows), following)
    loss: Tensor = CrossEntropyByParts.apply(rows, following)  # type: ignore[no-untyped-call]
    return loss


def float64_device(device: torch.device) -> torch.device:
    """Where numbers that lie on a device are computed in float64: there, or on the processor."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def wide(logits: Tensor) -> Tensor:
    """The same numbers in at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class CrossEntropyByParts(torch.autograd.Function):
    """Custom autograd: mean cross-entropy of many rows over a large vocabulary, some rows at a time.

    In one expression it keeps three float32 copies of the logits: 10 GB for 16 x 1024 tokens of GPT-2's vocabulary.
    Here the logits stay in their own format, and one more tensor of their size is made: their gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """logits: (rows, vocab_size); targets: (rows,)."""
        device = float64_device(logits.device)
        total = torch.zeros((), dtype=torch.float64, device=device)
        normalisers = []
        for part, following in parts(logits, targets):
            numbers = wide(part)
            normaliser = numbers.logsumexp(-1)
            losses = normaliser - numbers.gather(1, following[:, None])[:, 0]
            total += losses.to(device).sum(dtype=torch.float64)
            normalisers.append(normaliser)
        ctx.save_for_backward(logits, targets, torch.cat(normalisers))
        return (total / len(logits)).to(normalisers[0].dtype).to(logits.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """softmax - (1 at the target), over the number of rows."""
        logits, targets, normaliser = ctx.saved_tensors
        found, share, start = torch.empty_like(logits), gradient / len(logits), 0
        for part, following in parts(logits, targets):
            rows = slice(start, start + len(part))
            probabilities = (wide(part) - normaliser[rows, None]).exp_()
            probabilities.scatter_add_(1, following[:, None], -torch.ones_like(normaliser[rows, None]))
            found[rows] = probabilities.mul_(share)
            start = rows.stop
        return found, None


def parts(logits: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows that are widened together, with their targets."""
    rows = max(1, AT_ONCE // logits.shape[1])
    return list(zip(logits.split(rows), targets.split(rows), strict=True))
