"""The types of JSON answers about replayed steps; see `schemas_run`."""

from typing import Literal

from typing_extensions import TypedDict

from vitrine.model.inventory import Kind
from vitrine.studio.schemas_run import Real

Likely = tuple[str, float]  # a token's text and its probability


class Compared(TypedDict):
    """One kind of record, compared with what a replay computed. steps: the first and the last."""

    what: str
    steps: tuple[int, int]
    made: int
    equal: int


class Norm(TypedDict):
    """A norm as replayed, and as recorded."""

    value: Real
    recorded: Real


class LargestDifference(TypedDict):
    """The largest difference between the probing pass and the training pass."""

    logits: Real
    attention: Real


# `from` is a keyword of Python.
Forward = TypedDict(
    "Forward",
    {
        "batch": list[list[str]],
        "row": int,
        "tokens": list[str],
        "token": int,
        "target": str,
        "probabilities": list[Likely],
        "target_probability": float,
        "logit_lens": list[list[Likely]],
        "stream_norms": list[float],
        "dead_units": list[float],
        "attention": list[list[list[float]]],
        "attention_entropy": list[list[float]],
        "from": str,
        "largest_difference": LargestDifference,
    },
)


class StepLoss(TypedDict):
    """The second phase. tokens: the loss of each token of the row."""

    value: float
    recorded: Real
    tokens: list[float]
    same_batch_again: Real
    next_batch: Real


class Backward(TypedDict):
    """The third phase."""

    gradient_norm: float
    recorded: Real
    clip_factor: float


class Update(TypedDict):
    """The fourth phase."""

    norm: float
    recorded: Real
    learning_rate: float


class TensorNorms(TypedDict):
    """The norms of a tensor in a step."""

    name: str
    weight_norm: Norm
    gradient_norm: Norm
    update_norm: Norm


class Phases(TypedDict):
    """A replayed step, seen from one token of one row: what `replay --json` prints."""

    step: int
    exact: bool
    compared: list[Compared]
    differs: list[str]
    forward: Forward
    loss: StepLoss
    backward: Backward
    update: Update
    tensors: list[TensorNorms]


class Rule(TypedDict):
    """An update as the sum of its terms."""

    optimizer: str
    formula: str
    terms: dict[str, float]
    total: float
    note: str


class Biography(TypedDict):
    """One parameter in one step: what `inspect --json` prints. history: step, value, whether it is exact."""

    parameter: str
    kind: Kind
    connects: str
    step: int
    before: float
    gradient: float
    update: float
    after: float
    rule: Rule
    plain_sgd: float
    birth: float
    history: list[tuple[int, float, bool]]
    exact: bool


class Neuron(TypedDict):
    """One output of a linear layer at one token: of the step's batch, or of a prompt (then row is 0).

    weights, bias: the parameters themselves, float32. products: inputs times the weights in the format products_in; bias_added:
    the bias in it. total: these added up in float64. output: the model's own, which adds in another order and rounds to
    products_in. difference: output minus total. exact: whether the parameters are proved to be those of the step.
    """

    neuron: str
    step: int
    prompt: str | None
    row: int
    token: int
    text: str
    inputs: list[float]
    weights: list[float]
    products: list[float]
    products_in: Literal["float32", "bfloat16"]
    bias: float
    bias_added: float
    total: float
    output: float
    difference: float
    exact: bool


class Spread(TypedDict):
    """The distribution of a tensor's numbers."""

    norm: float
    mean: float
    spread: float
    least: float
    most: float


class TensorView(TypedDict):
    """One tensor in one step. scatter: gradient and update of some of its parameters."""

    tensor: str
    kind: Kind
    shape: list[int]
    parameters: int
    step: int
    before: Spread
    gradient: Spread
    update: Spread
    after: Spread
    against_gradient: float
    exact: bool
    scatter: list[tuple[float, float]]


class Move(TypedDict):
    """The loss with one parameter moved by this much. predicted: by the run's gradient."""

    size: float
    loss: float
    measured: float
    predicted: float


class Nudge(TypedDict):
    """How moving one parameter changes the loss of a step's batch."""

    step: int
    loss: float
    gradient: float
    run_gradient: float
    moves: list[Move]


# `from` is a keyword of Python.
Progress = TypedDict(
    "Progress",
    {"working": bool, "step": int | None, "from": int | None, "made": int, "of": int, "wanted": int},
)
