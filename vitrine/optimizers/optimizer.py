"""What all optimizers share: clip the gradient, look up the learning rate, step by the rule, explain one parameter.

Each optimizer is one file of this folder. Its class says what can be known without torch (hyperparameters, defaults, state,
the rule in words), and updates flat buffers by its rule.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from vitrine.errors import DivergedError
from vitrine.optimizers.schedule import learning_rate_scale

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from vitrine.config import OptimizerConfig, ScheduleConfig
    from vitrine.model.flat import FlatParameters, Place


class Trace(Protocol):
    """Flat buffers of a step: what it started from, the gradient after clipping, and the state around the update."""

    values: "Tensor"
    clipped: "Tensor"
    memory_before: "dict[str, Tensor]"
    memory_after: "dict[str, Tensor]"


@dataclass(frozen=True)
class Cell:
    """One parameter in a step. gradient: after clipping; memory: NAME_before and NAME of each memory of the state."""

    place: "Place"
    index: tuple[int, ...]
    gradient: float
    memory: dict[str, float]
    trace: Trace


@dataclass(frozen=True)
class Rule:
    """The update of one parameter as the rule makes it up. terms: its numbers, by name; total: what they come to."""

    optimizer: str
    formula: str
    terms: dict[str, float]
    total: float
    note: str = ""


class Words(NamedTuple):
    """The rule for a tensor in words: its name, and what it adds to plain SGD."""

    name: str
    adds: str


class Optimizer:
    """An update rule: what is known of it without torch, and what it does.

    name: as in `optimizer.name`. hyperparameters: those of [optimizer] that it uses, with what each means in this rule; ""
        where that is the same in all rules.
    warms_up: whether the learning rate rises over the first steps, unless told otherwise.
    hidden_ratio: the usual update-to-weight ratio of matrices in blocks, in AdamW's.
    term_words: what each term of `explain` is, for the page; main_terms: those that it shows first.

    state: the memory of past gradients, each a flat buffer; a keyframe stores it beside the parameters.
    gradient_norm, learning_rate: of the last update; the norm is taken before clipping.
    """

    name: ClassVar[str]
    hyperparameters: ClassVar[Mapping[str, str]]
    warms_up: ClassVar[bool] = False
    hidden_ratio: ClassVar[float] = 1.0
    term_words: ClassVar[Mapping[str, str]] = {
        "gradient": "the gradient: the slope of the loss here",
        "clip_factor": "shortened by this, so that no step is too long",
        "clipped_gradient": "the gradient that is used",
        "momentum_before": "memory of past gradients, before",
        "momentum": "memory of past gradients",
        "learning_rate": "how far a step goes: you chose it",
        "step": "the step that comes of it",
        "weight_decay": "how strongly every weight is pulled to zero: you chose it",
        "decay": "the pull to zero",
    }
    main_terms: ClassVar[tuple[str, ...]] = ("clipped_gradient", "momentum", "learning_rate", "step", "decay")

    @classmethod
    def defaults(cls, width: int) -> dict[str, Any]:
        """The hyperparameters of [optimizer] that suit a model of this width."""
        raise NotImplementedError

    @classmethod
    def memory(cls, config: "OptimizerConfig", hidden: bool) -> tuple[str, ...]:
        """The names of its state for a tensor; hidden: a matrix in a block. Each has the tensor's shape."""
        raise NotImplementedError

    @classmethod
    def words(cls, config: "OptimizerConfig", hidden: bool) -> Words:
        """The rule for such a tensor, in words."""
        raise NotImplementedError

    def __init__(
        self,
        parameters: "FlatParameters",
        config: "OptimizerConfig",
        schedule: "ScheduleConfig",
        steps: int,
        dtype: "dtype",
    ) -> None:
        self.parameters, self.config, self.dtype = parameters, config, dtype
        self.schedule, self.steps = schedule, steps
        slices = self._slices()
        self.state = {
            name: parameters.values[here].new_zeros(len(parameters.values[here])) for name, here in slices.items()
        }
        self.state_start = {name: here.start for name, here in slices.items()}
        self.gradient_norm = math.nan
        self.learning_rate = math.nan

    def _slices(self) -> dict[str, slice]:
        """For each memory, which part of the flat buffer it is for."""
        hidden, rest = (self.memory(self.config, hidden) for hidden in (True, False))
        border, size = self.parameters.hidden, len(self.parameters.values)
        return {
            name: slice(0 if name in hidden else border, size if name in rest else border)
            for name in dict.fromkeys((*hidden, *rest))
        }

    def update(self, step: int) -> None:
        """Move every parameter once, against its gradient. Raises DivergedError before it moves any."""
        self.gradient_norm = self._finite_norm(step)
        if self.config.clip and self.gradient_norm > self.config.clip:
            # Clip before the update: AdamW's moments would otherwise remember the spike.
            self.parameters.gradients.mul_(self.config.clip / self.gradient_norm)
        scale = learning_rate_scale(self.schedule, step, self.steps)
        self.learning_rate = self.config.learning_rate * scale
        self.rule(step, scale)

    def rule(self, step: int, scale: float) -> None:
        """Apply the update rule; `scale` is the schedule's factor on the learning rates."""
        raise NotImplementedError

    def terms(self, step: int, scale: float, cell: Cell) -> Rule:
        """The same for one parameter, in float64, without weight decay; its terms end with the learning rate."""
        raise NotImplementedError

    def decays(self, place: "Place") -> bool:
        """Whether weight decay is for this tensor."""
        return place.start < self.parameters.matrices

    def explain(self, step: int, place: "Place", index: tuple[int, ...], trace: Trace) -> Rule:
        """The update that a step made of one parameter, term by term, in float64."""
        before, after = (
            {name: float(flat[f"{place.name}.{name}"][index]) for name in state if f"{place.name}.{name}" in flat}
            for state in (trace.memory_before, trace.memory_after)
            for flat in [self.named_state(state)]
        )
        memory = {f"{name}_before": number for name, number in before.items()} | after
        cell = Cell(place, index, float(place.view(trace.clipped)[index]), memory, trace)
        rule = self.terms(step, learning_rate_scale(self.schedule, step, self.steps), cell)
        terms, formula = rule.terms | {"step": rule.total + 0.0}, rule.formula  # no minus before a zero
        if self.config.weight_decay and self.decays(place):
            decay = -terms["learning_rate"] * self.config.weight_decay * float(place.view(trace.values)[index])
            formula += " - learning_rate x weight_decay x before"
            terms |= {"weight_decay": self.config.weight_decay, "decay": decay}
        return Rule(rule.optimizer, formula, terms, terms["step"] + terms.get("decay", 0.0), rule.note)

    def named_state(self, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """Views of (a copy of) the state, named `parameter.memory`, as a keyframe stores them."""
        named = {}
        for memory, flat in state.items():
            start = self.state_start[memory]
            for place in self.parameters.places:
                if start <= place.start and place.stop <= start + len(flat):
                    numbers = flat[place.start - start : place.stop - start]
                    named[f"{place.name}.{memory}"] = numbers.view(place.shape)
        return named

    def _finite_norm(self, step: int) -> float:
        import torch

        norm = float(torch.linalg.vector_norm(self.parameters.gradients))
        if math.isfinite(norm):
            return norm
        for name, gradient in self.parameters.named(self.parameters.gradients).items():
            bad = int((~gradient.isfinite()).sum())
            if bad:
                raise DivergedError(
                    f"Step {step}: {bad} of {gradient.numel()} gradients of {name} are not finite. The update was "
                    "not made. Try a lower optimizer.learning_rate, more schedule.warmup_steps, or "
                    "training.precision = float32."
                )
        raise DivergedError(
            f"Step {step}: the norm of the gradient is too large for float32. The update was not "
            "made. Try a lower optimizer.learning_rate."
        )
