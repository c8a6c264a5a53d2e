"""The tensors of a run are a fact in its folder: readers ask it, never the hyperparameters."""

import json
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import vitrine as package
from tests.conftest import made_once, unpack_old_run
from tests.studio.conftest import serve
from tests.studio.test_page import OPENING_SEEN, Browser, pytestmark, sync_api  # noqa: F401
from tests.studio.test_parameter_map import check_law
from vitrine.config import ModelConfig
from vitrine.errors import RunError
from vitrine.families.registry import FAMILIES
from vitrine.inspection.health_by_history import history_verdicts
from vitrine.inspection.verify import check_keyframes
from vitrine.inspection.views import inspect
from vitrine.model.decoder import Decoder
from vitrine.model.inventory import read_tensors, tensor_fact
from vitrine.presets import Facts, resolve
from vitrine.runs.reader import RunReader
from vitrine.runs.retention import keyframe_steps
from vitrine.training.checkpoint import load_keyframe, save_keyframe

WORDS = {
    "embedding": "wte",
    "blocks": "h",
    "attention_norm": "ln_1",
    "attention": "attn",
    "query": "q",
    "mlp_norm": "ln_2",
    "final_norm": "ln_f",
}


def model_of(**settings: object) -> ModelConfig:
    size = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_ff": 16, "context": 8}
    return resolve({"model": size | settings}, Facts(vocab_size=11, train_tokens=1)).model


def set_fact(run: Path, name: str, value: str) -> None:
    with closing(sqlite3.connect(run / "run.sqlite")) as history, history:
        history.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fact_has_every_parameter_of_the_model_and_a_tied_head_with_its_owner(family: str, tied: bool) -> None:
    config = model_of(architecture=family, tie_embeddings=tied or family == "gpt2")
    found = read_tensors(tensor_fact(config))
    own = {tensor.name: tensor.shape for tensor in found if not tensor.owner}
    assert own == {name: tuple(parameter.shape) for name, parameter in Decoder(config).named_parameters()}
    owners = {tensor.name: (tensor.owner, tensor.shape) for tensor in found if tensor.owner}
    assert owners == ({"head.weight": ("embedding.weight", (11, 12))} if config.tie_embeddings else {})
    for tensor in found:
        place = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(\w+)", tensor.name)
        assert place
        assert (tensor.block, tensor.part) == (None if place[1] is None else int(place[1]), place[2])


def test_a_training_writes_it_and_an_import_too(small: Path, tmp_path: Path) -> None:
    reader = RunReader(small)
    assert reader.facts()["tensors"] == tensor_fact(reader.config.model)
    package.Run(small).export(tmp_path / "out")
    package.import_run(tmp_path / "out", tmp_path / "back")
    assert RunReader(tmp_path / "back").facts()["tensors"] == tensor_fact(reader.config.model)


def test_a_run_without_it_has_the_tensors_of_its_hyperparameters(tmp_path: Path) -> None:
    reader = RunReader(unpack_old_run(tmp_path))
    assert "tensors" not in reader.facts()
    kept = load_keyframe(reader.path / "keyframes/step-00000000")
    assert {t.name: t.shape for t in reader.tensors} == {n: tuple(p.shape) for n, p in kept.parameters.items()}


def test_damage_to_it_is_named(small: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small, tmp_path / "copy"))
    set_fact(copy, "tensors", '[{"name": "wte"}]')
    with pytest.raises(RunError, match="the fact `tensors`"):
        _ = RunReader(copy).tensors


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, book_file: Path) -> Path:
    """A run so small that its film shows every parameter."""

    def make(folder: Path) -> None:
        model = {"n_layers": 2, "n_heads": 2, "d_model": 16, "context": 16}
        settings = {f"model.{key}": value for key, value in model.items()} | {
            "data.tokenizer": "char",
            "recording.statistics_every": 1,
            "recording.keyframe_every": 20,
            "recording.text_samples": 0,
            "training.precision": "float32",
            "machine.threads": 1,
        }
        package.train(book_file, run=folder / "run", settings=settings, steps=40)

    return made_once(tmp_path_factory, "tensors", make) / "run"


@pytest.fixture
def renamed(plain: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """The same run as if another library had named its tensors, and the names."""
    run = Path(shutil.copytree(plain, tmp_path / "small"))
    reader = RunReader(run)
    tensors = reader.every_tensor
    names = {t.name: ".".join(WORDS.get(word, word) for word in t.name.split(".")) for t in tensors}
    told = [
        vars(replace(t, name=names[t.name], part=".".join(WORDS.get(word, word) for word in t.part.split("."))))
        for t in tensors
    ]
    layout = json.loads(reader.facts()["statistics"])
    layout["tensors"] = [names[name] for name in layout["tensors"]]
    layout["sample"] = {names[name]: places for name, places in layout["sample"].items()}
    film = json.loads((run / "film/manifest.json").read_text())
    film["tensors"] = [tensor | {"name": names[tensor["name"]]} for tensor in film["tensors"]]
    (run / "film/manifest.json").write_text(json.dumps(film))
    set_fact(run, "tensors", json.dumps(told))
    set_fact(run, "statistics", json.dumps(layout))
    for step in keyframe_steps(run / "keyframes"):
        kept = load_keyframe(run / f"keyframes/step-{step:08}")
        shutil.rmtree(run / f"keyframes/step-{step:08}")
        optimizer = {
            f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": kept.optimizer[key] for key in kept.optimizer
        }
        parameters = {names[name]: numbers for name, numbers in kept.parameters.items()}
        save_keyframe(run / "keyframes", replace(kept, parameters=parameters, optimizer=optimizer))
    return run, names


def test_readers_know_the_tensors_of_a_run_whose_names_are_not_vitrines(
    plain: Path, renamed: tuple[Path, dict[str, str]]
) -> None:
    run, names = renamed
    before, after = RunReader(plain), RunReader(run)
    assert [check.detail for check in check_keyframes(after) if not check.held] == []
    ours, theirs = (inspect(reader).to_json() for reader in (before, after))
    assert [names[tensor["name"]] for tensor in ours["tensors"]] == [tensor["name"] for tensor in theirs["tensors"]]
    assert ours["parameters"] == theirs["parameters"]
    judged = [[(v.name, v.level) for v in history_verdicts(reader)] for reader in (before, after)]
    assert judged[0] == judged[1]


def test_what_needs_vitrines_own_model_is_refused_by_the_first_tensor_that_it_lacks(
    renamed: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    run = package.Run(renamed[0])
    for ask in (lambda: run.step(3), run.generate, run.evaluate, lambda: run.export(tmp_path / "out")):
        with pytest.raises(RunError, match=r"has no tensor wte\.weight of shape \(88, 16\): it cannot be run again"):
            ask()
    assert not (tmp_path / "out").exists()


def test_the_studio_shows_a_run_whose_names_are_not_vitrines(
    plain: Path, renamed: tuple[Path, dict[str, str]], chromium: "sync_api.Browser"
) -> None:
    run, names = renamed
    """As far as it was recorded and kept: only Vitrine's own model can be run once more."""
    with serve(run) as studio:
        info = studio.json("runs/small")
        assert [t["name"] for t in info["tensors"]] == [names[t.name] for t in RunReader(plain).tensors]
        assert {(t["block"], t["part"]) for t in info["tensors"]} >= {(None, "wte"), (1, "attn.q"), (None, "ln_f")}
        rows = studio.json("runs/small/layers", statistic="update_norm")["rows"]
        assert [row["name"] for row in rows] == ["wte", "blocks.0", "blocks.1", "ln_f", "head"]
        context = chromium.new_context(viewport={"width": 1280, "height": 720}, color_scheme="light")
        context.add_init_script(OPENING_SEEN)
        seen = Browser(context.new_page(), studio)
        seen.open(step=20)
        seen.page.screenshot(path="/tmp/t/renamed.png")
        check_law(
            seen.page,
            load_file(run / "keyframes/step-00000020/model.safetensors"),
            tensors=("h.1.attn.q.weight", "h.0.mlp.expand.weight", "wte.weight"),
        )
        context.close()
