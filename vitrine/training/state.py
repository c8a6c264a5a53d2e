"""Builds what a step needs: the training state and the micro-batches."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from vitrine.config import Config
from vitrine.model.decoder import Decoder, initialise
from vitrine.model.flat import FlatParameters
from vitrine.optimizers.registry import make_optimizer
from vitrine.step import MicroBatch, State
from vitrine.text.batches import Batches
from vitrine.text.token_files import Prepared
from vitrine.training.device import prepare_device
from vitrine.training.distributed import Processes


def build_state(config: Config, processes: Processes) -> tuple[Decoder, State]:
    """A new model on its device, and the state with its optimizer and the model as the step calls it."""
    device = prepare_device(config.machine)
    if device.type == "cuda" and processes.size > 1:
        device = torch.device("cuda", torch.cuda.current_device())
    dtype = getattr(torch, config.training.precision)
    decoder = initialise(config.model, config.training.seed, dtype).to(device)
    decoder.recompute = config.machine.recompute
    parameters = FlatParameters(decoder)
    optimizer = make_optimizer(parameters, config.optimizer, config.schedule, config.training.steps, dtype)
    model: Callable[..., Tensor] = decoder
    if processes.size > 1:
        model = nn.parallel.DistributedDataParallel(decoder)
    if config.machine.compile:
        model = torch.compile(model, dynamic=False)
    return decoder, State(model, parameters, optimizer)


def make_batches(config: Config, tokens: Prepared) -> Batches:
    """The training windows by these hyperparameters."""
    training = config.training
    return Batches(
        tokens.train,
        config.data.weights,
        config.model.context,
        training.batch_size,
        training.accumulation,
        training.seed,
        config.data.max_tokens,
    )


def micro_batches(batches: Batches, number: int, decoder: Decoder, processes: Processes) -> Iterator[MicroBatch]:
    """This process's rows of each micro-batch of a step, on the model's device."""
    device, dropout = decoder.embedding.weight.device, decoder.config.dropout
    rows = batches.batch_size // processes.size
    mine = slice(processes.rank * rows, (processes.rank + 1) * rows)
    for index in range(batches.accumulation):
        windows = batches.micro_batch(number, index)
        tokens = torch.from_numpy(windows.tokens[mine]).to(device)
        dropout_keys = torch.from_numpy(windows.keys[mine]).to(device) if dropout else None
        last = index == batches.accumulation - 1
        yield MicroBatch(tokens[:, :-1], tokens[:, 1:], dropout_keys, 1 / batches.accumulation, last)
