"""`vitrine export --format gguf`: write a run as one GGUF file for llama.cpp and the programs built on it.

llama.cpp knows each tokenizer by name and has code of its own for it. So a file may hold what computes and tokenizes
there as it does here, and nothing else: the rest is refused.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w
from tokenizers import Tokenizer, pre_tokenizers

from vitrine._files import whole_file
from vitrine.config import ModelConfig
from vitrine.errors import ConfigError, RunError
from vitrine.exchange.hf_export import Exported, Floats, corpus_digest, finite_numbers, measured
from vitrine.model.inventory import inventory
from vitrine.runs.reader import TOKENIZER, RunReader
from vitrine.text.tokenizer import end_of_text_id, kind, load_tokenizer
from vitrine.training.checkpoint import Snapshot, load_step

if TYPE_CHECKING:
    from gguf import GGUFWriter

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
LARGEST_FLOAT16 = 65504.0
LAYERS = 512  # that llama.cpp has room for

NORMAL, CONTROL, UNUSED = 1, 3, 5  # the kinds of tokens that llama.cpp knows and we need


def export_gguf(run: str | Path, file: str | Path, step: str | int = "last", dtype: str = "float32") -> Exported:
    """Write a run as a GGUF file. If that fails, nothing is left behind.

    Args:
        file: does not exist yet.
        step: "last", "best" (by validation loss), or a step that has a keyframe.
        dtype: float32, float16 or bfloat16: of the matrices; vectors and positions are float32 always.

    Raises RunError, ConfigError: llama.cpp cannot hold this run, and why; or the file cannot be written.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"The dtype of a GGUF file is {', '.join(DTYPES)}: got {dtype!r}. Try float32.")
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise RunError("A GGUF file needs the gguf package. Install it: pip install 'vitrine[gguf]'.") from None
    reader, file = RunReader(run), Path(file)
    if os.path.lexists(file):
        raise RunError(f"{file} exists already, and export replaces nothing. Name a new file.")
    model, tokenizer = reader.config.model, load_tokenizer(reader.path / TOKENIZER)
    if model.n_layers > LAYERS:
        raise RunError(f"{reader.path} has {model.n_layers} layers, and llama.cpp has room for {LAYERS}.")
    if model.family.gguf_square and model.attention_width != model.d_model:
        raise RunError(
            f"{reader.path} cannot be a GGUF file: in llama.cpp, the heads of {model.architecture} are together as wide as the "
            f"model, and here they have {model.n_heads} x {model.head_dim} channels in a width of {model.d_model}."
        )
    if model.family.gguf_untied and model.tie_embeddings:
        raise RunError(
            f"{reader.path} cannot be a GGUF file: in llama.cpp, {model.architecture} has an output head of its own, and here it "
            "is tied to the embedding (model.tie_embeddings)."
        )
    metadata = architecture_metadata(model) | tokenizer_metadata(tokenizer, model.vocab_size, reader.path)
    snapshot = load_step(reader, step)
    ours = finite_numbers(snapshot)
    tensors = to_gguf(model, ours)
    if dtype == "float16":
        _check_float16(ours)
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file.absolute(), replace=False) as temporary:
            writer = GGUFWriter(temporary, model.architecture)
            for key, value in (metadata | _description(reader, snapshot)).items():
                _add(writer, key, value)
            _write(writer, tensors, dtype)
    except OSError as error:
        raise RunError(f"The file {file.absolute()} cannot be made: {error}.") from None
    count = sum(numbers.size for numbers in ours.values())
    return Exported(str(file), snapshot.step, f"{model.architecture} in {dtype}", count, snapshot.digest)


def architecture_metadata(model: ModelConfig) -> dict[str, Any]:
    """The model's shape, by the keys that llama.cpp reads."""
    shape = {
        "vocab_size": model.vocab_size,
        "context_length": model.context,
        "embedding_length": model.d_model,
        "block_count": model.n_layers,
        "feed_forward_length": model.d_ff,
        "attention.head_count": model.n_heads,
        "attention.head_count_kv": model.n_kv_heads,
    }
    return {f"{model.architecture}.{key}": value for key, value in (shape | model.family.to_gguf(model)).items()}


def tokenizer_metadata(tokenizer: Tokenizer, rows: int, path: Path) -> dict[str, Any]:
    """The tokenizer in llama.cpp's terms, with a token for each of the model's rows. Raises RunError if it has none."""
    what = kind(tokenizer)
    if what == "char":
        fields = _characters(tokenizer, path)
    elif what in ("byte", "bpe"):
        fields = _byte_pairs(tokenizer, path)
    else:
        raise RunError(
            f"{path} cannot be a GGUF file: of llama.cpp's own tokenizers, none is known to give the tokens of its "
            "tokenizer.json. Characters, bytes and GPT-2's byte-level BPE are."
        )
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    for row in range(len(tokens), rows):  # of a padded vocabulary: no text is ever split into such a token
        tokens.append(f"\\xff{row}" if what == "char" else f"[PAD{row}]")
        types.append(UNUSED)
    common = {"add_bos_token": False, "add_eos_token": False, "add_space_prefix": False}
    return fields | {f"tokenizer.ggml.{key}": value for key, value in common.items()}


def to_gguf(model: ModelConfig, ours: Mapping[str, Floats]) -> dict[str, Floats]:
    """Our parameters by the names, and in the order of rows, of llama.cpp."""
    places: dict[str, list[Floats]] = {}
    for plan in inventory(model):
        numbers = ours[plan.name]
        if model.family.gguf_interleaved and plan.part in ("attention.query", "attention.key"):
            numbers = interleaved(numbers, model.n_heads if plan.part == "attention.query" else model.n_kv_heads)
        home = model.family.gguf[plan.part].format(plan.block)
        places.setdefault(f"{home}.{'bias' if plan.kind == 'bias' else 'weight'}", []).append(numbers)
    return {name: np.ascontiguousarray(np.concatenate(parts)) for name, parts in places.items()}


def interleaved(numbers: Floats, heads: int) -> Floats:
    """Rows of queries or keys, so ordered that the two channels that turn together are neighbours.

    Here channel i of a head turns with channel i + head_dim / 2; llama.cpp, for this family, turns 2i with 2i + 1.
    """
    halves = numbers.reshape(heads, 2, -1, *numbers.shape[1:])
    return halves.swapaxes(1, 2).reshape(numbers.shape)


def _characters(tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """A token per character, as llama.cpp has it under the name of rwkv: the longest token that fits comes next.

    No other of its tokenizers does without an end of text: they take token 11 for it, or token 1.
    """
    tokens = _in_order(tokenizer)
    beyond = [token for token in tokens if not token.isascii()]
    if beyond:
        raise RunError(
            f"{path} cannot be a GGUF file: its tokens are characters, {beyond[0]!r} (U+{ord(beyond[0]):04X}) among "
            "them, and llama.cpp never returns from a text with another character that begins with the same byte. "
            "Only ASCII characters are possible; so are data.tokenizer = byte or bpe:N."
        )
    return {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": ["\\\\" if token == "\\" else token for token in tokens],
        "tokenizer.ggml.token_type": [NORMAL] * len(tokens),
    }


def _byte_pairs(tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """GPT-2's byte-level BPE. Single bytes are that, too, without a merge."""
    state = json.loads(tokenizer.to_str())
    model, added, tokens = state["model"], tokenizer.get_added_tokens_decoder(), _in_order(tokenizer)
    before, end_id = tokenizer.pre_tokenizer, end_of_text_id(tokenizer)
    usual = {"continuing_subword_prefix": ("", None), "end_of_word_suffix": ("", None), "unk_token": (None,)}
    odd = [key for key, values in usual.items() if model.get(key) not in values]
    odd += [key for key in ("fuse_unk", "byte_fallback", "ignore_merges") if model.get(key)]
    odd += ["normalizer"] * (tokenizer.normalizer is not None)
    odd += ["add_prefix_space"] * bool(before.add_prefix_space)
    odd += ["use_regex"] * (not before.use_regex and bool(model["merges"]))
    odd += ["added_tokens"] * any(not token.special for token in added.values())
    if odd:
        raise RunError(
            f"{path} cannot be a GGUF file: the {odd[0]} of its tokenizer.json is not that of GPT-2's byte-level BPE, "
            "and llama.cpp would split text into other tokens."
        )
    if end_id is None or not set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokens):
        lacking = "no end of text, for which llama.cpp would take token 11" if end_id is None else "not all 256 bytes"
        raise RunError(f"{path} cannot be a GGUF file: its tokenizer.json has {lacking}.")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if number in added else NORMAL for number in range(len(tokens))],
        # The format has no empty list: this merge never comes about, since text is split into bytes first.
        "tokenizer.ggml.merges": merges or [f"{tokens[end_id]} {tokens[end_id]}"],
        "tokenizer.ggml.bos_token_id": end_id,
        "tokenizer.ggml.eos_token_id": end_id,
    }


def _in_order(tokenizer: Tokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _description(reader: RunReader, snapshot: Snapshot) -> dict[str, Any]:
    """Where the numbers come from."""
    config = reader.config
    told = [f"trained with Vitrine; the parameters that step {snapshot.step} of {config.training.steps} starts from"]
    return {
        "general.name": reader.path.resolve().name,
        "general.description": "; ".join(told + measured(reader, snapshot.step)),
        "vitrine.step": snapshot.step,
        "vitrine.digest": snapshot.digest,
        "vitrine.corpus": corpus_digest(reader) or "unknown",
        "vitrine.hyperparameters": tomli_w.dumps(config.portable()),
    }


def _add(writer: "GGUFWriter", key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _write(writer: "GGUFWriter", tensors: Mapping[str, Floats], dtype: str) -> None:
    from gguf import GGMLQuantizationType, LlamaFileType, quantize

    narrow, prefix = GGMLQuantizationType[DTYPES[dtype]], "ALL" if dtype == "float32" else "MOSTLY"
    writer.add_file_type(LlamaFileType[f"{prefix}_{DTYPES[dtype]}"])
    for name, numbers in tensors.items():
        whole = numbers.ndim == 1 or name.startswith("position_embd")
        kept = GGMLQuantizationType.F32 if whole else narrow
        writer.add_tensor(name, quantize(numbers, kept), raw_dtype=kept)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _check_float16(ours: Mapping[str, Floats]) -> None:
    for name, numbers in ours.items():
        if np.abs(numbers).max(initial=0) > LARGEST_FLOAT16:
            raise RunError(
                f"{name} holds {float(np.abs(numbers).max()):g}, and float16 ends at {LARGEST_FLOAT16:g}. Try --dtype "
                "bfloat16, which has the range of float32."
            )
