"""Presets, and the derived hyperparameters: `resolve` turns a few settings into a complete Config."""

import math
from dataclasses import dataclass
from typing import Any

from vitrine.config import Config, Settings, merge, validate
from vitrine.errors import ConfigError, nearest
from vitrine.families.registry import FAMILIES
from vitrine.model.inventory import flops_per_token
from vitrine.optimizers.optimizer import Optimizer
from vitrine.optimizers.registry import OPTIMIZERS
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
    given = merge(settings)
    model = _derive(
        given,
        "model",
        vocab_size=facts.vocab_size,
        architecture="qwen3",
        d_model=128,
        n_heads=4,
        n_layers=4,
        context=64,
    )
    family = FAMILIES.get(str(model["architecture"]), FAMILIES["qwen3"])  # validation refuses another name
    width = _count(model["d_model"], otherwise=128)
    _derive(
        given,
        "model",
        n_kv_heads=model["n_heads"],
        bias=family.default("bias"),
        tie_embeddings=family.default("tie_embeddings"),
        d_ff=family.d_ff(width),
    )
    training = _derive(
        given, "training", steps=500, batch_size=16, precision="bfloat16" if facts.bfloat16 else "float32"
    )
    steps = _count(training["steps"], otherwise=1)
    times = 20 if training.get("target_loss") else 10
    _derive(given, "training", evaluate_every=max(10, min(500, steps // times)))
    _derive(given, "training", final_evaluation_tokens=FINAL_TOKENS)
    name = _derive(given, "optimizer", name="muon")["name"]
    kind = OPTIMIZERS.get(str(name), OPTIMIZERS["muon"])  # validation refuses another name
    _derive(given, "schedule", warmup_steps=min(100 if width < 512 else 700, steps // 20) if kind.warms_up else 0)
    _derive_optimizer(given, kind, width)
    _derive(given, "data")
    _derive(given, "sampling")
    _derive(given, "machine", device=facts.device, threads=facts.threads)
    own = set(given.get("recording", {}))
    if "statistics_every" in own:  # a given cadence is not adapted to its cost
        own.add("statistics_cost")
    _derive(given, "recording", **dict.fromkeys(DERIVED_RECORDING, 1))
    config = validate(given)
    derived = {name: value for name, value in recording_settings(config).items() if name not in own}
    return config.model_copy(update={"recording": config.recording.model_copy(update=derived)})


def _derive_optimizer(given: Settings, kind: type[Optimizer], width: int) -> None:
    optimizer = _derive(given, "optimizer", **kind.defaults(width))
    _derive(given, "optimizer", weight_decay=0.0, betas=[0.9, 0.95], momentum=0.0, epsilon=1e-8)
    _derive(given, "optimizer", adamw_learning_rate=optimizer["learning_rate"])


def _derive(given: Settings, section: str, **values: Any) -> dict[str, Any]:
    """Fill in the values that are not given."""
    target = given.setdefault(section, {})
    for key, value in values.items():
        target.setdefault(key, value)
    return target


def _count(value: Any, otherwise: int) -> int:
    """Read a count that is not validated yet. Validation later reports an invalid one by name."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(min(value, 2**63)) if number and 1 <= value < math.inf else otherwise
