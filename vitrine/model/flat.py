"""All parameters of a model in one flat buffer, all gradients in another; names are views into them.

One pass then serves what would be hundreds of small ones: an update, a norm, a digest, a copy. Matrices of
one shape lie side by side, so that Muon can turn a whole stack of them at once.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vitrine.model.inventory import is_hidden_matrix

ALIGNMENT = 16  # float32 numbers: 64 bytes, a cache line


@dataclass(frozen=True)
class Place:
    """Where one tensor lies in the flat buffer."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """One past the last number."""
        return self.start + math.prod(self.shape)

    def view(self, flat: Tensor) -> Tensor:
        """This tensor's numbers in a flat buffer, in its own shape."""
        return flat[self.start : self.stop].view(self.shape)


class FlatParameters:
    """The parameters of a model, moved into one buffer of float32.

    values, gradients: (size,), with zeros in the gaps between tensors.
    places: where each tensor lies, in buffer order: hidden matrices, other matrices, vectors.
    hidden: numbers of the hidden matrices (Muon's); matrices: numbers of all matrices (weight decay's).
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        ordered = sorted(parameters, key=lambda name: (_rank(name, shapes[name]), shapes[name]))
        places, size, ends = [], 0, [0, 0, 0]
        for name in ordered:
            place = Place(name, size, shapes[name])
            places.append(place)
            size = _aligned(place.stop)
            ends[_rank(name, place.shape)] = size
        self.places = tuple(places)
        self.by_name = {place.name: place for place in places}
        alike: dict[tuple[int, tuple[int, ...]], list[Place]] = {}
        for place in places:
            alike.setdefault((_rank(place.name, place.shape), place.shape), []).append(place)
        self._groups = [(members, _aligned(math.prod(shape))) for (_, shape), members in alike.items()]
        self.hidden = ends[0]
        self.matrices = max(ends[0], ends[1])
        device = next(iter(parameters.values())).device
        self.values = torch.zeros(size, device=device)
        self.gradients = torch.zeros(size, device=device)
        for name, place in self.by_name.items():
            place.view(self.values).copy_(parameters[name].detach())
            parameters[name].data = place.view(self.values)
            parameters[name].grad = place.view(self.gradients)

    @property
    def count(self) -> int:
        """How many parameters there are (the gaps left out)."""
        return sum(place.stop - place.start for place in self.places)

    def regions(self, flat: Tensor) -> list[Tensor]:
        """A flat buffer as (n, size) views, one for each shape: a row is a tensor and the zeros of its gap.

        All the rows, one region after the other, are in the order of `places`. A buffer that ends with the hidden
        matrices has their regions alone.
        """
        return [
            flat[members[0].start : members[0].start + size * len(members)].view(len(members), size)
            for members, size in self._groups
            if members[-1].stop <= len(flat)
        ]

    def stacks(self, flat: Tensor) -> list[Tensor]:
        """The hidden matrices of a flat buffer, those of one shape as one (n, rows, columns) view."""
        return [
            region[:, : math.prod(members[0].shape)].unflatten(1, members[0].shape)
            for region, (members, _) in zip(self.regions(flat[: self.hidden]), self._groups, strict=False)
        ]

    def stack_of(self, place: Place, flat: Tensor) -> tuple[Tensor, int]:
        """The stack that a hidden matrix lies in, of a flat buffer, and its row in it."""
        row, stacks = self.places.index(place), self.stacks(flat)
        for stack in stacks:
            if row < len(stack):
                return stack, row
            row -= len(stack)
        raise KeyError(place.name)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat buffer by parameter name."""
        return {place.name: place.view(flat) for place in self.places}


def digest(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes and float32 bits, in the order of the names: equal digests, equal bits."""
    total = hashlib.sha256()
    for name, tensor in sorted(dict(tensors).items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.data)
    return total.hexdigest()


def _rank(name: str, shape: tuple[int, ...]) -> int:
    if is_hidden_matrix(name, shape):
        return 0
    return 1 if len(shape) == 2 else 2


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
