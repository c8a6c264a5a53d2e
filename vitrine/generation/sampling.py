"""From logits to the next token: temperature, top-k, top-p and the like.

These act on the output probabilities, after training. They change no parameter.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitrine._json import CONSTANTS
from vitrine.config import SamplingConfig

# A temperature so low is zero, as vLLM has it: dividing by it could overflow.
GREEDY_BELOW = CONSTANTS["limits"]["greedy_below"]
BELOW_ONE = 1 - 2**-52  # a uniform number times this, times a sum, is rounded to less than the sum
NOT_FINITE = (
    "The model's logits are not finite: its parameters are damaged, or the training diverged. "
    "Try an earlier step, with --step."
)


def filter_logits(logits: Tensor, sampling: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """The logits after all filters: softmax of the result is the distribution that is sampled from.

    The order and the treatment of ties are those of transformers: repetition penalty, temperature, top-k,
    top-p, min-p. Temperature 0 leaves only the likeliest token (the first of several).

    Args:
        logits: (batch, vocab_size).
        seen: (batch, n) of int64: the tokens so far; needed for a repetition penalty.

    Returns:
        (batch, vocab_size) of float32; removed tokens are -inf.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1 and seen is not None:
        old = scores.gather(1, seen)
        penalised = torch.where(old < 0, old * sampling.repetition_penalty, old / sampling.repetition_penalty)
        scores = scores.scatter(1, seen, penalised)
    if sampling.temperature < GREEDY_BELOW:
        best = scores.argmax(-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter(1, best, 0.0)
    if sampling.temperature != 1:
        scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        weakest = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < weakest, float("-inf"))
    if sampling.top_p < 1:
        ascending, order = scores.sort(descending=False)
        below = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        below[:, -1] = False
        scores = scores.masked_fill(below.scatter(1, order, below), float("-inf"))
    if sampling.min_p > 0:
        probabilities = scores.softmax(-1)
        weak = probabilities < sampling.min_p * probabilities.amax(-1, keepdim=True)
        scores = scores.masked_fill(weak, float("-inf"))
    return scores


class Chooser:
    """How the tokens of one text are chosen: its sampling settings, its random numbers, and its tokens so far.

    Args:
        sampling: temperature and filters.
        seed: of the random numbers; `index` tells texts of the same seed apart.
        prompt_ids: a repetition penalty counts them too.
        presence, frequency: subtracted from the logit of a token that was written: once, and for each time.
        bias: added to the logits of these tokens.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        seed: int,
        index: int = 0,
        prompt_ids: Sequence[int] = (),
        presence: float = 0.0,
        frequency: float = 0.0,
        bias: Mapping[int, float] | None = None,
    ) -> None:
        self.sampling, self.kind = sampling, sampling.model_dump_json()
        self.random = random.Random(f"{seed}/{index}")
        self.ids = list(prompt_ids)
        self.written: Counter[int] = Counter()
        self.presence, self.frequency, self.bias = presence, frequency, dict(bias or {})

    @property
    def separate(self) -> bool:
        """Whether the choice depends on what was written."""
        return bool(self.presence or self.frequency or self.bias) or self.sampling.repetition_penalty != 1

    def add(self, token: int) -> None:
        """This token was chosen."""
        self.ids.append(token)
        self.written[token] += 1

    def adjust(self, logits: Tensor) -> Tensor:
        """(1, vocab_size): the logits, with bias and penalties."""
        if not (self.presence or self.frequency or self.bias):
            return logits
        changes = defaultdict(float, self.bias)
        for token, times in self.written.items():
            changes[token] -= self.presence + times * self.frequency
        places = torch.tensor([list(changes)])
        return logits.scatter_add(1, places, torch.tensor([list(changes.values())], dtype=logits.dtype))


def choose(logits: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """The next token of each text; each chooser remembers its own.

    Texts with the same hyperparameters go through the filters together; none depends on another.

    Args:
        logits: (texts, vocab_size).
    """
    logits = logits.float().cpu()
    groups: dict[object, list[int]] = {}
    for row, chooser in enumerate(choosers):
        groups.setdefault(row if chooser.separate else chooser.kind, []).append(row)
    tokens = [0] * len(choosers)
    for rows in groups.values():
        first = choosers[rows[0]]
        some = logits if len(rows) == len(choosers) else logits[rows]
        seen = None
        if first.separate:
            some, seen = first.adjust(some), torch.tensor([first.ids])
        if first.sampling.temperature < GREEDY_BELOW and seen is None:
            sampled = some.argmax(-1)
        else:
            scores = filter_logits(some, first.sampling, seen)
            sampled = _sample(scores, [choosers[row].random.random() for row in rows])
        for row, token in zip(rows, sampled.tolist(), strict=True):
            tokens[row] = token
            choosers[row].add(token)
    return tokens


def are_finite(logits: Tensor) -> list[bool]:
    """Of each row, whether all of it is: one number that is not makes their sum so."""
    return [math.isfinite(total) for total in logits.sum(-1).tolist()]


def _sample(scores: Tensor, uniform: Sequence[float]) -> Tensor:
    """A token of each row: where the running sum of its probabilities passes the uniform number."""
    sums = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    at = sums[:, -1:] * torch.tensor([[BELOW_ONE * number] for number in uniform], dtype=torch.float64)
    return torch.searchsorted(sums, at, right=True)[:, 0]
