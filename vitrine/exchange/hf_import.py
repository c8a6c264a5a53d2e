"""A Hugging Face folder as a run: its parameters are those of step 0, to be looked at, used, and trained further."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vitrine.config import ARCHITECTURES, Config
from vitrine.errors import RunError
from vitrine.exchange.hf_export import CLASSES, MODEL, TOKENIZER_CONFIG, Floats, made_whole, to_ours
from vitrine.model.flat import digest
from vitrine.presets import Facts, resolve
from vitrine.runs.reader import CHAT_TEMPLATE, CONFIG, HISTORY, KEYFRAMES, TOKENIZER
from vitrine.runs.store import Store, digests
from vitrine.text.tokenizer import load_tokenizer, save_tokenizer
from vitrine.training.checkpoint import Snapshot, save_keyframe, written_digest
from vitrine.training.device import best_device, physical_cores
from vitrine.training.launch import check_new

INDEX = "model.safetensors.index.json"
HUB = "hf:"
HUB_FILES = [
    "config.json",
    "tokenizer.json",
    TOKENIZER_CONFIG,
    CHAT_TEMPLATE,
    "model.safetensors",
    INDEX,
    "model-*.safetensors",
]

# What a config.json may say, where it says it: anything else computes what the decoder does not.
HELD: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    "llama": {"hidden_act": ("silu", "swish")},
    "qwen3": {"hidden_act": ("silu", "swish"), "use_sliding_window": (False,), "attention_bias": (False,)},
}
HELD_BY_NONE: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (None, 1.0),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}


@dataclass(frozen=True)
class Imported:
    """A run that was made from a folder."""

    run: str
    source: str
    architecture: str
    parameters: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """What `import --json` prints."""
        return asdict(self)

    def to_text(self) -> str:
        """What `import` prints."""
        return (
            f"{self.run}: {self.architecture}, {self.parameters:,} parameters from {self.source}\n"
            f"Try next: vitrine generate {self.run}, or vitrine train FILE --from {self.run}@0"
        )


def import_run(source: str | Path, run: str | Path = "") -> Imported:
    """Make a run of a Hugging Face folder, or of hf:owner/name. Its parameters are those of step 0.

    Args:
        run: the new run's folder; empty: a new one below runs/.

    Raises RunError, ConfigError: what is in the folder cannot be held, and what it is.
    """
    source = str(source)
    path = Path(run) if str(run) else _new_path(source)
    check_new(path)
    folder = _fetch(source)
    if not (folder / TOKENIZER).is_file():
        raise RunError(
            f"{folder} has no tokenizer.json, so its ids cannot be read as text. Save its tokenizer with "
            "transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)."
        )
    tokenizer, theirs = load_tokenizer(folder / TOKENIZER), _read_config(folder)
    settings, size = model_settings(theirs, folder), tokenizer.get_vocab_size()
    if settings["vocab_size"] < size:  # more is padding: rows that stand for no token
        raise RunError(
            f"{folder} cannot be held: its tokenizer.json has {size} tokens, and by the vocab_size of its config.json "
            f"there are rows for {settings['vocab_size']} alone."
        )
    with _opened(folder) as tensors:
        config = _config(settings, source if source.startswith(HUB) else str(folder.absolute()))
        ours = to_ours(config.model, tensors, folder)
    parameters = {name: torch.from_numpy(numbers) for name, numbers in ours.items()}
    with made_whole(path, f"The run folder {path} cannot be made") as temporary:
        (temporary / CONFIG).write_text(config.to_toml(), encoding="utf-8")
        save_tokenizer(tokenizer, temporary / TOKENIZER)
        if template := _chat_template(folder):
            (temporary / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        kept = save_keyframe(temporary / KEYFRAMES, Snapshot(0, parameters, {}))
        with Store(temporary / HISTORY) as store:
            store.set_fact("identity", config.identity())
            store.set_fact("birth", written_digest(kept))
            store.set_fact("files", json.dumps(digests(temporary, [TOKENIZER])))
            store.event(0, "born", f"from {config.training.parent}")
    count = sum(numbers.size for numbers in ours.values())
    return Imported(str(path), source, config.model.architecture, count, digest(parameters))


def model_settings(theirs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The [model] hyperparameters that a config.json stands for. Raises RunError if there are none."""
    family = theirs.get("model_type")
    if family not in ARCHITECTURES:
        raise RunError(f"{folder} is of the architecture {family!r}; Vitrine holds {', '.join(ARCHITECTURES)}.")
    classes = theirs.get("architectures") or [CLASSES[family]]
    if classes != [CLASSES[family]]:
        raise RunError(f"{folder} is a {classes[0]}; of this family, Vitrine holds {CLASSES[family]}.")
    for key, held in (HELD[family] | HELD_BY_NONE).items():
        if theirs.get(key, held[0]) not in held:
            raise RunError(
                f"{folder} cannot be held: its config.json has {key} = {theirs[key]!r}, and Vitrine has "
                f"{' or '.join(map(repr, held))} alone."
            )
    if any(layer != "full_attention" for layer in theirs.get("layer_types") or ()):
        raise RunError(f"{folder} cannot be held: the layer_types of its config.json are not all full_attention.")

    def count(key: str, otherwise: int | None = None) -> int:
        value = otherwise if theirs.get(key) is None else theirs[key]
        if not isinstance(value, int) or isinstance(value, bool):
            raise RunError(f"{folder}: config.json must give {key} as a whole number: got {value!r}.")
        return value

    common = {"architecture": family, "vocab_size": count("vocab_size")}
    if family == "gpt2":
        width, heads = count("n_embd"), count("n_head")
        return common | {
            "n_layers": count("n_layer"),
            "n_heads": heads,
            "n_kv_heads": heads,
            "d_model": width,
            "d_ff": count("n_inner", 4 * width),
            "context": count("n_positions"),
            "bias": True,
            "tie_embeddings": True,
            "norm_epsilon": theirs.get("layer_norm_epsilon", 1e-5),
        }
    width, heads = count("hidden_size"), count("num_attention_heads")
    biases = [bool(theirs.get(key)) for key in ("attention_bias", "mlp_bias")]
    if family == "llama" and biases[0] != biases[1]:
        raise RunError(
            f"{folder} cannot be held: its attention_bias is {biases[0]} and its mlp_bias {biases[1]}, and Vitrine has "
            "both or neither."
        )
    return common | {
        "n_layers": count("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": count("num_key_value_heads", heads),
        "head_dim": count("head_dim", 128 if family == "qwen3" else width // max(1, heads)),
        "d_model": width,
        "d_ff": count("intermediate_size"),
        "context": count("max_position_embeddings"),
        "bias": biases[0],
        "tie_embeddings": theirs.get("tie_word_embeddings", False),
        "norm_epsilon": theirs.get("rms_norm_eps", 1e-6),
        "rope_base": _rope_base(theirs, folder),
    }


def _rope_base(theirs: Mapping[str, Any], folder: Path) -> Any:
    base = theirs.get("rope_theta", 10_000.0)
    for key in ("rope_scaling", "rope_parameters"):
        rope = theirs.get(key) or {}
        plain = isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) == "default"
        if not plain or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise RunError(f"{folder} cannot be held: Vitrine has no rope scaling, and its {key} is {rope!r}.")
        base = rope.get("rope_theta", base)
    return base


def _config(model: dict[str, Any], source: str) -> Config:
    """The hyperparameters of an imported run; those of training are for who trains it further."""
    settings = {
        "model": model,
        "data": {"tokenizer": f"{source}/tokenizer.json", "validation": 0.0},
        # As exact as the file; and small steps, that learned parameters survive.
        "training": {"precision": "float32", "parent": source},
        "optimizer": {"name": "adamw", "learning_rate": 1e-4},
    }
    device, threads = best_device(), physical_cores()
    return resolve(settings, Facts(model["vocab_size"], train_tokens=0, device=device, threads=threads))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / 'config.json'} is missing or cannot be read: {error}.") from None
    if not isinstance(config, dict):
        raise RunError(f"{folder / 'config.json'} is not a table of names and values.")
    return config


def _chat_template(folder: Path) -> str:
    """The folder's chat template: a file of its own, or as older folders have it, in the tokenizer's config; else empty."""
    try:
        if (folder / CHAT_TEMPLATE).is_file():
            return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
        if not (folder / TOKENIZER_CONFIG).is_file():
            return ""
        config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"The chat template of {folder} cannot be read: {error}.") from None
    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""


@contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Callable[[], Floats]]]:
    """The tensors of all its safetensors files, by name; each is read when it is called."""
    tensors: dict[str, Callable[[], Floats]] = {}
    try:
        for file in _weight_files(folder):
            opened = safe_open(file, framework="pt")
            tensors |= {name: partial(_floats, folder, opened, name) for name in opened.offset_keys()}
        if "wte.weight" in tensors:  # a GPT-2 without its head, as OpenAI's own
            tensors = {f"transformer.{name}": read for name, read in tensors.items()}
        yield tensors
    except (OSError, SafetensorError) as error:
        raise RunError(f"The weights in {folder} cannot be read: {error}.") from None


def _weight_files(folder: Path) -> list[Path]:
    if (folder / MODEL).is_file():
        return [folder / MODEL]
    if not (folder / INDEX).is_file():
        pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
        why = f" {pickles[0].name} is a pickle, which can run code: save the model again as safetensors." * bool(
            pickles
        )
        raise RunError(f"{folder} has no {MODEL} and no {INDEX}.{why}")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        inside = all(Path(name).name == name and name.endswith(".safetensors") for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise RunError(f"{folder / INDEX} does not list safetensors files of its own folder.")
    return [folder / name for name in names]


def _floats(folder: Path, opened: safe_open, name: str) -> Floats:
    """One tensor of a file, in float32."""
    tensor = opened.get_tensor(name)
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise RunError(f"{folder} cannot be held: {name} is of {str(tensor.dtype).removeprefix('torch.')}.")
    numbers: Floats = tensor.float().numpy()
    return numbers


def _fetch(source: str) -> Path:
    """The folder; one of the Hub is downloaded, without code and without pickles."""
    if not source.startswith(HUB):
        if not Path(source).is_dir():
            raise RunError(f"There is no folder {source}. Give a Hugging Face folder, or hf:owner/name.")
        return Path(source)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise RunError(f"{source} needs huggingface_hub. Install it: pip install 'vitrine[hub]'.") from None
    try:
        return Path(snapshot_download(source.removeprefix(HUB), allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:  # no network, no such name, no name at all
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise RunError(f"{source} cannot be fetched from the Hugging Face Hub: {first}.") from None


def _new_path(source: str) -> Path:
    stem, number = Path(source.removeprefix(HUB)).resolve().name or "model", 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"
