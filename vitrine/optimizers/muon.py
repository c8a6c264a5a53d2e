"""Muon: matrices in blocks step along an orthogonalised momentum; everything else by AdamW.

Source: K. Jordan 2024, https://kellerjordan.github.io/posts/muon.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vitrine.optimizers.adamw import AdamW, adam_change, adam_terms
from vitrine.optimizers.optimizer import Cell, Optimizer, Rule, Span, Trace, Words

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from vitrine.config import OptimizerConfig
    from vitrine.model.entries import Entry


class Muon(Optimizer):
    """W -= lr * sqrt(max(1, rows / columns)) * (orthogonalised momentum), for the matrices in blocks."""

    name = "muon"
    hyperparameters: ClassVar = {
        "learning_rate": "of the hidden matrices",
        "adamw_learning_rate": "the learning rate of all other parameters",
        "weight_decay": "hidden ones",
        "betas": AdamW.hyperparameters["betas"],
        "epsilon": AdamW.hyperparameters["epsilon"],
        "momentum": "decay of the accumulated past gradients",
    }
    scale_free = True
    hidden_ratio = 3.0  # every direction of its update has full length, and 0.03 is a good learning rate
    term_words: ClassVar = {
        **AdamW.term_words,
        "orthogonalised_direction": "the memory, with all directions of the matrix evened out",
        "matrix_scale": "tall matrices take longer steps",
    }
    main_terms = (*AdamW.main_terms, "orthogonalised_direction")

    @classmethod
    def defaults(cls, width: int) -> dict[str, Any]:
        """Embeddings and vectors: the wider the model, the smaller their learning rate (as in nanochat)."""
        return {
            "learning_rate": 0.03,
            "adamw_learning_rate": round(0.01 * (128 / width) ** 0.5, 6),
            "betas": [0.8, 0.95],
            "epsilon": 1e-10,
            "momentum": 0.95,
        }

    @classmethod
    def memory(cls, config: "OptimizerConfig", hidden: bool) -> tuple[str, ...]:
        """Momentum of the hidden matrices, AdamW's moments of the rest."""
        return ("momentum",) if hidden else AdamW.memory(config, hidden)

    @classmethod
    def words(cls, config: "OptimizerConfig", hidden: bool) -> Words:
        """Of hidden matrices its own, of the rest AdamW's."""
        if not hidden:
            return AdamW.words(config, hidden)
        return Words(
            "Muon",
            "Muon remembers earlier gradients, and evens out the directions of the whole matrix, so that none of them "
            "dominates. (Tables, gains and the output follow AdamW.)",
        )

    def rule(self, span: Span, step: int, scale: float) -> None:
        """One step of Muon, or of AdamW for what is not a hidden matrix."""
        config, gradients = self.config, span.gradients
        if not span.entries[0].hidden:
            lr, first, second = (
                config.adamw_learning_rate * scale,
                span.state["first_moment"],
                span.state["second_moment"],
            )
            span.values.sub_(adam_change(gradients, first, second, step, lr, config))
            return
        lr, momentum = config.learning_rate * scale, span.state["momentum"]
        momentum.mul_(config.momentum).add_(gradients, alpha=1 - config.momentum)
        stacks = span.entries.stacks
        for values, stack in zip(stacks(span.values), stacks(self.ahead(gradients, momentum)), strict=True):
            direction, factor = orthogonalise(stack, self.dtype), matrix_scale(*values.shape[1:])
            if span.decay:
                direction = direction.float().mul_(factor).add_(values, alpha=span.decay)
                factor = 1.0
            values.sub_(direction, alpha=lr * factor)

    def terms(self, step: int, scale: float, cell: Cell) -> Rule:
        """One step of Muon, or of AdamW, of one parameter. Of the model, only its stack is orthogonalised."""
        if not cell.entry.hidden:
            rule = adam_terms(cell.memory, step, self.config.adamw_learning_rate * scale, self.config)
            return replace(rule, note="muon leaves what is not a matrix inside a block to AdamW")
        lr, factor = self.config.learning_rate * scale, matrix_scale(*cell.entry.shape)
        direction = float(self._direction(cell.entry.name, cell.trace)[cell.index])
        terms = {"orthogonalised_direction": direction, "matrix_scale": factor, "learning_rate": lr}
        return Rule(
            "muon",
            "update = - learning_rate x matrix_scale x orthogonalised_direction",
            cell.memory | terms,
            -lr * factor * direction,
            "the orthogonalised direction depends on the whole matrix, not on this cell alone",
        )

    def decays(self, entry: "Entry") -> bool:
        """Hidden matrices only."""
        return entry.hidden

    def ahead(self, gradients: "Tensor", momentum: "Tensor") -> "Tensor":
        """The momentum as it will be with one more such gradient (Nesterov). momentum: after this step's gradient."""
        return gradients.mul(1 - self.config.momentum).add_(momentum, alpha=self.config.momentum)

    def _direction(self, name: str, trace: Trace) -> "Tensor":
        """The orthogonalised direction of one matrix, from the stack that the update had it in."""
        parts = self.parameters.parts(lambda entry: (entry.hidden, entry.whole))
        stack = next(part for part in parts if name in part.by_name)
        gradients, memory = stack.within(trace.clipped), trace.memory_after
        momentum = {entry.name: memory[f"{entry.name}.momentum"] for entry in stack}
        ahead = self.ahead(gradients, stack.gather(momentum, gradients.new_zeros(stack.size)))
        return orthogonalise(stack.stacks(ahead)[0], self.dtype)[list(stack.by_name).index(name)]


def matrix_scale(rows: int, columns: int) -> float:
    """Muon's factor on the learning rate of a matrix: tall ones take larger steps."""
    return math.sqrt(max(1.0, rows / columns))


def orthogonalise(stack: "Tensor", dtype: "dtype", iterations: int = 5) -> "Tensor":
    """Bring all singular values of each matrix near one (0.7 to 1.2), and keep its directions.

    Args:
        stack: (n, rows, columns).
        dtype: of the products.

    Returns:
        (n, rows, columns) of `dtype`.

    Source: the quintic Newton-Schulz iteration of Muon (K. Jordan 2024).
    """
    import torch

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
