"""What recording costs: steps with it and without it, in turn; and the same through TensorBoard.

    python -m benchmarks.recording [--preset micro] [--steps 400] [--tensorboard]

Three trainings of the same model take turns, ten steps each, in one process: without recording, with the default
recording (statistics, histograms, film; keyframes and generated text apart), and with TensorBoard writing the same:
per-tensor norms and largest magnitudes at the same steps, `add_histogram` at the same steps. Beside the difference of
the whole, which carries the machine's noise, stands the time spent inside the watching itself. Prints a table on
standard error, and one JSON object on standard output. TensorBoard comes with `pip install -e '.[tensorboard]'`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitrine import launch, machine
from vitrine.processes import Processes
from vitrine.recording.history import History
from vitrine.recording.recorder import Recorder, StepLoss
from vitrine.runs.records import StepRecord
from vitrine.runs.statistics import spaced
from vitrine.step import State, step
from vitrine.trainer import build_state, make_batches, micro_batches

from benchmarks.corpora import tinyshakespeare  # isort: skip

TURN = 10  # steps


class TensorBoard(StepLoss):
    """An observer as it is usually written."""

    def __init__(self, folder: Path, steps: int, every: int, histograms: int) -> None:
        super().__init__()
        from torch.utils.tensorboard import SummaryWriter

        self.writer, self.every = SummaryWriter(str(folder)), every
        self.histogram_steps = spaced(steps, histograms)

    def gradients(self, state: State) -> None:
        self.before = state.parameters.values.clone()
        self.write(state, "weight", state.parameters.values)
        self.write(state, "gradient", state.parameters.gradients)

    def update(self, state: State) -> None:
        self.write(state, "update", state.parameters.values - self.before)

    def write(self, state: State, kind: str, flat: Any) -> None:
        for name, tensor in state.parameters.named(flat).items():
            if state.step % self.every == 0:
                self.writer.add_scalar(f"{kind}_norm/{name}", tensor.norm().item(), state.step)
                self.writer.add_scalar(f"{kind}_max/{name}", tensor.abs().max().item(), state.step)
            if state.step in self.histogram_steps:
                self.writer.add_histogram(f"{kind}/{name}", tensor, state.step)


class Contestant:
    """One training, and what watches it."""

    def __init__(self, name: str, prepared: launch.Prepared, folder: Path) -> None:
        self.name, self.config, self.duration_s = name, prepared.config, 0.0
        self.decoder, self.state = build_state(self.config, Processes())
        self.batches = make_batches(self.config, prepared.texts)
        self.history: History | None = None
        self.observer: StepLoss = StepLoss()
        self.watching_s = 0.0  # spent inside the observer and the history
        parameters, recording = self.state.parameters, self.config.recording
        if name == "recorded":
            self.history = History(folder / "run.sqlite", True)
            self.observer = Recorder(folder, self.config, parameters, parameters.values, self.history, 0)
        if name == "tensorboard":
            every, histograms = recording.statistics_every, recording.histograms
            self.observer = TensorBoard(folder, self.config.training.steps, every, histograms)
        self.observer.gradients = self.timed(self.observer.gradients)  # type: ignore[method-assign]
        self.observer.update = self.timed(self.observer.update)  # type: ignore[method-assign]
        self.record = self.timed(self.history.record) if self.history else lambda *_: None

    def timed(self, watch: Callable[..., None]) -> Callable[..., None]:
        """The same, with its time added up."""

        def timed(*arguments: Any) -> None:
            start = time.perf_counter()
            watch(*arguments)
            self.watching_s += time.perf_counter() - start

        return timed

    def turn(self, steps: int) -> None:
        """Make some steps, with all that is done after each."""
        start = time.perf_counter()
        for _ in range(steps):
            number, began = self.state.step, time.perf_counter()
            step(self.state, micro_batches(self.batches, number, self.decoder, Processes()), self.observer)
            duration = time.perf_counter() - began
            optimizer, loss = self.state.optimizer, self.observer.take(Processes())
            memory = machine.memory_in_use(self.state.parameters.values.device)
            record = StepRecord(number, loss, optimizer.gradient_norm, optimizer.learning_rate, 0, duration, memory)
            self.record(record, self.observer.take_statistics(), print)
        self.duration_s += time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="micro")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tensorboard", action="store_true")
    arguments = parser.parse_args()
    settings = {"data": {"tokenizer": "char"}}
    corpus = str(tinyshakespeare())
    request = launch.Request((corpus,), preset=arguments.preset, settings=settings, steps=arguments.steps)
    prepared = launch.prepare(request)
    names = ["plain", "recorded"] + (["tensorboard"] if arguments.tensorboard else [])
    with tempfile.TemporaryDirectory() as folder:
        contestants = [Contestant(name, prepared, Path(folder)) for name in names]
        turns = []
        for turn in range(arguments.steps // TURN):
            before = [c.duration_s for c in contestants]
            for contestant in contestants if turn % 2 else reversed(contestants):
                contestant.turn(TURN)
            turns.append([c.duration_s - b for c, b in zip(contestants, before, strict=True)])
        for contestant in contestants:
            if isinstance(contestant.observer, TensorBoard):
                contestant.observer.writer.close()
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if "events" not in file.name)
    plain = contestants[0].duration_s
    result: dict[str, Any] = {
        "preset": arguments.preset,
        "steps": arguments.steps,
        "parameters": contestants[0].state.parameters.count,
        "recorded_bytes": size,
        "step_s": {c.name: c.duration_s / arguments.steps for c in contestants},
        "cost": {c.name: c.duration_s / plain - 1 for c in contestants[1:]},
        "watching": {c.name: c.watching_s / plain for c in contestants[1:]},
        "turns_s": turns,
    }
    for c in contestants:
        step_ms, cost, watching = 1e3 * c.duration_s / arguments.steps, c.duration_s / plain - 1, c.watching_s / plain
        print(
            f"{c.name:<12}{step_ms:10.2f} ms a step{cost:+9.2%}   inside the watching {watching:7.2%}", file=sys.stderr
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
