"""A run in a notebook: its loss, the text that it writes, its hyperparameters. One piece of HTML without a script.

Text and lines have the notebook's own colours. Everything that comes from a text or a file name is escaped.
"""

import math
import shlex
from collections.abc import Iterator
from html import escape

import numpy as np

from vitrine._json import CONSTANTS
from vitrine.model.inventory import inventory
from vitrine.runs.downsample import Steps, Values, downsample
from vitrine.runs.reader import RunReader, is_training

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 640, 220, 44, 18, 26, 20
PIXELS = 300  # points of the training loss curve
PLUM = CONSTANTS["colours"]["on_any_ground"]["plum"]  # for the validation loss
STYLE = """
.vitrine-run { font: 14px/1.45 system-ui, sans-serif; max-width: 640px }
.vitrine-run svg { width: 100%; height: auto; display: block }
.vitrine-run svg text { fill: currentColor; font-size: 11px }
.vitrine-run pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0; max-height: 14em; overflow: auto }
.vitrine-run summary { cursor: pointer }
.vitrine-run .soft { opacity: .7 }
"""


def summary(run: RunReader) -> str:
    """One line: the model and its progress."""
    config, made = run.config, run.steps_made()
    parameters = sum(tensor.parameters for tensor in inventory(config.model))
    told = [f"{config.model.architecture}, {parameters:,} parameters"]
    if config.data.corpus:
        ended = [event.kind for event in run.events() if event.kind in ("diverged", "interrupted")][-1:]
        now = ["in training"] if is_training(run.path) else [] if run.result() else ended
        told.append(", ".join([f"{made:,} of {config.training.steps:,} steps made", *now]))
    if best := run.best_evaluation():
        told.append(f"best validation loss {best.loss:.4f}, at step {best.step:,}")
    return "; ".join(told)


def html(run: RunReader) -> str:
    """The complete HTML."""
    return "\n".join(["<div class='vitrine-run'>", f"<style>{STYLE}</style>", *_parts(run), "</div>"])


def _parts(run: RunReader) -> Iterator[str]:
    yield f"<div><b>{escape(run.path.name)}</b> <span class='soft'>{escape(summary(run))}</span></div>"
    yield _curves(run)
    samples = run.samples()
    if samples:
        yield f"<div class='soft'>With the parameters of step {samples[-1].step:,} it writes:</div>"
        yield f"<pre>{escape(samples[-1].text.strip())}</pre>"
    yield f"<details><summary>Hyperparameters</summary><pre>{escape(run.config.to_toml())}</pre></details>"
    yield f"<div class='soft'>To see every number: <code>vitrine studio {escape(shlex.quote(str(run.path)))}</code></div>"


def _curves(run: RunReader) -> str:
    """The loss of each step, the validation loss, and the loss of guessing."""
    steps, values = run.step_column("loss")
    steps, low, high = downsample(steps, values, PIXELS) if len(steps) else (steps, values, values)
    measured = [(e.step, e.loss) for e in run.sampled_evaluations() if math.isfinite(e.loss)]
    finite = [*low[np.isfinite(low)], *high[np.isfinite(high)], *(loss for _, loss in measured)]
    if not finite:
        return "<div class='soft'>No loss is recorded yet.</div>"
    guessing = math.log(run.config.model.vocab_size)
    least, most = min(finite), max([*finite, guessing] if max(finite) < 2 * guessing else finite)
    last = max([1, *(int(step) for step in steps[-1:]), *(step for step, _ in measured)])
    plot = _Plot(last, least - 0.05 * (most - least or 1), most + 0.05 * (most - least or 1))
    points = " ".join(f"{plot.x(step):.1f},{plot.y(loss):.1f}" for step, loss in measured)
    dots = "".join(f"<circle cx='{plot.x(s):.1f}' cy='{plot.y(v):.1f}' r='2.5'/>" for s, v in measured)
    inside = [
        *plot.frame(),
        f"<path d='{plot.band(steps, low, high)}' fill='none' stroke='currentColor' stroke-opacity='.75'/>",
        f"<g fill='{PLUM}' stroke='none'><polyline points='{points}' fill='none' stroke='{PLUM}' stroke-width='1.5'/>{dots}</g>",
    ]
    if plot.bottom <= guessing <= plot.top:
        y, said = plot.y(guessing), f"guessing: ln {run.config.model.vocab_size:,} = {guessing:.2f}"
        inside.append(
            f"<path d='M{LEFT},{y:.1f}H{WIDTH - RIGHT}' stroke='currentColor' stroke-dasharray='2 4' stroke-opacity='.6'/>"
        )
        inside.append(f"<text x='{WIDTH - RIGHT}' y='{y - 4:.1f}' text-anchor='end'>{said}</text>")
    label = "The loss of each step, and the validation loss"
    key = "nats per token, by step: training" + f", <span style='color:{PLUM}'>&#9679; validation</span>" * bool(
        measured
    )
    drawn = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{label}'>{''.join(inside)}</svg>"
    return f"{drawn}<div>{key}</div>"


class _Plot:
    """Converts steps and losses to coordinates in the picture."""

    def __init__(self, last: int, bottom: float, top: float) -> None:
        self.last, self.bottom, self.top = last, bottom, top

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.last

    def y(self, loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.top - loss) / (self.top - self.bottom)

    def band(self, steps: Steps, low: Values, high: Values) -> str:
        """A line through the steps. A point for several steps spans their lowest to their highest loss."""
        path, pen = [], "M"
        for step, least, greatest in zip(steps, low, high, strict=True):
            if not np.isfinite(least):
                pen = "M"
                continue
            path.append(f"{pen}{self.x(step):.1f},{self.y(greatest):.1f}")
            if greatest != least:
                path.append(f"V{self.y(least):.1f}")
            pen = "L"
        return "".join(path)

    def frame(self) -> Iterator[str]:
        """Grid lines and labels at round values."""
        floor = HEIGHT - BOTTOM
        for loss in _round_values(self.bottom, self.top):
            y = self.y(loss)
            yield f"<path d='M{LEFT},{y:.1f}H{WIDTH - RIGHT}' stroke='currentColor' stroke-opacity='.15'/>"
            yield f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{loss:g}</text>"
        for step in _round_values(0, self.last):
            if step == int(step):
                yield f"<text x='{self.x(step):.1f}' y='{floor + 18}' text-anchor='middle'>{int(step):,}</text>"


def _round_values(least: float, most: float) -> list[float]:
    """At most six values, 1, 2 or 5 times a power of ten apart."""
    rough = (most - least) / 6
    power = 10 ** math.floor(math.log10(rough))
    apart = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(k * apart, 10) for k in range(math.ceil(least / apart), math.floor(most / apart) + 1)]
