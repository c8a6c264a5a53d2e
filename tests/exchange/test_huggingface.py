"""What Vitrine trains opens in transformers, and what others trained opens in Vitrine."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vitrine import _files, api
from vitrine.cli.render import render
from vitrine.config import ModelConfig
from vitrine.errors import ConfigError, CorpusError, PromptError, RunError
from vitrine.exchange import hf_export, hf_import
from vitrine.families.registry import FAMILIES
from vitrine.inspection.views import inspect
from vitrine.model.decoder import Decoder
from vitrine.presets import Facts, resolve
from vitrine.run import Run
from vitrine.runs.records import EvaluationRecord
from vitrine.runs.retention import keyframe_path
from vitrine.runs.store import Store
from vitrine.text.tokenizer import byte_tokenizer, char_tokenizer, encode, save_tokenizer, train_bpe
from vitrine.training.checkpoint import Snapshot, load_keyframe, save_keyframe

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

SIZE = {"n_layers": 2, "n_heads": 4, "d_model": 24, "d_ff": 37, "context": 48}  # head_dim 6, odd widths
# Every combination of family, biases, grouped queries and tied embeddings that there is; then what goes beyond.
VARIANTS: dict[str, dict[str, Any]] = {"gpt2": {"architecture": "gpt2"}} | {
    ", ".join([family, "biases" * bias, "grouped" * grouped, "tied" * tied]): {
        "architecture": family,
        "bias": bias,
        "n_kv_heads": 2 if grouped else 4,
        "tie_embeddings": tied,
    }
    for family in FAMILIES
    if family != "gpt2"
    for bias, grouped, tied in itertools.product((False, True), repeat=3)
    if FAMILIES[family].fixed.get("bias", (bias,))[0] == bias
}
VARIANTS |= {
    "gpt2, other epsilon": {"architecture": "gpt2", "norm_epsilon": 0.1},
    "gpt2, padded": {"architecture": "gpt2", "vocab_size": 320},
    "llama, other base and epsilon": {
        "architecture": "llama",
        "n_kv_heads": 1,
        "rope_base": 500.0,
        "norm_epsilon": 0.1,
    },
    "llama, wide heads, padded": {
        "architecture": "llama",
        "head_dim": 10,
        "bias": True,
        "n_kv_heads": 2,
        "vocab_size": 320,
    },
    "qwen3, other base": {"architecture": "qwen3", "rope_base": 1e6},
    "qwen2, wide heads": {"architecture": "qwen2", "head_dim": 10, "rope_base": 1e6},
    "olmo2, wide heads": {"architecture": "olmo2", "head_dim": 10, "n_kv_heads": 2, "norm_epsilon": 0.1},
    "qwen3, narrow heads, padded": {
        "architecture": "qwen3",
        "head_dim": 4,
        "n_kv_heads": 2,
        "tie_embeddings": True,
        "vocab_size": 320,
    },
}
PROBES = [
    "",
    " ",
    "\n\n\t  indented",
    "Hello, world!",
    "naïve café, Ünïcødé, Ελληνικά",
    "日本語のテキスト",
    "two 🎉 and a family 👩‍👩‍👧",
    "a  b   c ",
    "don't we'll 12345",
    "e\u0301 \u200b\ufeff\r\nend\u00a0",
]
ALPHABET = "\n\t abcdefghijklmnopqrstuvwxyzABCDEF.,!?'é日🎉"
OWN_PROBES = [
    "",
    " ",
    "\n\n\t  indented",
    "Bead, face!",
    "café",
    "日日 日",
    "two 🎉🎉",
    "a  b   c ",
    "don't we'll",
    "\tEnd.\n",
]


def tokenizer_of(name: str) -> Any:
    if name == "char":
        return char_tokenizer(ALPHABET)
    return (
        byte_tokenizer() if name == "byte" else train_bpe(iter(["the cat and the hat, 12345; naïve 日本語 " * 50]), 300)
    )


def config_of(tokens: int, **model: Any) -> Any:
    settings = {
        "model": SIZE | model,
        "data": {"corpus": ["book.txt"]},
        "training": {"precision": "float32"},
        "sampling": {"temperature": 0.7, "min_p": 0.05},
    }
    return resolve(settings, Facts(vocab_size=tokens, train_tokens=1))


def scrambled(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Parameters of which none has a special value: gains are not one, biases not zero."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, parameter in Decoder(config).named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        found[name] = 1 + 0.3 * noise if name.endswith("gain") else 0.3 * noise
    return found


def make_run(path: Path, tokenizer_name: str = "byte", **model: Any) -> Run:
    """A run folder with a keyframe of step 0, as if it had been trained."""
    tokenizer = tokenizer_of(tokenizer_name)
    config = config_of(tokenizer.get_vocab_size(), **model)
    path.mkdir()
    (path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    save_tokenizer(tokenizer, path / "tokenizer.json")
    with Store(path / "run.sqlite") as store:
        store.event(0, "born", "seed 1")
        store.set_fact("fingerprint", json.dumps({"corpus": "c0ffee"}))
        store.write(EvaluationRecord(0, 3.25, 100, True, 0.1))
    save_keyframe(path / "keyframes", Snapshot(0, scrambled(config.model), {}))
    return Run(path)


def opened_by_transformers(folder: Path) -> tuple[Any, Any]:
    """As the README.md of the folder opens it."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    kind = FAMILIES[model.config.model_type].transformers_tokenizer
    assert f"tokenizer = {kind}.from_pretrained" in (folder / "README.md").read_text()
    return model, getattr(transformers, kind).from_pretrained(folder)


# There and back


@pytest.mark.parametrize("tokenizer_name", ["char", "byte", "bpe:300"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_is_the_same_in_transformers_and_after_its_return(
    variant: str, tokenizer_name: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", tokenizer_name, **VARIANTS[variant])
    exported = hf_export.export_run(run.path, tmp_path / "out")
    model, tokenizer = opened_by_transformers(tmp_path / "out")

    for text in OWN_PROBES if tokenizer_name == "char" else PROBES:
        ids = encode(run.tokenizer, text)
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids) == text

    tokens = torch.randint(
        run.config.model.vocab_size, (3, SIZE["context"]), generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        theirs, ours = model(tokens).logits, run.model()(tokens)
    assert theirs.dtype == torch.float32
    assert theirs.std() > 0.1
    assert (theirs - ours).abs().max() < 1e-4  # float32 sums of some hundred terms, in another order

    written = run.generate("the cat", max_new_tokens=20, temperature=0)
    prompt = tokenizer("the cat", return_tensors="pt").input_ids
    padding = list(range(run.tokenizer.get_vocab_size(), run.config.model.vocab_size))
    greedy = model.generate(
        prompt,
        do_sample=False,
        temperature=None,
        top_p=None,
        min_p=None,
        max_new_tokens=20,
        suppress_tokens=padding or None,
    )
    new = greedy[0, prompt.shape[1] :].tolist()
    assert [token for token in new if token != tokenizer.eos_token_id] == list(written.token_ids)
    assert (tokenizer.eos_token_id in new) == written.ended

    imported = hf_import.import_run(str(tmp_path / "out"), str(tmp_path / "back"))
    back = Run(tmp_path / "back")
    assert imported.digest == exported.digest == load_keyframe(keyframe_path(back.path / "keyframes", 0)).digest
    assert back.config.model == run.config.model
    assert back.tokenizer.to_str() == run.tokenizer.to_str()


def test_greedy_text_of_the_command_is_that_of_transformers(vitrine: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "run", "bpe:300", architecture="qwen3", n_kv_heads=2)
    done = vitrine("export", "run", "out", "--json")
    assert json.loads(done.stdout)["model"] == "Qwen3ForCausalLM", done.stderr
    assert vitrine("import", "out", "--run", "back").stdout.startswith("back: qwen3, ")
    done = vitrine("generate", "back", "--prompt", "the", "--temperature", 0, "--max-new-tokens", 16, "--json")
    model, tokenizer = opened_by_transformers(tmp_path / "out")
    greedy = model.generate(**tokenizer("the", return_tensors="pt"), do_sample=False, max_new_tokens=16)
    assert json.loads(done.stdout)["text"] == tokenizer.decode(greedy[0], skip_special_tokens=True)


def test_a_character_outside_the_alphabet_is_an_error_here_and_there(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "char")
    hf_export.export_run(run.path, tmp_path / "out")
    _, tokenizer = opened_by_transformers(tmp_path / "out")
    with pytest.raises(PromptError, match="never seen 'Z'"):
        encode(run.tokenizer, "Z")
    with pytest.raises(Exception, match="UNK"):
        tokenizer("Z")
    assert tokenizer.eos_token is None
    assert "is an error in transformers too" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("name", ["byte", "bpe:300"])
def test_the_end_of_text_is_known_as_such(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", name, architecture="llama")
    hf_export.export_run(run.path, tmp_path / "out")
    model, tokenizer = opened_by_transformers(tmp_path / "out")
    end_id = run.tokenizer.token_to_id("<|endoftext|>")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", end_id)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == end_id


def test_the_sampling_of_the_run_goes_along(tmp_path: Path) -> None:
    hf_export.export_run(make_run(tmp_path / "run").path, tmp_path / "out")
    model, _ = opened_by_transformers(tmp_path / "out")
    chosen = model.generation_config
    assert (chosen.do_sample, chosen.temperature, chosen.top_k, chosen.min_p) == (True, 0.7, 0, 0.05)
    assert chosen.max_length == SIZE["context"]


def test_the_card_says_where_the_model_comes_from(tmp_path: Path) -> None:
    exported = hf_export.export_run(make_run(tmp_path / "run").path, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for fact in ("c0ffee", exported.digest, "3.2500 nats", "n_kv_heads = 4", "AutoModelForCausalLM", "random, seed 1"):
        assert fact in card
    assert str(tmp_path) not in card


# Never half


def test_export_replaces_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already, and export replaces nothing"):
        hf_export.export_run(run.path, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(RunError, match="exists already"):
        hf_export.export_run(run.path, tmp_path / "out/mine.txt")


@pytest.mark.parametrize("there", ["a folder with a file in it", "a file"])
def test_what_comes_into_being_while_export_works_is_not_replaced(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look and the last rename, somebody else may take the name."""
    run, out, flush = make_run(tmp_path / "run"), tmp_path / "out", _files.fsync

    def flush_late(path: Path) -> None:
        flush(path)
        if path.is_dir() and not out.exists():  # the new folder is whole, and gets its name next
            if there == "a file":
                out.write_text("mine")
            else:
                out.mkdir()
                (out / "mine.txt").write_text("mine")

    monkeypatch.setattr(_files, "fsync", flush_late)
    with pytest.raises(RunError, match=r"The folder .*out cannot be made"):
        hf_export.export_run(run.path, out)
    assert (out if there == "a file" else out / "mine.txt").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "run"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    hf_export.export_run(make_run(tmp_path / "run").path, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize("failing", ["save_file", "save_tokenizer", "fsync"])
def test_an_export_that_fails_leaves_nothing(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    run = make_run(tmp_path / "run")
    monkeypatch.setattr(_files if failing == "fsync" else hf_export, failing, refuse)
    with pytest.raises(RunError, match=r"out cannot be made: .*No space left"):
        hf_export.export_run(run.path, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    parameters = scrambled(run.config.model)
    parameters["blocks.1.mlp.gate.weight"][3, 2] = float("nan")
    save_keyframe(run.path / "keyframes", Snapshot(7, parameters, {}))
    with pytest.raises(RunError, match=r"blocks\.1\.mlp\.gate\.weight holds numbers that are not finite at step 7"):
        hf_export.export_run(run.path, tmp_path / "out")
    assert hf_export.export_run(run.path, tmp_path / "out", step=0).step == 0


# From elsewhere


def folder_of(tmp_path: Path, tokenizer_name: str = "byte", **model: Any) -> Path:
    """A Hugging Face folder."""
    hf_export.export_run(make_run(tmp_path / "run", tokenizer_name, **model).path, tmp_path / "folder")
    return tmp_path / "folder"


@pytest.mark.parametrize("variant", ["gpt2", "llama, wide heads, padded", "qwen3, narrow heads, padded"])
def test_a_folder_in_pieces_that_transformers_wrote_is_read(variant: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **VARIANTS[variant])
    model, tokenizer = opened_by_transformers(folder)
    model.save_pretrained(tmp_path / "pieces", max_shard_size="10KB")
    tokenizer.save_pretrained(tmp_path / "pieces")
    assert len(list((tmp_path / "pieces").glob("model-*.safetensors"))) > 1
    imported = hf_import.import_run(str(tmp_path / "pieces"), str(tmp_path / "back"))
    assert imported.digest == load_keyframe(keyframe_path(tmp_path / "run/keyframes", 0)).digest
    assert Run(tmp_path / "back").config.model == Run(tmp_path / "run").config.model


def test_a_gpt2_without_a_head_of_its_own_and_half_as_wide_is_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, architecture="gpt2")
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor.bfloat16() for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)  # a table of the mask, as older files have it
    save_file(bare, folder / "model.safetensors")
    hf_import.import_run(str(folder), str(tmp_path / "back"))
    found = load_keyframe(keyframe_path(tmp_path / "back/keyframes", 0)).parameters["blocks.0.attention.key.weight"]
    kept = load_keyframe(keyframe_path(tmp_path / "run/keyframes", 0)).parameters["blocks.0.attention.key.weight"]
    assert torch.equal(found, kept.bfloat16().float())


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another family": ("llama", {"model_type": "mistral"}, "model_type = 'mistral'. Vitrine supports gpt2, llama"),
    "another task": (
        "llama",
        {"architectures": ["LlamaForTokenClassification"]},
        r"architectures = \['LlamaForTokenClassification'\]. Of this family",
    ),
    "rope scaling": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "rope_scaling = .*'linear'.* Vitrine supports no rope scaling",
    ),
    "rope of another kind": (
        "qwen3",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        "rope_parameters = .*'yarn'.* Vitrine supports no rope scaling",
    ),
    "another activation": ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'. Vitrine supports only 'silu'"),
    "exact GELU": (
        "gpt2",
        {"activation_function": "gelu"},
        "activation_function = 'gelu'. Vitrine supports only 'gelu_new'",
    ),
    "a sliding window": ("qwen3", {"use_sliding_window": True}, "use_sliding_window = True"),
    "a window in some layers": ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "unscaled attention": ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False"),
    "scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    "an untied GPT-2": ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
    "biases in qwen3": ("qwen3", {"attention_bias": True}, "attention_bias = True"),
    "half of the biases": ("llama", {"attention_bias": True}, "attention_bias is True and mlp_bias is False"),
    "a rope that is no table": (
        "llama",
        {"rope_scaling": "linear"},
        "rope_scaling = 'linear'. Vitrine supports no rope scaling",
    ),
    "heads of another width": (
        "qwen3",
        {"head_dim": 128},
        r"_proj.weight has shape .*; by config.json it must be \(512, 24\)",
    ),
    "heads that cannot turn": ("llama", {"head_dim": 5}, "must be even: got 5"),
    "quantized": ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    "no width": (
        "llama",
        {"hidden_size": None},
        "must give hidden_size as a whole number from 1 to 16,777,216: got None",
    ),
    "fewer rows than tokens": ("llama", {"vocab_size": 256}, "has 257 tokens, but vocab_size .* is only 256"),
    "more rows than there are": ("llama", {"vocab_size": 300}, r"has shape \(257, 24\); by config.json .* \(300, 24\)"),
    "another shape": (
        "llama",
        {"intermediate_size": 36},
        r"_proj.weight has shape \(37, 24\); by config",
    ),
    "more layers": ("llama", {"num_hidden_layers": 3}, r"the tensor model\.layers\.2\..* is missing"),
    "fewer layers": ("llama", {"num_hidden_layers": 1}, r"its tensor 'model\.layers\.1.* has no place"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_vitrine_cannot_compute_is_refused_by_name(case: str, tmp_path: Path) -> None:
    family, changes, sentence = REFUSED[case]
    folder = folder_of(tmp_path, architecture=family)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((RunError, ConfigError), match=sentence):
        hf_import.import_run(str(folder), str(tmp_path / "back"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "run"]


def test_files_that_are_missing_or_pickled_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)

    def refusal() -> str:
        with pytest.raises(RunError) as caught:
            hf_import.import_run(str(folder), str(tmp_path / "back"))
        assert not (tmp_path / "back").exists()
        return str(caught.value)

    (folder / "model.safetensors").rename(folder / "kept")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin is a pickle, which can run code" in refusal()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../run/keyframes/step-00000000/model.safetensors"}}))
    assert "does not list safetensors files of its own folder" in refusal()
    index.write_text(json.dumps({"weight_map": {"x": "model-00001-of-00001.safetensors"}}))
    assert "lists 'model-00001-of-00001.safetensors', which is no file there" in refusal()
    (folder / "model.safetensors").write_bytes(b"no safetensors at all")
    assert "cannot be read" in refusal()
    (folder / "kept").rename(folder / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal()
    shutil.rmtree(folder)
    assert "There is no folder" in refusal()


def test_weights_from_elsewhere_must_be_finite(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(RunError, match=r"model\.norm\.weight holds numbers that are not finite"):
        hf_import.import_run(str(folder), str(tmp_path / "back"))


def test_a_name_of_the_hub_is_fetched_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder, asked = folder_of(tmp_path), []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name == "no/network":
            raise OSError("Name or service not known")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    hf_import.import_run("hf:owner/name", str(tmp_path / "back"))
    assert asked[0][0] == "owner/name"
    assert all(pattern.endswith((".json", ".safetensors", ".jinja")) for pattern in asked[0][1])
    assert Run(tmp_path / "back").events()[0].text == "from hf:owner/name"
    with pytest.raises(RunError, match="cannot be fetched from the Hugging Face Hub: Name or service not known"):
        hf_import.import_run("hf:no/network", str(tmp_path / "other"))


def test_an_imported_run_says_what_it_has_and_what_it_lacks(tmp_path: Path, book: Path) -> None:
    hf_import.import_run(str(folder_of(tmp_path)), str(tmp_path / "back"))
    back = Run(tmp_path / "back")
    for ask in (back.evaluate, lambda: back.step(0), lambda: api.resume(back.path)):
        with pytest.raises(RunError, match="was imported, and has no text of its own"):
            ask()
    assert back.evaluate(str(book)).loss == Run(tmp_path / "run").evaluate(str(book)).loss
    with pytest.raises(CorpusError, match="no text to learn from"):
        api.train(parent=f"{back.path}@0")


def test_the_parameters_of_a_run_without_steps_can_be_inspected(tmp_path: Path) -> None:
    hf_import.import_run(str(folder_of(tmp_path)), str(tmp_path / "back"))
    back, name = Run(tmp_path / "back"), "blocks.0.attention.key.weight"
    kept = scrambled(back.config.model)[name]
    assert inspect(back).to_json()["parameters"] == sum(t.numel() for t in scrambled(back.config.model).values())
    assert inspect(back, name).to_json()["tensors"][0]["norm"] == pytest.approx(float(kept.norm()))
    one = inspect(back, f"{name}[3,7]")
    assert one.to_json()["value"] == float(kept[3, 7])
    assert f"{name}[3,7] = {float(kept[3, 7]):.9g}" in render(one)
    for what, step, nudges in ((f"{name}[3,7]", None, [1e-3]), ("blocks.0.mlp.expand[1]", None, []), ("", 4, [])):
        with pytest.raises(RunError, match="has made no step yet"):
            inspect(back, what, step, nudges)


def test_an_imported_run_is_trained_further_on_own_text(tmp_path: Path, book: Path) -> None:
    hf_import.import_run(str(folder_of(tmp_path, architecture="llama", bias=True)), str(tmp_path / "back"))
    child = api.train(
        book,
        parent=f"{tmp_path / 'back'}@0",
        steps=20,
        run=tmp_path / "child",
        settings={"training.batch_size": 4, "optimizer.learning_rate": 3e-3, "recording.text_samples": 0},
    )
    assert child.config.model == Run(tmp_path / "run").config.model
    born = load_keyframe(keyframe_path(child.path / "keyframes", 0))
    assert born.digest == load_keyframe(keyframe_path(tmp_path / "run/keyframes", 0)).digest
    losses = [record.loss for record in child.steps()]
    assert losses[-1] < losses[0]
    assert child.step(3).exact
