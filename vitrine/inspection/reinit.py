"""The same model, initialised once more: with another seed or other standard deviations; and the loss of the first batch."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from vitrine.errors import RunError
from vitrine.inspection.parameter import shortest
from vitrine.model.decoder import Decoder, initialise
from vitrine.model.inventory import inventory
from vitrine.model.loss import next_token_loss
from vitrine.recording.recorder import StepLoss
from vitrine.runs.reader import RunReader
from vitrine.training.device import prepare_device
from vitrine.training.distributed import Processes
from vitrine.training.state import make_batches, micro_batches
from vitrine.training.tokens import open_tokens

CELLS = 6  # of a tensor, that show which numbers were drawn


@dataclass(frozen=True)
class Reinitialised:
    """A model with other initial parameters, and its loss on the batch of the run's step 0.

    std_factor: what the standard deviations were multiplied by.
    loss: mean of that batch; not finite if the model overflows.
    cells: the first of a tensor, by name.
    """

    seed: int
    std_factor: float
    loss: float
    guessing_loss: float
    cells: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """What the studio answers with."""
        return {
            "seed": self.seed,
            "spread": self.std_factor,
            "loss": self.loss,
            "guessing_loss": self.guessing_loss,
            "cells": {name: shortest(value) for name, value in self.cells.items()},
        }


def reinitialise(reader: RunReader, seed: int, std_factor: float = 1.0) -> Reinitialised:
    """Draw the initial parameters of a run's model by a seed, with other standard deviations, and measure the loss.

    Gains, biases and projections that start at one or at zero stay as they are. With the run's own seed and a factor of 1
    the loss is that of its step 0, unless it started from another run's parameters. On the CPU.
    """
    if not 0 <= std_factor < math.inf:
        raise RunError(f"spread must be a number from 0 up: got {std_factor}. Try 1, as the run has it.")
    config = reader.config
    prepare_device(config.machine.model_copy(update={"device": "cpu"}))
    model = initialise(config.model, seed, getattr(torch, config.training.precision))
    parameters = dict(model.named_parameters())
    drawn = [plan for plan in inventory(config.model) if plan.initialisation == "normal"]
    with torch.no_grad():
        for plan in drawn:
            parameters[plan.name].mul_(std_factor)
        loss = _first_loss(reader, model)
    shown = next((plan for plan in drawn if plan.block is not None), drawn[0])
    row = parameters[shown.name][0, :CELLS].tolist()
    cells = {f"{shown.name}[0,{column}]": value for column, value in enumerate(row)}
    return Reinitialised(seed, std_factor, loss, math.log(config.model.vocab_size), cells)


def _first_loss(reader: RunReader, model: Decoder) -> float:
    """Of the batch of step 0, as a step computes it."""
    tokens = open_tokens(reader)
    batches = make_batches(reader.config, tokens)
    losses = StepLoss()
    for micro in micro_batches(batches, 0, model, Processes()):
        logits = model(micro.inputs, micro.dropout_keys)
        losses.micro_batch(micro, logits, next_token_loss(logits, micro.targets))
    return losses.take()
