"""The hyperparameters: what a person chooses, typed and validated, never changed by learning.

A `Config` holds concrete values only. What the user leaves out (or writes as "auto") is derived by
`resolve` from what is known: the preset, the corpus, the machine. The resolved set is what a run saves.
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
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from vitrine.errors import ConfigError, nearest

MOST_THREADS = 1024  # many more, and the library that starts them ends the process
Architecture = Literal["gpt2", "llama", "qwen3"]
Settings = dict[str, dict[str, Any]]  # section -> key -> value: a part of a Config, not yet validated


def _whole(value: Any) -> Any:
    """1e4 is a count like 10000."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Strict: the text "6" and the truth value true are not numbers.
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=1, le=10**15)]  # a float64 holds each of them, and so does SQLite
Size = Annotated[Whole, Field(ge=1, le=2**24)]  # of a tensor: far above any model, far below what overflows
CountOrOff = Annotated[Whole, Field(ge=0, le=10**15)]
Spaced = Annotated[Whole, Field(ge=0, le=10**6)]  # steps, spread over a training
# Bounded: the product of two of them is still a float32.
Positive = Annotated[Real, Field(gt=0, le=1e15)]
NotNegative = Annotated[Real, Field(ge=0, le=1e15)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]
Share = Annotated[Real, Field(ge=0, le=1)]


def _listed(value: Any) -> Any:
    """One file is a list of one."""
    return [value] if isinstance(value, str) else value


class Section(BaseModel):
    """One table of the TOML file: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _read_whole(cls, value: Any, info: ValidationInfo) -> Any:
        return _whole(value) if cls.model_fields[info.field_name or ""].annotation is int else value


class ModelConfig(Section):
    """[model]: the architecture. Its values alone fix how many parameters there are."""

    architecture: Architecture = Field("qwen3", description="the family: gpt2, llama or qwen3")
    n_layers: Annotated[Whole, Field(ge=1, le=10_000)] = Field(4, description="blocks, one after the other")
    n_heads: Size = Field(4, description="attention heads in each block")
    n_kv_heads: Size = Field(description="heads that keys and values have; fewer than n_heads: grouped-query")
    d_model: Size = Field(128, description="width: numbers that describe one token between the blocks")
    head_dim: Size = Field(description="channels of one head: of its queries, keys and values")
    d_ff: Size = Field(description="width of the hidden layer inside each MLP")
    context: Annotated[Whole, Field(ge=2, le=2**24)] = Field(64, description="tokens that the model sees at once")
    vocab_size: Size = Field(description="rows of the embedding: a row per token, or more (padding)")
    bias: bool = Field(description="whether the linear layers of the blocks add a learned number per output")
    tie_embeddings: bool = Field(description="whether the output head reuses the embedding's weights")
    # In steps of 1 / 65,536, as model.dropout draws it: of one, nothing would be left.
    dropout: Annotated[Real, Field(ge=0, le=1 - 2**-16)] = Field(
        0.0, description="share of activations set to zero while training"
    )
    rope_base: Annotated[Real, Field(ge=1e-15, le=1e15)] = Field(
        10_000.0, description="base of the rotary position angles (llama, qwen3)"
    )
    norm_epsilon: Positive = Field(1e-5, description="added inside the norms' square root")
    init_scale: NotNegative = Field(1.0, description="factor on the spread of the random initial weights")

    @property
    def attention_width(self) -> int:
        """Channels of all heads together: what the queries have, and the mixed values."""
        return self.n_heads * self.head_dim

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate (SwiGLU)."""
        return self.architecture != "gpt2"


class DataConfig(Section):
    """[data]: which text, how it becomes tokens, and how much of it is used."""

    corpus: list[str] = Field([], description="files, folders, globs or hf:owner/name; .bin: token ids")
    tokenizer: str = Field("auto", description="auto, char, byte, bpe:N, or the path of a tokenizer.json or its folder")
    validation: Annotated[Fraction | list[str], BeforeValidator(_listed)] = Field(
        0.1, description="share that is held back, or files of its own"
    )
    validation_split: Literal["end", "documents"] = Field(
        "end",  # what a run without this key had
        description="how a share is held back: the end of each source, or whole documents, chosen by their content; "
        "left out: documents, if there are more than 20",
    )
    weights: list[Positive] = Field([], description="a mixture: how often each source is drawn; empty: by size")
    max_tokens: CountOrOff = Field(0, description="use at most this many training tokens; 0: all")
    text_field: str = Field("", description="the field that holds the text in .jsonl, .csv and .parquet")
    max_record_bytes: Count = Field(64_000_000, description="the longest line or row of these; a longer one is refused")
    invalid: Literal["refuse", "skip", "replace"] = Field(
        "refuse", description="files that are not UTF-8, and rows with half of a character: refuse, skip, or replace"
    )


class OptimizerConfig(Section):
    """[optimizer]: the rule that turns gradients into updates."""

    name: Literal["sgd", "adamw", "muon"] = Field("muon", description="sgd, adamw or muon")
    learning_rate: Positive = Field(description="size of a step (for muon: of the hidden matrices)")
    adamw_learning_rate: Positive = Field(description="muon only: for what is not a hidden matrix")
    weight_decay: NotNegative = Field(description="pull of matrices (muon: of the hidden ones) towards zero")
    clip: NotNegative = Field(1.0, description="largest norm of the whole gradient; 0: no clipping")
    betas: tuple[Fraction, Fraction] = Field(description="adamw: memory of past gradients and their squares")
    epsilon: Positive = Field(description="adamw: keeps the division finite")
    momentum: Fraction = Field(description="sgd and muon: memory of past gradients")


class ScheduleConfig(Section):
    """[schedule]: how the learning rate moves over the steps."""

    name: Literal["constant", "linear", "cosine", "wsd"] = Field(
        "linear", description="constant, linear, cosine, or wsd (warm-up, stable, decay)"
    )
    warmup_steps: CountOrOff = Field(description="steps over which the learning rate rises from near zero")
    decay_fraction: Share = Field(0.3, description="wsd: last share of the steps, over which the rate falls")
    final_fraction: Share = Field(0.03, description="share of the learning rate that is left at the end")


class TrainingConfig(Section):
    """[training]: how many steps, on how much text at a time."""

    steps: Count = Field(description="updates in all; fixed before the first")
    batch_size: Size = Field(description="windows of text in one micro-batch")
    accumulation: Count = Field(1, description="micro-batches whose gradients add up to one update")
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = Field(1, description="of every random draw")
    precision: Literal["float32", "bfloat16"] = Field(description="number format of the matrix products")
    evaluate_every: Count = Field(description="steps between measurements of the validation loss")
    evaluation_tokens: Count = Field(16_384, description="validation tokens measured each time")
    # 0 where a config.toml does not say it: runs from before it was there measured all.
    final_evaluation_tokens: CountOrOff = Field(
        0, description="validation tokens measured at the end, and to judge a target; spread evenly; 0: all"
    )
    patience: CountOrOff = Field(0, description="stop after so many evaluations without a new best; 0: never")
    target_loss: NotNegative = Field(0.0, description="stop when the validation loss is there; 0: no target")
    parent: str = Field("", description="RUN@STEP that the first parameters come from; empty: random birth")


class SamplingConfig(Section):
    """[sampling]: decoding. These act after training, on probabilities, and change no parameter."""

    temperature: NotNegative = Field(0.8, description="below 1: safer; above 1: bolder; 0: always the likeliest")
    top_k: CountOrOff = Field(0, description="keep the k likeliest tokens; 0: all")
    top_p: Annotated[Real, Field(gt=0, le=1)] = Field(
        1.0, description="keep the likeliest tokens that together have this probability; 1: all"
    )
    min_p: Share = Field(0.0, description="keep tokens at least this likely, relative to the likeliest; 0: all")
    # Bounded: beyond, a logit that is divided by it overflows.
    repetition_penalty: Annotated[Real, Field(ge=0.01, le=100)] = Field(
        1.0, description="above 1: tokens already there become less likely"
    )


class MachineConfig(Section):
    """[machine]: where it runs. Not the run's identity, but part of its fingerprint."""

    device: str = Field(description="cpu, cuda, cuda:N or mps")
    threads: Count = Field(description="processor threads")
    compile: bool = Field(False, description="torch.compile: slow to start, faster steps")
    recompute: bool = Field(False, description="keep no activations of the blocks, compute them twice: same bits")


class RecordingConfig(Section):
    """[recording]: what is kept. Never changes a bit of the training."""

    enabled: bool = Field(True, description="whether history is recorded")
    disk_budget: Count = Field(2_000_000_000, description="bytes that keyframes may take")
    keyframe_every: Count = Field(description="steps between keyframes")
    statistics_every: Count = Field(description="steps between two looks at every tensor: norms, sampled parameters")
    # 0 where a config.toml does not say it: runs from before it was there kept to statistics_every.
    statistics_cost: Share = Field(
        0.0, description="share of the time that these looks may take, measured in the first steps; 0: any"
    )
    histograms: Spaced = Field(description="steps with histograms of every tensor; dense at the start")
    film_frames: Spaced = Field(description="frames of the film; dense at the start")
    text_samples: Spaced = Field(description="times that the model writes a little: at birth, spaced, at the end")
    mirror: Annotated[list[Literal["tensorboard", "wandb", "trackio"]], BeforeValidator(_listed)] = Field(
        [], description="where the curves are sent, too: tensorboard, wandb, trackio"
    )


class Config(Section):
    """Every hyperparameter of a run, resolved."""

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
        """What was chosen, without what concerns one machine: its files, device and disk."""
        kept = self.model_dump(mode="json")
        del kept["machine"], kept["recording"], kept["training"]["parent"]
        kept["data"] = {name: kept["data"][name] for name in ("text_field", "max_tokens", "weights")}
        return kept

    def identity(self) -> str:
        """What the run is, as canonical JSON: all but where it is trained, and what is recorded."""
        kept = self.model_dump(mode="json")
        del kept["machine"], kept["recording"]
        return json.dumps(kept, sort_keys=True, separators=(",", ":"))

    def to_toml(self) -> str:
        """The config.toml of a run; `load_toml` reads it back to the same values."""
        return tomli_w.dumps(self.model_dump(mode="json"))


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation  # type: ignore[misc]
    for name, field in Config.model_fields.items()
}


def validate(settings: Settings) -> Config:
    """Build a Config from a complete set of values, and check what ties several together."""
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
    """Read a TOML file of hyperparameters; names are checked, values only when resolved."""
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
                f"{path}: {section} stands outside a section. Write it below one of: "
                f"{', '.join(f'[{name}]' for name in SECTIONS)}."
            )
        for key in values:
            check_name(f"{section}.{key}")
    return settings


def parse_settings(pairs: list[str]) -> Settings:
    """Read `section.key=value` pairs as the command line gives them."""
    settings: Settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes section.key=value, for example model.n_layers=6: got {pair!r}.")
        section, key = check_name(name.strip())
        settings.setdefault(section, {})[key] = _parse_value(text.strip())
    return settings


def parse_seconds(text: str) -> float:
    """90, 90s, 10m, 1.5h in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip(), re.ASCII)
    if not found or not float(found[1]):
        raise ConfigError(f"--for takes a time such as 90s, 10m or 2h: got {text!r}.")
    return float(found[1]) * {"s": 1, None: 1, "m": 60, "min": 60, "h": 3600}[found[2]]


def merge(*layers: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Lay settings over each other; later ones win. The value "auto" takes a setting away again."""
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
    """Split `section.key` and make sure that there is such a hyperparameter."""
    section, _, key = name.partition(".")
    if section in SECTIONS and key in SECTIONS[section].model_fields:
        return section, key
    raise ConfigError(f"{name} is not a hyperparameter. {_hint(name)}")


def _hint(name: str) -> str:
    """The name that was perhaps meant: the same key elsewhere, or the nearest of the section."""
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
    """A value as TOML writes it; also .5 and True, and text without its quotes."""
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
    """The first of pydantic's complaints as one sentence that names the hyperparameter."""
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
    # A value of several kinds (a fraction or files) has a complaint for each kind.
    reasons = dict.fromkeys(_reason(other) for other in errors if other["loc"][:2] == first["loc"][:2])
    return f"{name} must be {' or '.join(reasons)}: got {_shown(seen)}."


def _shown(value: Any) -> str:
    """A value as it was given; a whole number of many digits in short."""
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
        "missing": "two numbers",  # of which one is missing
        "too_long": "two numbers",
    }
    bounds = {"ge": "at least", "le": "at most", "gt": "greater than", "lt": "less than"}
    for bound, word in bounds.items():
        if bound in error.get("ctx", {}):
            return f"{word} {error['ctx'][bound]:,.10g}"
    return plain.get(error["type"], error["msg"].removeprefix("Input should be "))


def _with_head_dim(settings: Settings) -> Settings:
    """Split the width among the heads, unless it is said how wide one is (runs of old do not say it)."""
    model = {name: field.default for name, field in ModelConfig.model_fields.items()} | settings.get("model", {})
    width, heads = _whole(model["d_model"]), _whole(model["n_heads"])
    sound = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in (width, heads))
    if "head_dim" in settings.get("model", {}) or not sound:  # what is no size is refused by name
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
    if model.architecture == "gpt2":
        if not model.bias:
            raise ConfigError(
                "model.bias = false cannot be held by the gpt2 family, whose layers all have biases. "
                "Try model.architecture = llama."
            )
        if not model.tie_embeddings:
            raise ConfigError(
                "model.tie_embeddings = false cannot be held by the gpt2 family, whose output head is "
                "its embedding. Try model.architecture = llama."
            )
        if model.n_kv_heads != model.n_heads:
            raise ConfigError(
                f"The gpt2 family has no grouped-query attention: got model.n_heads = {model.n_heads} "
                f"and model.n_kv_heads = {model.n_kv_heads}. Make them equal, or try "
                "model.architecture = llama."
            )
        if model.attention_width != model.d_model:
            raise ConfigError(
                f"The heads of the gpt2 family together are as wide as the model: got model.n_heads = {model.n_heads} "
                f"times model.head_dim = {model.head_dim}, and model.d_model = {model.d_model}. Leave model.head_dim "
                "out, or try model.architecture = llama."
            )
    if model.architecture == "qwen3" and model.bias:
        raise ConfigError(
            "model.bias = true cannot be held by the qwen3 family, whose MLPs have no biases. "
            "Try model.architecture = llama."
        )
    if model.architecture != "gpt2" and model.head_dim % 2:
        raise ConfigError(
            f"Rotary positions turn channels in pairs, so model.head_dim (where it is not given: d_model / n_heads) "
            f"must be even: got {model.head_dim}. Try model.head_dim = {model.head_dim + 1}."
        )


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


ARCHITECTURES: tuple[str, ...] = get_args(Architecture)
