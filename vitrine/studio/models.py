"""What every JSON route answers with, as types: the schema (`schema.py`), and the page's own types, follow from them.

A number that may not be finite is null then (`answers.dumps`): Real says so.
"""

from typing import Any, Literal

from typing_extensions import TypedDict

from vitrine.census import Kind
from vitrine.runs.records import EvaluationRecord, EventRecord, SampleRecord

Real = float | None
Settings = dict[str, dict[str, Any]]
Likely = tuple[str, float]  # a token's text and its probability


class Problem(TypedDict):
    """Every error."""

    error: str


class RunSummary(TypedDict):
    """A run in the listing."""

    name: str
    parameters: int
    architecture: str
    steps: int
    steps_made: int
    training: bool
    val_loss: Real
    train_loss: Real
    modified_s: float


class UnreadableRun(TypedDict):
    """A folder that looks like a run and cannot be read, with the reason."""

    name: str
    error: str


class Runs(TypedDict):
    """The listing."""

    runs: list[RunSummary]
    unreadable: list[UnreadableRun]


class TensorInfo(TypedDict):
    """A tensor of the model. std: the spread of a normal birth; memory: what the optimizer remembers of it, by name."""

    name: str
    shape: list[int]
    kind: Kind
    parameters: int
    birth: Literal["normal", "zeros", "ones"]
    std: float
    memory: list[str]


class FilmTensor(TypedDict):
    """The grids of a tensor in the film: rows and columns."""

    name: str
    values: tuple[int, int]
    changes: tuple[int, int]


class FilmInfo(TypedDict):
    """The film. level: one parameter is shown of each square of side 2^level."""

    steps: list[int]
    value_level: int
    change_level: int
    frame_bytes: int
    tensors: list[FilmTensor]


class Memory(TypedDict):
    """Bytes that training needs, by part. Activations are an estimate, the rest is exact."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int


class RunMemory(TypedDict):
    """Memory of a training process: computed from its hyperparameters; and the most that it held, program included."""

    computed: Memory
    measured_peak_bytes: int | None


class RunInfo(TypedDict):
    """All that a page needs to open a run.

    ended: what `train --json` printed. series: curves of the whole run; statistics: of each tensor or part of the model,
    as TENSOR/STATISTIC or PART/STATISTIC.
    """

    name: str
    identity: str
    config: Settings
    tensors: list[TensorInfo]
    parameters: int
    vocab: list[str] | None
    steps: int
    steps_made: int
    training: bool
    paused: bool
    ended: dict[str, Any] | None
    keyframes: list[int]
    best_step: int | None
    guessing_loss: float
    events: list[EventRecord]
    evaluations: list[EvaluationRecord]
    samples: list[SampleRecord]
    film: FilmInfo | None
    statistics_every: int | None
    tied: bool
    memory: RunMemory
    series: list[str]
    statistics: list[str]


class Series(TypedDict):
    """One curve: the first step of each pixel, the lowest and the highest value in it."""

    name: str
    first: int
    last: int
    steps: list[int]
    low: list[Real]
    high: list[Real]


class LayerCurve(TypedDict):
    """One part of the model, or one tensor: the lowest and the highest value of each pixel."""

    name: str
    parameters: int
    low: list[Real]
    high: list[Real]


class Layers(TypedDict):
    """One statistic of every part of the model on the same steps: the first of each pixel."""

    statistic: str
    by: Literal["part", "tensor"]
    first: int
    last: int
    steps: list[int]
    rows: list[LayerCurve]


class Compared(TypedDict):
    """One kind of recorded thing, held against what a replay found. steps: the first and the last."""

    what: str
    steps: tuple[int, int]
    made: int
    equal: int


class Norm(TypedDict):
    """A norm as it was found, and as it was recorded."""

    value: Real
    recorded: Real


class LargestDifference(TypedDict):
    """Of the probing pass, from the training pass."""

    logits: Real
    attention: Real


# `from` is a word of the language.
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
    """A step laid open, seen from one token of one row: what `replay --json` prints."""

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
    """An update, put together from its terms."""

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
    """One output of a linear layer at one token."""

    neuron: str
    step: int
    row: int
    token: int
    text: str
    inputs: list[float]
    weights: list[float]
    products: list[float]
    bias: float
    total: float
    output: float
    difference: float


class Spread(TypedDict):
    """How the numbers of a tensor are spread."""

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
    """The loss with one parameter moved so far. predicted: by the run's gradient."""

    size: float
    loss: float
    measured: float
    predicted: float


class Nudge(TypedDict):
    """What moving one parameter does to the loss of a step's batch."""

    step: int
    loss: float
    gradient: float
    run_gradient: float
    moves: list[Move]


# `from` is a word of the language.
Progress = TypedDict(
    "Progress",
    {"working": bool, "step": int | None, "from": int | None, "made": int, "of": int, "wanted": int},
)


class Next(TypedDict):
    """The ids of a prompt, and the logit of every token that may follow."""

    step: int
    tokens: list[int]
    logits: list[float]


class Birth(TypedDict):
    """The run's model, born once more: its loss on the batch of step 0, and the first cells of a tensor by name."""

    seed: int
    spread: float
    loss: Real
    guessing_loss: float
    cells: dict[str, float]


class Plot(TypedDict):
    """What a picture of a verdict's evidence shows: series from first to last; or points, step and value, at keyframes."""

    series: list[str]
    first: int
    last: int
    points: list[tuple[int, Real]]


class Verdict(TypedDict):
    """One thing that was looked at in a run's health."""

    name: str
    level: Literal["ill", "watch", "unknown", "ok"]
    sentence: str
    cause: str
    evidence: dict[str, Any]
    step: int | None
    plot: Plot | None


class Health(TypedDict):
    """All verdicts: what `health --json` prints."""

    healthy: bool
    verdicts: list[Verdict]


class Hyperparameter(TypedDict):
    """One hyperparameter as a form needs it. least, most: allowed; above, below: not themselves allowed."""

    section: str
    key: str
    description: str
    default: Any
    kind: Literal["int", "float", "bool", "choice", "text"]
    choices: list[str]
    least: Real
    above: Real
    most: Real
    below: Real


class Hyperparameters(TypedDict):
    """Every hyperparameter, and the presets."""

    hyperparameters: list[Hyperparameter]
    presets: dict[str, Settings]


class PlannedTensor(TypedDict):
    """A tensor before it exists."""

    name: str
    shape: list[int]
    kind: Kind
    parameters: int
    birth: Literal["normal", "zeros", "ones"]
    std: float


class Recording(TypedDict):
    """What a run will leave on disk, in bytes, and how many steps a re-entry makes at most."""

    statistics_bytes: int
    histogram_bytes: int
    film_bytes: int
    keyframe_bytes: int
    keyframes: int
    reentry_steps: int


class Plan(TypedDict):
    """What a choice of hyperparameters comes to: what `plan --json` prints."""

    parameters: int
    tensors: list[PlannedTensor]
    flops_per_token: int
    memory_bytes: int
    memory: Memory
    available_bytes: int
    fits: bool
    keyframe_bytes: int
    recording: Recording
    tokens_per_step: int
    step_s: Real
    duration_s: Real
    config: Settings


class Started(TypedDict):
    """A new run. started: whether its folder is there already."""

    name: str
    started: bool


class Starting(TypedDict):
    """A training that has no folder yet; error: it came to none."""

    name: str
    error: str | None


class AllStarting(TypedDict):
    """Trainings that were started here and have no folder yet."""

    starting: list[Starting]


class Acknowledged(TypedDict):
    """Whether a training has done what it was asked, and at which step it stood."""

    acknowledged: bool
    step: int | None
