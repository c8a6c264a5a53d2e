"""The parameters of a model as entries, one for each tensor, in the order of a flat buffer; and who holds their numbers.

Entries know no model: they follow from names and shapes. Matrices of one shape lie side by side, so that Muon can turn a whole
stack of them at once.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from vitrine.model.inventory import is_hidden_matrix

ALIGNMENT = 16  # float32 numbers: 64 bytes, a cache line


@dataclass(frozen=True)
class Entry:
    """A tensor, or those of its rows that are held here, and where their numbers lie in a flat buffer.

    start: place of the first number; shape: of what is held here. whole: shape of the whole tensor; first: which of its rows
    is the first one here.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    whole: tuple[int, ...]
    first: int = 0

    @property
    def stop(self) -> int:
        """One past the last number."""
        return self.start + math.prod(self.shape)

    @property
    def origin(self) -> int:
        """Where the whole tensor would start: `origin` plus a number's place in the flattened tensor is its place here."""
        return self.start - self.first * math.prod(self.whole[1:])

    @property
    def hidden(self) -> bool:
        """Whether it is a matrix inside a block: what Muon updates."""
        return is_hidden_matrix(self.name, self.whole)

    @property
    def kind(self) -> int:
        """0 for hidden matrices, 1 for other matrices, 2 for vectors: the order in a buffer."""
        return 0 if self.hidden else 1 if len(self.whole) == 2 else 2

    def view(self, flat: Tensor) -> Tensor:
        """Its numbers in a flat buffer, in its own shape."""
        return flat[self.start : self.stop].view(self.shape)


class Entries:
    """Entries that lie side by side, each from a cache line on: hidden matrices, other matrices, vectors.

    size: of a flat buffer of them, with zeros in the gaps after entries. start: where they lie in the buffer of the whole
    model, if they are a part of it. alignment: numbers; 1: there are no gaps.
    """

    def __init__(self, entries: Iterable[Entry], start: int = 0, alignment: int = ALIGNMENT) -> None:
        self._entries, self.start = tuple(entries), start
        self.size = _aligned(self._entries[-1].stop, alignment)
        self.by_name = {entry.name: entry for entry in self}
        stacks = itertools.groupby(self, lambda entry: (entry.kind, entry.whole, entry.shape))
        self._stacks = [(tuple(members), _aligned(math.prod(shape), alignment)) for (_, _, shape), members in stacks]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], rows: Mapping[str, range] | None = None) -> "Entries":
        """The entries of tensors with these shapes. rows: those that are held here, by name; by default all."""
        held = {name: (len(some), *shapes[name][1:]) for name, some in (rows or {}).items()}
        entries = [
            Entry(name, 0, held.get(name, whole), whole, rows[name].start if rows and name in rows else 0)
            for name, whole in shapes.items()
        ]
        placed, size = [], 0
        for entry in sorted(entries, key=lambda entry: (entry.kind, entry.whole, entry.shape)):
            placed.append(replace(entry, start=size))
            size = _aligned(placed[-1].stop)
        return cls(placed)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Entry:
        return self._entries[index]

    @property
    def count(self) -> int:
        """How many numbers they have (the gaps left out)."""
        return sum(entry.stop - entry.start for entry in self)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each whole tensor, by name."""
        return {entry.name: entry.whole for entry in self}

    @property
    def origins(self) -> dict[str, int]:
        """Where each whole tensor would start in the flat buffer, by name."""
        return {entry.name: entry.origin for entry in self}

    def parts(self, alike: Callable[[Entry], Any], alignment: int = ALIGNMENT) -> "list[Entries]":
        """Runs of neighbours for which `alike` gives equal answers. The entries of a part count from its own start."""
        found = []
        for _, members in itertools.groupby(self, alike):
            run = list(members)
            moved = (replace(entry, start=entry.start - run[0].start) for entry in run)
            found.append(Entries(moved, self.start + run[0].start, alignment))
        return found

    def within(self, flat: Tensor) -> Tensor:
        """The part of the whole model's flat buffer that is theirs."""
        return flat[self.start : self.start + self.size]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat buffer by name."""
        return {entry.name: entry.view(flat) for entry in self}

    def gather(self, tensors: Mapping[str, Tensor | None], out: Tensor) -> Tensor:
        """Copy tensors (None: zeros) to their places in a flat buffer, and return it."""
        for entry in self:
            tensor, view = tensors[entry.name], entry.view(out)
            view.zero_() if tensor is None else view.copy_(tensor)
        return out

    def regions(self, flat: Tensor) -> list[Tensor]:
        """A flat buffer as (n, size) views, one for each shape: a row is a tensor and the zeros of its gap.

        All the rows, one region after the other, are in the order of the entries.
        """
        return [
            flat[members[0].start : members[0].start + size * len(members)].view(len(members), size)
            for members, size in self._stacks
        ]

    def stacks(self, flat: Tensor) -> list[Tensor]:
        """The matrices of a flat buffer, those of one shape as one (n, rows, columns) view."""
        return [
            region[:, : math.prod(members[0].shape)].unflatten(1, members[0].shape)
            for region, (members, _) in zip(self.regions(flat), self._stacks, strict=True)
        ]


class Parameters(Protocol):
    """Who holds the numbers of entries: one flat buffer (`flat.py`), or the modules of any model (`modules.py`)."""

    entries: Entries

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""

    @property
    def values(self) -> Tensor:
        """All values in one flat buffer of float32, (entries.size,), to be read at once: it may be gathered for each reading."""

    @property
    def gradients(self) -> Tensor:
        """The same of the gradients: zeros where there is none."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters themselves by name, in their own shapes: a write changes the model."""

    def parts(self, alike: Callable[[Entry], Any]) -> list[Entries]:
        """What can be updated at once: neighbours for which `alike` gives equal answers."""

    def span(self, part: Entries) -> tuple[Tensor, Tensor]:
        """Values and gradients of a part, (part.size,) each. A write to the values changes the model."""

    def gradient_norm(self) -> float:
        """The L2 norm of all gradients together. Whoever holds only some of the rows combines its norm with the others' here."""

    def zero_grad(self) -> None:
        """Start a step without gradients."""


def _aligned(size: int, alignment: int = ALIGNMENT) -> int:
    return -(-size // alignment) * alignment
