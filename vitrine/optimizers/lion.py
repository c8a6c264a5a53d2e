"""Lion: step by the sign of a mean of gradients; every number moves equally far.

Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar

from vitrine.optimizers.optimizer import Cell, Optimizer, Rule, Span, Words

if TYPE_CHECKING:
    from vitrine.config import OptimizerConfig


class Lion(Optimizer):
    """w -= lr * (sign(beta1 * m + (1 - beta1) * g) + decay * w); then m = beta2 * m + (1 - beta2) * g."""

    name = "lion"
    hyperparameters: ClassVar = {
        "learning_rate": "",
        "weight_decay": "",
        "betas": "share of the old mean in the step, and in the new mean",
    }
    warms_up = True
    scale_free = True
    term_words: ClassVar = {
        **Optimizer.term_words,
        "mixed_gradient": "memory and gradient together: only its sign counts",
    }
    main_terms = (*Optimizer.main_terms, "mixed_gradient")

    @classmethod
    def defaults(cls, width: int) -> dict[str, Any]:
        """Half of AdamW's learning rate, and three times its decay. For long trainings the source takes a third to a tenth."""
        return {"learning_rate": round(1e-3 * (128 / width) ** 0.5, 6), "weight_decay": 0.3, "betas": [0.9, 0.99]}

    @classmethod
    def memory(cls, config: "OptimizerConfig", hidden: bool) -> tuple[str, ...]:
        """A running mean of gradients."""
        return ("momentum",)

    @classmethod
    def words(cls, config: "OptimizerConfig", hidden: bool) -> Words:
        """The same for every tensor."""
        return Words(
            "Lion",
            "Lion remembers the direction of recent gradients, and uses only its sign: every number moves equally far.",
        )

    def rule(self, span: Span, step: int, scale: float) -> None:
        """One step of Lion."""
        momentum, lr, (beta1, beta2) = span.state["momentum"], self.config.learning_rate * scale, self.config.betas
        change = momentum.mul(beta1).add_(span.gradients, alpha=1 - beta1).sign_().mul_(lr)
        momentum.mul_(beta2).add_(span.gradients, alpha=1 - beta2)
        span.add_decay(change, lr)
        span.values.sub_(change)

    def terms(self, step: int, scale: float, cell: Cell) -> Rule:
        """One step of Lion, of one parameter."""
        lr, beta1 = self.config.learning_rate * scale, self.config.betas[0]
        mixed = beta1 * cell.memory["momentum_before"] + (1 - beta1) * cell.gradient
        sign = math.copysign(1.0, mixed) if mixed else 0.0
        return Rule(
            "lion",
            "update = - learning_rate x sign(mixed_gradient)",
            cell.memory | {"mixed_gradient": mixed, "learning_rate": lr},
            -lr * sign,
        )
