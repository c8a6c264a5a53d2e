"""The update: clip the gradient, look up the learning rate, step by the rule.

The rules work on flat buffers, and `explain` shows every term of a single parameter's update.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vitrine.config import OptimizerConfig, ScheduleConfig
from vitrine.errors import DivergedError
from vitrine.model.flat import FlatParameters, Place
from vitrine.optimizers.schedule import learning_rate_scale

IN_CACHE = 2**18  # numbers that AdamW updates together: its ten passes over them stay in the processor's cache


class Trace(Protocol):
    """Flat buffers of a step: what it started from, the gradient after clipping, and the state around the update."""

    values: Tensor
    clipped: Tensor
    memory_before: dict[str, Tensor]
    memory_after: dict[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One parameter in a step. gradient: after clipping; memory: NAME_before and NAME of each memory of the state."""

    place: Place
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


class Optimizer:
    """What SGD, AdamW and Muon share.

    state: the memory of past gradients, each a flat buffer; a keyframe stores it beside the parameters.
    gradient_norm, learning_rate: of the last update; the norm is taken before clipping.
    """

    def __init__(
        self, parameters: FlatParameters, config: OptimizerConfig, schedule: ScheduleConfig, steps: int
    ) -> None:
        self.parameters, self.config = parameters, config
        self.schedule, self.steps = schedule, steps
        rooms = self.memories()
        self.state = {name: torch.zeros_like(parameters.values[start:stop]) for name, (start, stop) in rooms.items()}
        self.state_start = {name: start for name, (start, _) in rooms.items()}
        self.gradient_norm = math.nan
        self.learning_rate = math.nan

    def memories(self) -> dict[str, tuple[int, int]]:
        """What the rule remembers: for each memory, which part of the flat buffer it is for (start, stop)."""
        raise NotImplementedError

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

    def decays(self, place: Place) -> bool:
        """Whether weight decay is for this tensor."""
        return place.start < self.parameters.matrices

    def explain(self, step: int, place: Place, index: tuple[int, ...], trace: Trace) -> Rule:
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

    def named_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
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
        norm = float(torch.linalg.vector_norm(self.parameters.gradients))
        if math.isfinite(norm):
            return norm
        for name, gradient in self.parameters.named(self.parameters.gradients).items():
            bad = int((~torch.isfinite(gradient)).sum())
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


class SGD(Optimizer):
    """Step against the gradient: w -= lr * (g + decay * w); with momentum, against a running sum of it."""

    def memories(self) -> dict[str, tuple[int, int]]:
        """A running sum of gradients, with momentum."""
        return {"momentum": (0, len(self.parameters.values))} if self.config.momentum else {}

    def rule(self, step: int, scale: float) -> None:
        """One step of SGD."""
        values, lr, decay = self.parameters.values, self.config.learning_rate * scale, self.config.weight_decay
        direction = self.parameters.gradients
        if self.config.momentum:
            direction = self.state["momentum"].mul_(self.config.momentum).add_(direction)
        if not decay:
            values.add_(direction, alpha=-lr)
            return
        change, matrices = direction * lr, slice(self.parameters.matrices)
        change[matrices].add_(values[matrices], alpha=lr * decay)
        values.sub_(change)

    def terms(self, step: int, scale: float, cell: Cell) -> Rule:
        """One step of SGD, of one parameter."""
        lr, name = self.config.learning_rate * scale, "momentum" if self.config.momentum else "clipped_gradient"
        change = -lr * cell.memory.get("momentum", cell.gradient)
        return Rule("sgd", f"update = - learning_rate x {name}", cell.memory | {"learning_rate": lr}, change)


class AdamW(Optimizer):
    """Step against the mean gradient, divided by its typical size; matrices also decay towards zero.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
    """

    def memories(self) -> dict[str, tuple[int, int]]:
        """Running means of gradients and of their squares."""
        return dict.fromkeys(("first_moment", "second_moment"), (0, len(self.parameters.values)))

    def rule(self, step: int, scale: float) -> None:
        """One step of AdamW."""
        values, lr, decay = self.parameters.values, self.config.learning_rate * scale, self.config.weight_decay
        gradients, first, second = self.parameters.gradients, self.state["first_moment"], self.state["second_moment"]
        for start in range(0, len(values), IN_CACHE):
            part = slice(start, start + IN_CACHE)
            change = adam_change(gradients[part], first[part], second[part], step, lr, self.config)
            if decay:
                matrices = slice(max(0, self.parameters.matrices - start))
                change[matrices].add_(values[part][matrices], alpha=lr * decay)
            values[part].sub_(change)

    def terms(self, step: int, scale: float, cell: Cell) -> Rule:
        """One step of AdamW, of one parameter."""
        return adam_terms(cell.memory, step, self.config.learning_rate * scale, self.config)


class Muon(Optimizer):
    """Hidden matrices step along an orthogonalised momentum; everything else by AdamW.

    Source: K. Jordan 2024, https://kellerjordan.github.io/posts/muon.
    """

    dtype = torch.float32  # of the orthogonalisation; bfloat16 where training is

    def memories(self) -> dict[str, tuple[int, int]]:
        """Momentum of the hidden matrices, AdamW's moments of the rest."""
        hidden, size = self.parameters.hidden, len(self.parameters.values)
        return {"momentum": (0, hidden)} | dict.fromkeys(("first_moment", "second_moment"), (hidden, size))

    def rule(self, step: int, scale: float) -> None:
        """One step of Muon, and of AdamW for the rest."""
        parameters, config, hidden = self.parameters, self.config, self.parameters.hidden
        lr = config.learning_rate * scale
        momentum, first, second = (self.state[name] for name in ("momentum", "first_moment", "second_moment"))
        momentum.mul_(config.momentum).add_(parameters.gradients[:hidden], alpha=1 - config.momentum)
        directions = self.directions(parameters.gradients[:hidden], momentum)
        for values, direction in zip(parameters.stacks(parameters.values), directions, strict=True):
            factor = matrix_scale(*values.shape[1:])
            if config.weight_decay:
                direction = direction.float().mul_(factor).add_(values, alpha=config.weight_decay)
                factor = 1.0
            values.sub_(direction, alpha=lr * factor)
        lr = config.adamw_learning_rate * scale
        change = adam_change(parameters.gradients[hidden:], first, second, step, lr, config)
        parameters.values[hidden:].sub_(change)

    def terms(self, step: int, scale: float, cell: Cell) -> Rule:
        """One step of Muon, or of AdamW, of one parameter."""
        if not self.decays(cell.place):
            rule = adam_terms(cell.memory, step, self.config.adamw_learning_rate * scale, self.config)
            return replace(rule, note="muon leaves what is not a matrix inside a block to AdamW")
        lr, factor = self.config.learning_rate * scale, matrix_scale(*cell.place.shape)
        gradients, momentum = cell.trace.clipped[: self.parameters.hidden], cell.trace.memory_after["momentum"]
        matrices = [matrix for stack in self.directions(gradients, momentum) for matrix in stack]
        direction = float(matrices[self.parameters.places.index(cell.place)][cell.index])
        terms = {"orthogonalised_direction": direction, "matrix_scale": factor, "learning_rate": lr}
        return Rule(
            "muon",
            "update = - learning_rate x matrix_scale x orthogonalised_direction",
            cell.memory | terms,
            -lr * factor * direction,
            "the orthogonalised direction depends on the whole matrix, not on this cell alone",
        )

    def decays(self, place: Place) -> bool:
        """Hidden matrices only."""
        return place.start < self.parameters.hidden

    def directions(self, gradients: Tensor, momentum: Tensor) -> list[Tensor]:
        """The stacks of hidden matrices, orthogonalised: along the momentum as it will be with one more such gradient.

        Args:
            gradients, momentum: flat, of the hidden matrices; the momentum after this step's gradient.
        """
        nesterov = gradients.mul(1 - self.config.momentum).add_(momentum, alpha=self.config.momentum)
        return [orthogonalise(stack, self.dtype) for stack in self.parameters.stacks(nesterov)]


def make_optimizer(
    parameters: FlatParameters,
    config: OptimizerConfig,
    schedule: ScheduleConfig,
    steps: int,
    dtype: torch.dtype,
) -> Optimizer:
    """The optimizer that the hyperparameters name; `dtype` is that of the matrix products."""
    kinds: dict[str, type[Optimizer]] = {"sgd": SGD, "adamw": AdamW, "muon": Muon}
    optimizer = kinds[config.name](parameters, config, schedule, steps)
    if isinstance(optimizer, Muon):
        optimizer.dtype = dtype
    return optimizer


def adam_change(
    gradients: Tensor, first: Tensor, second: Tensor, step: int, lr: float, config: OptimizerConfig
) -> Tensor:
    """lr * m / (sqrt(v) + epsilon), with the moments m and v corrected for their start at zero.

    The moments, `first` and `second`, take the new gradients in. What is returned is still to be subtracted: so
    that a parameter is rounded once, also with weight decay.
    """
    beta1, beta2 = config.betas
    first.mul_(beta1).add_(gradients, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
    root = second.sqrt().mul_((1 - beta2 ** (step + 1)) ** -0.5).add_(config.epsilon)
    return torch.div(first, root, out=root).mul_(lr / (1 - beta1 ** (step + 1)))


def adam_terms(memory: dict[str, float], step: int, lr: float, config: OptimizerConfig) -> Rule:
    """The same for one parameter, from its moments as they are after the step."""
    first, second = (1 - beta ** (step + 1) for beta in config.betas)
    mean, size = memory["first_moment"] / first, (memory["second_moment"] / second) ** 0.5
    terms = {"first_correction": first, "second_correction": second, "mean_gradient": mean, "typical_size": size}
    return Rule(
        "adamw",
        "update = - learning_rate x mean_gradient / (typical_size + epsilon)",
        memory | terms | {"epsilon": config.epsilon, "learning_rate": lr},
        -lr * mean / (size + config.epsilon),
    )


def matrix_scale(rows: int, columns: int) -> float:
    """Muon's factor on the learning rate of a matrix: tall ones take larger steps."""
    return math.sqrt(max(1.0, rows / columns))


def orthogonalise(stack: Tensor, dtype: torch.dtype, iterations: int = 5) -> Tensor:
    """Bring all singular values of each matrix near one (0.7 to 1.2), and keep its directions.

    Args:
        stack: (n, rows, columns).
        dtype: of the products.

    Returns:
        (n, rows, columns) of `dtype`.

    Source: the quintic Newton-Schulz iteration of Muon (K. Jordan 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = stack.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = torch.bmm(x, x.transpose(1, 2))
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.transpose(1, 2) if tall else x
