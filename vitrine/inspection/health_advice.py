"""The verdicts of `vitrine health`: their causes, which one is the headline, and what to try. No torch.

All advice is given here, from the hyperparameters of the run: two pieces of advice cannot contradict each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from vitrine.config import Config
from vitrine.optimizers.registry import OPTIMIZERS


class Level(StrEnum):
    """How bad it is, the worst first; the values are what the command prints and the page reads."""

    ERROR = "ill"
    WARNING = "watch"
    UNKNOWN = "unknown"
    OK = "ok"


class Cause(StrEnum):
    """What ails a run, as the headline names it."""

    INITIALISATION = "initialisation"
    UNFIT = "parameters that do not fit the text"
    ONE_TOKEN = "text of almost one token"
    RATE_HIGH = "learning rate too high"
    RATE_LOW = "learning rate too low"
    NOT_FINITE = "numbers that are not finite"
    ODD_BATCH = "odd text in one batch"
    NO_ORDER = "text without order"
    PLATEAU = "plateau"
    UNEVEN = "gradients that vanish in a block"
    CLIPPED = "clipping sets the length of the steps"
    OVER_FITTING = "over-fitting"
    SHIFTED = "validation text of another kind"
    DEAD = "dead units"
    SHARP = "attention that sees one token"
    UNIFORM = "a head that sees all tokens alike"
    LOGITS = "large output logits"


@dataclass(frozen=True)
class Plot:
    """The curves to draw, from a step to a step; or, where a run was looked into at keyframes, the values there.

    series: names as the studio's curves have them; points: step and value, what: of what.
    """

    series: tuple[str, ...] = ()
    first: int = 0
    last: int = 0
    points: tuple[tuple[int, float], ...] = ()
    what: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One thing that was looked at. A rule leaves the name to its decorator.

    sentence: what was found, with its numbers; blame: its usual cause; cause: the same in words, and what to try (empty when
    ok). evidence: values, thresholds, steps. step: the one to look at with `vitrine replay RUN --step N`.
    plot: of the evidence; None where nothing could be judged.
    """

    name: str = ""
    level: Level
    sentence: str
    blame: Cause | None = None
    cause: str = ""
    evidence: dict[str, Any]
    step: int | None = None
    plot: Plot | None = None


class Remedy(NamedTuple):
    """What to try. changes: hyperparameter -> "lower", "raise", "set" or "keep"."""

    text: str
    changes: dict[str, str]


def headline(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The first of the worst: the rules are in the order of cause and effect."""
    blamed = [verdict for verdict in verdicts if verdict.level in (Level.ERROR, Level.WARNING)]
    return min(blamed, key=lambda verdict: list(Level).index(verdict.level), default=None)


def advise(config: Config, verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Add to each cause what to try, the headline's first. What contradicts earlier advice is left out."""
    head, advised, given = headline(verdicts), dict[str, Verdict](), dict[str, str]()
    for verdict in sorted(verdicts, key=lambda v: (v is not head, list(Level).index(v.level))):
        if verdict.blame is None or verdict.level == Level.OK:  # nothing to look at, and nothing to mend
            clear: dict[str, Any] = {"blame": None, "cause": "", "step": None} if verdict.level == Level.OK else {}
            advised[verdict.name] = replace(verdict, **clear)
            continue
        text, changes = remedy(verdict, config)
        if changes and changes.items() <= given.items():
            text = "The advice above is for this, too."
        elif any(given.get(name, change) != change for name, change in changes.items()):
            text = "What usually helps contradicts the advice above: follow that first."
        else:
            given |= changes
        advised[verdict.name] = replace(verdict, cause=f"{verdict.cause} {text}".strip())
    return tuple(advised[verdict.name] for verdict in verdicts)


def remedy(verdict: Verdict, config: Config) -> Remedy:
    """What to try against a cause, with these hyperparameters."""
    data, optimizer, schedule = config.data, config.optimizer, config.schedule
    match verdict.blame:
        case Cause.RATE_HIGH:
            return _slower(verdict, config)
        case Cause.RATE_LOW:
            return _rate(verdict, config, "raise")
        case Cause.INITIALISATION if config.model.init_scale != 1:
            text = f"model.init_scale = {config.model.init_scale:g}: try 1."
            return Remedy(text, {"model.init_scale": "set"})
        case Cause.NOT_FINITE if config.training.precision != "float32":
            return Remedy("Try training.precision = float32.", {"training.precision": "set"})
        case Cause.ODD_BATCH:
            return Remedy("Read the batch; no hyperparameter has to change.", {})
        case Cause.NO_ORDER:
            return Remedy("No hyperparameter helps: look at how the text and its tokens were made.", {})
        case Cause.PLATEAU:
            slope = schedule.name == "constant"
            fall = "let the learning rate fall (schedule.name = linear), or try " if slope else ""
            text = f"Try {fall}a larger model, more text or more steps."
            return Remedy(text.replace("Try let", "Let"), {"schedule.name": "set"} if slope else {})
        case Cause.CLIPPED:
            return Remedy(f"optimizer.clip = {optimizer.clip:g}: raise it.", {"optimizer.clip": "raise"})
        case Cause.UNEVEN | Cause.LOGITS | Cause.SHARP:
            return _rate(verdict, config, "lower")
        case Cause.DEAD if verdict.step:
            return _slower(verdict, config)
        case Cause.DEAD:
            return Remedy("They were dead before the first step: look at the parameters that it began with.", {})
        case Cause.OVER_FITTING:
            best = verdict.evidence.get("best_step")
            text = f"Try more text, fewer steps (training.patience), model.dropout (now {config.model.dropout:g}) or a "
            return Remedy(f"{text}smaller model. --step best goes back to step {best}.", {})
        case Cause.SHIFTED:
            held = "files of their own" if isinstance(data.validation, list) else f"the {data.validation_split}"
            return Remedy(f"data.validation holds back {held}: hold back text like the training text.", {})
    return Remedy("", {})


def _slower(verdict: Verdict, config: Config) -> Remedy:
    """Shorter steps: a lower learning rate; a clip and a warm-up, unless they are there."""
    text, changes = _rate(verdict, config, "lower")
    optimizer, schedule, kind = config.optimizer, config.schedule, OPTIMIZERS[config.optimizer.name]
    if not optimizer.clip:
        text, changes = f"{text} Set optimizer.clip = 1.", changes | {"optimizer.clip": "set"}
    else:
        longest = optimizer.learning_rate * optimizer.clip / (1 - optimizer.momentum)
        limit = f", but a step may still have length {longest:g}"
        limit = f", which does not shorten the steps of {kind.name}" if kind.scale_free else limit
        text, changes = (
            f"{text} optimizer.clip = {optimizer.clip:g} is on{limit}.",
            changes | {"optimizer.clip": "keep"},
        )
    if kind.warms_up and schedule.warmup_steps < (usual := min(100, config.training.steps // 20)):
        text = f"{text} Raise schedule.warmup_steps from {schedule.warmup_steps} to {usual}."
        changes = changes | {"schedule.warmup_steps": "raise"}
    return Remedy(text, changes)


def _rate(verdict: Verdict, config: Config, change: str) -> Remedy:
    """Another learning rate: the usual one of the optimizer if that is far, otherwise a third or three times as much."""
    kind = OPTIMIZERS[config.optimizer.name]
    usual = kind.defaults(config.model.d_model)
    names = [name for name in ("learning_rate", "adamw_learning_rate") if name in kind.hyperparameters]
    now = {name: getattr(config.optimizer, name) for name in names}
    far = [
        name
        for name in names
        if (now[name] / usual[name] >= 3 if change == "lower" else now[name] / usual[name] <= 1 / 3)
    ]
    moved = "learning_rate" if verdict.evidence.get("hidden", True) else names[-1]
    said = []
    for name in far or [moved]:
        if name in far:
            to = f"try {usual[name]:.2g}, as is usual for {kind.name} at this width"
        else:
            to = f"try {now[name] * (3 if change == 'raise' else 1 / 3):.2g} ({usual[name]:.2g} is usual for {kind.name})"
        said.append(f"optimizer.{name} = {now[name]:.3g}: {to}")
    return Remedy("; ".join(said) + ".", {f"optimizer.{name}": change for name in far or [moved]})
