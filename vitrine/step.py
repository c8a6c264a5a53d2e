"""One training step: forward, loss, backward, update. Training and replay run this very function."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitrine.model.entries import Parameters
from vitrine.model.loss import next_token_loss
from vitrine.optimizers.optimizer import Optimizer


@dataclass(frozen=True)
class MicroBatch:
    """Some windows of text. The micro-batch is the unit of randomness and of the order of summation.

    inputs, targets: (batch, seq) of int64, targets one token later.
    dropout_keys: (batch,) of int32, the key of each row's dropout; None without dropout.
    share: of this micro-batch in the step's gradient; the shares of a step add up to one.
    last: whether it is the step's last.
    """

    inputs: Tensor
    targets: Tensor
    dropout_keys: Tensor | None
    share: float
    last: bool

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on another device."""
        dropout_keys = None if self.dropout_keys is None else self.dropout_keys.to(device)
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device), dropout_keys=dropout_keys)


@dataclass
class State:
    """What a step changes: parameters, optimizer state, and the number of the step.

    `model` is called for the logits: the decoder itself, or the decoder wrapped (compiled, distributed).
    """

    model: Callable[..., Tensor]
    parameters: Parameters
    optimizer: Optimizer
    step: int = 0

    def hold_gradients(self, micro: MicroBatch) -> AbstractContextManager[None]:
        """Where several processes train: exchange gradients after the last micro-batch alone."""
        no_sync = getattr(self.model, "no_sync", None)
        return nullcontext() if micro.last or no_sync is None else no_sync()


class Observer:
    """May look between the phases of a step, and must change nothing. This one looks at nothing."""

    def micro_batch(self, micro: MicroBatch, logits: Tensor, loss: Tensor) -> None:
        """After the backward pass of each micro-batch."""

    def gradients(self, state: State) -> None:
        """Before clipping."""

    def update(self, state: State) -> None:
        """After the update; state.step is still the step that was made."""


nobody = Observer()


def step(state: State, micro_batches: Iterable[MicroBatch], observe: Observer = nobody) -> None:
    """One update of every parameter."""
    state.parameters.zero_grad()
    for micro in micro_batches:
        with state.hold_gradients(micro):
            logits = state.model(micro.inputs, micro.dropout_keys)  # forward
            loss = next_token_loss(logits, micro.targets)  # loss
            (loss * micro.share).backward()  # backward
        observe.micro_batch(micro, logits.detach(), loss.detach())
    observe.gradients(state)
    state.optimizer.update(state.step)  # update
    observe.update(state)
    state.step += 1
