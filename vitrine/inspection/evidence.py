"""What a small picture of a verdict's evidence shows: curves of the run's history, or what was seen at keyframes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

AROUND = 32  # steps on either side of a moment


@dataclass(frozen=True)
class Plot:
    """The curves to draw, from a step to a step; or, where a run was looked into at keyframes, the values there.

    series: names as the studio's curves have them; points: step and value.
    """

    series: tuple[str, ...] = ()
    first: int = 0
    last: int = 0
    points: tuple[tuple[int, float], ...] = ()


def plot_of(verdict: str, evidence: Mapping[str, Any], step: int | None, last: int) -> Plot | None:
    """The picture of a verdict, by its name. step: that the verdict points at; last: of the run, that was recorded."""
    half, third = last - last // 2, last - last // 3
    if verdict == "loss at birth":
        return Plot(("loss",), 0, min(last, AROUND))
    if verdict == "loss spikes":
        around = (0, last) if step is None else (max(0, step - AROUND), min(last, step + AROUND))
        return Plot(("loss", "gradient_norm"), *around)
    if verdict == "divergence":
        return Plot(("loss",), 0, last)
    if verdict == "gradients by layer":
        blocks = evidence["by_block"]
        extremes = dict.fromkeys((blocks.index(min(blocks)), blocks.index(max(blocks))))
        return Plot(tuple(f"blocks.{block}/gradient_norm" for block in extremes), half, last)
    if verdict == "update-to-weight ratio":
        ratios = evidence["ratios"]
        extremes = dict.fromkeys((min(ratios, key=ratios.get), max(ratios, key=ratios.get)))
        return Plot(tuple(f"{name}/update_ratio" for name in extremes), half, last)
    if verdict == "over-fitting":
        return Plot(("loss", "validation"), 0, last)
    if verdict == "stalled learning":
        return Plot(("loss", "learning_rate"), third, last)
    seen = {"dead units": "by_layer", "attention": "scores", "output logits": "largest"}[verdict]
    return _at_keyframes({at: _largest(value) for at, value in evidence[seen].items()})


def _at_keyframes(points: Mapping[int, float]) -> Plot:
    return Plot((), min(points), max(points), tuple(sorted(points.items())))


def _largest(value: Any) -> float:
    return float(value.max()) if hasattr(value, "max") else float(value)
