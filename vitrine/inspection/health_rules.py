"""The rules of `vitrine health`: each returns a verdict with its numbers, the usual cause, a step and a plot. No torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from vitrine.inspection.health_advice import Cause, Level, Plot, Verdict
from vitrine.inspection.health_history import SPIKE, WINDOW, Departure, Floats, History, Moved, deviation
from vitrine.optimizers.registry import OPTIMIZERS

Limits = tuple[float, float]  # beyond the first it is a warning, beyond the second an error


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


RULES: list[Rule] = []  # from cause to effect: the headline is the first of the worst verdicts


def rule(name: str, needs: int | Callable[[History], int] = 1, of: Source = "steps") -> Callable[[Judge], Judge]:
    """Make a function that judges a run the next of the rules."""

    def add(judge: Judge) -> Judge:
        RULES.append(Rule(name, needs, of, judge))
        return judge

    return add


AROUND = 32  # steps on either side of a moment, in a plot
FIRST_LOSS = (0.5, 1.5)  # nats from ln(vocabulary); heads are initialised small, so that a good one is within 0.1
FIRST_GRADIENT = (3e-2, 5e-3)  # its norm, of random parameters: 0.4 to 5 with the usual initialisations


@rule("loss at birth")
def loss_at_birth(history: History) -> Verdict:
    """The first loss against that of pure guessing, and the first gradient."""
    if history.steps[0] != 0:
        return unknown(f"the first step recorded is {history.steps[0]}, not 0", first=int(history.steps[0]))
    loss, off = float(history.loss[0]), float(history.loss[0]) - history.guessing
    gradient = float(history.gradient[0])
    evidence = {"loss": loss, "guessing": history.guessing, "difference": off, "thresholds": FIRST_LOSS}
    evidence |= {"gradient": gradient, "gradient_below": FIRST_GRADIENT}
    sentence = (
        f"{loss:.3f}, where guessing among {history.config.model.vocab_size:,} tokens has {history.guessing:.3f}; "
    )
    sentence += f"the first gradient has norm {gradient:.2g}"
    level, blame, cause = _limited(abs(off), FIRST_LOSS), Cause.INITIALISATION, "The first logits are too large."
    small = _limited(-gradient, (-FIRST_GRADIENT[0], -FIRST_GRADIENT[1]))
    if history.inherited:
        sentence += "; it began with learned parameters, so the loss may be lower"
        level, blame = _limited(off, FIRST_LOSS), Cause.UNFIT
        cause = "The parameters do not fit this text: look at its tokenizer, and at what they were trained on."
    elif level == Level.OK and small != Level.OK:
        level, cause = small, "The signal vanishes on its way through the blocks: the initial weights are too small."
    elif off < 0:
        blame, cause = (
            Cause.ONE_TOKEN,
            "Random parameters know nothing: look whether the text is almost one token alone.",
        )
    plot = Plot(("loss",), 0, min(history.last, AROUND))
    return Verdict(level=level, sentence=sentence, blame=blame, cause=cause, evidence=evidence, step=0, plot=plot)


DIVERGED = (0.25, 1.0)  # nats above the lowest; with one nat more, 2.7 times as many tokens seem possible


@rule("divergence", needs=lambda history: 0 if history.diverged else 2)
def divergence(history: History) -> Verdict:
    """Whether training broke off, departed from its course for long, or ended far above where it had been."""
    if history.diverged and not (history.departure and _above_first(history, history.departure)):
        return _broke_off(history)
    losses = history.loss
    window = min(history.smoothing, len(losses))
    medians = np.median(sliding_window_view(losses, window), axis=1)
    smooth = np.concatenate([losses[:1], medians])
    rises = smooth - np.minimum.accumulate(smooth)
    end, top = len(rises) - 1, int(rises.argmax())
    # The least of many medians lies lower than a single one, by a few times their noise.
    noise = 4 * float(deviation(np.diff(losses))) / math.sqrt(2 * window)
    limits = min(max(DIVERGED[0], noise), DIVERGED[1]), DIVERGED[1]
    # It may have come back.
    level = _worst(_limited(rises[end], limits), Level.WARNING if rises[top] > limits[1] else Level.OK)
    onset = int(np.flatnonzero(rises[: top + 1] <= rises[top] / 2)[-1])  # halfway up, half of the window is up
    step = int(history.steps[min(onset + window // 2, len(losses) - 1)])
    evidence = {"rise": rises[end], "most": rises[top], "end": smooth[end], "step": step, "thresholds": limits}
    of = f"the median of {window} steps"
    sentence = (
        f"the loss ends at {smooth[end]:.3f} ({of}), {rises[end]:.3f} above its lowest; {limits[0]:.2g} would be much "
    )
    sentence += f"(the most on the way was {rises[top]:.3f})"
    plot = Plot(("loss",), 0, history.last)
    if departure := history.departure:
        told, found = _told(history, departure)
        back = departure.place >= WINDOW and smooth[end] <= departure.level
        level = _worst(level, Level.ERROR if _above_first(history, departure) and not back else Level.WARNING)
        step = int(history.steps[departure.place])
        ends = f"broke off at step {history.diverged.step}" if history.diverged else f"ends at {smooth[end]:.2f} ({of})"
        sentence, evidence = f"{told}; it {ends}", evidence | found
        plot = Plot(("loss",), max(0, step - AROUND), min(history.last, step + AROUND))
    cause = "The steps are too long."
    return Verdict(
        level=level, sentence=sentence, blame=Cause.RATE_HIGH, cause=cause, evidence=evidence, step=step, plot=plot
    )


def _broke_off(history: History) -> Verdict:
    """A number that is not finite, after losses in their usual course: from too long a step, or from the parameters."""
    event = history.diverged
    assert event
    plot, evidence = Plot(("loss",), 0, history.last), {"diverged_at": event.step, "losses": history.loss[-5:]}
    # The advice of the event is not ours.
    what = event.text.partition(" The update was not made")[0].removeprefix(f"Step {event.step}: ").rstrip(".")
    sentence, blame = f"broke off at step {event.step}: {what}", Cause.NOT_FINITE
    cause = "No update before it was unusual: look at this batch."
    moved = history.moved(event.step - 1)
    if since := history.not_finite_since():
        cause = (
            f"{since[1]} has numbers that are not finite since step {since[0]}: look at the parameters it began with."
        )
        evidence |= {"not_finite_since": since[0], "tensor": since[1]}
        if since[0]:
            moved = history.moved(since[0] - 1)
    if moved and moved.too_far and not (since and not since[0]):
        blame, cause, sentence = Cause.RATE_HIGH, "The steps are too long.", f"{sentence}; {moved}"
        evidence |= _evidence(moved)
    step = int(history.steps[-1]) if len(history.steps) else None  # the step that broke off was not made
    return Verdict(
        level=Level.ERROR, sentence=sentence, blame=blame, cause=cause, evidence=evidence, step=step, plot=plot
    )


STEEP = 10.0  # times the median gradient norm: where the loss is as steep as that, it is not for the text of the batch
MANY_SPIKES = (3, 0.001)  # so many, or, if that is more, in this share of the steps: most runs survive one or two


@rule("loss spikes", needs=2)
def loss_spikes(history: History) -> Verdict:
    """Losses that stand out above those before them, and come back; until one does not."""
    end = history.departure.place if history.departure else len(history.loss)
    spikes = [departure for departure in history.departures if departure.place < end]
    curves, steps = ("loss", "gradient_norm"), [int(history.steps[spike.place]) for spike in spikes]
    evidence: dict[str, Any] = {"spikes": len(spikes), "steps": steps, "thresholds": SPIKE}
    until = f" before step {history.steps[end]}, where the loss departs for long" if history.departure else ""
    if not spikes:
        sentence = f"none{until}: no loss is {SPIKE:g} standard deviations above the median before"
        return Verdict(level=Level.OK, sentence=sentence, evidence=evidence, plot=Plot(curves, 0, history.last))
    worst = max(spikes, key=lambda spike: float(history.loss[spike.place] - spike.level))
    told, found = _told(history, worst)
    steep = _ratio(
        history.gradient[worst.place], np.median(history.gradient[max(0, worst.place - WINDOW) : worst.place])
    )
    large = bool(found["gradient_spike_steps_before"]) or bool(found.get("too_far")) or steep > STEEP
    many = len(spikes) >= max(MANY_SPIKES[0], MANY_SPIKES[1] * len(history.loss))
    step = int(history.steps[worst.place])
    cause = (
        "A step before it was too long." if large else "The text of that batch is odd: no step before it was unusual."
    )
    return Verdict(
        level=Level.ERROR if many else Level.WARNING,
        sentence=f"{len(spikes)}{until}; the worst: {told}",
        blame=Cause.RATE_HIGH if large else Cause.ODD_BATCH,
        cause=cause,
        evidence=evidence | found | {"gradient_ratio": steep},
        step=step,
        plot=Plot(curves, max(0, step - AROUND), min(history.last, step + AROUND)),
    )


def _above_first(history: History, departure: Departure) -> bool:
    """Whether training made the model worse than it was at first."""
    return bool(history.loss[departure.place] > history.loss[0])


def _told(history: History, departure: Departure) -> tuple[str, dict[str, Any]]:
    """A departure with its evidence, in words and as values: what moved most in the update before it."""
    place, before = departure.place, departure.level
    step, loss = int(history.steps[place]), float(history.loss[place])
    leads, moved = history.led(place), history.moved(step - 1)
    rose = f"at step {step} the loss rose from {history.loss[place - 1]:.2f} to {loss:.2f}"
    if place > 1:
        above = _above_first(history, departure)
        rose += f", above the {history.loss[0]:.2f} at step 0" if above else f", after a median of {before:.2f}"
    spike = f"; the gradient norm had a spike {leads[0]} steps before" if leads else ""
    told = f"{rose}{spike}; {moved or 'what moved most is not known, as no statistics of tensors are recorded'}"
    evidence = {"at": step, "loss": loss, "median_before": before, "gradient_spike_steps_before": leads}
    return told, evidence | (_evidence(moved) if moved else {})


def _evidence(moved: Moved) -> dict[str, Any]:
    return {
        "moved_most": moved.tensor,
        "hidden": moved.hidden,
        "update_norm": moved.update,
        "weight_norm": moved.weights,
        "statistics_of_step": moved.row,
        "too_far": moved.too_far,
    }


STALL_STEPS = 60  # the thirds of a shorter run are noise
STALLED, LEARNED = 0.001, 0.02  # of the loss: the least that the last third, and that the whole run, should take away
RATE_UP = 0.25  # of the peak: below, at the end of a schedule, little movement is normal
SOLVED = 0.05  # of ln(vocabulary): little is left to learn
FREQUENCIES = 0.1  # nats above the entropy of the token frequencies: no more than these was learned
ORDER = 0.05  # nats that a token tells of the next; 0.8 in English characters, 0.000 if they are shuffled


@rule("stalled learning", needs=lambda history: STALL_STEPS + history.config.schedule.warmup_steps)
def stalled_learning(history: History) -> Verdict:
    """Whether the loss still falls while the learning rate is up, whether it ever fell, and whether the text has an order."""
    third, first = len(history.loss) // 3, float(history.loss[0])
    halves = np.array_split(history.loss[-third:], 2)
    before, end = (float(np.median(half)) for half in halves)
    rate = _ratio(np.median(history.rate[-third:]), history.rate.max())
    thresholds = {"fall": STALLED * end, "learned": LEARNED * first, "rate": RATE_UP}
    evidence = {"fall": before - end, "end": end, "learned": first - end, "rate": rate, "thresholds": thresholds}
    last, whole = (f"{'fell' if fall >= 0 else 'rose'} by {abs(fall):.3f}" for fall in (before - end, first - end))
    sentence = (
        f"in the last third the loss {last} (to {end:.3f}, the median of {len(halves[1])} steps), in all it {whole}; "
    )
    sentence += f"the learning rate there was {rate:.0%} of its peak"
    level: Level = Level.WARNING if before - end < STALLED * end and rate >= RATE_UP else Level.OK
    blame, cause = Cause.PLATEAU, "A plateau."
    if first - end < LEARNED * first and not history.inherited:
        blame = Cause.RATE_HIGH if history.departure else Cause.RATE_LOW
        level, cause = Level.ERROR, "Next to nothing was learned."
    level = Level.OK if end < SOLVED * history.guessing else level
    if (order := history.order) and order[1] < ORDER and end > order[0] - FREQUENCIES:
        level, blame = Level.ERROR, Cause.NO_ORDER
        cause = "A token of this text tells nothing of the next: only their frequencies can be learned."
        sentence += (
            f"; the frequencies of the tokens have {order[0]:.3f}, and one tells {max(0, order[1]):.3f} of the next"
        )
        evidence |= {"frequencies": order[0], "order": order[1], "order_below": ORDER}
    plot, step = (
        Plot(("loss", "learning_rate"), history.last - history.last // 3, history.last),
        int(history.steps[-third]),
    )
    return Verdict(level=level, sentence=sentence, blame=blame, cause=cause, evidence=evidence, step=step, plot=plot)


ROWS = 8  # of statistics in the later half of a run: a median of fewer says little
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
        ratios[plan.name], levels[plan.name] = ratio, too_high
    # One that hardly moves may be where no gradient comes: only when most do is the learning rate too low.
    median = float(np.median(list(ratios.values())))
    too_low = _limited(-median, (-UPDATE_LOW[0], -UPDATE_LOW[1]))
    too_high = _worst(*levels.values())
    level = _worst(too_low, too_high)
    slow = too_low == level != Level.OK
    odd = [name for name in ratios if (ratios[name] < UPDATE_LOW[0] if slow else levels[name] == level)]
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    evidence = {
        "median": median,
        "ratios": ratios,
        "high": UPDATE_HIGH,
        "low": UPDATE_LOW,
        "hidden_factor": hidden_ratio,
    }
    sentence = f"median {median:.1e}, from {ratios[low]:.1e} ({low}) to {ratios[high]:.1e} ({high}); 1e-3 is usual"
    cause = f"{len(odd)} of {len(levels)} matrices {'hardly move' if slow else 'move too far in a step'} ({odd[0]})."
    evidence["hidden"] = next(plan.hidden for plan in history.matrices if plan.name == odd[0])
    evidence["tensor"] = odd[0]
    curves = tuple(f"{name}/update_ratio" for name in dict.fromkeys((low, high)))
    plot = Plot(curves, history.last - history.last // 2, history.last)
    return Verdict(
        level=level,
        sentence=sentence,
        blame=Cause.RATE_LOW if slow and not history.departure else Cause.RATE_HIGH,  # dead units do not move, either
        cause=cause,
        evidence=evidence,
        step=int(history.steps[-1]),
        plot=plot,
    )


LAYERS = (30.0, 1000.0)  # largest over smallest block: pre-norm stacks differ by up to ten or so
GROWTH = (10.0, 100.0)  # of the gradient norm, from the first half of the run to its end
CLIPPED = 0.5  # of the later steps: with more, clip sets the length of a step rather than the learning rate


@rule("gradients by layer", needs=ROWS, of="later_statistics")
def gradients_by_layer(history: History) -> Verdict:
    """Gradients that vanish or explode from block to block, or over the run; and how often they were clipped."""
    by_block, clip = [], history.config.optimizer.clip
    for layer in range(history.config.model.n_layers):
        mine = [tensor for tensor in history.matrices if tensor.block == layer]
        squares = sum(history.matrices[plan]["gradient_norm"].astype(np.float64) ** 2 for plan in mine)
        by_block.append(float(np.median(np.sqrt(squares / sum(plan.parameters for plan in mine)))))
    least, most = int(np.argmin(by_block)), int(np.argmax(by_block))
    half, ratio = len(history.gradient) // 2, _ratio(by_block[most], by_block[least])
    growth = _ratio(np.median(history.gradient[-max(5, half // 5) :]), np.median(history.gradient[:half]))
    clipped = float((history.gradient[half:] > clip).mean()) if clip else 0.0
    sets_length = clipped > CLIPPED and not OPTIMIZERS[history.config.optimizer.name].scale_free
    level = _worst(_limited(ratio, LAYERS), _limited(growth, GROWTH), Level.WARNING if sets_length else Level.OK)
    thresholds = {"ratio": LAYERS, "growth": GROWTH, "clipped": CLIPPED, "clip": clip}
    evidence = {"by_block": by_block, "ratio": ratio, "growth": growth, "clipped": clipped, "thresholds": thresholds}
    sentence = f"per parameter {by_block[least]:.1e} (blocks.{least}) to {by_block[most]:.1e} (blocks.{most}): a ratio "
    sentence += f"of {ratio:.3g}; the norm ends at {growth:.2g} times its first half; {clipped:.0%} of steps clipped"
    blame, cause = Cause.CLIPPED, "Most steps have the length that clipping gives them, whatever the gradient."
    if growth > GROWTH[0]:
        blame, cause = Cause.RATE_HIGH, "Gradients explode."
    if not ratio <= LAYERS[0]:
        blame, cause = Cause.UNEVEN, f"blocks.{least} hardly learns."
    curves = tuple(f"blocks.{block}/gradient_norm" for block in dict.fromkeys((least, most)))
    plot = Plot(curves, history.last - history.last // 2, history.last)
    step = int(history.steps[-1])
    return Verdict(level=level, sentence=sentence, blame=blame, cause=cause, evidence=evidence, step=step, plot=plot)


OVERFIT_SHARE, OVERFIT_NATS = (0.01, 0.05), (0.02, 0.1)  # above the best; the larger counts: less is noise
GAP = 0.5  # nats of validation above training loss
EPOCHS = 1.5  # with fewer, most text was seen once: it cannot have been learned by heart


@rule("over-fitting")
def over_fitting(history: History) -> Verdict:
    """Validation loss against its best, and against training loss."""
    if not history.evaluations:
        return unknown("no validation loss was measured: too early, or data.validation = 0", evaluations=0)
    best, last = min(history.evaluations, key=lambda e: e.loss), history.evaluations[-1]
    losses = history.loss[history.steps <= last.step][-history.smoothing :]
    training = float(np.median(losses))
    rise, gap, epochs = last.loss - best.loss, last.loss - training, history.epochs(last.step)
    warning, error = np.maximum(OVERFIT_NATS, np.multiply(OVERFIT_SHARE, best.loss)).tolist()
    # Where training loss, too, is above the best validation loss, nothing was learned by heart.
    by_heart = _limited(rise, (warning, error)) if training < best.loss else Level.OK
    other = epochs is not None and epochs <= EPOCHS
    level = _worst(
        Level.WARNING if other and by_heart == Level.ERROR else by_heart, Level.WARNING if gap > GAP else Level.OK
    )
    evidence: dict[str, Any] = {
        "validation": last.loss,
        "training": training,
        "training_steps": len(losses),
        "gap": gap,
    }
    evidence |= {
        "best": best.loss,
        "best_step": best.step,
        "rise": rise,
        "watch_above": warning,
        "ill_above": error,
        "gap_above": GAP,
        "epochs": epochs,
    }
    read = (
        f"{epochs:.2g} epochs"
        if epochs is not None
        else "an unknown number of epochs (the run has no count of its text)"
    )
    sentence = (
        f"validation {last.loss:.3f} (of {last.tokens:,} tokens), training {training:.3f} (the median of {len(losses)} "
    )
    sentence += f"steps), a gap of {gap:.3f} after {read}; "
    sentence += f"{rise:.3f} above its best ({best.loss:.3f} at step {best.step})"
    cause = "Text is learned by heart."
    if other:
        cause = f"In {epochs:.2g} epochs no text is learned by heart: what is held back is of another kind."
    step, plot = min(best.step, int(history.steps[-1])), Plot(("loss", "validation"), 0, history.last)
    blame = Cause.SHIFTED if other else Cause.OVER_FITTING
    return Verdict(level=level, sentence=sentence, blame=blame, cause=cause, evidence=evidence, step=step, plot=plot)


DEAD = (0.2, 0.5)  # share of a layer's units: so much of its width is unused


@rule("dead units", of="keyframes")
def dead_units(looks: Sequence[Look]) -> Verdict:
    """Units of the MLPs that no token of the batch opens."""
    first, last = looks[0], looks[-1]
    layer = int(last.dead.argmax())
    evidence = {"by_layer": {look.step: look.dead for look in looks}, "tokens": last.tokens, "thresholds": DEAD}
    sentence = f"{last.dead.mean():.1%} are above zero for none of {last.tokens:,} tokens (at step {first.step}: "
    sentence += f"{first.dead.mean():.1%}), most in blocks.{layer}: {last.dead[layer]:.1%}"
    level, shares = _limited(float(last.dead[layer]), DEAD), {look.step: look.dead.max() for look in looks}
    died = next((look.step for look in looks if not look.dead[layer] <= DEAD[0]), last.step)
    cause = "Long steps push units out of reach." if died else ""
    step = max(0, died - 1)
    return Verdict(
        level=level,
        sentence=sentence,
        blame=Cause.DEAD,
        cause=cause,
        evidence=evidence,
        step=step,
        plot=_at_keyframes(shares, "largest share"),
    )


SHARP, UNIFORM = 0.02, 0.995  # entropy, as a share of the largest possible; a sharp head can be a good one
UNIFORM_AFTER = 500  # steps: all heads of gpt2 and some of llama begin so, and take their time
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
    odd = collapsed or (high > UNIFORM and last.step - first.step >= UNIFORM_AFTER)
    level = Level.ERROR if collapsed >= COLLAPSED else Level.WARNING if odd else Level.OK
    scores, thresholds = {look.step: look.scores.max() for look in looks}, [SHARP, UNIFORM, COLLAPSED, SCORES]
    evidence = {"entropy": last.entropy, "scores": scores, "collapsed": collapsed, "thresholds": thresholds}
    sentence = f"entropy {low:.2f} ({sharp}) to {high:.2f} ({even}) of the largest possible; scores up to {score:.3g} "
    sentence += f"({head}), at step {first.step} up to {first.scores.max():.3g}"
    blame, cause = (
        Cause.UNIFORM,
        f"{even} still looks at all tokens alike: it needs more steps, or is one head too many.",
    )
    if collapsed or not score <= SCORES[0]:
        blame, cause = (
            Cause.SHARP,
            "Scores grow until a head sees one token; the qwen3 family normalises what they are made of.",
        )
    level, plot, step = (
        _worst(level, _limited(score, SCORES)),
        _at_keyframes(scores, "largest score"),
        max(0, last.step - 1),
    )
    return Verdict(level=level, sentence=sentence, blame=blame, cause=cause, evidence=evidence, step=step, plot=plot)


LOGITS = (64.0, 256.0)  # bfloat16 has 8 bits: above 64 it counts by half a nat, above 256 by two


@rule("output logits", of="keyframes")
def output_logits(looks: Sequence[Look]) -> Verdict:
    """The largest magnitude of an output logit."""
    largest = {look.step: look.logit for look in looks}
    evidence = {"largest": largest, "thresholds": LOGITS}
    told = ", ".join(f"{look.logit:.3g} at step {look.step}" for look in looks) + f"; {LOGITS[0]:g} would be much"
    return Verdict(
        level=_limited(looks[-1].logit, LOGITS),
        sentence=f"largest {told}",
        blame=Cause.LOGITS,
        cause="The head grows without bound.",
        evidence=evidence,
        step=max(0, looks[-1].step - 1),
        plot=_at_keyframes(largest, "largest logit"),
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


def _head(table: Floats, place: np.integer[Any]) -> tuple[str, float]:
    """The name and the number of a head, by its place in a flattened (n_layers, n_heads)."""
    layer, head = divmod(int(place), table.shape[1])
    return f"blocks.{layer} head {head}", float(table[layer, head])


def _at_keyframes(values: dict[int, Any], what: str) -> Plot:
    return Plot(
        (), min(values), max(values), tuple((step, float(value)) for step, value in sorted(values.items())), what
    )
