"""What all optimizers share: clip the gradient, look up the learning rate, step by the rule, explain one parameter.

Each optimizer is one file of this folder. Its class says what can be known without torch (hyperparameters, defaults, state,
the rule in words), and updates spans of parameters by its rule.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from vitrine.errors import DivergedError
from vitrine.optimizers.schedule import learning_rate_scale

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from vitrine.config import OptimizerConfig, ScheduleConfig
    from vitrine.model.entries import Entries, Entry, Parameters


class Trace(Protocol):
    """Of a step: flat buffers of what it started from and of the gradient after clipping; `named_state` around the update."""

    values: "Tensor"
    clipped: "Tensor"
    memory_before: "dict[str, Tensor]"
    memory_after: "dict[str, Tensor]"


@dataclass(frozen=True)
class Span:
    """Entries that are updated alike, in one go. values, gradients (after clipping) and each memory of the state: (entries.size,).

    decay: the weight decay. decaying: how many numbers it is for: those of the first entries.
    """

    entries: "Entries"
    values: "Tensor"
    gradients: "Tensor"
    state: "dict[str, Tensor]"
    decay: float
    decaying: int

    def add_decay(self, change: "Tensor", lr: float, start: int = 0) -> None:
        """Add lr * decay * w to what is still to be subtracted, where w decays. change: of the numbers from `start` on."""
        if self.decay and self.decaying > start:
            stop = min(self.decaying, start + len(change))
            change[: stop - start].add_(self.values[start:stop], alpha=lr * self.decay)


@dataclass(frozen=True)
class Cell:
    """One parameter in a step. gradient: after clipping; memory: NAME_before and NAME of each memory of the state."""

    entry: "Entry"
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
    scale_free: whether a factor on all gradients leaves the updates as they are: then clipping does not set their length.
    hidden_ratio: the usual update-to-weight ratio of matrices in blocks, in AdamW's.
    term_words: what each term of `explain` is, for the page; main_terms: those that it shows first.

    parts: entries with the same memories, those that decay in front; state: for each part, its memories of past gradients by name, in
        flat buffers; a keyframe stores them beside the parameters.
    gradient_norm, learning_rate: of the last update; the norm is taken before clipping.
    """

    name: ClassVar[str]
    hyperparameters: ClassVar[Mapping[str, str]]
    warms_up: ClassVar[bool] = False
    scale_free: ClassVar[bool] = False
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
        parameters: "Parameters",
        config: "OptimizerConfig",
        schedule: "ScheduleConfig",
        steps: int,
        dtype: "dtype",
    ) -> None:
        import torch

        self.parameters, self.config, self.dtype = parameters, config, dtype
        self.schedule, self.steps = schedule, steps
        self.parts = parameters.parts(lambda entry: self.memory(config, entry.hidden))
        self.state = [
            {name: torch.zeros(part.size, device=parameters.device) for name in self.memory(config, part[0].hidden)}
            for part in self.parts
        ]
        self.decaying = [next((e.start for e in part if not self.decays(e)), part.size) for part in self.parts]
        self.gradient_norm = math.nan
        self.learning_rate = math.nan

    def update(self, step: int) -> None:
        """Move every parameter once, against its gradient. Raises DivergedError before it moves any."""
        self.gradient_norm = self._finite_norm(step)
        scale = learning_rate_scale(self.schedule, step, self.steps)
        self.learning_rate = self.config.learning_rate * scale
        for span in self.spans():
            if self.config.clip and self.gradient_norm > self.config.clip:
                # Clip before the update: AdamW's moments would otherwise remember the spike.
                span.gradients.mul_(self.config.clip / self.gradient_norm)
            self.rule(span, step, scale)

    def spans(self) -> Iterator[Span]:
        """All parameters, as the update goes through them."""
        for part, state, decaying in zip(self.parts, self.state, self.decaying, strict=True):
            yield Span(part, *self.parameters.span(part), state, self.config.weight_decay, decaying)

    def rule(self, span: Span, step: int, scale: float) -> None:
        """Apply the update rule to a span; `scale` is the schedule's factor on the learning rates."""
        raise NotImplementedError

    def terms(self, step: int, scale: float, cell: Cell) -> Rule:
        """The same for one parameter, in float64, without weight decay; its terms end with the learning rate."""
        raise NotImplementedError

    def decays(self, entry: "Entry") -> bool:
        """Whether weight decay is for an entry: for matrices. In a part, those that decay come first."""
        return len(entry.whole) == 2

    def explain(self, step: int, entry: "Entry", index: tuple[int, ...], trace: Trace) -> Rule:
        """The update that a step made of one parameter, term by term, in float64."""
        before, after = (
            {name: float(named[f"{entry.name}.{name}"][index]) for name in self.memory(self.config, entry.hidden)}
            for named in (trace.memory_before, trace.memory_after)
        )
        memory = {f"{name}_before": number for name, number in before.items()} | after
        cell = Cell(entry, index, float(entry.view(trace.clipped)[index]), memory, trace)
        rule = self.terms(step, learning_rate_scale(self.schedule, step, self.steps), cell)
        terms, formula = rule.terms | {"step": rule.total + 0.0}, rule.formula  # no minus before a zero
        if self.config.weight_decay and self.decays(entry):
            decay = -terms["learning_rate"] * self.config.weight_decay * float(entry.view(trace.values)[index])
            formula += " - learning_rate x weight_decay x before"
            terms |= {"weight_decay": self.config.weight_decay, "decay": decay}
        return Rule(rule.optimizer, formula, terms, terms["step"] + terms.get("decay", 0.0), rule.note)

    def named_state(self) -> "dict[str, Tensor]":
        """Views of the state, named `parameter.memory`, as a keyframe stores them."""
        return {
            f"{entry.name}.{memory}": entry.view(flat)
            for part, state in zip(self.parts, self.state, strict=True)
            for memory, flat in state.items()
            for entry in part
        }

    def _finite_norm(self, step: int) -> float:
        norm = self.parameters.gradient_norm()
        if math.isfinite(norm):
            return norm
        for name, gradient in self.parameters.entries.named(self.parameters.gradients).items():
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
