"""`import` of a folder that is malformed, by accident or on purpose: one sentence, and no run is left behind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from tests.exchange.test_huggingface import make_run
from vitrine.errors import ConfigError, PromptError, VitrineError
from vitrine.exchange import hf_export, hf_import
from vitrine.families.registry import FAMILIES
from vitrine.text.pattern_check import slow_text
from vitrine.text.token_files import prepare
from vitrine.text.tokenizer import byte_tokenizer, encode, load_tokenizer, save_tokenizer

ODD_VALUES = [None, 5, "x", "\ud800", [], [5], {}, {"type": None}, -1, 0.5, 1e400, 10**400, True]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound Hugging Face folder of each family."""
    parent = tmp_path_factory.mktemp("sound")
    for family in FAMILIES:
        hf_export.export_run(make_run(parent / f"run-{family}", architecture=family).path, parent / family)
    return {family: parent / family for family in FAMILIES}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["llama"], tmp_path / "folder"))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_odd_value_in_config_json_gets_past_the_checks(
    family: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value that is read, times each odd value: the import refuses it with a sentence, or works."""
    folder = Path(shutil.copytree(folders[family], tmp_path / "folder"))
    sound = json.loads((folder / "config.json").read_text())
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    monkeypatch.setattr(hf_import, "load_tokenizer", lambda path: tokenizer)
    monkeypatch.setattr(hf_import, "to_ours", _reached)  # the shapes of the tensors are checked next, elsewhere

    class Recorded(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

    asked: set[str] = set()
    hf_import.model_settings(Recorded(sound), folder)
    assert {"model_type", "vocab_size", "architectures", "layer_types"} < asked
    taken, sentences = 0, []
    for key in sorted(asked):
        for value in ODD_VALUES:
            (folder / "config.json").write_text(json.dumps(sound | {key: value}))
            try:
                hf_import.import_run(folder, tmp_path / "new")
            except _ReachedError:
                taken += 1
            except VitrineError as error:
                sentences.append(str(error))
    assert len(sentences) > 5 * taken > 0
    assert max(map(len, sentences)) < 800
    assert "".join(sentences).encode()
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


class _ReachedError(Exception):
    pass


def _reached(*arguments: Any) -> None:
    raise _ReachedError


def write_config(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        sound = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(sound | changes))

    return write


def write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def pipe(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def index(*names: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        places = {f"tensor {number}": name for number, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    return write


def both(*changes: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: [change(folder) for change in changes]


def cut_weights(kept: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(kept)

    return cut


MALFORMED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "Save its weights as safetensors"),
    "config.json a pipe": (pipe("config.json"), "config.json is not a regular file"),
    "config.json missing": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "config.json nested": (write("config.json", b'{"a":' * 100_000), "is nested too deeply"),
    "config.json a list": (write("config.json", b"[]"), "must be a JSON object: got []"),
    "config.json in bytes": (write("config.json", b"\xff\xfe"), "cannot be read"),
    "config.json no JSON": (write("config.json", b"{"), "is not valid JSON"),
    "config.json huge": (lambda folder: os.truncate(folder / "config.json", 2**40), "is larger than 67,108,864 bytes"),
    "a long number": (write("config.json", b'{"vocab_size": ' + b"9" * 5000 + b"}"), "is not valid JSON"),
    "layer_types": (write_config(layer_types=5), "layer_types = 5. Vitrine supports only a list of 'full_attention'"),
    "architectures": (write_config(architectures="LlamaForCausalLM"), "architectures = 'LlamaForCausalLM'. Of this"),
    "layers as text": (write_config(num_hidden_layers="2"), "num_hidden_layers as a whole number"),
    "too many layers": (write_config(num_hidden_layers=10**6), "gives no model that Vitrine can compute"),
    "a negative size": (write_config(hidden_size=-24), "hidden_size as a whole number from 1 to 16,777,216: got -24"),
    "a bias of 1": (write_config(attention_bias=1), "attention_bias as true or false: got 1"),
    "rope per layer type": (write_config(rope_parameters={"full_attention": {"rope_theta": 5.0}}), "no rope scaling"),
    "rope_theta as text": (
        write_config(rope_parameters={"rope_theta": "5"}),
        "rope_parameters.rope_theta as a positive",
    ),
    "an index that leaves the folder": (index("../new/a.safetensors"), "got '../new/a.safetensors' in its weight_map"),
    "an index of numbers": (index(5), "got 5 in its weight_map"),
    "an index of a missing file": (index("a.safetensors"), "'a.safetensors', which is no file there"),
    "an index of a pipe": (both(index("a.safetensors"), pipe("a.safetensors")), "'a.safetensors', which is no file"),
    "an index without a map": (
        both(index(), write("model.safetensors.index.json", b"[]")),
        "got None in its weight_map",
    ),
    "an empty index": (index(), "the tensor model.embed_tokens.weight is missing"),
    "cut weights": (cut_weights(9000), "folder cannot be read"),
    "a cut header": (cut_weights(20), "folder cannot be read"),
    "a template a pipe": (pipe("chat_template.jinja"), "chat_template.jinja is not a regular file"),
    "half a character": (
        write("tokenizer_config.json", b'{"chat_template": "\\ud800"}'),
        "tokenizer_config.json is not valid Unicode",
    ),
    "a nested tokenizer_config.json": (write("tokenizer_config.json", b"[" * 100_000), "is nested too deeply"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_folder_is_refused_with_a_sentence(case: str, folder: Path) -> None:
    change, sentence = MALFORMED[case]
    change(folder)
    with pytest.raises(VitrineError) as caught:
        hf_import.import_run(folder, folder.parent / "new")
    assert sentence in str(caught.value)
    assert [file.name for file in folder.parent.iterdir()] == [folder.name]


def test_names_of_chat_templates_may_be_anything(folder: Path) -> None:
    templates = [{"name": [], "template": "?"}, 5, {"name": "default", "template": "{{ messages }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    hf_import.import_run(folder, folder.parent / "new")
    assert (folder.parent / "new" / "chat_template.jinja").read_text() == "{{ messages }}"


def with_pattern(path: Path, pattern: str) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    save_tokenizer(tokenizer, path)


def test_a_tokenizer_that_backtracks_for_ever_is_refused(folder: Path, book: Path) -> None:
    """By `import`, and by a training that is given it."""
    with_pattern(folder / "tokenizer.json", "(a+)+$")
    for use in (
        lambda: hf_import.import_run(folder, folder.parent / "new"),
        lambda: prepare([str(book)], tokenizer=str(folder / "tokenizer.json"), cache=folder / "cache"),
    ):
        with pytest.raises(ConfigError, match="a regular expression that takes too long, tried on 2000 times 'a'"):
            use()
    assert not (folder.parent / "new").exists()
    with pytest.raises(PromptError, match=r"cannot encode the prompt: .*retry-limit"):
        encode(load_tokenizer(folder / "tokenizer.json"), "a" * 40 + "b")


def test_a_usual_pattern_is_taken(tmp_path: Path) -> None:
    """As in tokenizers of the Llama 3 kind; also one that takes the square of the length."""
    for pattern in (r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+", r"\s+$|."):
        save_tokenizer(byte_tokenizer(), tmp_path / "tokenizer.json")
        with_pattern(tmp_path / "tokenizer.json", pattern)
        assert slow_text(tmp_path / "tokenizer.json") == ""
