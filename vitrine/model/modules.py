"""The parameters of any model, left in its modules: read where they are, and gathered into flat buffers on demand."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vitrine.model.entries import Entries, Entry


class ModuleParameters:
    """Holds the parameters of a model without moving them; see `entries.Parameters`.

    Nothing of `.data` or `.grad` is kept from one call to the next, so their owner may replace them. A parameter without
    gradient counts as one with zeros. Gathering costs a copy, and the buffer of float32 that it goes into is used again.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.entries = Entries.of({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})

    @property
    def device(self) -> torch.device:
        """That of the first parameter."""
        return next(self.model.parameters()).device

    @property
    def values(self) -> Tensor:
        """All values, gathered now; the next reading overwrites them."""
        return self.entries.gather(self.tensors, self._buffers[0])

    @property
    def gradients(self) -> Tensor:
        """All gradients, gathered now; the next reading overwrites them."""
        gradients = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        return self.entries.gather(gradients, self._buffers[1])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters themselves by name."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def parts(self, alike: Callable[[Entry], Any]) -> list[Entries]:
        """Each parameter by itself: they lie apart."""
        return self.entries.parts(lambda entry: entry.name, alignment=1)

    def span(self, part: Entries) -> tuple[Tensor, Tensor]:
        """Value and gradient of one parameter, (numbers,): views for this update. Raises RuntimeError if it is not contiguous."""
        parameter = self.model.get_parameter(part[0].name)
        values = parameter.detach().view(-1)
        return values, torch.zeros_like(values) if parameter.grad is None else parameter.grad.reshape(-1)

    def gradient_norm(self) -> float:
        """As torch.nn.utils.clip_grad_norm_ computes it, to the bit: the norm of the norms of the gradients."""
        return float(torch.nn.utils.get_total_norm(p.grad for p in self.model.parameters() if p.grad is not None))

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.model.zero_grad(set_to_none=True)

    @cached_property
    def _buffers(self) -> tuple[Tensor, Tensor]:
        first, second = torch.zeros(2, self.entries.size, device=self.device)
        return first, second
