"""Re-enter a past step on the bits that training had, and prove it by what was recorded then."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor

from vitrine.config import Config
from vitrine.errors import ConfigError, RunError
from vitrine.inspection.probes import Probe, lens, probe
from vitrine.model.flat import digest
from vitrine.model.inventory import inventory
from vitrine.model.loss import next_token_loss, wide
from vitrine.recording import statistics
from vitrine.recording.recorder import StepLoss, to_numpy
from vitrine.runs.film import Film, encode
from vitrine.runs.layout import HISTOGRAM_KINDS, Numbers
from vitrine.runs.reader import FILM, KEYFRAMES, RunReader
from vitrine.runs.retention import keyframe_path, keyframe_steps
from vitrine.step import MicroBatch, State, step
from vitrine.training.checkpoint import Snapshot, load_initial, load_keyframe, restore
from vitrine.training.device import check_device, differences, fingerprint
from vitrine.training.distributed import Processes
from vitrine.training.state import build_state, make_batches, micro_batches
from vitrine.training.tokens import open_tokens

Floats = NDArray[np.float32]
PASSED_BYTES = 2**28  # of the parameters of steps that a replay went through
LOGITS_KEPT = 2**26  # numbers: a step of a large vocabulary keeps the logits of its first rows only


@dataclass
class Comparison:
    """One kind of recorded thing, held against what the replay found: how often, and how often equal to the bit."""

    what: str
    first: int
    last: int
    made: int = 0
    equal: int = 0
    difference: str = ""  # the first one

    def to_json(self) -> dict[str, object]:
        """As `replay --json` prints it."""
        return {"what": self.what, "steps": [self.first, self.last], "made": self.made, "equal": self.equal}


@dataclass
class Comparisons:
    """All that was compared since the last keyframe, and what differs."""

    elsewhere: list[str]  # differences of the fingerprint
    kinds: dict[str, Comparison] = field(default_factory=dict)

    def add(self, what: str, step: int, equal: bool, difference: str = "") -> None:
        """One more comparison, of a step."""
        kind = self.kinds.setdefault(what, Comparison(what, step, step))
        kind.last, kind.made, kind.equal = step, kind.made + 1, kind.equal + equal
        if not equal and not kind.difference:
            kind.difference = f"{what} of step {step}: {difference}" if difference else f"{what} of step {step}"

    def number(self, what: str, step: int, now: float, then: float | None) -> None:
        """Compare two numbers by their bits, if the second was recorded."""
        if then is not None:
            self.add(what, step, now == then, f"{now!r} now, {then!r} recorded")

    @property
    def differs(self) -> list[str]:
        """What is not as it was; empty: nothing."""
        return self.elsewhere + [kind.difference for kind in self.kinds.values() if kind.difference]

    @property
    def exact(self) -> bool:
        """Whether every comparison that could be made held, and there was one."""
        return bool(self.kinds) and not self.differs


@dataclass(frozen=True)
class OpenedMicroBatch:
    """A micro-batch as the step saw it.

    inputs, targets: (rows, seq) token ids; losses: (rows, seq) nats; loss: their mean, as training computed it.
    logits: (kept rows, seq, vocab_size), of the training pass itself.
    """

    micro: MicroBatch
    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    losses: Floats
    loss: float
    logits: Floats


@dataclass(frozen=True)
class OpenedTensor:
    """One tensor in one step. after = before + update, as float32 rounds it; the gradient is from before clipping.

    memory_before, memory_after: the optimizer's, by name.
    """

    before: Floats
    gradient: Floats
    update: Floats
    after: Floats
    memory_before: dict[str, Floats]
    memory_after: dict[str, Floats]


class Witness(StepLoss):
    """Copies what a step had, between its phases.

    Args:
        whole: micro-batches and optimizer state too.
    """

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole
        self.micro_batches: list[OpenedMicroBatch] = []
        self.values = self.gradient = self.clipped = self.after = torch.empty(0)
        self.memory_before: dict[str, Tensor] = {}
        self.memory_after: dict[str, Tensor] = {}

    def micro_batch(self, micro: MicroBatch, logits: Tensor, loss: Tensor) -> None:
        """The batch and its losses."""
        super().micro_batch(micro, logits, loss)
        if not self.whole:
            return
        losses = F.cross_entropy(wide(logits.flatten(0, 1)), micro.targets.flatten(), reduction="none")
        rows = max(1, LOGITS_KEPT // logits[0].numel())
        self.micro_batches.append(
            OpenedMicroBatch(
                micro,
                micro.inputs.cpu().numpy(),
                micro.targets.cpu().numpy(),
                to_numpy(losses.view(micro.targets.shape)),
                float(loss),
                to_numpy(wide(logits[:rows])),
            )
        )

    def gradients(self, state: State) -> None:
        """Before clipping."""
        self.values, self.gradient = state.parameters.values.clone(), state.parameters.gradients.clone()
        if self.whole:
            self.memory_before = {name: flat.clone() for name, flat in state.optimizer.state.items()}

    def update(self, state: State) -> None:
        """After the update."""
        self.after = state.parameters.values.clone()
        if self.whole:
            self.clipped = state.parameters.gradients.clone()
            self.memory_after = {name: flat.clone() for name, flat in state.optimizer.state.items()}


class Replayer:
    """A run whose steps can be entered again. It stands at one step, and moves on from there or from a keyframe.

    It only reads, and works while the run still trains.
    """

    def __init__(self, reader: RunReader, note: Callable[[str], None] = lambda text: None) -> None:
        self.reader, self.note = reader, note
        self.config, elsewhere = _config_here(reader)
        self.elsewhere = elsewhere
        self.decoder, self.state = build_state(self.config, Processes())
        self.batches = make_batches(self.config, open_tokens(reader))
        self.layout = reader.layout()
        if self.layout:
            self.sampled = statistics.sample_places(self.state.parameters, self.layout)
        self.comparisons = Comparisons(elsewhere)
        self.entered = -1  # the keyframe that it came from
        self.watch: Callable[[State], None] = lambda state: None  # is called at the start of each step
        self.passed: dict[int, Tensor] = {}  # the parameters that the last steps started from, by step

    def enter(self, number: int) -> None:
        """Stand where step `number` starts. Raises RunError if the run has not come so far."""
        self.reader.check_step(number, "enter")
        snapshot = self._keyframe_before(number)
        if not snapshot.step <= self.state.step <= number or self.entered < 0:
            self._start(snapshot)
        while self.state.step < number:
            self._make(Witness())
        self.watch(self.state)

    def open(self, number: int) -> "OpenedStep":
        """Make step `number` once more, and keep all of it."""
        self.reader.check_step(number)
        self.enter(number)
        witness = Witness(whole=True)
        self._make(witness)
        self._compare_pictures(number, witness)
        if number + 1 in keyframe_steps(self.reader.path / KEYFRAMES):
            self._compare_keyframe(number + 1)
        again = self.loss_of([batch.micro for batch in witness.micro_batches])
        following = self.loss_of(micro_batches(self.batches, number + 1, self.decoder, Processes()))
        record = self.reader.step_record(number + 1)
        self.comparisons.number("loss of the next step", number + 1, following, record.loss if record else None)
        return OpenedStep(self, number, witness, again, following)

    def prove(self) -> None:
        """Go on to the next keyframe, and compare every bit of it."""
        later = [s for s in keyframe_steps(self.reader.path / KEYFRAMES) if s >= self.state.step]
        if not later:
            self.note("There is no later keyframe to run on to.")
            return
        while self.state.step < later[0]:
            self._make(Witness())
        self._compare_keyframe(later[0])

    def loss_of(self, batches: "Iterator[MicroBatch] | list[MicroBatch]") -> float:
        """The loss of a batch with the parameters as they stand, computed as a step computes it."""
        losses = StepLoss()
        for micro in batches:
            logits = self.state.model(micro.inputs, micro.dropout_keys)
            losses.micro_batch(micro, logits, next_token_loss(logits, micro.targets).detach())
        return losses.take()

    def _keyframe_before(self, number: int) -> Snapshot:
        """The newest sound keyframe at or before a step."""
        folder = self.reader.path / KEYFRAMES
        for candidate in reversed([s for s in keyframe_steps(folder) if s <= number]):
            if candidate <= self.state.step <= number and self.entered >= 0:
                return Snapshot(candidate, {}, {})  # we stand between: nothing has to be loaded
            try:
                snapshot = load_keyframe(keyframe_path(folder, candidate))
            except RunError as error:
                self.note(f"{error} Using the one before.")
                continue
            if snapshot.step != candidate:
                self.note(f"The keyframe {candidate} says that it is of step {snapshot.step}. Using the one before.")
                continue
            return snapshot
        raise RunError(f"{folder} holds no sound keyframe at or before step {number}.")

    def _start(self, snapshot: Snapshot) -> None:
        restore(self.state, snapshot)
        self.entered, self.passed = snapshot.step, {}
        self.comparisons = Comparisons(self.elsewhere)
        self._compare_keyframe(snapshot.step)

    def _make(self, witness: Witness) -> None:
        """One step, compared with what was recorded of it."""
        self.watch(self.state)
        number, compare = self.state.step, self.comparisons
        step(self.state, micro_batches(self.batches, number, self.decoder, Processes()), witness)
        self._remember(number, witness.values)
        loss, optimizer, record = witness.take(), self.state.optimizer, self.reader.step_record(number)
        if record:
            compare.number("loss", number, loss, record.loss)
            compare.number("gradient norm", number, optimizer.gradient_norm, record.gradient_norm)
            compare.number("learning rate", number, optimizer.learning_rate, record.learning_rate)
        row = self.reader.statistics_at(number)
        if row is not None and self.layout:
            equal = same_bits(row, self._statistics(witness))
            compare.add("norms, magnitudes and sampled parameters of every tensor", number, equal)

    def _remember(self, number: int, values: Tensor) -> None:
        """Keep what a step started from, as long as there is room: the oldest goes first."""
        self.passed[number] = values
        while len(self.passed) > max(1, PASSED_BYTES // (values.numel() * values.element_size())):
            del self.passed[min(self.passed)]

    def _statistics(self, witness: Witness) -> Numbers:
        """The row of statistics, as the recorder computes it."""
        update = witness.after - witness.values
        columns = [
            column
            for flat in (witness.values, witness.gradient, update)
            for column in statistics.measure(self.state.parameters, flat)
        ]
        return to_numpy(statistics.join(columns, witness.values[self.sampled], witness.gradient[self.sampled]))

    def _compare_pictures(self, number: int, witness: Witness) -> None:
        """Histograms and the frame of the film, where this step has them."""
        parameters, update = self.state.parameters, witness.after - witness.values
        for kind, flat in zip(HISTOGRAM_KINDS, (witness.values, witness.gradient, update), strict=True):
            for name, numbers in parameters.named(flat).items():
                for record in self.reader.histograms(name, kind, number):
                    bins, counts = statistics.histogram(numbers)
                    equal = (bins.tobytes(), counts.tobytes()) == (record.bins, record.counts)
                    self.comparisons.add("histograms", number, equal, f"{kind} of {name}")
        if not (self.reader.path / FILM).is_dir():
            return
        film = Film(self.reader.path / FILM)
        found = np.flatnonzero(film.steps() == number)
        if len(found):
            starts = {place.name: place.start for place in parameters.places}
            values, changes = film.values.places(starts), film.changes.places(starts)
            try:
                birth = self._birth()
            except RunError as error:
                self.note(f"{error} The frame of the film is not compared.")
                return
            learned = to_numpy(witness.values)[values] - birth[values]
            frame = encode(
                number,
                (learned, to_numpy(witness.gradient)[changes], to_numpy(update)[changes]),
                (film.values, film.changes),
            )
            self.comparisons.add("frame of the film", number, frame == film.raw(int(found[0])))

    def _birth(self) -> Floats:
        """The parameters of step 0 as a flat buffer."""
        noted = self.reader.facts().get("birth", "")
        born = load_initial(self.reader.path / KEYFRAMES, self.config, noted)
        flat = torch.zeros_like(self.state.parameters.values)
        for name, view in self.state.parameters.named(flat).items():
            view.copy_(born[name])
        return to_numpy(flat)

    def _compare_keyframe(self, number: int) -> None:
        """Parameters and optimizer state as they stand, against the keyframe of this step."""
        path = keyframe_path(self.reader.path / KEYFRAMES, number)
        try:
            kept = load_keyframe(path)
        except RunError as error:
            if path.is_dir():
                self.comparisons.add("keyframe", number, False, str(error))
            else:
                self.note(f"{error} It is not compared.")
            return
        parameters, optimizer = self.state.parameters, self.state.optimizer
        now = digest(parameters.named(parameters.values))
        held, then = digest(kept.parameters), kept.written_digest
        difference = f"digest {now[:12]} now, {held[:12]} in the file, {then[:12]} written down"
        self.comparisons.add("keyframe", number, now == held == then, difference)
        memory = optimizer.named_state(optimizer.state)
        equal = memory.keys() == kept.optimizer.keys() and all(
            same_bits(to_numpy(memory[name]), to_numpy(kept.optimizer[name])) for name in memory
        )
        self.comparisons.add("optimizer state of the keyframe", number, equal)


class OpenedStep:
    """One step, laid open: what it saw, how wrong it was, its gradients, and what it changed.

    loss, gradient_norm, update_norm: of the whole step; recorded_*: what training wrote down (None: it did not).
    again: the loss of the same batch after the update; following: of the next batch.
    passed: the parameters that the steps since the keyframe before started from, this one included, by step.
    """

    def __init__(self, replayer: Replayer, number: int, witness: Witness, again: float, following: float) -> None:
        self.replayer, self.step, self.witness = replayer, number, witness
        self.comparisons, self.config = replayer.comparisons, replayer.config
        self.micro_batches = witness.micro_batches
        assert witness.last is not None
        self.loss, self.again, self.following = witness.last, again, following
        since = max([s for s in keyframe_steps(replayer.reader.path / KEYFRAMES) if s <= number], default=0)
        self.passed = {s: values for s, values in replayer.passed.items() if since <= s <= number}
        optimizer, reader = replayer.state.optimizer, replayer.reader
        self.gradient_norm, self.learning_rate = optimizer.gradient_norm, optimizer.learning_rate
        clip = self.config.optimizer.clip
        self.clip_factor = clip / self.gradient_norm if clip and self.gradient_norm > clip else 1.0
        self.parameters, self.layout = replayer.state.parameters, replayer.layout
        record = reader.step_record(number)
        self.recorded_loss = record.loss if record else None
        self.recorded_gradient_norm = record.gradient_norm if record else None
        row = reader.statistics_at(number)
        names = [place.name for place in self.parameters.places]
        flats = {"weight": witness.values, "gradient": witness.gradient, "update": witness.after - witness.values}
        in_order = [plan.name for plan in inventory(self.config.model)]
        self.norms = {}
        for kind, flat in flats.items():
            norms = dict(zip(names, to_numpy(statistics.norms(self.parameters, flat)).tolist(), strict=True))
            self.norms[kind] = {name: norms[name] for name in in_order}
        self.recorded_norms = {
            kind: {
                name: None
                if row is None or not self.layout
                else float(row[self.layout.statistic(name, f"{kind}_norm")])
                for name in in_order
            }
            for kind in flats
        }

    @property
    def exact(self) -> bool:
        """Whether this is the very step that training made: every comparison that could be made held."""
        return self.comparisons.exact

    @property
    def update_norm(self) -> float:
        """The length of the whole update, over all tensors."""
        return math.sqrt(sum(norm**2 for norm in self.norms["update"].values()))

    @property
    def recorded_update_norm(self) -> float | None:
        """The same from the norms that were recorded."""
        recorded = [norm for norm in self.recorded_norms["update"].values() if norm is not None]
        return math.sqrt(sum(norm**2 for norm in recorded)) if recorded else None

    @property
    def tensors(self) -> Mapping[str, OpenedTensor]:
        """Every tensor's numbers, by name."""
        return {plan.name: self.tensor(plan.name) for plan in inventory(self.config.model)}

    def tensor(self, name: str) -> OpenedTensor:
        """One tensor's numbers."""
        place, witness, optimizer = self.parameters.by_name[name], self.witness, self.replayer.state.optimizer
        before, after = (to_numpy(place.view(flat)) for flat in (witness.values, witness.after))

        def memory(flats: dict[str, Tensor]) -> dict[str, Floats]:
            named = optimizer.named_state(flats)
            return {kind: to_numpy(named[f"{name}.{kind}"]) for kind in flats if f"{name}.{kind}" in named}

        gradient = to_numpy(place.view(witness.gradient))
        return OpenedTensor(
            before, gradient, after - before, after, memory(witness.memory_before), memory(witness.memory_after)
        )

    def save(self, path: Path) -> None:
        """Write every tensor to a safetensors file, as NAME.before, .gradient, .update, .after, and .MEMORY after it."""
        arrays = {}
        for name, tensor in self.tensors.items():
            for part in ("before", "gradient", "update", "after"):
                arrays[f"{name}.{part}"] = getattr(tensor, part)
            arrays |= {f"{name}.{kind}": memory for kind, memory in tensor.memory_after.items()}
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} cannot be written: {error}. Give --save a file in a folder that exists.") from None

    def probe(self, row: int = 0) -> Probe:
        """Look inside the forward pass, by a second pass over the first micro-batch with the same draws."""
        batch = self.micro_batches[0]
        if not 0 <= row < len(batch.inputs):
            raise RunError(f"--row must be one of the {len(batch.inputs)} rows of the batch: got {row}. Try --row 0.")
        with self.with_values(self.witness.values):
            seen = probe(self.replayer.decoder, batch.micro.inputs, batch.micro.dropout_keys, row)
        if row < len(batch.logits):
            seen.difference = float(np.abs(seen.logits - batch.logits[row]).max())
        return seen

    def lens(self, seen: Probe, token: int) -> Floats:
        """What each layer's stream at a token would predict. (n_layers + 1, vocab_size) logits."""
        with self.with_values(self.witness.values):
            return lens(self.replayer.decoder, seen.streams[:, token])

    @contextmanager
    def with_values(self, flat: Tensor) -> Iterator[None]:
        """The model with other parameters, for a moment."""
        values = self.parameters.values
        now = values.clone()
        values.copy_(flat)
        try:
            yield
        finally:
            values.copy_(now)


def same_bits(one: Floats, other: Floats) -> bool:
    """Whether two arrays of float32 are equal to the bit, NaN and the sign of zero included."""
    return one.shape == other.shape and np.array_equal(one.view(np.uint32), other.view(np.uint32))


def _config_here(reader: RunReader) -> tuple[Config, list[str]]:
    """The run's hyperparameters as this machine can follow them, and how its fingerprint differs."""
    config = reader.config
    try:
        check_device(config.machine.device)
    except ConfigError:
        config = config.model_copy(update={"machine": config.machine.model_copy(update={"device": "cpu"})})
    then = json.loads(reader.facts().get("fingerprint", "{}"))
    now = fingerprint(config.machine, config.training.precision, 1, then.get("corpus", ""))
    return config, differences(then, now)
