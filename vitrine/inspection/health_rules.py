"""The rules of `vitrine health`: each returns a verdict with its numbers, the usual cause, a step and a plot. No torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vitrine.model.inventory import TensorSpec
from vitrine.optimizers.registry import OPTIMIZERS
from vitrine.runs.reader import RunReader

Floats = NDArray[np.floating[Any]]
Limits = tuple[float, float]  # beyond the first it is a warning, beyond the second an error


class Level(StrEnum):
    """How bad it is, the worst first; the values are what the command prints and the page reads."""

    ERROR = "ill"
    WARNING = "watch"
    UNKNOWN = "unknown"
    OK = "ok"


@dataclass(frozen=True)
class Plot:
    """The curves to draw, from a step to a step; or, where a run was looked into at keyframes, the values there.

    series: names as the studio's curves have them; points: step and value.
    """

    series: tuple[str, ...] = ()
    first: int = 0
    last: int = 0
    points: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One thing that was looked at. A rule leaves the name to its decorator.

    sentence: what was found, with its numbers; cause: what usually causes it, and what to try (empty when ok).
    evidence: values, thresholds, steps. step: the one to look at with `vitrine replay RUN --step N`.
    plot: of the evidence; None where nothing could be judged.
    """

    name: str = ""
    level: Level
    sentence: str
    cause: str = ""
    evidence: dict[str, Any]
    step: int | None = None
    plot: Plot | None = None


class History:
    """Steps and evaluations of a run, as arrays; records that are not finite are left out."""

    def __init__(self, reader: RunReader) -> None:
        self.config, self.matrices = reader.config, _later_statistics(reader)
        rows = [(r.step, r.loss, r.gradient_norm, r.learning_rate) for r in reader.steps()]
        table = np.array(rows, np.float64).reshape(-1, 4)
        table = table[np.isfinite(table).all(1)]
        self.steps = table[:, 0].astype(np.int64)
        self.last = int(self.steps[-1]) if len(table) else 0
        self.loss, self.gradient, self.rate = table[:, 1], table[:, 2], table[:, 3]
        self.smoothing = min(50, max(5, len(table) // 20))  # steps of a running median
        self.guessing = math.log(self.config.model.vocab_size)
        self.evaluations = [e for e in reader.sampled_evaluations() if math.isfinite(e.loss)]
        events, made = reader.events(), reader.steps_made()
        self.diverged = next((e for e in events if e.kind == "diverged" and e.step >= made), None)
        # Random parameters are noted with their seed; others, with where they come from.
        elsewhere = any(e.kind == "born" and not e.text.startswith("seed") for e in events)
        self.inherited = elsewhere or bool(self.config.training.parent)


@dataclass(frozen=True)
class Look:
    """What was seen at a keyframe. dead: (n_layers,); entropy, scores: (n_layers, n_heads)."""

    step: int
    tokens: int
    dead: Floats
    entropy: Floats
    scores: Floats
    logit: float


Source = Literal["steps", "later_statistics", "keyframes"]
Judge = Callable[[Any], Verdict]  # of a History, or of Looks at keyframes


@dataclass(frozen=True)
class Rule:
    """One thing to judge. With fewer than `needs` of its source, its verdict is unknown."""

    name: str
    needs: int | Callable[[History], int]
    of: Source
    judge: Judge


RULES: list[Rule] = []  # in the order in which verdicts are shown


def rule(name: str, needs: int | Callable[[History], int] = 1, of: Source = "steps") -> Callable[[Judge], Judge]:
    """Make a function that judges a run the next of the rules."""

    def add(judge: Judge) -> Judge:
        RULES.append(Rule(name, needs, of, judge))
        return judge

    return add


AROUND = 32  # steps on either side of a moment, in a plot
FIRST_LOSS = (0.5, 1.5)  # nats from ln(vocabulary); heads are initialised small, so that a good one is within 0.1


@rule("loss at birth")
def loss_at_birth(history: History) -> Verdict:
    """The first loss against that of pure guessing."""
    if history.steps[0] != 0:
        return unknown(f"the first step recorded is {history.steps[0]}, not 0", first=int(history.steps[0]))
    loss, off = float(history.loss[0]), float(history.loss[0]) - history.guessing
    evidence = {"loss": loss, "guessing": history.guessing, "difference": off, "thresholds": FIRST_LOSS}
    sentence = f"{loss:.3f}, where guessing among {history.config.model.vocab_size:,} tokens has {history.guessing:.3f}"
    cause = "The first logits are too large: lower model.init_scale."
    if history.inherited:
        sentence += "; it began with learned parameters, so it may be lower"
        cause = "The parameters do not fit this text: look at its tokenizer, and at what they were trained on."
    elif off < 0:
        cause = "Random parameters know nothing: look whether the text is almost one token alone."
    level, plot = (
        _limited(off if history.inherited else abs(off), FIRST_LOSS),
        Plot(("loss",), 0, min(history.last, AROUND)),
    )
    return Verdict(level=level, sentence=sentence, cause=cause, evidence=evidence, step=0, plot=plot)


SPIKE_WINDOW = 32  # steps before, whose median and standard deviation a spike is compared with
SPIKE = 8.0  # standard deviations above the median: chance (normal losses) gets there twice in a million steps
DEVIATION_FLOOR = 0.01  # of the median: where the loss hardly moves, any ripple would be many deviations high
SPIKE_LEAD = 5  # steps in which a spike of the gradient norm counts as having come before it
MANY_SPIKES = (3, 0.001)  # so many, or, if that is more, in this share of the steps: most runs survive one or two


@rule("loss spikes", needs=SPIKE_WINDOW + 1)
def loss_spikes(history: History) -> Verdict:
    """Losses that stand out above those before them."""
    heights, gradients = _heights(history.loss), _heights(history.gradient)
    places = np.flatnonzero(heights > SPIKE)
    starts = places[np.diff(places, prepend=-SPIKE_WINDOW) >= SPIKE_WINDOW]  # what follows one belongs to it
    curves = ("loss", "gradient_norm")
    evidence = {"spikes": len(starts), "steps": history.steps[starts], "highest": heights.max(), "thresholds": SPIKE}
    if not len(starts):
        sentence = f"none: at most {heights.max():.1f} spreads above the median before; {SPIKE:g} would be a spike"
        return Verdict(level=Level.OK, sentence=sentence, evidence=evidence, plot=Plot(curves, 0, history.last))
    start = max(starts, key=lambda i: float(heights[i : i + SPIKE_LEAD].max()))
    top, before = history.loss[start : start + SPIKE_LEAD].max(), np.median(history.loss[start - SPIKE_WINDOW : start])
    leads = [lead for lead in range(SPIKE_LEAD, -1, -1) if gradients[start - lead] > SPIKE]
    evidence |= {"loss": top, "median_before": before, "gradient_spike_steps_before": leads}
    told = f"a spike of the gradient norm {leads[0]} steps before it" if leads else "no spike of the gradient norm"
    step = int(history.steps[start])
    sentence = f"{len(starts)}, the worst at step {step}: {top:.3f} after a median of {before:.3f}, with {told}"
    many = len(starts) >= max(MANY_SPIKES[0], MANY_SPIKES[1] * len(heights))
    large = "Too large a step: lower optimizer.learning_rate or optimizer.clip, raise schedule.warmup_steps."
    cause = large if leads else "Odd text in that batch, rather than a large step before it: read the batch."
    level = Level.ERROR if many else Level.WARNING
    plot = Plot(curves, max(0, step - AROUND), min(history.last, step + AROUND))
    return Verdict(level=level, sentence=sentence, cause=cause, evidence=evidence, step=step, plot=plot)


DIVERGED = (0.25, 1.0)  # nats above the lowest; with one nat more, 2.7 times as many tokens seem possible


@rule("divergence", needs=lambda history: 0 if history.diverged else 10)
def divergence(history: History) -> Verdict:
    """Whether training broke off, or ended far above where it had been."""
    cause = "Too large steps: lower optimizer.learning_rate, raise schedule.warmup_steps, or set optimizer.clip."
    plot = Plot(("loss",), 0, history.last)
    if event := history.diverged:
        last = int(history.steps[-1]) if len(history.steps) else None
        losses = {"diverged_at": event.step, "losses": history.loss[-5:]}
        sentence = f"broke off at step {event.step}: {event.text}"
        return Verdict(level=Level.ERROR, sentence=sentence, cause=cause, evidence=losses, step=last, plot=plot)
    window = history.smoothing
    smooth = np.concatenate([history.loss[:1], np.median(sliding_window_view(history.loss, window), axis=1)])
    rises = smooth - np.minimum.accumulate(smooth)
    end, top = len(rises) - 1, int(rises.argmax())
    # The least of many medians lies lower than a single one, by a few times their noise.
    noise = 4 * float(_deviation(np.diff(history.loss))) / math.sqrt(2 * window)
    limits = min(max(DIVERGED[0], noise), DIVERGED[1]), DIVERGED[1]
    level = _worst(
        _limited(rises[end], limits), Level.WARNING if rises[top] > limits[1] else Level.OK
    )  # it may have come back
    onset = int(np.flatnonzero(rises[: top + 1] <= rises[top] / 2)[-1])  # halfway up, half of the window is up
    turn = int(history.steps[min(onset + window // 2, len(history.steps) - 1)])
    evidence = {"end": smooth[end], "rise": rises[end], "most": rises[top], "from": turn, "thresholds": limits}
    sentence = f"the loss ends at {smooth[end]:.3f}, {rises[end]:.3f} above its lowest; {limits[0]:.2g} would be much "
    sentence += f"(the most on the way was {rises[top]:.3f})"
    return Verdict(level=level, sentence=sentence, cause=cause, evidence=evidence, step=turn, plot=plot)


ROWS = 8  # of statistics in the later half of a run: a median of fewer says little
LAYERS = (30.0, 1000.0)  # largest over smallest block: pre-norm stacks differ by up to ten or so
GROWTH = (10.0, 100.0)  # of the gradient norm, from the first half of the run to its end
CLIPPED = 0.5  # of the later steps: with more, clip sets the length of a step rather than the learning rate


@rule("gradients by layer", needs=ROWS, of="later_statistics")
def gradients_by_layer(history: History) -> Verdict:
    """Gradients that vanish or explode from block to block, or over the run; and how often they were clipped."""
    by_block, clip = [], history.config.optimizer.clip
    for layer in range(history.config.model.n_layers):
        mine = [plan for plan in history.matrices if plan.block == layer]
        squares = sum(history.matrices[plan]["gradient_norm"].astype(np.float64) ** 2 for plan in mine)
        by_block.append(float(np.median(np.sqrt(squares / sum(plan.parameters for plan in mine)))))
    least, most = int(np.argmin(by_block)), int(np.argmax(by_block))
    half, ratio = len(history.gradient) // 2, _ratio(by_block[most], by_block[least])
    growth = _ratio(np.median(history.gradient[-max(5, half // 5) :]), np.median(history.gradient[:half]))
    clipped = float((history.gradient[half:] > clip).mean()) if clip else 0.0
    level = _worst(_limited(ratio, LAYERS), _limited(growth, GROWTH), Level.WARNING if clipped > CLIPPED else Level.OK)
    thresholds = {"ratio": LAYERS, "growth": GROWTH, "clipped": CLIPPED, "clip": clip}
    evidence = {"by_block": by_block, "ratio": ratio, "growth": growth, "clipped": clipped, "thresholds": thresholds}
    sentence = f"per parameter {by_block[least]:.1e} (blocks.{least}) to {by_block[most]:.1e} (blocks.{most}): a ratio "
    sentence += f"of {ratio:.3g}; the norm ends at {growth:.2g} times its first half; {clipped:.0%} of steps clipped"
    cause = "Most steps have the length that clipping gives them: raise optimizer.clip, or lower the learning rate."
    if growth > GROWTH[0]:
        cause = "Gradients explode: lower optimizer.learning_rate, set optimizer.clip."
    if not ratio <= LAYERS[0]:
        cause = f"blocks.{least} hardly learns: try model.init_scale = 1, a lower learning rate, or fewer layers."
    curves = tuple(f"blocks.{block}/gradient_norm" for block in dict.fromkeys((least, most)))
    plot = Plot(curves, history.last - history.last // 2, history.last)
    return Verdict(
        level=level, sentence=sentence, cause=cause, evidence=evidence, step=int(history.steps[-1]), plot=plot
    )


UPDATE_HIGH, UPDATE_LOW = (0.03, 0.1), (1e-5, 1e-7)  # 1e-3 is the rule of thumb (Karpathy); 1e-2 in short runs
SMALL_AT_INIT = (
    0.1  # of the standard deviation that keeps a signal's size: what starts below is the sum of its own updates
)


@rule("update-to-weight ratio", needs=ROWS, of="later_statistics")
def update_to_weight_ratio(history: History) -> Verdict:
    """How far each matrix moves in a step, against its size. Gains and biases are not judged."""
    ratios, levels = dict[str, float](), dict[str, Level]()
    hidden_ratio = OPTIMIZERS[history.config.optimizer.name].hidden_ratio
    for plan, table in history.matrices.items():
        there = table[table["weight_norm"] > 0]
        ratio = float(np.median(there["update_norm"] / there["weight_norm"])) if len(there) else 0.0
        # Initialised near zero, a matrix is the sum of its updates: if these have random directions, each is 1/sqrt(step).
        small = plan.std * math.sqrt(plan.shape[-1]) < SMALL_AT_INIT
        own = 1 / math.sqrt(float(np.median(table["step"])) + 1) if small else 0.0
        factor = hidden_ratio if plan.hidden else 1.0
        too_high = _limited(ratio, (factor * UPDATE_HIGH[0] + own, factor * UPDATE_HIGH[1] + own))
        too_low = _limited(-ratio, (-UPDATE_LOW[0], -UPDATE_LOW[1]))
        ratios[plan.name], levels[plan.name] = ratio, _worst(too_high, too_low)
    level, median = _worst(*levels.values()), float(np.median(list(ratios.values())))
    odd = [tensor for tensor in levels if levels[tensor] == level]
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    evidence = {
        "median": median,
        "ratios": ratios,
        "high": UPDATE_HIGH,
        "low": UPDATE_LOW,
        "hidden_factor": hidden_ratio,
    }
    sentence = f"median {median:.1e}, from {ratios[low]:.1e} ({low}) to {ratios[high]:.1e} ({high}); 1e-3 is usual"
    slow = ratios[odd[0]] < UPDATE_LOW[0]
    cause = f"{len(odd)} of {len(levels)} matrices {'hardly move' if slow else 'move too far in a step'} ({odd[0]}): "
    cause += f"{'raise' if slow else 'lower'} optimizer.learning_rate (or adamw_learning_rate)."
    curves = tuple(f"{name}/update_ratio" for name in dict.fromkeys((low, high)))
    plot = Plot(curves, history.last - history.last // 2, history.last)
    return Verdict(
        level=level, sentence=sentence, cause=cause, evidence=evidence, step=int(history.steps[-1]), plot=plot
    )


DEAD = (0.2, 0.5)  # share of a layer's units: so much of its width is unused


@rule("dead units", of="keyframes")
def dead_units(looks: Sequence[Look]) -> Verdict:
    """Units of the MLPs that no token of the batch opens."""
    first, last = looks[0], looks[-1]
    layer = int(last.dead.argmax())
    evidence = {"by_layer": {look.step: look.dead for look in looks}, "tokens": last.tokens, "thresholds": DEAD}
    sentence = f"{last.dead.mean():.1%} are above zero for none of {last.tokens:,} tokens (at step {first.step}: "
    sentence += f"{first.dead.mean():.1%}), most in blocks.{layer}: {last.dead[layer]:.1%}"
    cause = "Large steps push units out of reach: lower optimizer.learning_rate, raise schedule.warmup_steps."
    level, plot = _limited(float(last.dead[layer]), DEAD), _at_keyframes({look.step: look.dead.max() for look in looks})
    return Verdict(
        level=level, sentence=sentence, cause=cause, evidence=evidence, step=max(0, last.step - 1), plot=plot
    )


SHARP, UNIFORM = 0.02, 0.995  # entropy, as a share of the largest possible; a sharp head can be a good one
COLLAPSED = 0.5  # of the heads of a layer, that are sharp: collapse (Zhai et al. 2023, arXiv:2303.06296)
SCORES = (100.0, 1000.0)  # Kimi K2 (arXiv:2507.20534) clips scores at 100; beyond 1000 its runs were unstable


@rule("attention", of="keyframes")
def attention(looks: Sequence[Look]) -> Verdict:
    """Heads that look at one token alone, or at all alike; and scores that grow."""
    first, last = looks[0], looks[-1]
    sharp, low = _head(last.entropy, last.entropy.argmin())
    even, high = _head(last.entropy, last.entropy.argmax())
    head, score = _head(last.scores, last.scores.argmax())
    collapsed = float((~(last.entropy >= SHARP)).mean(1).max())  # NaN counts
    odd = collapsed or (high > UNIFORM and last.step > first.step)
    level = Level.ERROR if collapsed >= COLLAPSED else Level.WARNING if odd else Level.OK
    scores, thresholds = {look.step: look.scores.max() for look in looks}, [SHARP, UNIFORM, COLLAPSED, SCORES]
    evidence = {"entropy": last.entropy, "scores": scores, "collapsed": collapsed, "thresholds": thresholds}
    sentence = f"entropy {low:.2f} ({sharp}) to {high:.2f} ({even}) of the largest possible; scores up to {score:.3g} "
    sentence += f"({head}), at step {first.step} up to {first.scores.max():.3g}"
    cause = f"{even} still looks at all tokens alike: it needs more steps, or is one head too many."
    if collapsed or not score <= SCORES[0]:
        cause = "Scores grow until a head sees one token: lower the learning rate, or try model.architecture = qwen3."
    level, plot = _worst(level, _limited(score, SCORES)), _at_keyframes(scores)
    return Verdict(
        level=level, sentence=sentence, cause=cause, evidence=evidence, step=max(0, last.step - 1), plot=plot
    )


LOGITS = (64.0, 256.0)  # bfloat16 has 8 bits: above 64 it counts by half a nat, above 256 by two


@rule("output logits", of="keyframes")
def output_logits(looks: Sequence[Look]) -> Verdict:
    """The largest magnitude of an output logit."""
    largest = {look.step: look.logit for look in looks}
    evidence = {"largest": largest, "thresholds": LOGITS}
    told = ", ".join(f"{look.logit:.3g} at step {look.step}" for look in looks) + f"; {LOGITS[0]:g} would be much"
    cause = "The head grows without bound: lower the learning rate, or raise optimizer.weight_decay."
    level, step, plot = _limited(looks[-1].logit, LOGITS), max(0, looks[-1].step - 1), _at_keyframes(largest)
    return Verdict(level=level, sentence=f"largest {told}", cause=cause, evidence=evidence, step=step, plot=plot)


OVERFIT_SHARE, OVERFIT_NATS = (0.01, 0.05), (0.02, 0.1)  # above the best; the larger counts: less is noise
GAP = 0.5  # nats of validation above training loss: text is being learned by heart, if not yet to harm


@rule("over-fitting")
def over_fitting(history: History) -> Verdict:
    """Validation loss against its best, and against training loss."""
    if not history.evaluations:
        return unknown("no validation loss was measured: too early, or data.validation = 0", evaluations=0)
    best, last = min(history.evaluations, key=lambda e: e.loss), history.evaluations[-1]
    training = float(np.median(history.loss[history.steps <= last.step][-history.smoothing :]))
    rise, gap = last.loss - best.loss, last.loss - training
    warning, error = np.maximum(OVERFIT_NATS, np.multiply(OVERFIT_SHARE, best.loss)).tolist()
    # Where training loss, too, is above the best validation loss, nothing was learned by heart.
    level = (
        _worst(_limited(rise, (warning, error)), Level.WARNING if gap > GAP else Level.OK)
        if training < best.loss
        else Level.OK
    )
    evidence = {"validation": last.loss, "training": training, "gap": gap, "best": best.loss, "best_step": best.step}
    evidence |= {"rise": rise, "watch_above": warning, "ill_above": error, "gap_above": GAP}
    sentence = f"validation {last.loss:.3f}, training {training:.3f}, a gap of {gap:.3f}; "
    sentence += f"{rise:.3f} above its best ({best.loss:.3f} at step {best.step})"
    cause = "Text is learned by heart: more text, fewer steps (training.patience), model.dropout, a smaller model."
    cause += f" --step best goes back to step {best.step}." if rise > 0 else ""
    step, plot = min(best.step, int(history.steps[-1])), Plot(("loss", "validation"), 0, history.last)
    return Verdict(level=level, sentence=sentence, cause=cause, evidence=evidence, step=step, plot=plot)


STALL_STEPS = 60  # the thirds of a shorter run are noise
STALLED, LEARNED = 0.001, 0.02  # of the loss: the least that the last third, and that the whole run, should take away
RATE_UP = 0.25  # of the peak: below, at the end of a schedule, little movement is normal
SOLVED = 0.05  # of ln(vocabulary): little is left to learn


@rule("stalled learning", needs=lambda history: STALL_STEPS + history.config.schedule.warmup_steps)
def stalled_learning(history: History) -> Verdict:
    """Whether the loss still falls while the learning rate is up, and whether it ever fell."""
    third, first = len(history.loss) // 3, float(history.loss[0])
    before, end = (float(np.median(half)) for half in np.array_split(history.loss[-third:], 2))
    rate = _ratio(np.median(history.rate[-third:]), history.rate.max())
    thresholds = {"fall": STALLED * end, "learned": LEARNED * first, "rate": RATE_UP}
    evidence = {"fall": before - end, "end": end, "learned": first - end, "rate": rate, "thresholds": thresholds}
    sentence = f"in the last third the loss fell by {before - end:.3f} (to {end:.3f}), in all by {first - end:.3f}; "
    sentence += f"the learning rate there was {rate:.0%} of its peak"
    level: Level = Level.WARNING if before - end < STALLED * end and rate >= RATE_UP else Level.OK
    cause = "A plateau: let the learning rate fall (schedule.name = linear), or try a larger model or more text."
    if first - end < LEARNED * first and not history.inherited:
        level, cause = Level.ERROR, "Next to nothing was learned: the learning rate is far too low, or far too high."
    level = Level.OK if end < SOLVED * history.guessing else level
    plot = Plot(("loss", "learning_rate"), history.last - history.last // 3, history.last)
    return Verdict(
        level=level, sentence=sentence, cause=cause, evidence=evidence, step=int(history.steps[-third]), plot=plot
    )


def unknown(reason: str, **evidence: int) -> Verdict:
    """What could not be judged, and why."""
    return Verdict(level=Level.UNKNOWN, sentence=reason, evidence=evidence)


def _limited(value: float, limits: Limits) -> Level:
    """What is not a number is an error."""
    return Level.OK if value <= limits[0] else Level.WARNING if value <= limits[1] else Level.ERROR


def _worst(*levels: Level) -> Level:
    return min(levels, key=list(Level).index)


def _ratio(value: float, base: float) -> float:
    return float(value / base) if base else math.inf if value else 1.0


def _deviation(values: Floats) -> Floats:
    """1.4826 times the median deviation: the standard deviation, were they normal; outliers hardly count. By row."""
    return 1.4826 * np.asarray(np.median(np.abs(values - np.median(values, axis=-1, keepdims=True)), axis=-1))


def _heights(values: Floats) -> Floats:
    """How many standard deviations each value is above the median of those before it; 0 for the first ones."""
    before = sliding_window_view(values, SPIKE_WINDOW)[:-1]
    median = np.median(before, axis=1)
    deviation = np.maximum(_deviation(before), np.maximum(DEVIATION_FLOOR * np.abs(median), 1e-12))
    return np.concatenate([np.zeros(SPIKE_WINDOW), (values[SPIKE_WINDOW:] - median) / deviation])


def _head(table: Floats, place: np.integer[Any]) -> tuple[str, float]:
    """The name and the number of a head, by its place in a flattened (n_layers, n_heads)."""
    layer, head = divmod(int(place), table.shape[1])
    return f"blocks.{layer} head {head}", float(table[layer, head])


def _later_statistics(reader: RunReader) -> dict[TensorSpec, NDArray[Any]]:
    """The later half of the statistics of every matrix; nothing if none are recorded."""
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) == 2] if reader.layout() else []
    tables = {plan: reader.statistics(plan.name) for plan in matrices}
    stop = min(map(len, tables.values()), default=0)  # they may grow while they are read
    return {plan: table[stop // 2 : stop] for plan, table in tables.items()}


def _at_keyframes(values: dict[int, Any]) -> Plot:
    return Plot((), min(values), max(values), tuple((step, float(value)) for step, value in sorted(values.items())))
