"""`vitrine health`: verdicts on a run, each with its numbers, the usual cause, and the step to open.

`history_verdicts` needs the history alone, and no torch; `probe_verdicts` runs the model at a few keyframes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vitrine._json import plain
from vitrine.errors import VitrineError
from vitrine.inspection.evidence import Plot, plot_of
from vitrine.model.inventory import TensorSpec, inventory
from vitrine.runs.reader import KEYFRAMES, RunReader
from vitrine.runs.retention import keyframe_path, keyframe_steps

Floats = NDArray[np.floating[Any]]
Level = Literal["ill", "watch", "unknown", "ok"]
LEVELS: tuple[Level, ...] = ("ill", "watch", "unknown", "ok")
Limits = tuple[float, float]  # beyond the first it is «watch», beyond the second «ill»
Found = tuple[Level, str, str, dict[str, Any], int | None]  # a verdict but for its name

BIRTH = (0.5, 1.5)  # nats from ln(vocabulary); heads are born small, so that a good birth is within 0.1
SPIKE_WINDOW = 32  # steps before, whose median and spread a spike is held against
SPIKE = 8.0  # spreads above the median: chance alone (normal losses) gets there twice in a million steps
SPREAD_FLOOR = 0.01  # of the median: where the loss hardly moves, any ripple would be many spreads high
SPIKE_LEAD = 5  # steps in which a spike of the gradient norm counts as having come before it
SPIKES_ILL = (3, 0.001)  # so many, or, if that is more, in this share of the steps: most runs survive one or two
DIVERGED = (0.25, 1.0)  # nats above the lowest; with one nat more, 2.7 times as many tokens seem possible
LAYERS = (30.0, 1000.0)  # largest over smallest block: pre-norm stacks differ by up to ten or so
GROWTH = (10.0, 100.0)  # of the gradient norm, from the first half of the run to its end
CLIPPED = 0.5  # of the later steps: with more, clip sets the length of a step rather than the learning rate
UPDATE_HIGH, UPDATE_LOW = (0.03, 0.1), (1e-5, 1e-7)  # 1e-3 is the rule of thumb (Karpathy); 1e-2 in short runs
MUON = 3.0  # times as much: every direction of its update has full length, and 0.03 is a good learning rate
BORN_SMALL = 0.1  # of the spread that keeps a signal's size: what is born below is the sum of its own updates
DEAD = (0.2, 0.5)  # share of a layer's units: so much of its width is unused
SHARP, UNIFORM = 0.02, 0.995  # entropy, as a share of the largest possible; a sharp head can be a good one
COLLAPSED = 0.5  # of the heads of a layer, that are sharp: collapse (Zhai et al. 2023, arXiv:2303.06296)
SCORES = (100.0, 1000.0)  # Kimi K2 (arXiv:2507.20534) clips scores at 100; beyond 1000 its runs were unstable
LOGITS = (64.0, 256.0)  # bfloat16 has 8 bits: above 64 it counts by half a nat, above 256 by two
OVERFIT_SHARE, OVERFIT_NATS = (0.01, 0.05), (0.02, 0.1)  # above the best; the larger counts: less is noise
GAP = 0.5  # nats of validation above training loss: text is being learned by heart, if not yet to harm
STALL_STEPS = 60  # the thirds of a shorter run are noise
STALLED, LEARNED = 0.001, 0.02  # of the loss: the least that the last third, and that the whole run, should take away
RATE_UP = 0.25  # of the peak: below, at the end of a schedule, little movement is normal
SOLVED = 0.05  # of ln(vocabulary): little is left to learn
ROWS = 8  # of statistics in the later half of a run: a median of fewer says little
PROBED_TOKENS, PROBED_ROWS = 2048, 4  # in the batch; rows whose entropy and logits are looked at
PROBED_NUMBERS = 2**27  # of scores or logits at a time: half a gigabyte


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at.

    sentence: what was found, with its numbers; cause: what usually causes it, and what to try (empty when ok).
    evidence: values, thresholds, steps. step: the one to open with `vitrine replay RUN --step N`.
    plot: what a picture of the evidence shows; None where nothing could be judged.
    """

    name: str
    level: Level
    sentence: str
    cause: str
    evidence: dict[str, Any]
    step: int | None = None
    plot: Plot | None = None


@dataclass(frozen=True)
class Health:
    """All verdicts on the run in the folder `run`."""

    run: str
    verdicts: tuple[Verdict, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is ill, and something could be judged."""
        return not self.count("ill") and self.count("unknown") < len(self.verdicts)

    def count(self, level: Level) -> int:
        """How many verdicts are of a level."""
        return sum(verdict.level == level for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """What `health --json` prints; null for what is not finite."""
        return {"healthy": self.healthy, "verdicts": [plain(v) for v in self.verdicts]}

    def to_text(self) -> str:
        """What `health` prints: a line a verdict, ill ones first with their cause below; at the end, the sum."""
        return self._text(LEVELS)

    def summary(self) -> str:
        """The same without what is well, or could not be judged."""
        return self._text(("ill", "watch"))

    def _text(self, levels: Sequence[Level]) -> str:
        shown = [verdict for level in levels for verdict in self.verdicts if verdict.level == level]
        lines, width = [], max((len(verdict.name) for verdict in shown), default=0)
        for verdict in shown:
            lines.append(f"{verdict.level:<9}{verdict.name:<{width}}  {verdict.sentence}")
            if verdict.cause:
                see = "" if verdict.step is None else f" Look: vitrine replay {self.run} --step {verdict.step}"
                lines.append(" " * (width + 11) + verdict.cause + see)
        ill, watch, unknown = self.count("ill"), self.count("watch"), self.count("unknown")
        found = f"{ill} ill, {watch} to watch" if ill or watch else "none is a cause for concern"
        found += f"; {unknown} could not be judged" if unknown else ""
        state = "healthy" if self.healthy else "ill" if ill else "unknown"
        return "\n".join([*lines, f"{state}: {len(self.verdicts) - unknown} verdicts looked at, {found}"])


def examine(reader: RunReader, probe_keyframes: int = 3) -> Health:
    """Judge a run by its history, and by looking into its model at so many keyframes."""
    history, probed = history_verdicts(reader), probe_verdicts(reader, probe_keyframes)
    return Health(str(reader.path), (*history[:5], *probed, *history[5:]))


def history_verdicts(reader: RunReader) -> tuple[Verdict, ...]:
    """The verdicts that need the history alone, and no torch."""
    history = _History(reader)
    judges: tuple[tuple[str, Callable[[_History], Found], str, int], ...] = (
        ("loss at birth", _birth, "steps", 1),
        ("loss spikes", _spikes, "steps", SPIKE_WINDOW + 1),
        ("divergence", _divergence, "steps", 0 if history.diverged else 10),
        ("gradients by layer", _gradients, "later_statistics", ROWS),
        ("update-to-weight ratio", _updates, "later_statistics", ROWS),
        ("over-fitting", _overfitting, "steps", 1),
        ("stalled learning", _stalling, "steps", STALL_STEPS + history.config.schedule.warmup_steps),
    )
    rows, verdicts = min(map(len, history.matrices.values()), default=0), []
    have = {"steps": len(history.steps), "later_statistics": rows}
    for name, judge, what, needed in judges:
        reason = f"{have[what]} {what.replace('_', ' ')} are recorded, {needed} are needed"
        missing = _unknown(reason, **{what: have[what]}, needed=needed)
        verdicts.append(_verdict(name, judge(history) if have[what] >= needed else missing, history.last))
    return tuple(verdicts)


def probe_verdicts(reader: RunReader, keyframes: int = 3) -> tuple[Verdict, ...]:
    """The verdicts that need the model, at birth, the last keyframe, and some between."""
    judges = (("dead units", _dead), ("attention", _attention), ("output logits", _logits))
    kept = keyframe_steps(reader.path / KEYFRAMES)
    chosen = sorted({kept[round(i)] for i in np.linspace(len(kept) - 1, 0, keyframes)}) if kept else []
    try:
        looks, reason = _look(reader, chosen) if chosen else [], "no keyframe was looked into"
    except (VitrineError, OSError) as error:
        looks, reason = [], str(error).rstrip(".")
    missing, last = _unknown(reason, kept=len(kept)), max(chosen, default=0)
    return tuple(_verdict(name, judge(looks) if looks else missing, last) for name, judge in judges)


class _History:
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
        # A random birth is noted with its seed; another, with where its parameters come from.
        elsewhere = any(e.kind == "born" and not e.text.startswith("seed") for e in events)
        self.inherited = elsewhere or bool(self.config.training.parent)


def _birth(history: _History) -> Found:
    """The first loss against that of pure guessing."""
    if history.steps[0] != 0:
        return _unknown(f"the first step recorded is {history.steps[0]}, not 0", first=int(history.steps[0]))
    loss, off = float(history.loss[0]), float(history.loss[0]) - history.guessing
    evidence = {"loss": loss, "guessing": history.guessing, "difference": off, "thresholds": BIRTH}
    sentence = f"{loss:.3f}, where guessing among {history.config.model.vocab_size:,} tokens has {history.guessing:.3f}"
    cause = "The first logits are too large: lower model.init_scale."
    if history.inherited:
        sentence += "; it began with learned parameters, so it may be lower"
        cause = "The parameters do not fit this text: look at its tokenizer, and at what they were trained on."
    elif off < 0:
        cause = "Random parameters know nothing: look whether the text is almost one token alone."
    return _level(off if history.inherited else abs(off), BIRTH), sentence, cause, evidence, 0


def _spikes(history: _History) -> Found:
    """Losses that stand out above those before them."""
    heights, gradients = _heights(history.loss), _heights(history.gradient)
    places = np.flatnonzero(heights > SPIKE)
    starts = places[np.diff(places, prepend=-SPIKE_WINDOW) >= SPIKE_WINDOW]  # what follows one belongs to it
    evidence = {"spikes": len(starts), "steps": history.steps[starts], "highest": heights.max(), "thresholds": SPIKE}
    if not len(starts):
        sentence = f"none: at most {heights.max():.1f} spreads above the median before; {SPIKE:g} would be a spike"
        return "ok", sentence, "", evidence, None
    start = max(starts, key=lambda i: float(heights[i : i + SPIKE_LEAD].max()))
    top, before = history.loss[start : start + SPIKE_LEAD].max(), np.median(history.loss[start - SPIKE_WINDOW : start])
    leads = [lead for lead in range(SPIKE_LEAD, -1, -1) if gradients[start - lead] > SPIKE]
    evidence |= {"loss": top, "median_before": before, "gradient_spike_steps_before": leads}
    told = f"a spike of the gradient norm {leads[0]} steps before it" if leads else "no spike of the gradient norm"
    step = int(history.steps[start])
    sentence = f"{len(starts)}, the worst at step {step}: {top:.3f} after a median of {before:.3f}, with {told}"
    many = len(starts) >= max(SPIKES_ILL[0], SPIKES_ILL[1] * len(heights))
    large = "Too large a step: lower optimizer.learning_rate or optimizer.clip, raise schedule.warmup_steps."
    cause = large if leads else "Odd text in that batch, rather than a large step before it: read the batch."
    return "ill" if many else "watch", sentence, cause, evidence, step


def _divergence(history: _History) -> Found:
    """Whether training broke off, or ended far above where it had been."""
    cause = "Too large steps: lower optimizer.learning_rate, raise schedule.warmup_steps, or set optimizer.clip."
    if event := history.diverged:
        last = int(history.steps[-1]) if len(history.steps) else None
        losses = {"diverged_at": event.step, "losses": history.loss[-5:]}
        return "ill", f"broke off at step {event.step}: {event.text}", cause, losses, last
    window = history.smoothing
    smooth = np.concatenate([history.loss[:1], np.median(sliding_window_view(history.loss, window), axis=1)])
    rises = smooth - np.minimum.accumulate(smooth)
    end, top = len(rises) - 1, int(rises.argmax())
    # The least of many medians lies lower than a single one, by a few times their noise.
    noise = 4 * float(_spread(np.diff(history.loss))) / math.sqrt(2 * window)
    limits = min(max(DIVERGED[0], noise), DIVERGED[1]), DIVERGED[1]
    level = _worst(_level(rises[end], limits), "watch" if rises[top] > limits[1] else "ok")  # it may have come back
    onset = int(np.flatnonzero(rises[: top + 1] <= rises[top] / 2)[-1])  # halfway up, half of the window is up
    turn = int(history.steps[min(onset + window // 2, len(history.steps) - 1)])
    evidence = {"end": smooth[end], "rise": rises[end], "most": rises[top], "from": turn, "thresholds": limits}
    sentence = f"the loss ends at {smooth[end]:.3f}, {rises[end]:.3f} above its lowest; {limits[0]:.2g} would be much "
    sentence += f"(the most on the way was {rises[top]:.3f})"
    return level, sentence, cause, evidence, turn


def _gradients(history: _History) -> Found:
    """Gradients that vanish or explode from block to block, or over the run; and how often they were clipped."""
    by_block, clip = [], history.config.optimizer.clip
    for layer in range(history.config.model.n_layers):
        mine = [plan for plan in history.matrices if plan.name.startswith(f"blocks.{layer}.")]
        squares = sum(history.matrices[plan]["gradient_norm"].astype(np.float64) ** 2 for plan in mine)
        by_block.append(float(np.median(np.sqrt(squares / sum(plan.parameters for plan in mine)))))
    least, most = int(np.argmin(by_block)), int(np.argmax(by_block))
    half, ratio = len(history.gradient) // 2, _ratio(by_block[most], by_block[least])
    growth = _ratio(np.median(history.gradient[-max(5, half // 5) :]), np.median(history.gradient[:half]))
    clipped = float((history.gradient[half:] > clip).mean()) if clip else 0.0
    level = _worst(_level(ratio, LAYERS), _level(growth, GROWTH), "watch" if clipped > CLIPPED else "ok")
    thresholds = {"ratio": LAYERS, "growth": GROWTH, "clipped": CLIPPED, "clip": clip}
    evidence = {"by_block": by_block, "ratio": ratio, "growth": growth, "clipped": clipped, "thresholds": thresholds}
    sentence = f"per parameter {by_block[least]:.1e} (blocks.{least}) to {by_block[most]:.1e} (blocks.{most}): a ratio "
    sentence += f"of {ratio:.3g}; the norm ends at {growth:.2g} times its first half; {clipped:.0%} of steps clipped"
    cause = "Most steps have the length that clipping gives them: raise optimizer.clip, or lower the learning rate."
    if growth > GROWTH[0]:
        cause = "Gradients explode: lower optimizer.learning_rate, set optimizer.clip."
    if not ratio <= LAYERS[0]:
        cause = f"blocks.{least} hardly learns: try model.init_scale = 1, a lower learning rate, or fewer layers."
    return level, sentence, cause, evidence, int(history.steps[-1])


def _updates(history: _History) -> Found:
    """How far each matrix moves in a step, against its size. Gains and biases are not judged."""
    ratios, levels = dict[str, float](), dict[str, Level]()
    for plan, table in history.matrices.items():
        there = table[table["weight_norm"] > 0]
        ratio = float(np.median(there["update_norm"] / there["weight_norm"])) if len(there) else 0.0
        # Born near zero, a matrix is the sum of its updates: if these have random directions, each is 1/sqrt(step).
        small = plan.std * math.sqrt(plan.shape[-1]) < BORN_SMALL
        own = 1 / math.sqrt(float(np.median(table["step"])) + 1) if small else 0.0
        factor = MUON if history.config.optimizer.name == "muon" and plan.name.startswith("blocks.") else 1.0
        too_high = _level(ratio, (factor * UPDATE_HIGH[0] + own, factor * UPDATE_HIGH[1] + own))
        too_low = _level(-ratio, (-UPDATE_LOW[0], -UPDATE_LOW[1]))
        ratios[plan.name], levels[plan.name] = ratio, _worst(too_high, too_low)
    level, median = _worst(*levels.values()), float(np.median(list(ratios.values())))
    odd = [tensor for tensor in levels if levels[tensor] == level]
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    evidence = {"median": median, "ratios": ratios, "high": UPDATE_HIGH, "low": UPDATE_LOW, "muon_factor": MUON}
    sentence = f"median {median:.1e}, from {ratios[low]:.1e} ({low}) to {ratios[high]:.1e} ({high}); 1e-3 is usual"
    slow = ratios[odd[0]] < UPDATE_LOW[0]
    cause = f"{len(odd)} of {len(levels)} matrices {'hardly move' if slow else 'move too far in a step'} ({odd[0]}): "
    cause += f"{'raise' if slow else 'lower'} optimizer.learning_rate (or adamw_learning_rate)."
    return level, sentence, cause, evidence, int(history.steps[-1])


def _overfitting(history: _History) -> Found:
    """Validation loss against its best, and against training loss."""
    if not history.evaluations:
        return _unknown("no validation loss was measured: too early, or data.validation = 0", evaluations=0)
    best, last = min(history.evaluations, key=lambda e: e.loss), history.evaluations[-1]
    training = float(np.median(history.loss[history.steps <= last.step][-history.smoothing :]))
    rise, gap = last.loss - best.loss, last.loss - training
    watch, ill = np.maximum(OVERFIT_NATS, np.multiply(OVERFIT_SHARE, best.loss)).tolist()
    # Where training loss, too, is above the best validation loss, nothing was learned by heart.
    level = _worst(_level(rise, (watch, ill)), "watch" if gap > GAP else "ok") if training < best.loss else "ok"
    evidence = {"validation": last.loss, "training": training, "gap": gap, "best": best.loss, "best_step": best.step}
    evidence |= {"rise": rise, "watch_above": watch, "ill_above": ill, "gap_above": GAP}
    sentence = f"validation {last.loss:.3f}, training {training:.3f}, a gap of {gap:.3f}; "
    sentence += f"{rise:.3f} above its best ({best.loss:.3f} at step {best.step})"
    cause = "Text is learned by heart: more text, fewer steps (training.patience), model.dropout, a smaller model."
    cause += f" --step best goes back to step {best.step}." if rise > 0 else ""
    return level, sentence, cause, evidence, min(best.step, int(history.steps[-1]))


def _stalling(history: _History) -> Found:
    """Whether the loss still falls while the learning rate is up, and whether it ever fell."""
    third, first = len(history.loss) // 3, float(history.loss[0])
    before, end = (float(np.median(half)) for half in np.array_split(history.loss[-third:], 2))
    rate = _ratio(np.median(history.rate[-third:]), history.rate.max())
    thresholds = {"fall": STALLED * end, "learned": LEARNED * first, "rate": RATE_UP}
    evidence = {"fall": before - end, "end": end, "learned": first - end, "rate": rate, "thresholds": thresholds}
    sentence = f"in the last third the loss fell by {before - end:.3f} (to {end:.3f}), in all by {first - end:.3f}; "
    sentence += f"the learning rate there was {rate:.0%} of its peak"
    level: Level = "watch" if before - end < STALLED * end and rate >= RATE_UP else "ok"
    cause = "A plateau: let the learning rate fall (schedule.name = linear), or try a larger model or more text."
    if first - end < LEARNED * first and not history.inherited:
        level, cause = "ill", "Next to nothing was learned: the learning rate is far too low, or far too high."
    level = "ok" if end < SOLVED * history.guessing else level
    return level, sentence, cause, evidence, int(history.steps[-third])


def _dead(looks: Sequence["_Look"]) -> Found:
    """Units of the MLPs that no token of the batch opens."""
    first, last = looks[0], looks[-1]
    layer = int(last.dead.argmax())
    evidence = {"by_layer": {look.step: look.dead for look in looks}, "tokens": last.tokens, "thresholds": DEAD}
    sentence = f"{last.dead.mean():.1%} are above zero for none of {last.tokens:,} tokens (at step {first.step}: "
    sentence += f"{first.dead.mean():.1%}), most in blocks.{layer}: {last.dead[layer]:.1%}"
    cause = "Large steps push units out of reach: lower optimizer.learning_rate, raise schedule.warmup_steps."
    return _level(float(last.dead[layer]), DEAD), sentence, cause, evidence, max(0, last.step - 1)


def _attention(looks: Sequence["_Look"]) -> Found:
    """Heads that look at one token alone, or at all alike; and scores that grow."""
    first, last = looks[0], looks[-1]
    sharp, low = _head(last.entropy, last.entropy.argmin())
    even, high = _head(last.entropy, last.entropy.argmax())
    head, score = _head(last.scores, last.scores.argmax())
    collapsed = float((~(last.entropy >= SHARP)).mean(1).max())  # NaN counts
    odd = collapsed or (high > UNIFORM and last.step > first.step)
    level: Level = "ill" if collapsed >= COLLAPSED else "watch" if odd else "ok"
    evidence = {"entropy": last.entropy, "scores": {look.step: look.scores.max() for look in looks}}
    evidence |= {"collapsed": collapsed, "thresholds": [SHARP, UNIFORM, COLLAPSED, SCORES]}
    sentence = f"entropy {low:.2f} ({sharp}) to {high:.2f} ({even}) of the largest possible; scores up to {score:.3g} "
    sentence += f"({head}), at step {first.step} up to {first.scores.max():.3g}"
    cause = f"{even} still looks at all tokens alike: it needs more steps, or is one head too many."
    if collapsed or not score <= SCORES[0]:
        cause = "Scores grow until a head sees one token: lower the learning rate, or try model.architecture = qwen3."
    return _worst(level, _level(score, SCORES)), sentence, cause, evidence, max(0, last.step - 1)


def _logits(looks: Sequence["_Look"]) -> Found:
    """The largest magnitude of an output logit."""
    evidence = {"largest": {look.step: look.logit for look in looks}, "thresholds": LOGITS}
    told = ", ".join(f"{look.logit:.3g} at step {look.step}" for look in looks) + f"; {LOGITS[0]:g} would be much"
    cause = "The head grows without bound: lower the learning rate, or raise optimizer.weight_decay."
    return _level(looks[-1].logit, LOGITS), f"largest {told}", cause, evidence, max(0, looks[-1].step - 1)


def _later_statistics(reader: RunReader) -> dict[TensorSpec, NDArray[Any]]:
    """The later half of the statistics of every matrix; nothing if none are recorded."""
    matrices = [plan for plan in inventory(reader.config.model) if len(plan.shape) == 2] if reader.layout() else []
    tables = {plan: reader.statistics(plan.name) for plan in matrices}
    stop = min(map(len, tables.values()), default=0)  # they may grow while they are read
    return {plan: table[stop // 2 : stop] for plan, table in tables.items()}


@dataclass(frozen=True)
class _Look:
    """What was seen at a keyframe. dead: (n_layers,); entropy, scores: (n_layers, n_heads)."""

    step: int
    tokens: int
    dead: Floats
    entropy: Floats
    scores: Floats
    logit: float


def _look(reader: RunReader, steps: Sequence[int]) -> list[_Look]:
    """Run the model at these keyframes over one batch."""
    import torch

    from vitrine.inspection.probes import probe
    from vitrine.model.decoder import Decoder
    from vitrine.training.checkpoint import load_keyframe
    from vitrine.training.device import prepare_device
    from vitrine.training.tokens import open_tokens

    try:
        device = prepare_device(reader.config.machine)
    except VitrineError:  # trained on a device that is not here
        device = torch.device("cpu")
    corpus, model = open_tokens(reader), reader.config.model
    text = corpus.validation if len(corpus.validation) > model.context else corpus.train[0]
    affordable = PROBED_NUMBERS // (model.context * max(model.n_heads * model.context, model.vocab_size))
    count = max(1, min(PROBED_TOKENS // model.context, affordable))
    starts = np.linspace(0, len(text) - model.context, count).astype(np.int64)
    batch = np.stack([text[start : start + model.context].astype(np.int64) for start in starts])
    windows, looks = torch.from_numpy(batch).to(device), []
    for step in steps:
        decoder = Decoder(model, getattr(torch, reader.config.training.precision))
        decoder.load_state_dict(load_keyframe(keyframe_path(reader.path / KEYFRAMES, step), optimizer=False).parameters)
        whole = probe(decoder.to(device), windows, None)
        rows = [whole, *(probe(decoder, windows[i : i + 1], None) for i in range(1, min(PROBED_ROWS, count)))]
        entropy, logit = np.mean([row.entropy for row in rows], axis=0), np.max(np.abs([row.logits for row in rows]))
        looks.append(_Look(step, windows.numel(), whole.dead, entropy, whole.scores, float(logit)))
    return looks


def _verdict(name: str, found: Found, last: int) -> Verdict:
    """One that is ok has no cause, and no step to open."""
    level, sentence, cause, evidence, step = found
    if level == "unknown":
        return Verdict(name, level, sentence, cause, evidence, step)
    plot = plot_of(name, evidence, step, last)
    return Verdict(name, level, sentence, *(("", evidence, None) if level == "ok" else (cause, evidence, step)), plot)


def _unknown(reason: str, **evidence: int) -> Found:
    return "unknown", reason, "", evidence, None


def _level(value: float, limits: Limits) -> Level:
    """What is not a number is ill."""
    return "ok" if value <= limits[0] else "watch" if value <= limits[1] else "ill"


def _worst(*levels: Level) -> Level:
    return min(levels, key=LEVELS.index)


def _ratio(value: float, base: float) -> float:
    return float(value / base) if base else math.inf if value else 1.0


def _spread(values: Floats) -> Floats:
    """1.4826 times the median deviation: the standard deviation, were they normal; outliers hardly count. By row."""
    return 1.4826 * np.asarray(np.median(np.abs(values - np.median(values, axis=-1, keepdims=True)), axis=-1))


def _heights(values: Floats) -> Floats:
    """How many spreads each value is above the median of those before it; 0 for the first ones."""
    before = sliding_window_view(values, SPIKE_WINDOW)[:-1]
    median = np.median(before, axis=1)
    spread = np.maximum(_spread(before), np.maximum(SPREAD_FLOOR * np.abs(median), 1e-12))
    return np.concatenate([np.zeros(SPIKE_WINDOW), (values[SPIKE_WINDOW:] - median) / spread])


def _head(table: Floats, place: np.integer[Any]) -> tuple[str, float]:
    """The name and the number of a head, by its place in a flattened (n_layers, n_heads)."""
    layer, head = divmod(int(place), table.shape[1])
    return f"blocks.{layer} head {head}", float(table[layer, head])
