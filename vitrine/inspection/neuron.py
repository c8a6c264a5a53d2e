"""One neuron at one token: its inputs times its weights, plus the bias, add up to its output."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitrine.errors import RunError
from vitrine.inspection.parameter import Address, shortest
from vitrine.inspection.probes import inputs_of
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.model.decoder import Linear
from vitrine.recording.recorder import to_numpy
from vitrine.runs.reader import TOKENIZER
from vitrine.text.tokenizer import decode, load_tokenizer

SHOWN = 12  # of the connections that count most


@dataclass(frozen=True)
class Neuron:
    """One output of a linear layer, at one token of the step's batch.

    inputs, weights: (in_features,), in the number format that the model multiplies in; products: theirs.
    total: the products and the bias, added up in float64; output: what the model itself came to, from a probing pass.
    """

    name: str
    step: int
    row: int
    token: int
    text: str
    inputs: NDArray[np.float32]
    weights: NDArray[np.float32]
    bias: float
    output: float

    @property
    def products(self) -> NDArray[np.float64]:
        """What each connection contributes."""
        return self.inputs.astype(np.float64) * self.weights

    @property
    def total(self) -> float:
        """The sum: products, then bias."""
        return float(self.products.sum()) + self.bias

    def to_json(self) -> dict[str, Any]:
        """What `inspect --json` prints."""
        return {
            "neuron": self.name,
            "step": self.step,
            "row": self.row,
            "token": self.token,
            "text": self.text,
            "inputs": [shortest(x) for x in self.inputs],
            "weights": [shortest(w) for w in self.weights],
            "products": self.products.tolist(),
            "bias": shortest(self.bias),
            "total": self.total,
            "output": shortest(self.output),
            "difference": self.output - self.total,
        }


def open_neuron(replayed: ReplayedStep, address: Address, row: int, token: int) -> Neuron:
    """Run the step's first micro-batch once more, and look at one unit of one layer at one token.

    Raises RunError if the address is not a unit of a linear layer, or there is no such row or token.
    """
    layer = address.tensor.name.removesuffix(".weight")
    batch = replayed.micro_batches[0]
    module = replayed.decoder.get_submodule(layer)
    if not isinstance(module, Linear) or address.unit is None:
        raise RunError(f"{layer} is not a linear layer: it has no neurons to open. Try blocks.0.mlp.expand[0].")
    rows, seq = batch.inputs.shape
    for option, value, size in (("--row", row, rows), ("--token", token, seq)):
        if not 0 <= value < size:
            raise RunError(f"{option} must be 0 to {size - 1} in this batch: got {value}. Try {option} 0.")
    with replayed.model() as decoder, torch.no_grad():
        inputs, outputs = inputs_of(decoder, module, batch.micro.inputs, batch.micro.dropout_keys)
        weights = module.weight[address.unit].to(inputs.dtype)
        bias = 0.0 if module.bias is None else float(module.bias[address.unit].to(inputs.dtype))
        kept = weights.float().clone()  # the model goes back to later parameters
        seen = to_numpy(inputs[row, token].float()), to_numpy(kept), float(outputs[row, token, address.unit])
    text = decode(load_tokenizer(replayed.reader.path / TOKENIZER), [int(batch.inputs[row, token])])
    return Neuron(f"{layer}[{address.unit}]", replayed.step, row, token, text, seen[0], seen[1], bias, seen[2])
