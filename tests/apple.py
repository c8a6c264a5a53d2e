"""A stand-in for an Apple GPU, which has no float64."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map

NAME = "meta"  # a device that every torch knows; nothing is computed there


class OnGpu(torch.Tensor):
    """A tensor that says that it is on the GPU, and is held by the processor."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnGpu":
        if held.dtype == torch.float64:
            raise TypeError("there is no float64 on this device")
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=NAME
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


class Gpu(TorchDispatchMode):
    """While it is entered, there is a GPU without float64, called `meta`."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the processor, and wrap what would be on the GPU."""
    place = kwargs.get("device")
    if place is not None:
        there, kwargs = torch.device(place).type == NAME, kwargs | {"device": torch.device("cpu")}
    elif operation is torch.ops.aten.copy_.default:
        there = isinstance(args[0], OnGpu)
    else:
        there = tree_any(lambda x: isinstance(x, OnGpu), (args, kwargs))
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, OnGpu) else x, (args, kwargs))
    found = operation(*args, **kwargs)
    return tree_map(lambda x: OnGpu(x) if there and isinstance(x, torch.Tensor) else x, found)
