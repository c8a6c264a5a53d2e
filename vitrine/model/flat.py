"""All parameters of a model in one flat buffer, all gradients in another; names are views into them.

One pass then serves what would be hundreds of small ones: an update, a norm, a digest, a copy.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitrine.model.entries import Entries, Entry


class FlatParameters:
    """Holds the parameters of a model, moved into one buffer of float32; see `entries.Parameters`.

    values, gradients: (entries.size,), the model's own numbers, with zeros in the gaps between tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        self.entries = Entries.of({name: tuple(parameter.shape) for name, parameter in parameters.items()})
        self.device = next(iter(parameters.values())).device
        self.values = torch.zeros(self.entries.size, device=self.device)
        self.gradients = torch.zeros(self.entries.size, device=self.device)
        self.entries.gather({name: parameter.detach() for name, parameter in parameters.items()}, self.values)
        for entry in self.entries:
            parameters[entry.name].data = entry.view(self.values)
            parameters[entry.name].grad = entry.view(self.gradients)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Views of the values by name."""
        return self.entries.named(self.values)

    def parts(self, alike: Callable[[Entry], Any]) -> list[Entries]:
        """As few as can be."""
        return self.entries.parts(alike)

    def span(self, part: Entries) -> tuple[Tensor, Tensor]:
        """A part of each buffer."""
        return part.within(self.values), part.within(self.gradients)

    def gradient_norm(self) -> float:
        """In one pass over the buffer."""
        return float(torch.linalg.vector_norm(self.gradients))

    def zero_grad(self) -> None:
        """Zeros: autograd adds to the buffer."""
        self.gradients.zero_()


def digest(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes and float32 bits, in the order of the names: equal digests, equal bits."""
    total = hashlib.sha256()
    for name, tensor in sorted(dict(tensors).items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.data)
    return total.hexdigest()
