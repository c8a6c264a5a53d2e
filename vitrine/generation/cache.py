"""The key-value cache of many texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrine.model.decoder import Decoder

SPAN = 64  # attention looks at a multiple of so many places


@dataclass(frozen=True)
class Reach:
    """What the tokens of one pass see of the cache.

    masks: one for all tokens together, or one for each token of a single row.
    views: of each layer, the keys and values that are looked at.
    write: put the new keys and values of a layer, (tokens, 2, n_kv_heads, head_dim), in their places.
    """

    masks: list[Tensor]
    views: list[tuple[Tensor, Tensor]]
    write: Callable[[int, Tensor], None]


class Cache:
    """Keys and values of the tokens so far, so that none is computed twice.

    layers: keys and values of each layer: (2, rows, n_kv_heads, span, head_dim). They are laid out for `span` places, and
    again when that changes: attention reads memory without gaps three times as fast as with them.
    """

    def __init__(self, model: Decoder, rows: int) -> None:
        config = model.config
        self.capacity = -(-config.context // SPAN) * SPAN
        self.shape = rows, config.n_kv_heads, config.head_dim
        # Zeros, not uninitialised memory: a masked place still takes part, with weight 0.
        count = rows * config.n_kv_heads * self.capacity * config.head_dim
        device = model.embedding.weight.device
        # On a processor, attention of one token is faster in float32, though it reads twice as much.
        on_cpu = device.type == "cpu" and model.compute_dtype == torch.bfloat16
        self.dtype = torch.float32 if on_cpu else model.compute_dtype
        self.memory = torch.zeros(config.n_layers, 2, count, dtype=self.dtype, device=device)
        # Any row of a mask is a part of this.
        self._strip = torch.zeros(2 * self.capacity, dtype=self.dtype, device=device)
        self._strip[self.capacity :] = float("-inf")
        self.layers: list[Tensor] = []
        self._views: list[tuple[Tensor, Tensor]] = []
        self.lay(SPAN, 0)

    @property
    def size_bytes(self) -> int:
        """What it takes when every row is full."""
        return self.memory.nbytes

    def lay(self, span: int, used: int) -> None:
        """Change the number of places; what the first `used` rows hold stays, as far as there is room."""
        rows, kv_heads, head_dim = self.shape
        old = self.layers if used else []
        self.span, self._viewed = span, (0, 0)
        parts = self.memory[..., : rows * kv_heads * span * head_dim]
        self.layers = [pair.view(2, rows, kv_heads, span, head_dim) for pair in parts]
        for source, target in zip(old, self.layers, strict=False):
            for before, after in zip(source, target, strict=True):
                kept = before[:used, :, :span].clone()
                after[:used, :, : kept.shape[2]] = kept

    def rows(self, first: int, positions: Sequence[int], at: Tensor) -> "Reach":
        """One token each of the rows from `first` on; at: `positions` on the device."""
        count = len(positions)
        places = torch.arange(first, first + count, device=at.device)

        def write(layer: int, new: Tensor) -> None:
            self.layers[layer][:, places, :, at] = new.to(self.dtype)

        return Reach([self._mask(positions)], self._view(first, count), write)

    def row(self, row: int, positions: Sequence[int]) -> "Reach":
        """Successive tokens of one row, each of which sees those before it."""
        # By plain numbers: they cost a third of an index.
        part = slice(positions[0], positions[0] + len(positions))
        places = [pair[:, row, :, part] for pair in self.layers]

        def write(layer: int, new: Tensor) -> None:
            places[layer].copy_(new.permute(1, 2, 0, 3))

        return Reach([self._mask([at]) for at in positions], self._view(row, 1), write)

    def copy(self, source: int, target: int) -> None:
        """One row onto another."""
        for pair in self.layers:
            pair[:, target] = pair[:, source]

    def _mask(self, positions: Sequence[int]) -> Tensor:
        """(rows x n_kv_heads, 1, span), of one row (span,): 0 at the places that hold tokens, -inf after them."""
        strips = [self._strip[self.capacity - 1 - at : self.capacity - 1 - at + self.span] for at in positions]
        return torch.stack(strips).repeat_interleave(self.shape[1], 0)[:, None] if len(strips) > 1 else strips[0]

    def _view(self, first: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """Of each layer, for some rows: keys (rows x n_kv_heads, head_dim, span), values (.., span, head_dim)."""
        if (first, count) != self._viewed:
            rows = slice(first, first + count)
            self._views = [(k[rows].flatten(0, 1).transpose(1, 2), v[rows].flatten(0, 1)) for k, v in self.layers]
            self._viewed = first, count
        return self._views
