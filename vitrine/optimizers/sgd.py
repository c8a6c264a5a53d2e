"""SGD: step against the gradient, or with momentum against a running sum of gradients."""

from typing import TYPE_CHECKING, Any, ClassVar

from vitrine.optimizers.optimizer import Cell, Optimizer, Rule, Span, Words

if TYPE_CHECKING:
    from vitrine.config import OptimizerConfig


class SGD(Optimizer):
    """w -= lr * (g + decay * w); with momentum m, g is a running sum: s = m * s + g."""

    name = "sgd"
    hyperparameters: ClassVar = {
        "learning_rate": "",
        "weight_decay": "",
        "momentum": "decay of the accumulated past gradients",
    }

    @classmethod
    def defaults(cls, width: int) -> dict[str, Any]:
        """No momentum, no decay."""
        return {"learning_rate": 0.1}

    @classmethod
    def memory(cls, config: "OptimizerConfig", hidden: bool) -> tuple[str, ...]:
        """A running sum of gradients, with momentum."""
        return ("momentum",) if config.momentum else ()

    @classmethod
    def words(cls, config: "OptimizerConfig", hidden: bool) -> Words:
        """With or without momentum."""
        if config.momentum:
            return Words(
                "SGD with momentum", "Momentum remembers earlier gradients, and keeps moving in their direction."
            )
        return Words("plain SGD", "It has no memory: it uses only the gradient of this step.")

    def rule(self, span: Span, step: int, scale: float) -> None:
        """One step of SGD."""
        lr, direction = self.config.learning_rate * scale, span.gradients
        if self.config.momentum:
            direction = span.state["momentum"].mul_(self.config.momentum).add_(direction)
        if not span.decay:
            span.values.add_(direction, alpha=-lr)
            return
        change = direction * lr
        span.add_decay(change, lr)
        span.values.sub_(change)

    def terms(self, step: int, scale: float, cell: Cell) -> Rule:
        """One step of SGD, of one parameter."""
        lr, name = self.config.learning_rate * scale, "momentum" if self.config.momentum else "clipped_gradient"
        change = -lr * cell.memory.get("momentum", cell.gradient)
        return Rule("sgd", f"update = - learning_rate x {name}", cell.memory | {"learning_rate": lr}, change)
