"""Move a parameter, and measure the change of the loss: a check of the gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrine.inspection.parameter import Address
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.model.decoder import Decoder
from vitrine.model.loss import float64_device


@dataclass(frozen=True)
class GradientCheck:
    """The loss of a step's own batch with one parameter moved, everything in float64.

    loss: with nothing moved; gradient: of this loss, by autograd in float64; run_gradient: what training had.
    sizes, losses: how far the parameter was moved, and the loss then.
    """

    parameter: str
    step: int
    loss: float
    gradient: float
    run_gradient: float
    sizes: tuple[float, ...]
    losses: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """What `inspect --nudge --json` has under `nudge`."""
        return {
            "loss": self.loss,
            "gradient": self.gradient,
            "run_gradient": self.run_gradient,
            "moves": [
                {"size": size, "loss": loss, "measured": loss - self.loss, "predicted": size * self.run_gradient}
                for size, loss in zip(self.sizes, self.losses, strict=True)
            ],
        }


class Float64:
    """The model of a replayed step in float64, with the parameters that the step starts from, and the step's batch."""

    def __init__(self, replayed: ReplayedStep) -> None:
        values = replayed.values
        device = float64_device(values.device)
        self.model = Decoder(replayed.config.model, torch.float64)
        self.model.load_state_dict(replayed.parameters.entries.named(values))
        self.model.double().to(device)
        self.batch = [batch.micro.to(device) for batch in replayed.micro_batches]

    def loss(self) -> Tensor:
        """The mean loss of the batch, with the dropout that the step had."""
        total = torch.zeros((), dtype=torch.float64, device=self.model.embedding.weight.device)
        for micro in self.batch:
            logits = self.model(micro.inputs, micro.dropout_keys)
            total = total + micro.share * F.cross_entropy(logits.flatten(0, 1), micro.targets.flatten())
        return total

    def parameter(self, name: str) -> Tensor:
        """A tensor of the model, to be moved."""
        return dict(self.model.named_parameters())[name]


def check_gradient(replayed: ReplayedStep, address: Address, sizes: Sequence[float]) -> GradientCheck:
    """Move one parameter by each of these sizes in turn, and measure the loss of the step's batch."""
    exact = Float64(replayed)
    tensor, index = exact.parameter(address.tensor.name), address.index
    loss = exact.loss()
    gradient = float(torch.autograd.grad(loss, tensor)[0][index])
    losses = []
    with torch.no_grad():
        for size in sizes:
            before = tensor[index].clone()
            tensor[index] += size
            losses.append(float(exact.loss()))
            tensor[index] = before
    run_gradient = float(replayed.tensor(address.tensor.name).gradient[index])
    return GradientCheck(
        address.text, replayed.step, float(loss.detach()), gradient, run_gradient, tuple(sizes), tuple(losses)
    )
