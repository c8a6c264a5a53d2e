"""Generate docs/hyperparameters.md from the code: `make docs`."""

from collections.abc import Iterator
from pathlib import Path

import tomli_w

from vitrine.config import SECTIONS
from vitrine.presets import PRESETS

PAGE = Path(__file__).with_suffix(".md")

# How `presets.resolve` derives a value that neither the user nor the preset gives.
DERIVED = {
    "model.n_kv_heads": "n_heads",
    "model.head_dim": "d_model / n_heads",
    "model.d_ff": "4 d_model for gpt2, else 8/3 d_model, rounded to a multiple of 32",
    "model.vocab_size": "from the tokenizer",
    "model.bias": "true for gpt2, else false",
    "model.tie_embeddings": "true for gpt2, else false",
    "optimizer.learning_rate": "muon 0.03, sgd 0.1, adamw 0.002 x (128 / d_model)^0.5",
    "optimizer.adamw_learning_rate": "0.01 x (128 / d_model)^0.5",
    "optimizer.weight_decay": "adamw 0.1, else 0",
    "optimizer.betas": "muon [0.8, 0.95], adamw [0.9, 0.95]",
    "optimizer.epsilon": "muon 1e-10, else 1e-8",
    "optimizer.momentum": "muon 0.95, else 0",
    "schedule.warmup_steps": "adamw: a twentieth of the steps, at most 100 (700 from width 512), else 0",
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
