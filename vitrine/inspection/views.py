"""`vitrine inspect`: the census of a run, one tensor, one parameter, or one neuron, at a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrine.errors import RunError
from vitrine.inspection.gradient_check import GradientCheck, check_gradient
from vitrine.inspection.neuron import Neuron, open_neuron, open_neuron_of_prompt
from vitrine.inspection.parameter import Address, ParameterReport, find_address, report_parameter
from vitrine.inspection.replay import Replayer
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.model.inventory import TensorSpec
from vitrine.runs.layout import STATISTICS
from vitrine.runs.reader import KEYFRAMES, RunReader
from vitrine.training.checkpoint import load_initial


@dataclass(frozen=True)
class Census:
    """Every tensor of a run, with what was recorded of it at one step (None: nothing was)."""

    reader: RunReader
    step: int
    tensors: tuple[TensorSpec, ...]
    statistics: dict[str, dict[str, float]] | None

    def to_json(self) -> dict[str, Any]:
        """What `inspect --json` prints."""
        return {
            "step": self.step,
            "parameters": sum(t.parameters for t in self.tensors),
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "kind": t.kind, "parameters": t.parameters}
                | ((self.statistics or {}).get(t.name) or {})
                for t in self.tensors
            ],
        }


@dataclass(frozen=True)
class TensorView:
    """One tensor in a replayed step."""

    replayed: ReplayedStep
    plan: TensorSpec

    def to_json(self) -> dict[str, Any]:
        """What `inspect --json` prints."""
        tensor = self.replayed.tensor(self.plan.name)
        parts = {"before": tensor.before, "gradient": tensor.gradient, "update": tensor.update, "after": tensor.after}
        return {
            "tensor": self.plan.name,
            "kind": self.plan.kind,
            "shape": list(self.plan.shape),
            "parameters": self.plan.parameters,
            "step": self.replayed.step,
            **{name: _summary(numbers) for name, numbers in parts.items()},
            "against_gradient": self.against_gradient,
            "exact": self.replayed.exact,
        }

    @property
    def against_gradient(self) -> float:
        """The share of parameters that moved against their own gradient in this step."""
        tensor = self.replayed.tensor(self.plan.name)
        return float((tensor.gradient * tensor.update < 0).mean())


@dataclass(frozen=True)
class InitialParameters:
    """Parameters of a run that has made no step yet: the numbers of its tensors, and one of them if it is asked for."""

    path: str
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]]
    address: Address | None = None

    def to_json(self) -> dict[str, Any]:
        """What `inspect --json` prints."""
        tensors = [
            {"name": name, "shape": list(numbers.shape), "parameters": numbers.size, **_summary(numbers)}
            for name, numbers in self.tensors.items()
        ]
        asked = {"parameter": self.address.text, "value": self.value} if self.address and self.address.index else {}
        return {"step": 0, "parameters": sum(t.size for t in self.tensors.values()), "tensors": tensors} | asked

    @property
    def value(self) -> float:
        """Of the parameter that was asked for."""
        assert self.address
        return float(self.tensors[self.address.tensor.name][self.address.index])


@dataclass(frozen=True)
class Inspected:
    """What was asked for, and what came with it."""

    view: Census | InitialParameters | TensorView | ParameterReport | Neuron
    nudge: GradientCheck | None = None

    def to_json(self) -> dict[str, Any]:
        """What `inspect --json` prints."""
        return self.view.to_json() | ({"nudge": self.nudge.to_json()} if self.nudge else {})


def inspect(
    reader: RunReader,
    what: str = "",
    step: int | None = None,
    nudges: Sequence[float] = (),
    row: int = 0,
    token: int | None = None,
    note: Callable[[str], None] = lambda text: None,
    prompt: str | None = None,
) -> Inspected:
    """The census; or a tensor, parameter or neuron, by replaying the step.

    Args:
        what: "", NAME, NAME[i,j], or LAYER[unit].
        step: None: the last one that was made; with a prompt, the end of the run.
        nudges: how far to move the parameter, each in turn.
        row, token: for a neuron: which token of the step's first micro-batch. None: the first; of a prompt, the last.
        prompt: for a neuron: a text to read instead of the step's batch.
    """
    if prompt is not None:
        return Inspected(_neuron_of_prompt(reader, what, step, prompt, -1 if token is None else token, note))
    last = reader.steps_made() - 1
    if last < 0:
        return Inspected(_initial_parameters(reader, what, step or 0, nudges))
    number = last if step is None else step
    reader.check_step(number)
    if not what:
        return Inspected(take_census(reader, number))
    address = find_address(reader, what)
    if nudges and not address.index:
        raise RunError(f"--nudge moves one parameter: name one, such as {address.tensor.name}[0]. Got {what!r}.")
    replayed = Replayer(reader, note).replay(number)
    if address.unit is not None:
        return Inspected(open_neuron(replayed, address, row, token or 0))
    if not address.index:
        return Inspected(TensorView(replayed, address.tensor))
    found = report_parameter(replayed, address)
    return Inspected(found, check_gradient(replayed, address, nudges) if nudges else None)


def _neuron_of_prompt(
    reader: RunReader, what: str, step: int | None, prompt: str, token: int, note: Callable[[str], None]
) -> Neuron:
    address = find_address(reader, what) if what else None
    if address is None or address.unit is None:
        raise RunError(f"--prompt is for a neuron: name one, such as blocks.0.mlp.expand[12]. Got {what!r}.")
    replayer = Replayer(reader, note)
    replayer.go_to(reader.steps_made() if step is None else step)
    at, exact = replayer.state.step, replayer.comparisons.exact
    return open_neuron_of_prompt(replayer.decoder, reader, at, exact, address, prompt, token)


def take_census(reader: RunReader, step: int) -> Census:
    """Every tensor, with the statistics of the last recorded step up to this one."""
    layout = reader.layout()
    at = layout.step(layout.row(step)) if layout else step
    row = reader.statistics_at(at)
    statistics = None
    if layout and row is not None:
        statistics = {
            name: {statistic: float(row[layout.statistic(name, statistic)]) for statistic in STATISTICS}
            for name in layout.tensors
        }
    return Census(reader, at, reader.tensors, statistics)


def _initial_parameters(reader: RunReader, what: str, step: int, nudges: Sequence[float]) -> InitialParameters:
    """What there is of a run before its first step: the values of its parameters."""
    address = find_address(reader, what) if what else None
    if step or nudges or (address and address.unit is not None):
        raise RunError(
            f"{reader.path} has made no step yet: there are only its initial parameters, without gradients or activations. "
            "Inspect its tensors, or one parameter of them."
        )
    kept = load_initial(reader.path / KEYFRAMES, reader.config, reader.facts().get("birth", ""))
    plans = [address.tensor] if address else reader.tensors
    return InitialParameters(str(reader.path), {plan.name: kept[plan.name].numpy() for plan in plans}, address)


def _summary(numbers: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, float]:
    wide = numbers.astype(np.float64)
    return {
        "norm": float(np.linalg.norm(wide)),
        "mean": float(wide.mean()),
        "spread": float(wide.std()),
        "least": float(wide.min()),
        "most": float(wide.max()),
    }
