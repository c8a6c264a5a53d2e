"""The observer of a training: decides when to take statistics, histograms and frames, and writes them."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrine.config import Config
from vitrine.model.entries import Parameters
from vitrine.recording import statistics
from vitrine.recording.history import History
from vitrine.runs.film import MANIFEST, PICKS, FilmWriter, Floats
from vitrine.runs.layout import HISTOGRAM_KINDS, Numbers, spaced
from vitrine.runs.live import LiveWriter, Picture
from vitrine.runs.reader import FILM, LIVE
from vitrine.runs.records import HistogramRecord
from vitrine.step import MicroBatch, Observer, State

FIRST_STEPS, FIRST_LOOKS = 20, 3  # timed at least, before the interval of statistics is chosen


@dataclass(frozen=True)
class Due:
    """What is due to be recorded in one step."""

    statistics: bool = False
    histograms: bool = False
    frame: bool = False
    live: bool = False

    @property
    def picture(self) -> bool:
        """Whether the picks are needed."""
        return self.frame or self.live

    @property
    def anything(self) -> bool:
        """Whether anything is due."""
        return self.statistics or self.histograms or self.picture


class StepLoss(Observer):
    """The loss of a step: the mean over its micro-batches, in float64."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.last: float | None = None

    def micro_batch(self, micro: MicroBatch, logits: Tensor, loss: Tensor) -> None:
        """Keep the loss on its device; it is read after the step."""
        self.losses.append(loss)

    def take(self, mean: Callable[[Tensor], Tensor] = lambda losses: losses) -> float:
        """The loss of the last step; `mean` averages a tensor over all training processes."""
        losses = mean(torch.stack(self.losses)).tolist()
        self.losses.clear()
        self.last = sum(losses) / len(losses)
        return self.last

    def take_statistics(self) -> Numbers | None:
        """The row of statistics of the last step, if there is one."""
        return None

    def recorded(self, number: int, duration_s: float, recording_s: float) -> None:
        """Receives how long a step and its recording took."""

    def end(self, state: State) -> None:
        """Training ends: no step follows."""


class Recorder(StepLoss):
    """Statistics at every `recording.statistics_every` steps; histograms and frames of the film less often.

    The first steps are timed. After them, the interval of statistics is chosen so that they cost `recording.statistics_cost`.

    Args:
        path: the run folder.
        parameters: the parameters that are recorded.
        initial: the flat buffer of the parameters that step 0 started from; None: they are lost, and the film, which
            shows what was learned since, stops here.
        start: the step at which training starts or resumes.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        parameters: Parameters,
        initial: Tensor | None,
        history: History,
        start: int,
    ) -> None:
        super().__init__()
        self.parameters, self.history = parameters, history
        seed, steps, recording = config.training.seed, config.training.steps, config.recording
        history.begin(statistics.make_layout(parameters.entries, recording.statistics_every, seed))
        assert history.layout is not None
        self.layout = history.layout
        self.sampled = statistics.sample_places(parameters, self.layout)
        self.cost = (
            recording.statistics_cost if self.layout.since is None else 0.0
        )  # the limit, while it is still to be applied
        self.looking_s = 0.0  # spent on recording in the current step
        self.steps_s: list[float] = []  # of the first steps, without recording
        self.looks_s: list[float] = []
        self.histogram_steps = spaced(steps, recording.histograms)
        self.frame_steps = spaced(steps, recording.film_frames) if initial is not None else frozenset()
        entries, device = parameters.entries, parameters.device
        self.film = FilmWriter(path / FILM, entries.shapes, seed, start if initial is not None else steps + 1)
        if self.film.last_step < 0:
            history.keep_digests(path, [f"{FILM}/{MANIFEST}", f"{FILM}/{PICKS}"])
        self.live = LiveWriter(path / LIVE)
        self.value_picks = torch.from_numpy(self.film.values.places(entries.origins)).to(device)
        self.change_picks = torch.from_numpy(self.film.changes.places(entries.origins)).to(device)
        self.initial = None if initial is None else self._pick(initial, self.value_picks)
        self.before = torch.empty(entries.size, device=device)
        self.columns: list[Tensor] = []
        self.sample: tuple[Tensor, Tensor]  # values and gradients of the current step
        self.picture: tuple[Floats, Floats]
        self.row: Tensor | None = None
        self.due = Due()

    def gradients(self, state: State) -> None:
        """Before clipping: values and gradients as the step has them."""
        start = time.perf_counter()
        self._look_at_gradients(state)
        self.looking_s = time.perf_counter() - start

    def update(self, state: State) -> None:
        """After the update: how far each parameter moved."""
        start = time.perf_counter()
        self._look_at_update(state)
        self.looking_s += time.perf_counter() - start

    def recorded(self, number: int, duration_s: float, recording_s: float) -> None:
        """Time the first steps and their recording; then choose the interval of statistics."""
        if not self.cost:
            return
        self.steps_s.append(duration_s - self.looking_s)
        if self.due == Due(statistics=True):
            self.looks_s.append(self.looking_s + recording_s)
        if len(self.steps_s) >= FIRST_STEPS and len(self.looks_s) >= FIRST_LOOKS:
            every = self.layout.every
            enough = float(np.median(self.looks_s) / (self.cost * np.median(self.steps_s)))
            self.layout = self.history.look_every(number + 1, max(1, math.ceil(enough / every)) * every)
            self.cost = 0.0

    def _look_at_gradients(self, state: State) -> None:
        step = state.step
        self.due = Due(
            statistics=self.layout.has(step),
            histograms=step in self.histogram_steps,
            frame=step in self.frame_steps,
            live=self.live.due(),
        )
        if not self.due.anything:
            return
        values, gradients = self.parameters.values, self.parameters.gradients  # this may be where they are gathered
        self.before.copy_(values)
        if self.due.statistics:
            self.columns = [*self._measure(values), *self._measure(gradients)]
            self.sample = values[self.sampled], gradients[self.sampled]
        if self.due.picture:
            self.picture = self._pick(values, self.value_picks), self._pick(gradients, self.change_picks)
        if self.due.histograms:
            self._write_histograms(step, HISTOGRAM_KINDS[0], values)
            self._write_histograms(step, HISTOGRAM_KINDS[1], gradients)

    def _look_at_update(self, state: State) -> None:
        if not self.due.anything:
            return
        step, update = state.step, torch.sub(self.parameters.values, self.before, out=self.before)
        if self.due.statistics:
            self.row = statistics.join([*self.columns, *self._measure(update)], *self.sample)
        if self.due.picture:
            values, gradients = self.picture
            picture = Picture(step, values, gradients, self._pick(update, self.change_picks))
            if self.due.frame and self.initial is not None:
                self.film.write(step, values - self.initial, gradients, picture.updates)
            if self.due.live:
                self.live.write(picture)
        if self.due.histograms:
            self._write_histograms(step, HISTOGRAM_KINDS[2], update)

    def take_statistics(self) -> Numbers | None:
        """The row of the last step, if its statistics were due."""
        row, self.row = self.row, None
        return None if row is None else to_numpy(row)

    def end(self, state: State) -> None:
        """The last frame: the final parameters, without gradients and updates."""
        if self.initial is not None and self.film.last_step < state.step:
            nothing = np.zeros(len(self.change_picks), np.float32)
            values = self._pick(self.parameters.values, self.value_picks)
            self.film.write(state.step, values - self.initial, nothing, nothing)

    def _pick(self, flat: Tensor, picks: Tensor) -> Floats:
        """Some numbers of a flat buffer. (NumPy takes them faster than torch does.)"""
        return to_numpy(flat).take(picks.numpy()) if flat.device.type == "cpu" else to_numpy(flat[picks])

    def _measure(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        return statistics.measure(self.parameters.entries, flat)

    def _write_histograms(self, step: int, kind: str, flat: Tensor) -> None:
        for name, numbers in self.parameters.entries.named(statistics.bins_of(flat)).items():
            bins, counts = statistics.count_bins(numbers)
            self.history.store.write(HistogramRecord(step, name, kind, bins.tobytes(), counts.tobytes()))


def to_numpy(tensor: Tensor) -> Floats:
    """The numbers of a tensor, on the CPU."""
    return tensor.detach().cpu().numpy()
