"""Data-parallel training by the processes that torchrun starts; or by a single process."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from vitrine.errors import ConfigError, RunError

LOOK_EVERY_S = 0.05
ENDED = "ended"
LOST = "Another process of this training has ended. Its own message says why."


@dataclass(frozen=True)
class Processes:
    """This process's rank among those that train together. Only rank 0 writes.

    store: a store shared by all of them, if there are several.
    """

    rank: int = 0
    size: int = 1
    store: Store | None = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wait(self, what: str) -> None:
        """Wait for every process, without a time limit: a collective would give up after minutes.

        Args:
            what: a name for it, used once.
        """
        if self.store is None:
            return
        self.store.set(f"{what}/{self.rank}", "here")
        for rank in range(self.size):
            while not self.store.check([f"{what}/{rank}"]):
                if self.store.check([ENDED]):
                    raise RunError(LOST)
                time.sleep(LOOK_EVERY_S)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def agree(self, value: float) -> float:
        """The largest value that any process holds: so all make the same decision."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return float(largest)


@contextmanager
def joined(device_type: str) -> Iterator[Processes]:
    """Join the processes that torchrun started; without torchrun, this process is the only one.

    Raises RunError if another of them has ended.
    """
    processes = Processes()
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            processes = _join(device_type)
        yield processes
    except BaseException as error:
        if processes.store is not None:
            _say_that_this_one_ends(processes.store)
        if isinstance(error, RuntimeError) and _of_another_process(error):
            raise RunError(LOST) from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(device_type: str) -> Processes:
    if device_type == "cuda":  # before the first collective: each process has a GPU of its own
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"Each process needs a GPU of its own: this is number {local_rank + 1} on this machine, and torch finds "
                f"{torch.cuda.device_count()}. Start fewer with --nproc-per-node."
            )
        torch.cuda.set_device(local_rank)
    store, rank, size = next(rendezvous("env://"))
    # Values to agree on are CPU numbers, and stay on the CPU.
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    return Processes(rank, size, PrefixStore("vitrine", store))


def _say_that_this_one_ends(store: Store) -> None:
    with suppress(RuntimeError):  # the store has ended as well
        store.set(ENDED, "yes")


def _of_another_process(error: RuntimeError) -> bool:
    """Whether the error says that another process is gone. gloo has no error type for it."""
    return (
        isinstance(error, dist.DistError) or re.search("gloo|NCCL|[Cc]onnection (closed|reset)", str(error)) is not None
    )
