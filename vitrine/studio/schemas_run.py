"""The types of JSON answers about runs. The OpenAPI schema (`openapi.py`) and the page's types are made from them.

The type Real marks numbers that may not be finite; they are sent as null (`responses.dumps`).
"""

from typing import Any, Literal

from typing_extensions import TypedDict

from vitrine.inspection.health_by_history import Headline
from vitrine.model.inventory import Kind
from vitrine.runs.chosen import By
from vitrine.runs.records import EventRecord, SampleRecord

Real = float | None
Settings = dict[str, dict[str, Any]]


class Problem(TypedDict):
    """Every error."""

    error: str


class RunSummary(TypedDict):
    """A run in the listing.

    train_loss: of the batch of the last step. val_loss: the last that was measured, over val_tokens tokens; val_whole: whether
    these are all of the validation split.
    """

    name: str
    parameters: int
    architecture: str
    steps: int
    steps_made: int
    training: bool
    val_loss: Real
    val_tokens: int
    val_whole: bool
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


class PlannedTensor(TypedDict):
    """A tensor of a model. std: the standard deviation of a normal initialisation."""

    name: str
    shape: list[int]
    kind: Kind
    parameters: int
    birth: Literal["normal", "zeros", "ones"]
    std: float


class TensorInfo(PlannedTensor):
    """A tensor of a run's model. block: which one it is in. part: what of the block, or of the model, it belongs to.

    memory: the names of its optimizer state. rule: the name of its rule, of `rules`.
    """

    block: int | None
    part: str
    memory: list[str]
    rule: str


class FilmTensor(TypedDict):
    """The grids of a tensor in the film: rows and columns."""

    name: str
    values: tuple[int, int]
    changes: tuple[int, int]


class FilmInfo(TypedDict):
    """The film. level: one parameter of each square of side 2^level is shown."""

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
    """Memory of a training process: computed from its hyperparameters; and the measured peak, program included."""

    computed: Memory
    measured_peak_bytes: int | None


class Evaluation(TypedDict):
    """The validation loss of the parameters that a step starts from.

    whole: over the whole split; final: over the part of it that the last evaluation measures, if that is not all.
    """

    step: int
    loss: Real
    tokens: int
    whole: bool
    duration_s: float
    final: bool


class Chosen(TypedDict):
    """Who chose a hyperparameter: you (in a command, a file or the form), a preset, the parent run, nobody (its default), or the
    program, which derived it. how: in words that complete «its value is …».
    """

    by: By
    how: str


class RunInfo(TypedDict):
    """All that a page needs to open a run.

    chosen: who chose each hyperparameter, by section.key; null: not recorded.
    left_s: seconds to the end of the training, at its pace; null: it does not train. disk_bytes: size of the run's folder;
    disk_expected_bytes: an estimate of it at the end, while it trains.
    rules: what each rule of the optimizer adds to plain SGD, in a sentence. terms: what each term of an update is; main_terms:
    those to show first. ended: what `train --json` printed (train_loss: of the batch of the last step, of train_loss_tokens tokens;
    val_loss: over val_tokens tokens of the validation split, val_whole: over all of it). series: curves of the whole run;
    statistics: of each tensor or part of the model, as TENSOR/STATISTIC or PART/STATISTIC.
    """

    name: str
    identity: str
    config: Settings
    chosen: dict[str, Chosen] | None
    tensors: list[TensorInfo]
    rules: dict[str, str]
    terms: dict[str, str]
    main_terms: list[str]
    parameters: int
    vocab: list[str] | None
    steps: int
    steps_made: int
    training: bool
    paused: bool
    left_s: Real
    disk_bytes: int
    disk_expected_bytes: int | None
    ended: dict[str, Any] | None
    keyframes: list[int]
    best_step: int | None
    guessing_loss: float
    events: list[EventRecord]
    evaluations: list[Evaluation]
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


class LossCurve(TypedDict):
    """The training loss: the first step of each pixel, and the lowest and highest value in it."""

    steps: list[int]
    tokens: list[int]
    seconds: list[float]
    low: list[Real]
    high: list[Real]


class ValidationCurve(TypedDict):
    """Every validation loss over the same sample of the split."""

    steps: list[int]
    tokens: list[int]
    seconds: list[Real]
    loss: list[Real]


class BestStep(TypedDict):
    """The step with the least validation loss."""

    step: int
    loss: float


class ComparedRun(TypedDict):
    """One of several runs. result: what `train --json` printed. seconds: of the recorded steps.

    train_loss: of the batch of the last recorded step. best, val_loss: by samples of val_tokens tokens of the validation split;
    the one at the end of the run, in `result`, is over more of it.
    """

    name: str
    parameters: int
    architecture: str
    steps: int
    steps_made: int
    training: bool
    result: dict[str, Any] | None
    best: BestStep | None
    train_loss: Real
    val_loss: Real
    val_tokens: int
    seconds: float
    tokens: int
    loss: LossCurve
    validation: ValidationCurve
    samples: list[SampleRecord]


class Difference(TypedDict):
    """A hyperparameter that is not the same in all runs; values: in the order of the runs, null if a run has none."""

    key: str
    values: list[Any]


class Comparison(TypedDict):
    """A comparison of runs: what `compare --json` prints. same_tokens: whether their losses per token are comparable."""

    runs: list[ComparedRun]
    differs: list[Difference]
    same_tokens: bool


class Next(TypedDict):
    """The ids of a prompt, and the logit of every possible next token. exact: whether the parameters are proved to be the step's."""

    step: int
    tokens: list[int]
    logits: list[float]
    exact: bool


class Birth(TypedDict):
    """The run's model, re-initialised: its loss on the batch of step 0, and the first cells of each tensor by name."""

    seed: int
    spread: float
    loss: Real
    guessing_loss: float
    cells: dict[str, float]


class Plot(TypedDict):
    """The plot of a verdict: series from first to last; or points (step, value) at keyframes, and of what they are."""

    series: list[str]
    first: int
    last: int
    points: list[tuple[int, Real]]
    what: str


class Verdict(TypedDict):
    """One check of a run's health."""

    name: str
    level: Literal["ill", "watch", "unknown", "ok"]
    sentence: str
    blame: str | None
    cause: str
    evidence: dict[str, Any]
    step: int | None
    plot: Plot | None


class Health(TypedDict):
    """All verdicts: what `health --json` prints."""

    healthy: bool
    headline: Verdict | None
    verdicts: list[Verdict]


class HeadlineAnswer(TypedDict):
    """headline: null if nothing is wrong."""

    headline: Headline | None


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
    """Every hyperparameter of the form; what each one of a run is, by section.key; and the presets."""

    hyperparameters: list[Hyperparameter]
    descriptions: dict[str, str]
    presets: dict[str, Settings]


class Recording(TypedDict):
    """What a run will leave on disk, in bytes, and the most steps that a replay makes."""

    statistics_bytes: int
    histogram_bytes: int
    film_bytes: int
    keyframe_bytes: int
    keyframes: int
    reentry_steps: int


class SourceReading(TypedDict):
    """What was read of a source. read, left_out: files and bytes, by ending. invalid: what was not valid text."""

    spec: str
    read: dict[str, tuple[int, int]]
    left_out: dict[str, tuple[int, int]]
    documents: int
    train_tokens: int
    held_back: Literal["end", "documents", "all", "nothing"]
    invalid: dict[str, int | str | list[str]]


class Reading(TypedDict):
    """What was read of a corpus."""

    sources: list[SourceReading]
    validation_tokens: int


class Plan(TypedDict):
    """The plan of a choice of hyperparameters: what `plan --json` prints.

    disk_expected_bytes: an estimate of the size of the run's folder at its end.
    """

    parameters: int
    tensors: list[PlannedTensor]
    flops_per_token: int
    memory_bytes: int
    memory: Memory
    available_bytes: int
    fits: bool
    keyframe_bytes: int
    recording: Recording
    disk_expected_bytes: int
    tokens_per_step: int
    step_s: Real
    duration_s: Real
    reading: Reading
    config: Settings
    chosen: dict[str, Chosen]


class Started(TypedDict):
    """A new run. started: whether its folder exists already."""

    name: str
    started: bool


class Starting(TypedDict):
    """A training that has no folder yet; error: why it will have none."""

    name: str
    error: str | None


class AllStarting(TypedDict):
    """Trainings that were started here and have no folder yet."""

    starting: list[Starting]


class ReportProgress(TypedDict):
    """The progress of a report; empty: none is being written."""

    doing: str


class Acknowledged(TypedDict):
    """Whether a training has carried out a command, and at which step."""

    acknowledged: bool
    step: int | None
