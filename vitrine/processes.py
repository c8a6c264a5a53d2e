"""Several processes that train one model together, as torchrun starts them; or just this one."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vitrine.errors import RunError


@dataclass(frozen=True)
class Processes:
    """This process's place among those that train together. Rank 0 alone writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all. Raises RunError if another has ended."""
        if self.size == 1:
            return
        try:
            dist.barrier()
        except RuntimeError:  # gloo and NCCL have no other name for it
            raise RunError("Another process of this training has ended. Its own message says why.") from None

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def agree(self, value: float) -> float:
        """The largest value that any process holds: so all take the same decision."""
        if self.size == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        largest = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return float(largest)


def join_processes(device_type: str) -> Processes:
    """Join those that torchrun started with this one; alone when it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return Processes(dist.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))


def leave_processes() -> None:
    """Part from the others."""
    if dist.is_initialized():
        dist.destroy_process_group()
