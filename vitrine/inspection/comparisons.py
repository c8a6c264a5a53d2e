"""What a replay found, compared with what training recorded: each thing by its bits."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vitrine.errors import RunError
from vitrine.inspection.replayed_step import Floats, StepTrace
from vitrine.model.flat import digest
from vitrine.recording import statistics
from vitrine.recording.recorder import to_numpy
from vitrine.runs.film import Film, encode
from vitrine.runs.layout import HISTOGRAM_KINDS
from vitrine.runs.reader import FILM, KEYFRAMES, RunReader
from vitrine.runs.retention import keyframe_path
from vitrine.step import State
from vitrine.training.checkpoint import load_initial, load_keyframe

Note = Callable[[str], None]


@dataclass
class Comparison:
    """One kind of recorded thing: how often it was compared, and how often it was equal to the bit."""

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


def compare_record(found: Comparisons, reader: RunReader, trace: StepTrace) -> None:
    """The numbers of a step with its row of the history."""
    record = reader.step_record(trace.step)
    if record:
        found.number("loss", trace.step, trace.loss, record.loss)
        found.number("gradient norm", trace.step, trace.gradient_norm, record.gradient_norm)
        found.number("learning rate", trace.step, trace.learning_rate, record.learning_rate)


def compare_statistics(found: Comparisons, reader: RunReader, sampled: Tensor, trace: StepTrace) -> None:
    """The row of statistics, where this step has one. sampled: places of the sampled parameters in the flat buffer."""
    row = reader.statistics_at(trace.step)
    if row is None:
        return
    flats = trace.values, trace.gradient, trace.change
    columns = [column for flat in flats for column in statistics.measure(trace.parameters.entries, flat)]
    now = to_numpy(statistics.join(columns, trace.values[sampled], trace.gradient[sampled]))
    found.add("norms, magnitudes and sampled parameters of every tensor", trace.step, same_bits(row, now))


def compare_histograms(found: Comparisons, reader: RunReader, trace: StepTrace) -> None:
    """Histograms, where this step has them."""
    for kind, flat in zip(HISTOGRAM_KINDS, (trace.values, trace.gradient, trace.change), strict=True):
        for name, numbers in trace.parameters.entries.named(flat).items():
            for record in reader.histograms(name, kind, trace.step):
                bins, counts = statistics.histogram(numbers)
                equal = (bins.tobytes(), counts.tobytes()) == (record.bins, record.counts)
                found.add("histograms", trace.step, equal, f"{kind} of {name}")


def compare_frame(found: Comparisons, reader: RunReader, trace: StepTrace, note: Note) -> None:
    """The frame of the film, where this step has one."""
    if not (reader.path / FILM).is_dir():
        return
    film = Film(reader.path / FILM)
    frames = np.flatnonzero(film.steps() == trace.step)
    if not len(frames):
        return
    entries = trace.parameters.entries
    values, changes = film.values.places(entries.origins), film.changes.places(entries.origins)
    try:
        initial = load_initial(reader.path / KEYFRAMES, reader.config, reader.facts().get("birth", ""))
    except RunError as error:
        note(f"{error} The frame of the film is not compared.")
        return
    learned = to_numpy(trace.values)[values] - to_numpy(entries.gather(initial, torch.zeros_like(trace.values)))[values]
    parts = learned, to_numpy(trace.gradient)[changes], to_numpy(trace.change)[changes]
    frame = encode(trace.step, parts, (film.values, film.changes))
    found.add("frame of the film", trace.step, frame == film.raw(int(frames[0])))


def compare_keyframe(found: Comparisons, reader: RunReader, state: State, note: Note) -> None:
    """Parameters and optimizer state as they stand, with the keyframe of this step."""
    path = keyframe_path(reader.path / KEYFRAMES, state.step)
    try:
        kept = load_keyframe(path)
    except RunError as error:
        if path.is_dir():
            found.add("keyframe", state.step, False, str(error))
        else:
            note(f"{error} It is not compared.")
        return
    now = digest(state.parameters.entries.named(state.parameters.values))
    held, then = digest(kept.parameters), kept.written_digest
    difference = f"digest {now[:12]} now, {held[:12]} in the file, {then[:12]} written down"
    found.add("keyframe", state.step, now == held == then, difference)
    memory = state.optimizer.named_state()
    equal = memory.keys() == kept.optimizer.keys() and all(
        same_bits(to_numpy(memory[name]), to_numpy(kept.optimizer[name])) for name in memory
    )
    found.add("optimizer state of the keyframe", state.step, equal)


def same_bits(one: Floats, other: Floats) -> bool:
    """Whether two arrays of float32 are equal to the bit, NaN and the sign of zero included."""
    return one.shape == other.shape and np.array_equal(one.view(np.uint32), other.view(np.uint32))
