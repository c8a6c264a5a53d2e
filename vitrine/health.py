"""`vitrine health`: verdicts on a run, each with numbers, what usually causes it, and the step to open.

Those that come from the history alone (`history_verdicts`) need no torch; `probe_verdicts` runs the model over a
fixed batch at a few keyframes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vitrine.census import TensorPlan, census
from vitrine.config import Config
from vitrine.errors import VitrineError
from vitrine.runs.keyframes import keyframe_path, keyframe_steps
from vitrine.runs.reader import KEYFRAMES, RunReader

if TYPE_CHECKING:
    from torch import Tensor

    from vitrine.recording.probes import Probe

Numbers = NDArray[np.float64]
Level = Literal["ill", "watch", "unknown", "ok"]
Limits = tuple[float, float]  # from where on it is «watch», and «ill»

# Nats above (or below) ln(vocabulary). Heads are born small, so a good birth is within 0.1 of pure guessing.
BIRTH = (0.5, 1.5)
# A spike is so many spreads (1.4826 x median deviation: a standard deviation, were it normal) above the median before.
SPIKE_WINDOW, SPIKE_SPREADS = 32, 6.0
SPREAD_FLOOR = 0.01  # of the median: where the loss hardly moves, any ripple would be many spreads high
SPIKE_LEAD = 5  # steps in which a spike of the gradient counts as having come before it
SPIKES_ILL = (3, 0.001)  # as many, and in that share of the steps: one or two are survived by most runs
DIVERGED = (0.25, 1.0)  # nats above the lowest; a nat is 2.7 times as many equally likely tokens
# Largest over smallest block. Pre-norm stacks differ by up to ten or so; beyond, some blocks hardly learn.
LAYERS = (30.0, 1000.0)
GRADIENT_GROWTH = (10.0, 100.0)  # of the norm, from the first half of the run to its end
CLIPPED = 0.5  # of the later steps: more, and clip sets the step's length rather than the learning rate
# Update over weight: about 1e-3 is usual (Karpathy's rule of thumb), and up to 1e-2 in short runs with high rates.
UPDATE_HIGH, UPDATE_LOW = (0.03, 0.1), (1e-5, 1e-7)
MUON = 3.0  # times as high for Muon: all singular values of its update are alike, and healthy runs use 0.03
BORN_SMALL = 0.1  # x the spread that keeps a signal's size: tensors born below consist of their own updates
DEAD = (0.2, 0.5)  # share of a layer's units: its width is then in good part unused
# Entropy over the largest possible. One sharp head (the token before, say) is a good head; half a layer is collapse:
# Zhai et al. 2023, arXiv:2303.06296.
ENTROPY_ZERO, ENTROPY_UNIFORM, HEADS_ILL = 0.02, 0.995, 0.5
SCORES = (100.0, 1000.0)  # Kimi K2 (arXiv:2507.20534) clips at 100, and saw beyond 1000 what made runs unstable
LOGITS = (64.0, 256.0)  # bfloat16 has 8 bits: from 64 on it counts by half a nat, from 256 on by two
OVERFIT, OVERFIT_NATS = (0.01, 0.05), (0.02, 0.1)  # above the best, relative and at least: what exceeds noise
GAP = 0.5  # nats of validation over training loss: the text is being learned by heart, if not yet to harm
STALL_STEPS = 60  # a third of fewer is noise
STALLED = 0.001  # of the loss, that the last third should fall by
LEARNED = 0.02  # of the first loss, that training should have taken away
RATE_UP = 0.25  # of the peak: below, little movement is normal
SOLVED = 0.05  # of ln(vocabulary): nothing much is left to learn
PROBED_TOKENS, PROBED_ROWS = 2048, 4  # in the batch; rows whose entropy and logits are looked at
PROBED_NUMBERS = 2**26  # a quarter of a gigabyte of scores or logits at a time


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at.

    sentence: what it means, with its numbers; cause: what usually causes it, and what to try (empty when ok).
    evidence: values, thresholds, steps. step: what to open with `vitrine replay RUN --step N`.
    """

    name: str
    level: Level
    sentence: str
    cause: str
    evidence: dict[str, Any]
    step: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Every field; null for what is not finite."""
        fields = ("name", "level", "sentence", "cause", "evidence", "step")
        return {name: _plain(getattr(self, name)) for name in fields}


@dataclass(frozen=True)
class Health:
    """All verdicts on a run, whose folder is `run`."""

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
        """What `health --json` prints."""
        return {"healthy": self.healthy, "verdicts": [verdict.to_json() for verdict in self.verdicts]}

    def to_text(self) -> str:
        """What `health` prints: a line a verdict, the ill ones first, each with its cause below; and the sum."""
        order, width = ("ill", "watch", "unknown", "ok"), max(len(verdict.name) for verdict in self.verdicts)
        lines = []
        for verdict in sorted(self.verdicts, key=lambda verdict: order.index(verdict.level)):
            lines.append(f"{verdict.level:<9}{verdict.name:<{width}}  {verdict.sentence}")
            if verdict.cause:
                see = "" if verdict.step is None else f" See vitrine replay {self.run} --step {verdict.step}"
                lines.append(f"{'':<{width + 11}}{verdict.cause}{see}")
        return "\n".join([*lines, self._summary()])

    def _summary(self) -> str:
        ill, watch, unknown = self.count("ill"), self.count("watch"), self.count("unknown")
        judged = len(self.verdicts) - unknown
        open_text = f" ({unknown} could not be judged)" if unknown else ""
        if not judged:
            return f"unknown: none of {unknown} verdicts could be judged"
        if not ill and not watch:
            return f"healthy: {judged} verdicts looked at{open_text}, none is a cause for concern"
        return f"{'ill' if ill else 'healthy'}: {judged} verdicts looked at{open_text}, {ill} ill, {watch} to watch"


def examine(reader: RunReader, probe_keyframes: int = 3) -> Health:
    """Judge a run by its history, and by looking into the model at so many of its keyframes."""
    history, probed = history_verdicts(reader), probe_verdicts(reader, probe_keyframes)
    return Health(str(reader.path), (*history[:5], *probed, *history[5:]))


def history_verdicts(reader: RunReader) -> tuple[Verdict, ...]:
    """The verdicts that need the history alone. Needs no torch."""
    history, norms = _History(reader), _matrix_norms(reader)
    return (
        judge_birth(history),
        judge_spikes(history),
        judge_divergence(history),
        judge_gradients(history, norms),
        judge_updates(history, norms),
        judge_overfitting(history),
        judge_stalling(history),
    )


def probe_verdicts(reader: RunReader, keyframes: int = 3) -> tuple[Verdict, ...]:
    """The verdicts that need the model: its units, attention and logits at birth, at the last keyframe, and between."""
    names = ("dead units", "attention", "output logits")
    kept = keyframe_steps(reader.path / KEYFRAMES)
    chosen = sorted({kept[round(i)] for i in np.linspace(0, len(kept) - 1, keyframes)}) if kept else []
    if not chosen:
        return tuple(_unknown(name, "no keyframe to look into", keyframes=len(kept)) for name in names)
    try:
        probes = _probes(reader, chosen)
    except (VitrineError, OSError) as error:
        return tuple(_unknown(name, str(error).rstrip("."), keyframes=len(kept)) for name in names)
    made = reader.steps_made()
    step = min(chosen[-1], made - 1) if made else None  # the last keyframe is of a step that was not made yet
    return judge_dead(chosen, probes, step), judge_attention(chosen, probes, step), judge_logits(chosen, probes, step)


class _History:
    """The steps and evaluations of a run as arrays; steps with a loss or gradient that is not finite left out."""

    def __init__(self, reader: RunReader) -> None:
        self.config: Config = reader.config
        records = reader.steps()
        table = np.array([(r.step, r.loss, r.gradient_norm, r.learning_rate) for r in records], np.float64)
        table = table.reshape(-1, 4)
        table = table[np.isfinite(table).all(1)]
        self.steps = table[:, 0].astype(np.int64)
        self.loss, self.gradient, self.rate = table[:, 1], table[:, 2], table[:, 3]
        # The same sample of the validation split each time; what was measured on all of it does not compare.
        limit = self.config.training.evaluation_tokens
        self.evaluations = [e for e in reader.evaluations() if not (e.whole and e.tokens > limit)]
        events, last = reader.events(), records[-1].step if records else -1
        self.diverged = next((e for e in events if e.kind == "diverged" and e.step > last), None)
        # A birth event says «seed N»; other parameters come from another run, or from elsewhere.
        self.inherited = bool(self.config.training.parent) or any(
            e.kind == "born" and not e.text.startswith("seed") for e in events
        )
        self.smoothing = min(50, max(5, len(table) // 20))  # steps of one running median

    @property
    def guessing(self) -> float:
        """The loss of taking every token for equally likely."""
        return math.log(self.config.model.vocab_size)

    def too_short(self, name: str, needed: int) -> Verdict | None:
        """A verdict that says so, if fewer steps were recorded."""
        if (made := len(self.steps)) >= needed:
            return None
        return _unknown(name, f"{made} steps recorded, {needed} needed", steps=made, steps_needed=needed)


def judge_birth(history: _History) -> Verdict:
    """The first loss against that of pure guessing."""
    name = "loss at birth"
    if short := history.too_short(name, 1):
        return short
    if history.steps[0] != 0:
        return _unknown(name, f"step 0 was not recorded, step {history.steps[0]} is the first", steps=len(history.loss))
    loss, guessing = float(history.loss[0]), history.guessing
    off = loss - guessing
    evidence = {"loss": loss, "guessing": guessing, "difference": off, "thresholds": BIRTH}
    numbers = f"first loss {loss:.3f}, pure guessing over {history.config.model.vocab_size:,} tokens is {guessing:.3f}"
    if history.inherited:
        level = _level(off, BIRTH)
        sentence = f"{numbers}; it began with learned parameters, so only a loss above that would be odd"
        cause = "These parameters do not fit this text: another tokenizer, or another kind of text."
    else:
        level = _level(abs(off), BIRTH)
        sentence = f"{numbers}: {abs(off):.3f} nats {'above' if off > 0 else 'below'}"
        cause = (
            "The first logits are too large: lower model.init_scale."
            if off > 0
            else "Random weights cannot know the text: look whether the targets leak into the inputs."
        )
    return _verdict(name, level, sentence, cause, evidence, 0)


def judge_spikes(history: _History) -> Verdict:
    """Losses that stand out above those just before."""
    name = "loss spikes"
    if short := history.too_short(name, SPIKE_WINDOW + 1):
        return short
    heights, gradient_heights = _heights(history.loss), _heights(history.gradient)
    places = np.flatnonzero(heights > SPIKE_SPREADS)
    firsts = [int(i) for k, i in enumerate(places) if k == 0 or i - places[k - 1] > SPIKE_WINDOW]
    evidence: dict[str, Any] = {
        "spikes": len(firsts),
        "steps": [int(history.steps[i]) for i in firsts],
        "highest": float(heights.max()),
        "thresholds": [SPIKE_SPREADS, *SPIKES_ILL],
    }
    if not firsts:
        sentence = f"none in {len(heights)} steps: the highest loss is {heights.max():.1f} spreads above the median before, {SPIKE_SPREADS:g} would be a spike"
        return _verdict(name, "ok", sentence, "", evidence)
    worst = max(firsts, key=lambda i: float(heights[i : i + SPIKE_LEAD].max()))
    peak = worst + int(heights[worst : worst + SPIKE_LEAD].argmax())
    before = float(np.median(history.loss[worst - SPIKE_WINDOW : worst]))
    early = [worst - i for i in range(max(0, worst - SPIKE_LEAD), worst + 1) if gradient_heights[i] > SPIKE_SPREADS]
    evidence |= {"loss": float(history.loss[peak]), "median_before": before, "gradient_spike_steps_before": early}
    gradient = f"the gradient norm spiked {early[0]} steps before" if early else "no spike of the gradient norm before"
    gradient = "the gradient norm spiked in the same step" if early == [0] else gradient
    sentence = f"{len(firsts)} in {len(heights)} steps; the worst at step {history.steps[worst]}: loss {history.loss[peak]:.3f} after a median of {before:.3f}; {gradient}"
    many = len(firsts) >= SPIKES_ILL[0] and len(firsts) > SPIKES_ILL[1] * len(heights)
    cause = (
        "Steps too large for this stretch of text: lower optimizer.learning_rate, optimizer.clip or betas[1]."
        if early
        else "Odd text in that batch rather than a large step before it: look at the batch."
    )
    return _verdict(name, "ill" if many else "watch", sentence, cause, evidence, int(history.steps[worst]))


def judge_divergence(history: _History) -> Verdict:
    """Whether training broke off, or ended far above where it had been."""
    name, step = "divergence", int(history.steps[-1]) if len(history.steps) else None
    cause = "Steps too large: lower optimizer.learning_rate, raise schedule.warmup_steps, or set optimizer.clip."
    if (event := history.diverged) is not None:
        loss = float(history.loss[-1]) if len(history.loss) else None
        evidence: dict[str, Any] = {"diverged_at": event.step, "last_loss": loss}
        return _verdict(name, "ill", f"broke off at step {event.step}: {event.text}", cause, evidence, step)
    if short := history.too_short(name, 10):
        return short
    window = history.smoothing
    smooth = _running_median(history.loss, window)
    lowest, end = min(float(history.loss[0]), float(smooth.min())), float(smooth[-1])
    # The least of many medians lies below the truth by their noise.
    noise = 4 * _spread(np.diff(history.loss)) / math.sqrt(2 * window)
    limits = max(DIVERGED[0], noise), max(DIVERGED[1], noise)
    turned = int(history.steps[min(len(history.steps) - 1, int(smooth.argmin()) + window)])
    evidence = {"end": end, "lowest": lowest, "rise": end - lowest, "thresholds": limits, "lowest_before_step": turned}
    sentence = f"the loss ends at {end:.3f}, {end - lowest:.3f} nats above its lowest ({lowest:.3f})"
    return _verdict(name, _level(end - lowest, limits), sentence, cause, evidence, turned)


@dataclass(frozen=True)
class _Norms:
    """Recorded norms of one matrix, over the later half of the recorded steps."""

    plan: TensorPlan
    steps: NDArray[np.int64]
    weight: Numbers
    gradient: Numbers
    update: Numbers


def judge_gradients(history: _History, norms: Sequence[_Norms]) -> Verdict:
    """Gradients that vanish or explode from layer to layer, or over the run; and how many steps were clipped."""
    name, clip = "gradients by layer", history.config.optimizer.clip
    if short := history.too_short(name, 16) or _too_few_rows(name, norms):
        return short
    blocks: dict[int, list[_Norms]] = {}
    for tensor in norms:
        if tensor.plan.name.startswith("blocks."):
            blocks.setdefault(int(tensor.plan.name.split(".")[1]), []).append(tensor)
    sizes = {
        layer: float(np.median(np.sqrt(sum(t.gradient**2 for t in tensors) / sum(t.plan.parameters for t in tensors))))
        for layer, tensors in blocks.items()
    }
    least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    ratio = sizes[most] / sizes[least] if sizes[least] else math.inf
    half, end = len(history.gradient) // 2, max(5, len(history.gradient) // 10)
    growth = _ratio(float(np.median(history.gradient[-end:])), float(np.median(history.gradient[:half])))
    clipped = float((history.gradient[half:] > clip).mean()) if clip else 0.0
    level = max(_level(ratio, LAYERS), _level(growth, GRADIENT_GROWTH), key=("ok", "watch", "ill").index)
    level = "watch" if level == "ok" and clipped > CLIPPED else level
    evidence = {"by_block": sizes, "ratio": ratio, "growth": growth, "clipped": clipped, "clip": clip}
    evidence |= {"thresholds": {"ratio": LAYERS, "growth": GRADIENT_GROWTH, "clipped": CLIPPED}}
    sentence = f"per parameter {sizes[most]:.2g} in blocks.{most} (largest) and {sizes[least]:.2g} in blocks.{least} (smallest): {ratio:.3g} to 1; the norm's end is {growth:.2g} times its first half; {clipped:.0%} of the later steps were clipped"
    if ratio > LAYERS[0]:
        cause = "A block far behind learns little: use another model.init_scale or a lower learning rate, fewer layers."
    elif growth > GRADIENT_GROWTH[0]:
        cause = "Gradients explode: lower optimizer.learning_rate, set optimizer.clip."
    else:
        cause = "Clipping sets the length of most steps: raise optimizer.clip, or lower the learning rate with it."
    return _verdict(name, level, sentence, cause, evidence, int(history.steps[-1]))


def judge_updates(history: _History, norms: Sequence[_Norms]) -> Verdict:
    """How far each matrix moves in a step, against its size. Gains and biases are not judged."""
    name = "update-to-weight ratio"
    if short := _too_few_rows(name, norms):
        return short
    ratios, levels = {}, {}
    for t in norms:
        moving = t.weight > 0
        ratio = float(np.median(t.update[moving] / t.weight[moving])) if moving.any() else 0.0
        muon = history.config.optimizer.name == "muon" and t.plan.name.startswith("blocks.")
        # Born near zero, a matrix is the sum of its updates: in random directions, each is 1/sqrt(step) of it.
        small = t.plan.std * math.sqrt(t.plan.shape[-1]) < BORN_SMALL
        own = 1 / math.sqrt(float(np.median(t.steps)) + 1) if small else 0.0
        high = _level(ratio, tuple((limit * (MUON if muon else 1) + own) for limit in UPDATE_HIGH))
        low = _level(-ratio, tuple(-limit for limit in UPDATE_LOW))
        ratios[t.plan.name], levels[t.plan.name] = ratio, high if high != "ok" else low
    worst = [next((n for n in levels if levels[n] == level), "") for level in ("ill", "watch")]
    tensor = worst[0] or worst[1]
    least, most = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    median = float(np.median(list(ratios.values())))
    evidence = {"median": median, "ratios": ratios, "high": UPDATE_HIGH, "low": UPDATE_LOW, "muon_factor": MUON}
    sentence = f"median {median:.1e} over {len(ratios)} matrices, from {ratios[least]:.1e} ({least}) to {ratios[most]:.1e} ({most}); about 1e-3 is usual, up to 1e-2 in short runs"
    if not tensor:
        return _verdict(name, "ok", sentence, "", evidence)
    low_side = ratios[tensor] < UPDATE_LOW[0]
    odd = [n for n in levels if levels[n] == levels[tensor]]
    cause = f"{len(odd)} {'hardly move: raise' if low_side else 'move too fast: lower'} optimizer.learning_rate, or adamw_learning_rate with Muon ({', '.join(odd[:3])})."
    return _verdict(name, levels[tensor], sentence, cause, evidence, int(norms[0].steps[-1]))
