"""The jobs of the worker processes, which need torch: replay steps, inspect them, generate text, make plans."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vitrine.config import SamplingConfig, Settings
from vitrine.errors import RunError
from vitrine.generation.generate import generate, next_logits
from vitrine.inspection.gradient_check import check_gradient
from vitrine.inspection.health import examine
from vitrine.inspection.neuron import open_neuron, open_neuron_of_prompt
from vitrine.inspection.parameter import find_address, report_parameter
from vitrine.inspection.reinit import reinitialise
from vitrine.inspection.replay import Replayer
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.inspection.step_report import report_step
from vitrine.inspection.views import TensorView
from vitrine.model.decoder import Decoder
from vitrine.model.flat import digest
from vitrine.randomness import keyed_generator
from vitrine.recording.recorder import to_numpy
from vitrine.recording.reporter import Reporter
from vitrine.run import Run
from vitrine.runs.reader import KEYFRAMES, RunReader
from vitrine.runs.retention import keyframe_steps
from vitrine.step import State
from vitrine.studio.tiles import MEMORY, Floats, Tile, read_births
from vitrine.studio.worker_pool import PART, PROGRESS, JobQueue
from vitrine.training.device import prepare_device
from vitrine.training.plan import plan
from vitrine.training.request import Request

RUNS = 2  # whose replayers are kept
STEPS, STEP_BYTES = 4, 2**30  # replayed ones that are kept, and the memory that they may take; the last one always is
DIGEST_BYTES = 2**28  # the most parameters to digest before and after each text
PAIRS = 2000  # of gradient and update, in a scatter of a tensor

Key = tuple[str, str]  # a run's folder and its identity
Whole = Callable[[str], Floats]  # a whole tensor, by its name


class WorkerJobs:
    """Each public method is a job. run: the folder; identity: tells apart runs that had the same folder."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.replayers: OrderedDict[Key, Replayer] = OrderedDict()
        self.steps: OrderedDict[tuple[Key, int], ReplayedStep] = OrderedDict()
        self.models: OrderedDict[Key, Run] = OrderedDict()

    def forget(self) -> None:
        """Drop all cached objects: after an error they may be inconsistent."""
        self.replayers.clear()
        self.steps.clear()
        self.models.clear()

    def cells(
        self, run: str, identity: str, step: int, mode: str, tiles: tuple[Tile, ...], replayed: bool
    ) -> tuple[Floats, bool]:
        """Tiles of tensors, one after the other, and whether they are exact. replayed: whether the step itself is replayed."""
        if replayed:
            whole, exact = self._tensors_of_replayed_step(run, identity, step, mode)
        else:
            whole, exact = self._tensors_before_step(run, identity, step, mode)
        found = np.concatenate([tile.cut(whole(tile.tensor)).ravel() for tile in tiles])
        if mode == "learned":
            found -= np.concatenate([tile.ravel() for tile in read_births(RunReader(run), tiles)])
        return found, exact

    def _tensors_of_replayed_step(self, run: str, identity: str, step: int, mode: str) -> tuple[Whole, bool]:
        """A function that gives whole tensors of a replayed step, which is compared with its record."""
        replayed = self._replayed_step(run, identity, step)

        def whole(name: str) -> Floats:
            tensor = replayed.tensor(name)
            if mode.startswith(MEMORY):
                return tensor.memory_before[mode.removeprefix(MEMORY)]
            return tensor.gradient if mode == "gradient" else tensor.update if mode == "update" else tensor.before

        return whole, replayed.exact

    def _tensors_before_step(self, run: str, identity: str, step: int, mode: str) -> tuple[Whole, bool]:
        """The same for the end of the run: this step was not made yet."""
        replayer = self._replayer_before(run, identity, step)
        state = replayer.state
        flats = state.optimizer.named_state()

        def whole(name: str) -> Floats:
            if mode.startswith(MEMORY):
                return to_numpy(flats[f"{name}.{mode.removeprefix(MEMORY)}"])
            return to_numpy(state.parameters.tensors[name])

        return whole, replayer.comparisons.exact

    def phases(self, run: str, identity: str, step: int, row: int, token: int) -> dict[str, Any]:
        """The four phases of a step."""
        return report_step(self._replayed_step(run, identity, step), row, token).to_json()

    def parameter(self, run: str, identity: str, step: int, name: str) -> dict[str, Any]:
        """The biography of one parameter."""
        address = find_address(RunReader(run), name)
        if not address.index:
            raise RunError(f"A parameter is named with its place, such as {address.tensor.name}[0]: got {name!r}.")
        return report_parameter(self._replayed_step(run, identity, step), address).to_json()

    def neuron(
        self, run: str, identity: str, step: int, name: str, row: int, token: int, prompt: str | None
    ) -> dict[str, Any]:
        """One neuron: its inputs, weights and output, at a token of the step's batch or of a prompt."""
        reader = RunReader(run)
        address = find_address(reader, name)
        if prompt is None:
            return open_neuron(self._replayed_step(run, identity, step), address, row, token).to_json()
        with self._model(run, identity, step) as (model, _, exact):
            return open_neuron_of_prompt(model, reader, step, exact, address, prompt, token).to_json()

    def tensor(self, run: str, identity: str, step: int, name: str) -> dict[str, Any]:
        """One tensor in a step, and a scatter of gradients against updates."""
        reader = RunReader(run)
        address, replayed = find_address(reader, name), self._replayed_step(run, identity, step)
        numbers = replayed.tensor(address.tensor.name)
        size, seed = numbers.gradient.size, reader.config.training.seed
        places = np.sort(
            keyed_generator(seed, "scatter", address.tensor.name).choice(size, min(PAIRS, size), replace=False)
        )
        pairs = np.stack([numbers.gradient.ravel()[places], numbers.update.ravel()[places]], axis=1)
        return TensorView(replayed, address.tensor).to_json() | {"scatter": pairs.tolist()}

    def nudge(self, run: str, identity: str, step: int, name: str, sizes: list[float]) -> dict[str, Any]:
        """The loss of a step's batch with one parameter moved."""
        address = find_address(RunReader(run), name)
        if not address.index:
            raise RunError(f"One parameter is nudged, such as {address.tensor.name}[0]: got {name!r}.")
        found = check_gradient(self._replayed_step(run, identity, step), address, sizes)
        for size, loss in zip(found.sizes, found.losses, strict=True):
            if not math.isfinite(loss):
                raise RunError(f"Moved by {size:g}, {name} makes a loss that is not finite. Move it by less.")
        return {"step": step} | found.to_json()

    def health(self, run: str) -> dict[str, Any]:
        """Verdicts on a run."""
        return examine(RunReader(run)).to_json()

    def births(self, run: str, identity: str, seed: int, spread: float) -> dict[str, Any]:
        """The run's model, initialised by another seed, or with other standard deviations."""
        return reinitialise(RunReader(run), seed, spread).to_json()

    def next(self, run: str, identity: str, step: int, prompt: str) -> dict[str, Any]:
        """The logits of every possible next token after a prompt."""
        with self._model(run, identity, step) as (model, owner, exact):
            ids, logits = next_logits(model, owner.tokenizer, prompt)
        return {"step": step, "tokens": ids, "logits": logits, "exact": exact}

    def generate(
        self, run: str, identity: str, step: int, prompt: str, max_new_tokens: int, sampling: dict[str, Any], seed: int
    ) -> dict[str, Any]:
        """Generate text; each piece is a part.

        exact: whether the parameters are proved to be those of the step: kept in a keyframe, or replayed and compared. digest: of
        the model's parameters, before and after.
        """

        def on_text(text: str) -> None:
            self.queue.check()
            self.queue.say(PART, text)

        with self._model(run, identity, step) as (model, owner, exact):
            chosen, before = SamplingConfig(**sampling), _digest(model)
            text = generate(model, owner.tokenizer, prompt, max_new_tokens, chosen, seed, on_text, owner.ngrams).text
            return {"text": text, "exact": exact, "digest": {"before": before, "after": _digest(model)}}

    def plan(
        self, corpus: list[str], preset: str, settings: Settings, steps: int, for_s: float, parent: str
    ) -> dict[str, Any]:
        """The plan of a choice of hyperparameters, with its time."""
        request = Request(tuple(corpus), preset=preset, settings=settings, steps=steps, for_s=for_s, parent=parent)
        return plan(request, Reporter()).to_json()

    def ready(self) -> None:
        """Does nothing; returns once torch is loaded."""

    @contextmanager
    def _model(self, run: str, identity: str, step: int) -> Iterator[tuple[Decoder, Run, bool]]:
        """The model with the parameters that a step starts from: from a keyframe, or by a replay up to it; and whether the
        parameters are proved to be those.
        """
        key = run, identity
        owner = self.models.get(key) or Run(run)
        _keep(self.models, key, owner, RUNS)
        if step in keyframe_steps(Path(run) / KEYFRAMES):
            yield owner.model(step), owner, True
        elif warm := self.steps.get((key, step)):
            with warm.model() as decoder:
                yield decoder, owner, warm.exact
        else:
            replayer = self._replayer_before(run, identity, step)
            yield replayer.decoder, owner, replayer.comparisons.exact

    def _replayer_before(self, run: str, identity: str, step: int) -> Replayer:
        """A replayer whose state is that before a step."""
        replayer = self._replayer((run, identity))
        replayer.watch = self._watcher(step)
        replayer.go_to(step)
        return replayer

    def _replayed_step(self, run: str, identity: str, step: int) -> ReplayedStep:
        """A replayed step; the last few are cached."""
        key = run, identity
        replayed = self.steps.get((key, step))
        if replayed is None:
            replayer = self._replayer(key)
            replayer.watch = self._watcher(step)
            replayed = replayer.replay(step)
            replayed.comparisons = copy.deepcopy(replayed.comparisons)  # the replayer keeps changing its own
        _keep(self.steps, (key, step), replayed, max(1, min(STEPS, STEP_BYTES // replayed.size_bytes)))
        return replayed

    def _replayer(self, key: Key) -> Replayer:
        replayer = self.replayers.get(key) or Replayer(RunReader(key[0]))
        prepare_device(replayer.config.machine)  # threads belong to the process: another run may need another number
        _keep(self.replayers, key, replayer, RUNS)
        for old in [old for old in self.steps if old[0] not in self.replayers]:
            del self.steps[old]
        return replayer

    def _watcher(self, target: int) -> Any:
        """Called at the start of each replayed step: reports progress, and ends the replay if no client waits."""
        start: list[int] = []

        def watch(state: State) -> None:
            start[:] = start or [state.step]
            self.queue.say(
                PROGRESS,
                {"step": target, "from": start[0], "made": state.step - start[0], "of": target - start[0]},
            )
            self.queue.check()

        return watch


def _digest(model: Decoder) -> str | None:
    """The digest of the parameters in memory, as in keyframes; None if that would take long."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return digest(model.state_dict()) if size <= DIGEST_BYTES else None


def _keep(shelf: OrderedDict[Any, Any], key: Any, value: Any, count: int) -> None:
    """Put an object into a cache as its newest; the oldest are dropped."""
    shelf[key] = value
    shelf.move_to_end(key)
    while len(shelf) > count:
        shelf.popitem(last=False)
