"""Generate docs/hyperparameters.md from the code: `make docs`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from vitrine.config import SECTIONS, OptimizerConfig
from vitrine.families.registry import FAMILIES
from vitrine.optimizers.registry import OPTIMIZERS
from vitrine.presets import PRESETS, Facts, resolve

PAGE = Path(__file__).with_suffix(".md")


def by_optimizer(key: str) -> str:
    """The default of a hyperparameter in each optimizer that uses it, at width 128; and how it changes with the width."""

    def at(name: str, width: int) -> Any:
        size = {"d_model": width, "n_heads": 1}
        config = resolve({"model": size, "optimizer": {"name": name}}, Facts(vocab_size=256, train_tokens=1))
        return getattr(config.optimizer, key)

    return ", ".join(
        f"{name} {json.dumps(at(name, 128))}{' x (128 / d_model)^0.5' if at(name, 512) != at(name, 128) else ''}"
        for name, kind in OPTIMIZERS.items()
        if key in kind.hyperparameters
    )


def those(hyperparameter: str) -> str:
    """The families for which it is true, unless told otherwise."""
    return " and ".join(name for name, kind in FAMILIES.items() if kind.default(hyperparameter))


UNGATED = " and ".join(name for name, kind in FAMILIES.items() if not kind.gated)
WARMING_UP = " and ".join(name for name, kind in OPTIMIZERS.items() if kind.warms_up)

# How `presets.resolve` derives a value that neither the user nor the preset gives.
DERIVED = {
    "model.n_kv_heads": "n_heads",
    "model.head_dim": "d_model / n_heads",
    "model.d_ff": f"4 d_model for {UNGATED}, else 8/3 d_model, rounded to a multiple of 32",
    "model.vocab_size": "from the tokenizer",
    "model.bias": f"true for {those('bias')}, else false",
    "model.tie_embeddings": f"true for {those('tie_embeddings')}, else false",
    **{f"optimizer.{key}": by_optimizer(key) for key in OptimizerConfig.model_fields if key not in ("name", "clip")},
    "schedule.warmup_steps": f"{WARMING_UP}: a twentieth of the steps, at most 100 (700 from width 512), else 0",
    "training.steps": "from the preset; with --for, as many as fit",
    "training.batch_size": "from the preset",
    "training.precision": "bfloat16 if the hardware multiplies it, else float32",
    "training.evaluate_every": "a tenth of the steps (with a target a twentieth), from 10 to 500",
    "training.evaluation_tokens": "`16384`; with --for, as many as fit",
    "training.final_evaluation_tokens": "`2000000`; with --for, as many as fit",
    "machine.device": "cuda, mps or cpu: the first that is available",
    "machine.threads": "one per core, or OMP_NUM_THREADS",
    "recording.keyframe_every": "so that a replay takes about 2 s, or as the disk budget allows",
    "recording.statistics_every": "1, or more: statistics take less than 1% of the steps' time, and 250 MB in all",
    "recording.statistics_cost": "0.005; 0 if statistics_every is given, or below 200,000 parameters",
    "recording.histograms": "one in 64 steps (one in 32 below 200,000 parameters), from 8 to 64",
    "recording.film_frames": "a tenth of the steps, from 20 to 200",
    "recording.text_samples": "5",
}


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([*_head(), *_sections(), *_presets(), ""])


def _head() -> Iterator[str]:
    yield "# Hyperparameters"
    yield ""
    yield "<!-- Made by `make docs` from vitrine/config.py and vitrine/presets.py. -->"
    yield ""
    yield "The values that you choose. Set one with `--set section.key=value`, or several in a TOML file with `--config`:"
    yield ""
    yield "```toml"
    yield "[model]"
    yield "n_layers = 6"
    yield "d_model = 192"
    yield "```"
    yield ""
    yield "Later ones win: preset, then file, then `--set`. The value `auto` removes a setting. The `config.toml` of a run has"
    yield "all of its values, derived ones included."


def _sections() -> Iterator[str]:
    for section, fields in SECTIONS.items():
        said = (fields.__doc__ or "").partition(": ")[2]
        yield from ("", f"## [{section}]", "", said[0].upper() + said[1:], "")
        yield from ("| key | default | meaning |", "|---|---|---|")
        for key, field in fields.model_fields.items():
            derived = DERIVED.get(f"{section}.{key}")
            default = derived or f"`{_toml(field.default)}`"
            yield f"| `{key}` | {default} | {field.description} |"


def _presets() -> Iterator[str]:
    yield from ("", "## Presets", "", "The values that `--preset` sets. The others are derived.")
    for name, settings in PRESETS.items():
        yield from ("", f"### {name}", "", "```toml", tomli_w.dumps(settings).strip(), "```")


def _toml(value: object) -> str:
    return tomli_w.dumps({"value": value}).partition("= ")[2].strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
