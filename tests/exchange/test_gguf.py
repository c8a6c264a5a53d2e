"""A run as a GGUF file: by the gguf package's own reader and names, and in llama.cpp itself where it is installed."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.pre_tokenizers import ByteLevel

from tests.exchange import test_huggingface
from tests.exchange.test_huggingface import PROBES, SIZE, make_run, scrambled
from vitrine import _files
from vitrine.config import ModelConfig
from vitrine.errors import ConfigError, RunError
from vitrine.exchange import gguf as ours
from vitrine.model.decoder import apply_rope, rope_table
from vitrine.run import Run
from vitrine.text.tokenizer import encode
from vitrine.training.checkpoint import Snapshot, save_keyframe

# Those that llama.cpp does not know are refused.
REFUSED = {
    name: "tied to the embedding" if "tied" in name else "as wide as the model"
    for name in test_huggingface.VARIANTS
    if name in ("qwen2, wide heads", "olmo2, wide heads") or (name.startswith("olmo2") and "tied" in name)
}
VARIANTS = {name: model for name, model in test_huggingface.VARIANTS.items() if name not in REFUSED}
ASCII = "\n\t abcdefghijklmnopqrstuvwxyzABCDEF.,!?'\\0"


@pytest.fixture(autouse=True)
def ascii_alphabet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.exchange.test_huggingface.ALPHABET", ASCII)


def fields(file: Path) -> dict[str, Any]:
    """The metadata, as the gguf package reads it."""
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def tensors(file: Path) -> dict[str, np.ndarray]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}


# The numbers


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_has_the_name_and_the_numbers_that_the_gguf_package_gives_transformers_tensors(
    variant: str, tmp_path: Path
) -> None:
    """By its own map of names; turned for GPT-2, and the rows of Llama's queries and keys interleaved."""
    run = make_run(tmp_path / "run", **VARIANTS[variant])
    run.export(tmp_path / "hf")
    run.export(tmp_path / "model.gguf", target_format="gguf")
    model = run.config.model
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == model.architecture)
    names = gguf.get_tensor_name_map(architecture, model.n_layers)
    found = tensors(tmp_path / "model.gguf")
    theirs = load_file(tmp_path / "hf/model.safetensors")
    assert len(found) == len(theirs)
    for name, numbers in theirs.items():
        if model.architecture == "gpt2" and numbers.ndim == 2 and ".h." in name:
            numbers = numbers.T
        if model.architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            half = model.head_dim // 2
            order = [
                h * 2 * half + p * half + i
                for h in range(len(numbers) // half // 2)
                for i in range(half)
                for p in (0, 1)
            ]
            numbers = numbers[order]
        np.testing.assert_array_equal(found[names.get_name(name, try_suffixes=(".weight", ".bias"))], numbers)


def test_interleaved_channels_turn_as_the_two_halves_do() -> None:
    """llama.cpp turns channel 2i with 2i + 1: on interleaved rows that is our rotation, interleaved."""
    heads, head_dim, seq = 3, 6, 5
    cos, sin = rope_table(seq, head_dim, 100.0)
    x = torch.randn(1, heads, seq, head_dim, generator=torch.Generator().manual_seed(1))

    def change_rows(y: torch.Tensor) -> np.ndarray:  # (heads * head_dim, seq)
        return ours.interleaved(y[0].transpose(1, 2).reshape(heads * head_dim, seq).numpy(), heads)

    pairs = torch.from_numpy(change_rows(x)).view(heads, head_dim // 2, 2, seq)
    c, s = cos[:, : head_dim // 2].T, sin[:, : head_dim // 2].T
    turned = torch.stack([pairs[:, :, 0] * c - pairs[:, :, 1] * s, pairs[:, :, 1] * c + pairs[:, :, 0] * s], 2)
    np.testing.assert_allclose(turned.reshape(-1, seq), change_rows(apply_rope(x, cos, sin)), atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "torchs", "file_type"), [("float16", torch.float16, 1), ("bfloat16", torch.bfloat16, 32)]
)
def test_matrices_are_rounded_to_nearest_and_vectors_are_not(
    dtype: str, torchs: torch.dtype, file_type: int, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", architecture="gpt2")
    run.export(tmp_path / "whole.gguf", target_format="gguf")
    run.export(tmp_path / "model.gguf", target_format="gguf", dtype=dtype)
    assert fields(tmp_path / "whole.gguf")["general.file_type"] == 0
    assert fields(tmp_path / "model.gguf")["general.file_type"] == file_type
    found = tensors(tmp_path / "model.gguf")
    for name, whole in tensors(tmp_path / "whole.gguf").items():
        kept = whole.ndim == 1 or name == "position_embd.weight"
        rounded = whole if kept else torch.tensor(whole).to(torchs).float().numpy()
        np.testing.assert_array_equal(found[name], rounded)


def test_the_metadata_says_what_the_model_is_and_where_it_comes_from(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", architecture="qwen3", head_dim=10, n_kv_heads=2, rope_base=500.0, vocab_size=300)
    exported = run.export(tmp_path / "model.gguf", target_format="gguf")
    found = fields(tmp_path / "model.gguf")
    expected = {
        "general.architecture": "qwen3",
        "general.name": "run",
        "general.file_type": 0,
        "qwen3.context_length": 48,
        "qwen3.embedding_length": 24,
        "qwen3.block_count": 2,
        "qwen3.feed_forward_length": 37,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 10,
        "qwen3.attention.value_length": 10,
        "qwen3.rope.dimension_count": 10,
        "qwen3.rope.freq_base": 500.0,
        "qwen3.vocab_size": 300,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 256,
        "tokenizer.ggml.add_bos_token": False,
        "vitrine.digest": exported.digest,
        "vitrine.corpus": "c0ffee",
    }
    assert {key: found[key] for key in expected} == expected
    assert found["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert "validation loss at step 0: 3.2500 nats" in found["general.description"]
    assert "head_dim = 10" in found["vitrine.hyperparameters"]
    assert str(tmp_path) not in found["vitrine.hyperparameters"]
    assert len(found["tokenizer.ggml.tokens"]) == 300
    assert set(found["tokenizer.ggml.token_type"][257:]) == {gguf.TokenType.UNUSED}


@pytest.mark.parametrize("name", ["byte", "bpe:300"])
def test_the_tokens_and_merges_make_the_tokenizer_again(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", name)
    run.export(tmp_path / "model.gguf", target_format="gguf")
    found, kept = fields(tmp_path / "model.gguf"), json.loads(run.tokenizer.to_str())["model"]
    tokens = found["tokenizer.ggml.tokens"]
    assert {token: number for number, token in enumerate(tokens)} == run.tokenizer.get_vocab()
    merges = [tuple(merge.split(" ")) for merge in found["tokenizer.ggml.merges"]]
    assert merges == [tuple(pair) for pair in kept["merges"]] or [("<|endoftext|>",) * 2]
    assert [t for t, kind in zip(tokens, found["tokenizer.ggml.token_type"], strict=True) if kind == 3] == [
        "<|endoftext|>"
    ]


# In llama.cpp itself


def texts(tokenizer_name: str) -> Iterator[str]:
    draws = random.Random(1)
    if tokenizer_name == "char":
        yield from ("".join(draws.choice(ASCII) for _ in range(draws.randrange(40))) for _ in range(200))
        return
    yield from PROBES
    odd = "".join(map(chr, [*range(1, 0x250), *range(0x370, 0x400), *range(0x2000, 0x2070), *range(0x3000, 0x3100)]))
    odd += "\u1680\u180e\ufeff\U0001f389\U0001d7d8\u0660\u2160\u5e74"
    for _ in range(1000):
        yield "".join(draws.choice(odd if draws.random() < 0.5 else " \n'sdt 1,.") for _ in range(draws.randrange(24)))


@pytest.mark.parametrize("tokenizer_name", ["char", "byte", "bpe:300"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_has_the_same_tokens_and_the_same_logits(variant: str, tokenizer_name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    run = make_run(tmp_path / "run", tokenizer_name, **VARIANTS[variant])
    run.export(tmp_path / "model.gguf", target_format="gguf")
    context = SIZE["context"]
    whole = {"type_k": 0, "type_v": 0, "flash_attn": False}  # its cache in float32, too
    there = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=context, logits_all=True, verbose=False, **whole)
    try:
        for text in texts(tokenizer_name):
            ids = there.tokenize(text.encode(), add_bos=True, special=False)
            assert ids == encode(run.tokenizer, text)
            assert there.detokenize(ids).decode() == text
        end_id = run.tokenizer.token_to_id("<|endoftext|>")
        assert there.token_eos() == (-1 if end_id is None else end_id)
        tokens = torch.randint(run.config.model.vocab_size, (context,), generator=torch.Generator().manual_seed(2))
        there.eval(tokens.tolist())
        with torch.no_grad():
            difference = np.abs(run.model()(tokens[None])[0].numpy() - there.scores[:context]).max()
    finally:
        there.close()
    # On a processor, llama.cpp looks GELU up in a table of float16.
    assert difference < (1e-2 if run.config.model.architecture == "gpt2" else 1e-4)


# What cannot be held


def refusal(run: Run, target: Path, **how: Any) -> str:
    with pytest.raises((RunError, ConfigError)) as caught:
        run.export(target, target_format="gguf", **how)
    assert not target.exists()
    return str(caught.value)


def test_characters_beyond_ascii_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.exchange.test_huggingface.ALPHABET", "aé")
    run = make_run(tmp_path / "run", "char")
    assert "its tokens are characters, 'é' (U+00E9) among them" in refusal(run, tmp_path / "model.gguf")


def spaced(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)


def unsplit(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)


def normalised(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()


def marked(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<mark>", special=False)])


ODD = {"add_prefix_space": spaced, "use_regex": unsplit, "normalizer": normalised, "added_tokens": marked}


@pytest.mark.parametrize("what", ODD)
def test_a_tokenizer_that_splits_otherwise_is_refused_by_what_differs(what: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "bpe:300", vocab_size=310)
    tokenizer = run.tokenizer
    ODD[what](tokenizer)
    tokenizer.save(str(run.path / "tokenizer.json"))
    assert f"the {what} of its tokenizer.json is not that of GPT-2's" in refusal(Run(run.path), tmp_path / "model.gguf")


def test_a_tokenizer_without_an_end_of_text_or_without_some_bytes_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "byte")
    whole = (run.path / "tokenizer.json").read_text(encoding="utf-8")
    state = json.loads(whole.replace("<|endoftext|>", "<|other|>"))
    (run.path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    assert "no end of text, for which llama.cpp would take token 11" in refusal(Run(run.path), tmp_path / "model.gguf")
    state = json.loads(whole)
    state["model"]["vocab"]["no"] = state["model"]["vocab"].pop("Ā")
    (run.path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    assert "has not all 256 bytes" in refusal(Run(run.path), tmp_path / "model.gguf")


def test_a_tokenizer_of_another_kind_and_too_many_layers_are_refused(tmp_path: Path) -> None:
    state = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"the": 0}, "unk_token": "?"},
    }
    with pytest.raises(RunError, match=r"of llama\.cpp's own tokenizers, none is known"):
        ours.tokenizer_metadata(Tokenizer.from_str(json.dumps(state)), 1, tmp_path)
    deep = make_run(tmp_path / "deep", architecture="llama", n_layers=513, d_model=4, n_heads=1, d_ff=2, context=2)
    assert "has 513 layers, and llama.cpp has room for 512" in refusal(deep, tmp_path / "model.gguf")


@pytest.mark.parametrize("variant", REFUSED)
def test_a_shape_that_llama_cpp_does_not_know_is_refused(variant: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **test_huggingface.VARIANTS[variant])
    assert REFUSED[variant] in refusal(run, tmp_path / "model.gguf")


def test_numbers_that_are_not_finite_or_too_large_are_refused_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    parameters = scrambled(run.config.model)
    parameters["blocks.1.mlp.gate.weight"][3, 2] = 70000
    save_keyframe(run.path / "keyframes", Snapshot(7, parameters, {}))
    sentence = "blocks.1.mlp.gate.weight holds 70000, and float16 ends at 65504. Try --dtype bfloat16"
    assert sentence in refusal(run, tmp_path / "model.gguf", dtype="float16")
    assert run.export(tmp_path / "wide.gguf", target_format="gguf", dtype="bfloat16").step == 7
    parameters["blocks.1.mlp.gate.weight"][3, 2] = float("nan")
    save_keyframe(run.path / "keyframes", Snapshot(8, parameters, {}))
    assert "gate.weight holds numbers that are not finite at step 8" in refusal(run, tmp_path / "model.gguf")


def test_what_is_asked_for_wrongly_is_told(tmp_path: Path, vitrine: Any) -> None:
    run = make_run(tmp_path / "run")
    assert "float32, float16, bfloat16: got 'q4_0'" in refusal(run, tmp_path / "model.gguf", dtype="q4_0")
    for arguments, sentence in (
        (("out", "--format", "onnx"), "The format is hf or gguf: got 'onnx'"),
        (("out", "--dtype", "float16"), "A Hugging Face folder has only float32: got dtype 'float16'"),
        (("model.gguf",), "model.gguf would be a folder. Add --format gguf"),
    ):
        done = vitrine("export", "run", *arguments)
        assert done.returncode == 2
        assert sentence in done.stderr
    done = vitrine("export", "run", "new/model.gguf", "--format", "gguf", "--step", "best", "--json")
    assert json.loads(done.stdout)["path"] == "new/model.gguf", done.stderr
    assert fields(tmp_path / "new/model.gguf")["vitrine.step"] == 0


def test_without_the_package_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert "pip install 'vitrine[gguf]'" in refusal(make_run(tmp_path / "run"), tmp_path / "model.gguf")


# Never half, and over nothing


def test_a_gguf_file_replaces_nothing(tmp_path: Path) -> None:
    run, there = make_run(tmp_path / "run"), tmp_path / "model.gguf"
    there.symlink_to("nowhere")
    with pytest.raises(RunError, match="exists already, and export replaces nothing"):
        run.export(there, target_format="gguf")
    assert there.is_symlink()


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_comes_into_being_while_export_works_is_not_replaced(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, there, flush = make_run(tmp_path / "run"), tmp_path / "model.gguf", _files.fsync

    def flush_late(path: Path) -> None:
        flush(path)
        there.write_text("mine")

    def no_links(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(_files.os, "link", no_links)
        run.export(tmp_path / "other.gguf", target_format="gguf")
        assert fields(tmp_path / "other.gguf")["general.name"] == "run"
        (tmp_path / "other.gguf").unlink()
    monkeypatch.setattr(_files, "fsync", flush_late)
    with pytest.raises(RunError, match=r"The file .*model\.gguf cannot be made: .*File exists"):
        run.export(there, target_format="gguf")
    assert there.read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.gguf", "run"]


def test_a_gguf_file_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    run = make_run(tmp_path / "run")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    assert "No space left on device" in refusal(run, tmp_path / "model.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_the_metadata_of_a_shape_is_whole(tmp_path: Path) -> None:
    """Every key that is written is one that the gguf package knows."""
    known = {value for group in vars(gguf.Keys).values() if isinstance(group, type) for value in vars(group).values()}
    for variant in VARIANTS.values():
        model: ModelConfig = make_run(tmp_path / str(len(list(tmp_path.iterdir()))), **variant).config.model
        for key in ours.architecture_metadata(model):
            assert key.replace(model.architecture, "{arch}", 1) in known
