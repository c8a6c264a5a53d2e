"""Presets, and the derived hyperparameters: `resolve` turns a few settings into a complete Config."""

import math
from dataclasses import dataclass
from typing import Any

from vitrine.config import Config, Settings, merge, validate
from vitrine.errors import ConfigError, nearest
from vitrine.families.family import Family
from vitrine.families.registry import FAMILIES
from vitrine.model.inventory import flops_per_token
from vitrine.optimizers.optimizer import Optimizer
from vitrine.optimizers.registry import OPTIMIZERS
from vitrine.runs.chosen import Derived
from vitrine.runs.disk import recording_settings


@dataclass(frozen=True)
class Facts:
    """What is known about the corpus and the machine when the hyperparameters are resolved."""

    vocab_size: int
    train_tokens: int
    device: str = "cpu"
    threads: int = 1
    bfloat16: bool = False


# Most presets are sizes, from a hundred thousand parameters to a hundred million.
PRESETS: dict[str, Settings] = {
    "nano": {
        "model": {"n_layers": 2, "n_heads": 2, "d_model": 64, "context": 64},
        "training": {"batch_size": 16, "steps": 300},
    },
    "micro": {
        "model": {"n_layers": 4, "n_heads": 4, "d_model": 128, "context": 64},
        "training": {"batch_size": 16, "steps": 500},
    },
    # The fastest way to a usable small model: the fewest seconds to 1.88 nats per character (docs/experiments.md).
    "sprint": {
        "model": {"n_layers": 2, "n_heads": 2, "d_model": 64, "context": 64},
        "optimizer": {"name": "muon", "learning_rate": 0.08, "adamw_learning_rate": 0.04, "momentum": 0.85},
        "training": {"batch_size": 32, "steps": 180, "evaluate_every": 60},
    },
    # The lowest loss for a megabyte of text in three quarters of an hour on two cores (docs/experiments.md).
    "quality": {
        "model": {"n_layers": 6, "n_heads": 4, "d_model": 256, "context": 256, "dropout": 0.25},
        "optimizer": {"name": "muon", "learning_rate": 0.025, "weight_decay": 0.1},
        "training": {"batch_size": 32, "steps": 1_500, "evaluate_every": 250},
    },
    "mini": {
        "model": {"n_layers": 6, "n_heads": 6, "d_model": 384, "context": 256},
        "training": {"batch_size": 16, "steps": 2_000},
    },
    "small": {
        "model": {"n_layers": 8, "n_heads": 8, "d_model": 512, "context": 512},
        "training": {"batch_size": 16, "steps": 5_000},
    },
    "medium": {
        "model": {"n_layers": 12, "n_heads": 12, "d_model": 768, "context": 1024},
        "training": {"batch_size": 16, "accumulation": 4, "steps": 10_000},
    },
    "gpt2-124m": {
        "model": {"architecture": "gpt2", "n_layers": 12, "n_heads": 12, "d_model": 768, "context": 1024},
        "data": {"tokenizer": "bpe:50257"},
        "optimizer": {"name": "adamw", "learning_rate": 6e-4, "betas": [0.9, 0.95], "weight_decay": 0.1},
        "schedule": {"name": "cosine", "final_fraction": 0.1},
        "training": {"batch_size": 12, "accumulation": 40, "steps": 20_000},
    },
    # nanoGPT's published laptop recipe, for comparison. It has no biases; our gpt2 family has them.
    "nanogpt-laptop": {
        "model": {"architecture": "gpt2", "n_layers": 4, "n_heads": 4, "d_model": 128, "context": 64},
        "data": {"tokenizer": "char", "validation": 0.1},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1},
        "schedule": {"name": "cosine", "final_fraction": 0.1},
        "training": {"batch_size": 12, "steps": 2_000, "precision": "float32"},
    },
    # It has every kind of parameter, and an optimizer whose updates can be explained cell by cell.
    "demo": {
        "model": {"architecture": "gpt2", "n_layers": 4, "n_heads": 4, "d_model": 128, "context": 64},
        "data": {"tokenizer": "char"},
        "optimizer": {"name": "adamw", "learning_rate": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.1},
        "schedule": {"name": "linear", "final_fraction": 0.03},
        "training": {"batch_size": 16, "steps": 800},
    },
}
DERIVED_RECORDING = ("keyframe_every", "statistics_every", "histograms", "film_frames", "text_samples")
FINAL_TOKENS = 2_000_000  # validation tokens for the last evaluation, at most
SIZES = ("nano", "micro", "mini", "small", "medium")

# Measured share of the matrix rate that a training step of each size reaches. Only `auto` uses it.
EFFICIENCY = {"nano": 0.05, "micro": 0.25, "mini": 0.45, "small": 0.5, "medium": 0.5}


def preset_settings(name: str) -> Settings:
    """The settings of a preset. Raises ConfigError if there is none of this name."""
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}. {nearest(name, [*PRESETS, 'auto'])}")
    return PRESETS[name]


def choose_size(train_tokens: int, flops_per_s: float = 0.0, duration_s: float = 0.0) -> str:
    """Choose the preset for `auto`.

    The corpus limits the size: a model with more than a few parameters per token would memorize it. A time limits it as
    well: the result is the largest size that can see about as many tokens as it has parameters.

    Args:
        flops_per_s: matrix rate of this machine.
        duration_s: time for the training; 0: no limit.
    """
    largest = 0 if train_tokens < 30_000 else 1 if train_tokens < 500_000 else 2 if train_tokens < 20_000_000 else 4
    if not duration_s:
        return SIZES[min(largest, 1 if train_tokens < 20_000_000 else 2)]
    for size in reversed(SIZES[: largest + 1]):
        model = resolve(PRESETS[size], Facts(vocab_size=256, train_tokens=train_tokens)).model
        per_token = flops_per_token(model)
        if flops_per_s * EFFICIENCY[size] * duration_s / per_token >= per_token / 6:
            return size
    return SIZES[0]


def resolve(settings: Settings, facts: Facts) -> Config:
    """Derive the hyperparameters that are not given, and validate all. Raises ConfigError."""
    return derive(settings, facts)[0]


def derive(settings: Settings, facts: Facts) -> tuple[Config, dict[str, str]]:
    """`resolve`, and by `section.key` how each value was derived that is neither given nor a default."""
    fill = _Filling(settings)
    model = fill(
        "model",
        vocab_size=Derived(facts.vocab_size, "one for each token of the tokenizer"),
        architecture="qwen3",
        d_model=128,
        n_heads=4,
        n_layers=4,
        context=64,
    )
    family = FAMILIES.get(str(model["architecture"]), FAMILIES["qwen3"])  # validation refuses another name
    width = _count(model["d_model"], otherwise=128)
    fill(
        "model",
        n_kv_heads=Derived(model["n_heads"], "as many as model.n_heads: no head shares its keys and values"),
        bias=Derived(family.default("bias"), _usual(family, "bias")),
        tie_embeddings=Derived(family.default("tie_embeddings"), _usual(family, "tie_embeddings")),
        d_ff=Derived(
            family.d_ff(width),
            "8/3 of model.d_model, rounded to a multiple of 32: the gate is one more matrix, so this costs as much as 4 "
            "times without a gate"
            if family.gated
            else "4 times model.d_model",
        ),
    )
    # The value of head_dim is derived where it is validated.
    fill.how("model.head_dim", "model.d_model / model.n_heads")
    number_format = "bfloat16" if facts.bfloat16 else "float32"
    fast = "clearly faster" if facts.bfloat16 else "not clearly faster"
    training = fill(
        "training",
        steps=500,
        batch_size=16,
        precision=Derived(number_format, f"products of bfloat16 matrices are {fast} on this machine"),
    )
    steps = _count(training["steps"], otherwise=1)
    times = 20 if training.get("target_loss") else 10
    often = f"{times} times in a training, but at least 10 and at most 500 steps apart"
    fill("training", evaluate_every=Derived(max(10, min(500, steps // times)), often))
    fill("training", final_evaluation_tokens=Derived(FINAL_TOKENS, "enough for a sure figure, in a bounded time"))
    name = fill("optimizer", name="muon")["name"]
    kind = OPTIMIZERS.get(str(name), OPTIMIZERS["muon"])  # validation refuses another name
    most = 100 if width < 512 else 700
    warmup = (
        Derived(min(most, steps // 20), f"5% of the steps, at most {most} at this width, as is usual for {kind.name}")
        if kind.warms_up
        else Derived(0, f"none: {kind.name} needs no warm-up")
    )
    fill("schedule", warmup_steps=warmup)
    _derive_optimizer(fill, kind, width)
    fill("data")
    fill("sampling")
    fill(
        "machine",
        device=Derived(facts.device, "the fastest kind of device of this machine"),
        threads=Derived(facts.threads, "one for each processor core that a training process may use"),
    )
    own = set(fill.given.get("recording", {}))
    if "statistics_every" in own:  # a given cadence is not adapted to its cost
        own.add("statistics_cost")
        fill.how("recording.statistics_cost", "no limit, as recording.statistics_every is given")
    fill("recording", **dict.fromkeys(DERIVED_RECORDING, 1))
    config = validate(fill.given)
    derived = {name: found for name, found in recording_settings(config).items() if name not in own}
    for name, found in derived.items():
        fill.how(f"recording.{name}", found.how)
    values = {name: found.value for name, found in derived.items()}
    return config.model_copy(update={"recording": config.recording.model_copy(update=values)}), fill.hows


class _Filling:
    """Fills in the values that are not given: defaults, and derived ones with how they are derived."""

    def __init__(self, settings: Settings) -> None:
        self.asked, self.given = settings, merge(settings)
        self.hows: dict[str, str] = {}

    def __call__(self, section: str, **values: Any) -> dict[str, Any]:
        """Fill in a section, and return it."""
        target = self.given.setdefault(section, {})
        for key, value in values.items():
            if key not in target:
                target[key] = value
                if isinstance(value, Derived):
                    target[key] = value.value
                    self.hows[f"{section}.{key}"] = value.how
        return target

    def how(self, name: str, how: str) -> None:
        """Note how a value is derived elsewhere, unless it is given."""
        section, _, key = name.partition(".")
        if self.asked.get(section, {}).get(key, "auto") == "auto":
            self.hows[name] = how


def _derive_optimizer(fill: _Filling, kind: type[Optimizer], width: int) -> None:
    usual = kind.defaults(width)
    optimizer = fill("optimizer", **{key: Derived(value, _suits(kind, key, width)) for key, value in usual.items()})
    others = {"weight_decay": 0.0, "betas": [0.9, 0.95], "momentum": 0.0, "epsilon": 1e-8}
    fill("optimizer", **{key: Derived(value, _suits(kind, key, width)) for key, value in others.items()})
    same = "as optimizer.learning_rate" if "adamw_learning_rate" in kind.hyperparameters else _unused(kind)
    fill("optimizer", adamw_learning_rate=Derived(optimizer["learning_rate"], same))


def _suits(kind: type[Optimizer], key: str, width: int) -> str:
    """How a hyperparameter of [optimizer] is derived."""
    if key not in kind.hyperparameters:
        return _unused(kind)
    narrower = kind.defaults(max(1, width // 4))
    by_width = key in narrower and narrower[key] != kind.defaults(width)[key]
    return f"usual for {kind.name}" + (f" in a model of width {width}" if by_width else "")


def _unused(kind: type[Optimizer]) -> str:
    return f"not used: {kind.name} has no such hyperparameter"


def _usual(family: type[Family], key: str) -> str:
    """How a hyperparameter of [model] is derived that the family decides."""
    return f"in {family.name}, {family.fixed[key][1]}" if key in family.fixed else f"usual for {family.name}"


def _count(value: Any, otherwise: int) -> int:
    """Read a count that is not validated yet. Validation later reports an invalid one by name."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(min(value, 2**63)) if number and 1 <= value < math.inf else otherwise
