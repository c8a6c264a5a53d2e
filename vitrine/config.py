"""The hyperparameters: values that a person chooses, typed and validated. Learning never changes them.

A `Config` holds concrete values only. `presets.resolve` derives values that the user leaves out (or sets to "auto") from
the preset, the corpus and the machine. A run saves the resolved values.
"""

import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from vitrine.errors import ConfigError, nearest
from vitrine.families.family import Family
from vitrine.families.registry import FAMILIES
from vitrine.optimizers.registry import OPTIMIZERS, meaning

ONLY_QKV = " and ".join(name for name, family in FAMILIES.items() if family.biases == "qkv")
MOST_THREADS = 1024  # with many more, the library that starts them aborts the process
Settings = dict[str, dict[str, Any]]  # section -> key -> value: part of a Config, not validated yet


def _whole(value: Any) -> Any:
    """Accept 1e4 as the integer 10000."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Strict: the string "6" and the boolean true are not numbers.
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=1, le=10**15)]  # exact in float64 and in SQLite
Size = Annotated[Whole, Field(ge=1, le=2**24)]  # of a tensor: far above any model, far below an overflow
CountOrOff = Annotated[Whole, Field(ge=0, le=10**15)]
Spaced = Annotated[Whole, Field(ge=0, le=10**6)]  # number of steps, spread over a training
# Bounded, so that the product of two values is still a float32.
Positive = Annotated[Real, Field(gt=0, le=1e15)]
NotNegative = Annotated[Real, Field(ge=0, le=1e15)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]
Share = Annotated[Real, Field(ge=0, le=1)]


def _listed(value: Any) -> Any:
    """Accept a single file as a list of one."""
    return [value] if isinstance(value, str) else value


class Section(BaseModel):
    """One table of the TOML file. Frozen; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _read_whole(cls, value: Any, info: ValidationInfo) -> Any:
        return _whole(value) if cls.model_fields[info.field_name or ""].annotation is int else value


class ModelConfig(Section):
    """[model]: the architecture. It determines the number of parameters."""

    architecture: Literal[*FAMILIES] = Field("qwen3", description=f"model family: {', '.join(FAMILIES)}")  # type: ignore[valid-type]
    n_layers: Annotated[Whole, Field(ge=1, le=10_000)] = Field(4, description="number of blocks, one after the other")
    n_heads: Size = Field(4, description="attention heads in each block")
    n_kv_heads: Size = Field(description="heads of keys and values; fewer than n_heads: grouped queries")
    d_model: Size = Field(128, description="width: numbers that represent one token between the blocks")
    head_dim: Size = Field(description="channels of one head: of its query, key and value")
    d_ff: Size = Field(description="width of the hidden layer inside each MLP")
    context: Annotated[Whole, Field(ge=2, le=2**24)] = Field(64, description="tokens that the model sees at once")
    vocab_size: Size = Field(description="rows of the embedding: one per token, or more (padding)")
    bias: bool = Field(
        description=f"whether the linear layers of the blocks ({ONLY_QKV}: queries, keys, values) add a learned number to each output"
    )
    tie_embeddings: bool = Field(description="whether the output head uses the same weights as the embedding")
    # Dropout is sampled in steps of 1 / 65,536; a value of 1 would leave no activation.
    dropout: Annotated[Real, Field(ge=0, le=1 - 2**-16)] = Field(
        0.0, description="share of activations that are set to zero during training"
    )
    rope_base: Annotated[Real, Field(ge=1e-15, le=1e15)] = Field(
        10_000.0, description="base of the rotary position angles (not gpt2)"
    )
    norm_epsilon: Positive = Field(1e-5, description="added under the square root of each norm")
    init_scale: NotNegative = Field(1.0, description="factor on the standard deviation of the initial weights")

    @property
    def attention_width(self) -> int:
        """Channels of all heads together: n_heads x head_dim."""
        return self.n_heads * self.head_dim

    @property
    def family(self) -> type[Family]:
        """What is said of every model of its architecture."""
        return FAMILIES[self.architecture]

    def has_bias(self, part: str) -> bool:
        """Whether a linear layer of a block, such as "attention.query", has a bias."""
        asked = part in ("attention.query", "attention.key", "attention.value")
        return self.bias and (asked or self.family.biases == "all")


class DataConfig(Section):
    """[data]: which text is used, how much of it, and how it is split into tokens."""

    corpus: list[str] = Field([], description="files, folders, globs or hf:owner/name; a .bin file holds token ids")
    tokenizer: str = Field("auto", description="auto, char, byte, bpe:N, or the path of a tokenizer.json or its folder")
    validation: Annotated[Fraction | list[str], BeforeValidator(_listed)] = Field(
        0.1, description="share of the text that is held back to measure the loss, or separate files for it"
    )
    validation_split: Literal["end", "documents"] = Field(
        "end",  # older runs do not have this key, and used the end
        description="which text is held back: the end of each source, or whole documents, chosen by their content; "
        "default: documents, if there are more than 20",
    )
    weights: list[Positive] = Field([], description="how often each source of a mixture is sampled; empty: by size")
    max_tokens: CountOrOff = Field(0, description="the most training tokens to use; 0: all")
    text_field: str = Field("", description="the field that holds the text in .jsonl, .csv and .parquet")
    max_record_bytes: Count = Field(
        64_000_000, description="the longest line or row of these files; a longer one is refused"
    )
    invalid: Literal["refuse", "skip", "replace"] = Field(
        "refuse", description="files that are not UTF-8, and rows with half of a character: refuse, skip or replace"
    )


class OptimizerConfig(Section):
    """[optimizer]: the rule that computes updates from gradients."""

    name: Literal[*OPTIMIZERS] = Field("muon", description=" or ".join(OPTIMIZERS))  # type: ignore[valid-type]
    learning_rate: Positive = Field(description=meaning("learning_rate", "scale of the updates"))
    adamw_learning_rate: Positive = Field(description=meaning("adamw_learning_rate"))
    weight_decay: NotNegative = Field(
        description=meaning("weight_decay", "how strongly matrices are pulled towards zero")
    )
    clip: NotNegative = Field(1.0, description="largest norm of the whole gradient; 0: no clipping")
    betas: tuple[Fraction, Fraction] = Field(description=meaning("betas"))
    epsilon: Positive = Field(description=meaning("epsilon"))
    momentum: Fraction = Field(description=meaning("momentum"))


class ScheduleConfig(Section):
    """[schedule]: how the learning rate changes over the steps."""

    name: Literal["constant", "linear", "cosine", "wsd"] = Field(
        "linear", description="constant, linear, cosine, or wsd (warm-up, stable, decay)"
    )
    warmup_steps: CountOrOff = Field(description="steps over which the learning rate rises from near zero")
    decay_fraction: Share = Field(0.3, description="wsd: share of the steps, at the end, over which the rate falls")
    final_fraction: Share = Field(0.03, description="share of the learning rate that remains at the end")


class TrainingConfig(Section):
    """[training]: how many steps, and how much text in each."""

    steps: Count = Field(description="total number of updates; fixed before the first")
    batch_size: Size = Field(description="windows of text in one micro-batch")
    accumulation: Count = Field(1, description="micro-batches whose gradients are added for one update")
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = Field(1, description="of everything that is random")
    precision: Literal["float32", "bfloat16"] = Field(description="number format of the matrix products")
    evaluate_every: Count = Field(description="steps between measurements of the validation loss")
    evaluation_tokens: Count = Field(16_384, description="validation tokens for each measurement")
    # 0 if a config.toml does not have this key: older runs measured the whole split.
    final_evaluation_tokens: CountOrOff = Field(
        0, description="validation tokens for the last measurement and for a target, spread evenly; 0: all"
    )
    patience: CountOrOff = Field(0, description="stop after this many evaluations without a new best loss; 0: never")
    target_loss: NotNegative = Field(0.0, description="stop when the validation loss reaches this; 0: no target")
    parent: str = Field("", description="RUN@STEP whose parameters are the initial ones; empty: random ones")


class SamplingConfig(Section):
    """[sampling]: decoding. Used after training; the parameters do not change."""

    temperature: NotNegative = Field(
        0.8, description="below 1: more predictable; above 1: more varied; 0: always the likeliest token"
    )
    top_k: CountOrOff = Field(0, description="keep the k likeliest tokens; 0: all")
    top_p: Annotated[Real, Field(gt=0, le=1)] = Field(
        1.0, description="keep the likeliest tokens whose probabilities add up to this; 1: all"
    )
    min_p: Share = Field(0.0, description="keep tokens at least this likely, relative to the likeliest one; 0: all")
    # Bounded: a logit divided by a smaller value would overflow.
    repetition_penalty: Annotated[Real, Field(ge=0.01, le=100)] = Field(
        1.0, description="above 1: tokens that are already in the text become less likely"
    )


class MachineConfig(Section):
    """[machine]: the hardware to use. Not part of the run's identity, but of its fingerprint."""

    device: str = Field(description="cpu, cuda, cuda:N or mps")
    threads: Count = Field(description="CPU threads")
    compile: bool = Field(False, description="torch.compile: a slow start, faster steps")
    recompute: bool = Field(False, description="compute the activations of the blocks twice to save memory; same bits")


class RecordingConfig(Section):
    """[recording]: what is recorded. It never changes a bit of the training."""

    enabled: bool = Field(True, description="whether a history is recorded")
    disk_budget: Count = Field(2_000_000_000, description="the most bytes for keyframes")
    keyframe_every: Count = Field(description="steps between keyframes")
    statistics_every: Count = Field(description="steps between statistics of every tensor: norms, sampled parameters")
    # 0 if a config.toml does not have this key: older runs always used statistics_every.
    statistics_cost: Share = Field(
        0.0, description="largest share of the time for statistics, measured in the first steps; 0: no limit"
    )
    histograms: Spaced = Field(description="number of steps with histograms of every tensor; more often at the start")
    film_frames: Spaced = Field(description="number of frames of the film; more often at the start")
    text_samples: Spaced = Field(
        description="text samples, in texts of 64 tokens: from five on, short ones at the start and long ones to the end"
    )
    mirror: Annotated[list[Literal["tensorboard", "wandb", "trackio"]], BeforeValidator(_listed)] = Field(
        [], description="tools that also receive the curves: tensorboard, wandb, trackio"
    )


class Config(Section):
    """All hyperparameters of a run, resolved."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    sampling: SamplingConfig
    machine: MachineConfig
    recording: RecordingConfig

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one update learns from."""
        return self.training.batch_size * self.training.accumulation * self.model.context

    def portable(self) -> Settings:
        """The hyperparameters without those of one machine: its files, device and disk."""
        kept = self.model_dump(mode="json")
        del kept["machine"], kept["recording"], kept["training"]["parent"]
        kept["data"] = {name: kept["data"][name] for name in ("text_field", "max_tokens", "weights")}
        return kept

    def identity(self) -> str:
        """All hyperparameters except [machine] and [recording], as canonical JSON."""
        kept = self.model_dump(mode="json")
        del kept["machine"], kept["recording"]
        return json.dumps(kept, sort_keys=True, separators=(",", ":"))

    def to_toml(self) -> str:
        """The config.toml of a run; `load_toml` reads the same values back."""
        return tomli_w.dumps(self.model_dump(mode="json"))


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation  # type: ignore[misc]
    for name, field in Config.model_fields.items()
}


def validate(settings: Settings) -> Config:
    """Build a Config from a complete set of values, and check conditions on several of them. Raises ConfigError."""
    try:
        config = Config.model_validate(_with_head_dim(settings))
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None
    _check_model(config.model)
    _check_training(config)
    if config.machine.threads > MOST_THREADS:
        raise ConfigError(
            f"machine.threads must be at most {MOST_THREADS:,}: got {config.machine.threads:,}. "
            f"This machine has {os.cpu_count()} cores."
        )
    return config


def load_toml(path: Path) -> Settings:
    """Read a TOML file of hyperparameters. Names are checked here, values in `validate`. Raises ConfigError."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin with a byte-order mark
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}. Give --config a TOML file of hyperparameters.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give --config a TOML file.") from None
    except ValueError as error:  # TOML, UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    for section, values in settings.items():
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path}: {section} is outside a section. Write it below one of: "
                f"{', '.join(f'[{name}]' for name in SECTIONS)}."
            )
        for key in values:
            check_name(f"{section}.{key}")
    return settings


def parse_settings(pairs: list[str]) -> Settings:
    """Read `section.key=value` pairs from the command line."""
    settings: Settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes section.key=value, for example model.n_layers=6: got {pair!r}.")
        section, key = check_name(name.strip())
        settings.setdefault(section, {})[key] = _parse_value(text.strip())
    return settings


def parse_seconds(text: str) -> float:
    """Convert 90, 90s, 10m or 1.5h to seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip(), re.ASCII)
    if not found or not float(found[1]):
        raise ConfigError(f"--for takes a time such as 90s, 10m or 2h: got {text!r}.")
    return float(found[1]) * {"s": 1, None: 1, "m": 60, "min": 60, "h": 3600}[found[2]]


def merge(*layers: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Merge settings; later ones win. The value "auto" removes a setting."""
    merged: Settings = {}
    for layer in layers:
        for section, values in layer.items():
            target = merged.setdefault(section, {})
            for key, value in values.items():
                if value == "auto":
                    target.pop(key, None)
                else:
                    target[key] = value
    return merged


def check_name(name: str) -> tuple[str, str]:
    """Split `section.key`. Raises ConfigError if there is no such hyperparameter."""
    section, _, key = name.partition(".")
    if section in SECTIONS and key in SECTIONS[section].model_fields:
        return section, key
    raise ConfigError(f"{name} is not a hyperparameter. {_hint(name)}")


def _hint(name: str) -> str:
    """Suggest a name: the same key in another section, or the nearest key of this section."""
    section, _, key = name.rpartition(".")
    elsewhere = [f"{s}.{key}" for s, fields in SECTIONS.items() if key in fields.model_fields]
    if elsewhere:
        return f"Did you mean {elsewhere[0]}?"
    if section not in SECTIONS:
        return nearest(name, [f"{s}.{k}" for s, fields in SECTIONS.items() for k in fields.model_fields])
    keys = list(SECTIONS[section].model_fields)
    close = get_close_matches(key, keys, n=1)
    return f"Did you mean {section}.{close[0]}?" if close else f"Known in [{section}]: {', '.join(keys)}."


def _parse_value(text: str) -> Any:
    """Parse a TOML value; also accept .5, True, and strings without quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _sentence(error: ValidationError) -> str:
    """Turn pydantic's first error into one sentence that names the hyperparameter."""
    errors = error.errors()
    first = errors[0]
    name, seen = ".".join(map(str, first["loc"][:2])), first["input"]
    if first["type"] == "extra_forbidden":
        try:
            check_name(name)
        except ConfigError as unknown:
            return str(unknown)
    if first["type"] == "missing" and len(first["loc"]) == 2:
        return f"{name} is missing. Give it in the TOML file or with --set {name}=VALUE."
    # A value that may have several types (a fraction or files) has one error for each.
    reasons = dict.fromkeys(_reason(other) for other in errors if other["loc"][:2] == first["loc"][:2])
    return f"{name} must be {' or '.join(reasons)}: got {_shown(seen)}."


def _shown(value: Any) -> str:
    """A value as given; integers with many digits in short form."""
    return f"{Decimal(value):.3g}" if isinstance(value, int) and value.bit_length() > 128 else repr(value)


def _reason(error: ErrorDetails) -> str:
    plain = {
        "int_type": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "bool_parsing": "true or false",
        "string_type": "text in quotes",
        "list_type": "a list",
        "tuple_type": "two numbers",
        "missing": "two numbers",  # one of the two
        "too_long": "two numbers",
    }
    bounds = {"ge": "at least", "le": "at most", "gt": "greater than", "lt": "less than"}
    for bound, word in bounds.items():
        if bound in error.get("ctx", {}):
            return f"{word} {error['ctx'][bound]:,.10g}"
    return plain.get(error["type"], error["msg"].removeprefix("Input should be "))


def _with_head_dim(settings: Settings) -> Settings:
    """Derive head_dim from d_model and n_heads if it is not given (older runs do not have it)."""
    model = {name: field.default for name, field in ModelConfig.model_fields.items()} | settings.get("model", {})
    width, heads = _whole(model["d_model"]), _whole(model["n_heads"])
    sound = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in (width, heads))
    if "head_dim" in settings.get("model", {}) or not sound:  # validation reports invalid sizes by name
        return settings
    if width % heads:
        raise ConfigError(
            f"model.d_model must be divisible by model.n_heads: got {width} and {heads}. "
            f"Try model.d_model = {2 * heads * max(1, round(width / heads / 2))}, or give model.head_dim as well."
        )
    return merge(settings, {"model": {"head_dim": width // heads}})


def _check_model(model: ModelConfig) -> None:
    if model.n_heads % model.n_kv_heads:
        raise ConfigError(
            f"model.n_heads must be divisible by model.n_kv_heads: got {model.n_heads} and {model.n_kv_heads}. "
            f"Try model.n_kv_heads = {math.gcd(model.n_heads, model.n_kv_heads)}."
        )
    model.family.check(model)


def _check_training(config: Config) -> None:
    schedule, training = config.schedule, config.training
    if schedule.warmup_steps >= training.steps and training.steps > 1:
        raise ConfigError(
            f"schedule.warmup_steps must be less than training.steps: got {schedule.warmup_steps} and "
            f"{training.steps}. Try schedule.warmup_steps = {training.steps // 20}."
        )
    if config.data.weights and len(config.data.weights) != len(config.data.corpus):
        raise ConfigError(
            f"data.weights needs one number for each source: got {len(config.data.weights)} weights "
            f"for {len(config.data.corpus)} sources."
        )
    if (training.target_loss or training.patience) and config.data.validation in (0, []):
        raise ConfigError(
            "training.target_loss and training.patience need validation text: got data.validation = 0. "
            "Try data.validation = 0.1."
        )
