"""The cost of recording: steps with and without it, in turns; and the same with TensorBoard.

    python -m benchmarks.recording [--preset micro] [--pairs 15] [--tensorboard]

Trainings of the same model take turns in one process: without recording, with the default recording (statistics,
histograms and film, but no keyframes and no generated text), and with TensorBoard writing the same: per-tensor norms and
largest magnitudes at the same steps, `add_histogram` at the same steps. Each training first makes steps until the recorder
has measured its cost and chosen its cadence. Then come the pairs, in alternating order, 40 steps each. Prints the median
over the pairs with its 95% interval, and the time spent in the observer itself, on standard error, and one JSON object on
standard output. `pip install -e '.[tensorboard]'` installs TensorBoard.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitrine.recording.history import History
from vitrine.recording.recorder import Recorder, StepLoss
from vitrine.runs.records import StepRecord
from vitrine.step import State, step
from vitrine.training.device import memory_in_use
from vitrine.training.distributed import Processes
from vitrine.training.request import Prepared, Request, prepare
from vitrine.training.state import build_state, make_batches, micro_batches

from benchmarks.corpora import tinyshakespeare  # isort: skip

FIRST = 30  # steps, in which the recorder decides
TURN = 40  # steps


class TensorBoard(StepLoss):
    """A typical observer for TensorBoard."""

    def __init__(self, folder: Path, recorder: Recorder) -> None:
        super().__init__()
        from torch.utils.tensorboard import SummaryWriter

        self.writer, self.recorder = SummaryWriter(str(folder)), recorder

    def gradients(self, state: State) -> None:
        self.before = state.parameters.values.clone()
        self.write(state, "weight", state.parameters.values)
        self.write(state, "gradient", state.parameters.gradients)

    def update(self, state: State) -> None:
        self.write(state, "update", state.parameters.values - self.before)

    def write(self, state: State, kind: str, flat: Any) -> None:
        for name, tensor in state.parameters.entries.named(flat).items():
            if self.recorder.layout.has(state.step):
                self.writer.add_scalar(f"{kind}_norm/{name}", tensor.norm().item(), state.step)
                self.writer.add_scalar(f"{kind}_max/{name}", tensor.abs().max().item(), state.step)
            if state.step in self.recorder.histogram_steps:
                self.writer.add_histogram(f"{kind}/{name}", tensor, state.step)


class Contestant:
    """One training with its observer: none ("plain"), a recorder ("recorded"), or TensorBoard.

    Args:
        like: the contestant whose cadence TensorBoard uses.
    """

    def __init__(self, name: str, prepared: Prepared, folder: Path, like: "Contestant | None" = None) -> None:
        self.name, self.config, self.duration_s = name, prepared.config, 0.0
        self.decoder, self.state = build_state(self.config, Processes())
        self.batches = make_batches(self.config, prepared.tokens)
        self.history: History | None = None
        self.observer: StepLoss = StepLoss()
        self.watching_s = 0.0  # spent inside the observer and the history
        parameters = self.state.parameters
        if name == "recorded":
            self.history = History(folder / "run.sqlite", True)
            self.observer = Recorder(folder, self.config, parameters, parameters.values, self.history, 0)
        if like:
            assert isinstance(like.observer, Recorder)
            self.observer = TensorBoard(folder, like.observer)
        self.observer.gradients = self.timed(self.observer.gradients)  # type: ignore[method-assign]
        self.observer.update = self.timed(self.observer.update)  # type: ignore[method-assign]
        self.record = self.timed(self.history.record) if self.history else lambda *_: None

    def timed(self, watch: Callable[..., None]) -> Callable[..., None]:
        """The observer's method, with its time added up."""

        def timed(*arguments: Any) -> None:
            start = time.perf_counter()
            watch(*arguments)
            self.watching_s += time.perf_counter() - start

        return timed

    def turn(self, steps: int) -> None:
        """Make some steps, with everything that follows each."""
        start = time.perf_counter()
        for _ in range(steps):
            number, began = self.state.step, time.perf_counter()
            step(self.state, micro_batches(self.batches, number, self.decoder, Processes()), self.observer)
            duration = time.perf_counter() - began
            optimizer, loss = self.state.optimizer, self.observer.take()
            memory = memory_in_use(self.state.parameters.device)
            record = StepRecord(number, loss, optimizer.gradient_norm, optimizer.learning_rate, 0, duration, memory)
            start_s = time.perf_counter()
            self.record(record, self.observer.take_statistics(), print)
            self.observer.recorded(number, duration, time.perf_counter() - start_s)
        self.duration_s += time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="micro")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--tensorboard", action="store_true")
    arguments = parser.parse_args()
    settings = {"data": {"tokenizer": "char"}}
    corpus = str(tinyshakespeare())
    request = Request((corpus,), preset=arguments.preset, settings=settings, steps=FIRST + TURN * arguments.pairs)
    prepared = prepare(request)
    with tempfile.TemporaryDirectory() as folder:
        contestants = [Contestant(name, prepared, Path(folder)) for name in ("plain", "recorded")]
        if arguments.tensorboard:
            contestants.append(Contestant("tensorboard", prepared, Path(folder), like=contestants[1]))
        for contestant in contestants:
            contestant.turn(FIRST)
            contestant.watching_s = 0.0
        recorder = contestants[1].observer
        assert isinstance(recorder, Recorder)
        every = recorder.layout.every_of_late
        turns = [take_turns(contestants, pair) for pair in range(arguments.pairs)]
        for contestant in contestants:
            if isinstance(contestant.observer, TensorBoard):
                contestant.observer.writer.close()
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if "events" not in file.name)
    plain_s = [durations[0] for durations in turns]
    result: dict[str, Any] = {
        "preset": arguments.preset,
        "parameters": contestants[0].state.parameters.entries.count,
        "every_at_first": recorder.layout.every,
        "every": every,
        "recorded_bytes": size,
        "step_s": statistics.median(plain_s) / TURN,
        "turns_s": turns,
    }
    print(f"statistics every {recorder.layout.every} steps at first, then every {every}", file=sys.stderr)
    print(f"{'plain':<12}{1e3 * result['step_s']:10.2f} ms a step", file=sys.stderr)
    for place, c in enumerate(contestants[1:], 1):
        costs = sorted(durations[place] / durations[0] - 1 for durations in turns)
        low, high = interval(len(costs))
        cost = {"median": statistics.median(costs), "low": costs[low], "high": costs[high]}
        result[c.name] = cost | {"watching": c.watching_s / sum(plain_s)}
        print(
            f"{c.name:<12}{cost['median']:+8.2%} (95%: {cost['low']:+.2%} to {cost['high']:+.2%})   inside the watching "
            f"{result[c.name]['watching']:.2%}",
            file=sys.stderr,
        )
    print(json.dumps(result))


def take_turns(contestants: list[Contestant], number: int) -> list[float]:
    """Some steps of each, in alternating order; their durations."""
    before = [c.duration_s for c in contestants]
    for contestant in contestants if number % 2 else reversed(contestants):
        contestant.turn(TURN)
    return [c.duration_s - b for c, b in zip(contestants, before, strict=True)]


def interval(count: int) -> tuple[int, int]:
    """The ranks between which the median lies with a probability of 95%, in ascending order: 3 and 11 of 15."""
    chances = [math.comb(count, i) / 2**count for i in range(count + 1)]
    low = max((i for i in range((count + 1) // 2) if sum(chances[: i + 1]) <= 0.025), default=0)
    return low, count - 1 - low


if __name__ == "__main__":
    main()
