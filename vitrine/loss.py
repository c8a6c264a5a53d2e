"""How wrong a prediction was: next-token cross-entropy."""

import torch.nn.functional as F
from torch import Tensor


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log(probability given to the token that really came next), in nats.

    Args:
        logits: (batch, seq, vocab_size) of float32.
        targets: (batch, seq) of int64: the token after each position.

    Returns:
        A scalar. A model that knows nothing has ln(vocab_size).
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
