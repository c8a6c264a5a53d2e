"""`vitrine import`: make a run of a Hugging Face folder. Its parameters become those of step 0.

The folder comes from others: every value of its files is checked before it is used.
"""

import json
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vitrine.config import Config
from vitrine.errors import ConfigError, RunError
from vitrine.exchange.hf_export import MODEL, Floats, made_whole, to_ours
from vitrine.families.family import Family
from vitrine.families.registry import FAMILIES
from vitrine.model.flat import digest
from vitrine.model.inventory import tensor_fact
from vitrine.presets import Facts, resolve
from vitrine.runs.reader import CHAT_TEMPLATE, CONFIG, HISTORY, KEYFRAMES, TOKENIZER
from vitrine.runs.store import Store, digests
from vitrine.text.pattern_check import check_patterns
from vitrine.text.tokenizer import TOKENIZER_CONFIG, given_names, load_tokenizer, save_tokenizer
from vitrine.training.checkpoint import Snapshot, save_keyframe, written_digest
from vitrine.training.create import check_new
from vitrine.training.device import best_device, physical_cores

INDEX = "model.safetensors.index.json"
SPECIAL_TOKENS = "special_tokens_map.json"  # of older folders
HUB = "hf:"
HUB_FILES = [
    "config.json",
    "tokenizer.json",
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    CHAT_TEMPLATE,
    "model.safetensors",
    INDEX,
    "model-*.safetensors",
]

JSON_BYTES = 64 * 2**20  # of one JSON file; the largest indexes have a few MiB
LARGEST = 2**24  # of a size in config.json, as in vitrine.config

# Values that a config.json of any family may give, where it gives them; see `Family.supported`.
SUPPORTED_BY_ALL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (None, 1.0),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}


@dataclass(frozen=True)
class Imported:
    """The result of `import_run`: a new run, and where it came from."""

    run: str
    source: str
    architecture: str
    parameters: int
    digest: str


def import_run(source: str | Path, run: str | Path = "") -> Imported:
    """Make a run of a Hugging Face folder, or of hf:owner/name. Its parameters become those of step 0.

    Args:
        run: the new run's folder; empty: a new one below runs/.

    Raises RunError, ConfigError: the folder is malformed, or Vitrine cannot compute its model. No run is left behind.
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
    tokenizer, theirs, named = load_tokenizer(folder / TOKENIZER), _read_config(folder), _tokenizer_config(folder)
    check_patterns(folder / TOKENIZER)
    settings, size = model_settings(theirs, folder), tokenizer.get_vocab_size()
    if settings["vocab_size"] < size:  # more is padding: rows that stand for no token
        raise RunError(
            f"{folder} cannot be imported: its tokenizer.json has {size} tokens, but vocab_size in its config.json is "
            f"only {settings['vocab_size']}. Give the tokenizer that the model was trained with."
        )
    with _opened(folder) as tensors:
        try:
            config = _config(settings, source if source.startswith(HUB) else str(folder.absolute()))
        except ConfigError as error:
            raise RunError(f"{folder / 'config.json'} gives no model that Vitrine can compute: {error}") from None
        ours = to_ours(config.model, tensors, folder)
    parameters = {name: torch.from_numpy(numbers) for name, numbers in ours.items()}
    with made_whole(path, f"The run folder {path} cannot be made") as temporary:
        (temporary / CONFIG).write_text(config.to_toml(), encoding="utf-8")
        save_tokenizer(tokenizer, temporary / TOKENIZER)
        if template := _chat_template(folder, named):
            (temporary / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        if names := given_names(named):
            (temporary / TOKENIZER_CONFIG).write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
        kept = save_keyframe(temporary / KEYFRAMES, Snapshot(0, parameters, {}))
        with Store(temporary / HISTORY) as store:
            store.set_fact("identity", config.identity())
            store.set_fact("tensors", tensor_fact(config.model))
            store.set_fact("birth", written_digest(kept))
            store.set_fact("files", json.dumps(digests(temporary, [TOKENIZER])))
            store.event(0, "born", f"from {config.training.parent}")
    count = sum(numbers.size for numbers in ours.values())
    return Imported(str(path), source, config.model.architecture, count, digest(parameters))


def model_settings(theirs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The [model] hyperparameters that a config.json stands for. Raises RunError if there are none."""
    family = theirs.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise RunError(
            f"{folder} cannot be imported: its config.json has model_type = {_seen(family)}. Vitrine supports "
            f"{', '.join(FAMILIES)}."
        )
    kind, read = FAMILIES[family], _TheirConfig(theirs, folder)
    _check_supported(kind, theirs, folder)
    return {"architecture": family, "vocab_size": read.count("vocab_size")} | kind.from_huggingface(read)


@dataclass(frozen=True)
class _TheirConfig:
    """A config.json, whose values are checked as they are asked for; see `vitrine.families.family.TheirConfig`."""

    theirs: Mapping[str, Any]
    folder: Path

    def count(self, key: str, otherwise: int | None = None) -> int:
        def fits(found: Any) -> bool:
            return type(found) is int and 1 <= found <= LARGEST

        size: int = self._value(key, otherwise, f"a whole number from 1 to {LARGEST:,}", fits)
        return size

    def number(self, key: str, otherwise: float) -> float:
        positive: float = self._value(key, otherwise, "a positive number", _is_positive)
        return positive

    def flag(self, key: str) -> bool:
        truth: bool = self._value(key, False, "true or false", lambda found: isinstance(found, bool))
        return truth

    def same_flag(self, *keys: str) -> bool:
        flags = [self.flag(key) for key in keys]
        if len(set(flags)) > 1:
            told = " and ".join(f"{key} is {flag}" for key, flag in zip(keys, flags, strict=True))
            raise RunError(
                f"{self.folder} cannot be imported: in its config.json, {told}. Vitrine supports both or neither."
            )
        return flags[0]

    def rope_base(self) -> float:
        return _rope_base(self.theirs, self.folder, self.number("rope_theta", 10_000.0))

    def _value(self, key: str, otherwise: Any, what: str, fits: Callable[[Any], bool]) -> Any:
        found = otherwise if self.theirs.get(key) is None else self.theirs[key]
        if not fits(found):
            raise RunError(
                f"{self.folder} cannot be imported: its config.json must give {key} as {what}: got {_seen(found)}."
            )
        return found


def _check_supported(family: type[Family], theirs: Mapping[str, Any], folder: Path) -> None:
    """Raises RunError where a config.json asks for what our decoder does not compute."""
    wanted = [family.transformers_class]
    classes = theirs.get("architectures") or wanted
    if classes != wanted:
        raise RunError(
            f"{folder} cannot be imported: its config.json has architectures = {_seen(classes)}. Of this family, "
            f"Vitrine supports {wanted}."
        )
    for key, supported in {**family.supported, **SUPPORTED_BY_ALL}.items():
        if theirs.get(key, supported[0]) not in supported:
            raise RunError(
                f"{folder} cannot be imported: its config.json has {key} = {_seen(theirs[key])}. Vitrine supports only "
                f"{' or '.join(map(repr, supported))}."
            )
    layers = theirs.get("layer_types")
    if layers is not None and not (isinstance(layers, list) and all(layer == "full_attention" for layer in layers)):
        raise RunError(
            f"{folder} cannot be imported: its config.json has layer_types = {_seen(layers)}. Vitrine supports only a "
            "list of 'full_attention'."
        )


def _rope_base(theirs: Mapping[str, Any], folder: Path, base: float) -> float:
    """The base of the rotary angles; `base` where nothing more special is given."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = theirs.get(key)
        if rope is None:
            continue
        plain = (
            isinstance(rope, dict)
            and rope.get("rope_type", rope.get("type", "default")) == "default"
            and rope.get("partial_rotary_factor", 1.0) in (None, 1.0)
            and not any(isinstance(value, dict) for value in rope.values())  # one per kind of layer
        )
        if not plain:
            raise RunError(
                f"{folder} cannot be imported: its config.json has {key} = {_seen(rope)}. Vitrine supports no rope "
                "scaling: only rope_type = 'default'."
            )
        base = rope.get("rope_theta", base)
        if not _is_positive(base):
            raise RunError(
                f"{folder} cannot be imported: its config.json must give {key}.rope_theta as a positive number: got "
                f"{_seen(base)}."
            )
    return base


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _seen(value: Any) -> str:
    """A wrong value as an error shows it: abbreviated, and without characters that a terminal obeys."""
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = 100
    return shortened.repr(value)


def _config(model: dict[str, Any], source: str) -> Config:
    """The hyperparameters of an imported run. Those of training are defaults for a training that starts from it."""
    settings = {
        "model": model,
        "data": {"tokenizer": f"{source}/tokenizer.json", "validation": 0.0},
        # float32: as exact as the file. A small learning rate: larger ones destroy what was learned.
        "training": {"precision": "float32", "parent": source},
        "optimizer": {"name": "adamw", "learning_rate": 1e-4},
    }
    device, threads = best_device(), physical_cores()
    return resolve(settings, Facts(model["vocab_size"], train_tokens=0, device=device, threads=threads))


def _read_config(folder: Path) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise RunError(f"{folder / 'config.json'} must be a JSON object: got {_seen(config)}.")
    return config


def _read_json(path: Path) -> Any:
    """A JSON file of a folder. Raises RunError unless it is a regular file of a sensible size, and valid."""
    text = _read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise RunError(f"{path} is nested too deeply to be read. Save the model again with transformers.") from None
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}.") from None


def _read_text(path: Path) -> str:
    """A text file of a folder. Raises RunError unless it is a regular file of a sensible size, in UTF-8."""
    try:
        if not path.is_file():  # a pipe would be waited for, a device read for ever
            what = "is not a regular file" if path.exists() else "is missing"
            raise RunError(f"{path} {what}. Save the model again with transformers: save_pretrained.")
        if (size := path.stat().st_size) > JSON_BYTES:
            raise RunError(f"{path} is larger than {JSON_BYTES:,} bytes: got {size:,}. Is it the right file?")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}.") from None


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    """The tokenizer_config.json, with what older folders say of special tokens in a file of its own."""
    found: dict[str, Any] = {}
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        if (folder / name).exists() and "added_tokens_decoder" not in found:  # as transformers reads them
            config = _read_json(folder / name)
            found |= config if isinstance(config, dict) else {}
    return found


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    """The folder's chat template: from a file of its own or, in older folders, from tokenizer_config.json; else empty."""
    if (folder / CHAT_TEMPLATE).exists():
        return _read_text(folder / CHAT_TEMPLATE)
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        default = [one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"]
        found = default[-1] if default else None
    if not isinstance(found, str):
        return ""
    if not _is_unicode(found):
        raise RunError(f"The chat_template in {folder / TOKENIZER_CONFIG} is not valid Unicode. Correct or remove it.")
    return found


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8. One that JSON spells with halves of characters cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Callable[[], Floats]]]:
    """Readers of the tensors in all safetensors files of a folder, by name: each call reads one tensor."""
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
    if not (folder / INDEX).exists():
        pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
        why = "Save its weights as safetensors: save_pretrained of transformers does."
        if pickles:
            why = f"{pickles[0].name} is a pickle, which can run code: save the model again as safetensors."
        raise RunError(f"{folder} has no {MODEL} and no {INDEX}. {why}")
    index = _read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    names: list[Any] = [*places.values()] if isinstance(places, dict) else [None]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise RunError(
                f"{folder / INDEX} does not list safetensors files of its own folder: got {_seen(name)} in its "
                "weight_map."
            )
    files = [folder / name for name in sorted(set(names))]
    for file in files:
        if not file.is_file():
            raise RunError(f"{folder / INDEX} lists {_seen(file.name)}, which is no file there. Copy the whole folder.")
    return files


def _floats(folder: Path, opened: safe_open, name: str) -> Floats:
    """One tensor of a file, in float32."""
    tensor = opened.get_tensor(name)
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise RunError(
            f"{folder} cannot be imported: its tensor {_seen(name)} holds {kind}. Give weights in float32, float16 or "
            "bfloat16."
        )
    numbers: Floats = tensor.float().numpy()
    return numbers


def _fetch(source: str) -> Path:
    """The folder of a source. One of the Hub is downloaded, without code and without pickles."""
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
