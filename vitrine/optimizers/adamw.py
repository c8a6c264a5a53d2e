"""AdamW: step against the mean gradient, divided by its typical size; matrices also decay towards zero.

Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from vitrine.optimizers.optimizer import Cell, Optimizer, Rule, Span, Words

if TYPE_CHECKING:
    from torch import Tensor

    from vitrine.config import OptimizerConfig

IN_CACHE = 2**18  # numbers that are updated together: the ten passes over them stay in the processor's cache


class AdamW(Optimizer):
    """w -= lr * (m / (sqrt(v) + epsilon) + decay * w), with the moments m and v of the gradient."""

    name = "adamw"
    hyperparameters: ClassVar = {
        "learning_rate": "",
        "weight_decay": "",
        "betas": "decay of the averages of gradients and their squares",
        "epsilon": "added to the denominator, to keep it above zero",
    }
    warms_up = True
    scale_free = True
    term_words: ClassVar = {
        **Optimizer.term_words,
        "first_moment_before": "memory of past gradients, before",
        "second_moment_before": "memory of their squares, before",
        "first_moment": "memory of past gradients, now",
        "second_moment": "memory of their squares, now",
        "first_correction": "the memory began empty: corrected by this",
        "second_correction": "and this",
        "mean_gradient": "which way lately: the remembered gradient",
        "typical_size": "how large gradients usually are here",
        "epsilon": "keeps from dividing by zero",
    }
    main_terms = (*Optimizer.main_terms, "mean_gradient", "typical_size")

    @classmethod
    def defaults(cls, width: int) -> dict[str, Any]:
        """The wider the model, the smaller the learning rate."""
        return {"learning_rate": round(2e-3 * (128 / width) ** 0.5, 6), "weight_decay": 0.1, "betas": [0.9, 0.95]}

    @classmethod
    def memory(cls, config: "OptimizerConfig", hidden: bool) -> tuple[str, ...]:
        """Running means of gradients and of their squares."""
        return "first_moment", "second_moment"

    @classmethod
    def words(cls, config: "OptimizerConfig", hidden: bool) -> Words:
        """The same for every tensor."""
        return Words(
            "AdamW",
            "AdamW remembers the direction of recent gradients and their usual size, and divides the first by the second: "
            "each number gets its own step size.",
        )

    def rule(self, span: Span, step: int, scale: float) -> None:
        """One step of AdamW."""
        lr, first, second = self.config.learning_rate * scale, span.state["first_moment"], span.state["second_moment"]
        for start in range(0, len(span.values), IN_CACHE):
            part = slice(start, start + IN_CACHE)
            change = adam_change(span.gradients[part], first[part], second[part], step, lr, self.config)
            span.add_decay(change, lr, start)
            span.values[part].sub_(change)

    def terms(self, step: int, scale: float, cell: Cell) -> Rule:
        """One step of AdamW, of one parameter."""
        return adam_terms(cell.memory, step, self.config.learning_rate * scale, self.config)


def adam_change(
    gradients: "Tensor", first: "Tensor", second: "Tensor", step: int, lr: float, config: "OptimizerConfig"
) -> "Tensor":
    """lr * m / (sqrt(v) + epsilon), with the moments m and v corrected for their start at zero.

    The moments, `first` and `second`, take the new gradients in. What is returned is still to be subtracted: so
    that a parameter is rounded once, also with weight decay.
    """
    import torch

    beta1, beta2 = config.betas
    first.mul_(beta1).add_(gradients, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
    root = second.sqrt().mul_((1 - beta2 ** (step + 1)) ** -0.5).add_(config.epsilon)
    return torch.div(first, root, out=root).mul_(lr / (1 - beta1 ** (step + 1)))


def adam_terms(memory: dict[str, float], step: int, lr: float, config: "OptimizerConfig") -> Rule:
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
