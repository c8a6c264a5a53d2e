"""One neuron at one token: its inputs times its weights, plus the bias, add up to its output."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrine.errors import RunError
from vitrine.generation.generate import prompt_ids
from vitrine.inspection.parameter import Address, shortest
from vitrine.inspection.probes import inputs_of
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.model.decoder import Decoder, Linear
from vitrine.recording.recorder import to_numpy
from vitrine.runs.reader import TOKENIZER, RunReader
from vitrine.text.tokenizer import decode, load_tokenizer


@dataclass(frozen=True)
class Neuron:
    """One output of a linear layer, at one token of a step's batch or of a prompt.

    prompt: the text that was read; None: the batch of the step. row, token: the place in it.
    inputs: (in_features,), as the layer read them. weights, bias: the parameters themselves.
    multiplied, added: weights and bias in the number format of the products, `products_in`.
    total: the products and `added`, added up in float64. output: what the model itself came to; it adds in another order, and
        rounds to `products_in`.
    exact: whether the parameters are proved to be those that the step starts from.
    """

    name: str
    step: int
    prompt: str | None
    row: int
    token: int
    text: str
    inputs: NDArray[np.float32]
    weights: NDArray[np.float32]
    multiplied: NDArray[np.float32]
    bias: float
    added: float
    output: float
    products_in: str
    exact: bool

    @property
    def products(self) -> NDArray[np.float64]:
        """What each connection contributes."""
        return self.inputs.astype(np.float64) * self.multiplied

    @property
    def total(self) -> float:
        """The sum: products, then bias."""
        return float(self.products.sum()) + self.added

    def to_json(self) -> dict[str, Any]:
        """What `inspect --json` prints."""
        return {
            "neuron": self.name,
            "step": self.step,
            "prompt": self.prompt,
            "row": self.row,
            "token": self.token,
            "text": self.text,
            "inputs": [shortest(x) for x in self.inputs],
            "weights": [shortest(w) for w in self.weights],
            "products": self.products.tolist(),
            "products_in": self.products_in,
            "bias": shortest(self.bias),
            "bias_added": shortest(self.added),
            "total": self.total,
            "output": shortest(self.output),
            "difference": self.output - self.total,
            "exact": self.exact,
        }


def open_neuron(replayed: ReplayedStep, address: Address, row: int, token: int) -> Neuron:
    """Run the step's first micro-batch once more, and look at one unit of one layer at one token.

    token: -1: the last. Raises RunError if the address is not a unit of a linear layer, or there is no such row or token.
    """
    micro = replayed.micro_batches[0].micro
    with replayed.model() as decoder:
        step, exact = replayed.step, replayed.exact
        return _look(decoder, replayed.reader, step, exact, address, None, micro.inputs, micro.dropout_keys, row, token)


def open_neuron_of_prompt(
    decoder: Decoder, reader: RunReader, step: int, exact: bool, address: Address, prompt: str, token: int = -1
) -> Neuron:
    """The same at a token of a prompt, without dropout, in a model with the parameters that a step starts from.

    Like a text that is continued, a long prompt is read from its end: token 0 is the first that the model sees.
    """
    ids = prompt_ids(load_tokenizer(reader.path / TOKENIZER), prompt, decoder.config.vocab_size)
    inputs = torch.tensor([ids[-decoder.config.context :]], device=decoder.embedding.weight.device)
    return _look(decoder, reader, step, exact, address, prompt, inputs, None, 0, token)


def _look(
    decoder: Decoder,
    reader: RunReader,
    step: int,
    exact: bool,
    address: Address,
    prompt: str | None,
    inputs: Tensor,
    dropout_keys: Tensor | None,
    row: int,
    token: int,
) -> Neuron:
    layer, unit = address.tensor.name.removesuffix(".weight"), address.unit
    module = decoder.get_submodule(layer)
    if not isinstance(module, Linear) or unit is None:
        raise RunError(f"{layer} is not a linear layer: it has no neurons to open. Try blocks.0.mlp.expand[0].")
    rows, seq = inputs.shape
    place = token + seq if token < 0 else token
    what = "this batch" if prompt is None else "this prompt"
    for option, value, seen, size in (("--row", row, row, rows), ("--token", token, place, seq)):
        if not 0 <= seen < size:
            raise RunError(f"{option} must be 0 to {size - 1} in {what}: got {value}. Try {option} 0.")
    with torch.no_grad():
        read, answered = inputs_of(decoder, module, inputs, dropout_keys)
        weights = module.weight[unit].detach().clone()  # the model may go on to later parameters
        bias = torch.zeros(()) if module.bias is None else module.bias[unit].detach()
    return Neuron(
        name=f"{layer}[{unit}]",
        step=step,
        prompt=prompt,
        row=row,
        token=place,
        text=decode(load_tokenizer(reader.path / TOKENIZER), [int(inputs[row, place])]),
        inputs=to_numpy(read[row, place].float()),
        weights=to_numpy(weights),
        multiplied=to_numpy(weights.to(read.dtype).float()),
        bias=float(bias),
        added=float(bias.to(read.dtype)),
        output=float(answered[row, place, unit]),
        products_in=str(read.dtype).removeprefix("torch."),
        exact=exact,
    )
