"""A stranger reads a run with sqlite3, json, struct and NumPy, by docs/run-format.md alone: no Vitrine in this file."""

import hashlib
import json
import sqlite3
import struct
import subprocess
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import made_once
from tests.warm import Vitrine

STEPS = 1_100  # a block of 1,024 in columns, the rest in rows
KEYFRAME_EVERY = 150
SETTINGS = {
    "model.n_layers": 1,
    "model.d_model": 64,
    "model.n_heads": 2,
    "model.d_ff": 256,  # 77,000 parameters: the film shows all values, and a part of the gradients
    "model.context": 16,
    "training.batch_size": 2,
    "optimizer.name": "adamw",  # the quickest
    "training.evaluate_every": STEPS,
    "training.evaluation_tokens": 256,
    "data.tokenizer": "char",
    "machine.threads": 1,
    "recording.keyframe_every": KEYFRAME_EVERY,
    "recording.statistics_every": 1,
    "recording.histograms": 3,
    "recording.film_frames": 12,
    "recording.text_samples": 1,
}
QUERY = "blocks.0.attention.query.weight"
EXPAND = "blocks.0.mlp.expand.weight"  # (256, 64): rows and columns cannot be taken for each other


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """A small run, at whose live picture someone looked while it was trained; read only."""
    return made_once(tmp_path_factory, "format", partial(make_run, prose)) / "r"


def make_run(prose: str, folder: Path) -> None:
    (folder / "book.txt").write_text(prose)
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    command = ["train", "book.txt", *settings, "--steps", STEPS, "--run", "r"]
    wanted = folder / "r/live/wanted"
    with Vitrine(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as trainer:
        while trainer.poll() is None:
            if (folder / "r/config.toml").is_file():
                wanted.parent.mkdir(exist_ok=True)
                wanted.touch()
            time.sleep(0.2)
        assert trainer.stderr
        assert trainer.returncode == 0, trainer.stderr.read()


# The reader -----------------------------------------------------------------------------------------------------------


def parameters_at(run: Path, step: int) -> dict[str, np.ndarray]:
    """The tensors of a keyframe."""
    raw = (run / f"keyframes/step-{step:08d}/model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    header.pop("__metadata__", None)
    assert {facts["dtype"] for facts in header.values()} == {"F32"}
    return {
        name: np.frombuffer(data[slice(*facts["data_offsets"])], "<f4").reshape(facts["shape"])
        for name, facts in header.items()
    }


def query(run: Path, text: str, *values: object) -> list[Any]:
    history = sqlite3.connect(f"file:{run}/run.sqlite?mode=ro", uri=True)
    try:
        assert history.execute("PRAGMA user_version").fetchone() == (2,)
        return history.execute(text, values).fetchall()
    finally:
        history.close()


def layout_of(run: Path) -> dict[str, Any]:
    return json.loads(query(run, "SELECT value FROM facts WHERE name = 'statistics'")[0][0])


def number_at(run: Path, step: int, series: int) -> bytes:
    """The four bytes of one number of the statistics: from its row, or else from its column."""
    rows = query(run, "SELECT numbers FROM statistics WHERE step = ?", step)
    if rows:
        return rows[0][0][4 * series : 4 * series + 4]
    block, place = divmod(step // layout_of(run)["every"], 1024)
    columns = query(run, "SELECT numbers FROM columns WHERE series = ? AND block = ?", series, block)
    return columns[0][0][4 * place : 4 * place + 4]


def statistic(run: Path, step: int, tensor: str, name: str) -> float:
    layout = layout_of(run)
    width = len(layout["statistics"])
    series = width * layout["tensors"].index(tensor) + layout["statistics"].index(name)
    return struct.unpack("<f", number_at(run, step, series))[0]


def sampled(run: Path, step: int, tensor: str) -> dict[int, tuple[np.float32, np.float32]]:
    """Value and gradient of the sampled parameters of a tensor, by their places in it."""
    layout = layout_of(run)
    lengths = [len(layout["sample"][name]) for name in layout["tensors"]]
    number = layout["tensors"].index(tensor)
    first = len(layout["statistics"]) * len(lengths) + sum(lengths[:number])
    return {
        place: tuple(
            np.frombuffer(number_at(run, step, series), "<f4")[0] for series in (first + i, first + i + sum(lengths))
        )
        for i, place in enumerate(layout["sample"][tensor])
    }


def values_at(run: Path, step: int, tensor: str) -> dict[int, np.float32]:
    """Values of the sampled parameters of a tensor; at the end, where no step was made, those of the keyframe."""
    if step < STEPS:
        return {place: value for place, (value, _) in sampled(run, step, tensor).items()}
    values = parameters_at(run, step)[tensor].reshape(-1)
    return {place: values[place] for place in layout_of(run)["sample"][tensor]}


def picks_of(run: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The places that the film shows, by tensor: of values, and of gradients and updates."""
    numbers = np.fromfile(run / "film/picks.bin", "<u4")
    manifest = json.loads((run / "film/manifest.json").read_text())
    picks: list[dict[str, np.ndarray]] = []
    for kind in ("values", "changes"):
        picks.append({})
        for tensor in manifest["tensors"]:
            picks[-1][tensor["name"]], numbers = numbers[: tensor[kind]], numbers[tensor[kind] :]
    assert not len(numbers)
    return picks[0], picks[1]


def frames_of(run: Path) -> dict[int, dict[str, tuple[dict[str, np.ndarray], dict[str, float]]]]:
    """By step and kind: what the film shows of each tensor, and how far it may be off."""
    manifest = json.loads((run / "film/manifest.json").read_text())
    assert manifest["version"] == 1
    tensors, content, frames = manifest["tensors"], (run / "film/frames.bin").read_bytes(), {}
    for start in range(0, len(content), manifest["frame_bytes"]):
        frame = content[start : start + manifest["frame_bytes"]]
        step, crc, size = struct.unpack_from("<qII", frame)
        assert size == len(frame)
        assert zlib.crc32(frame[16:], zlib.crc32(frame[:8])) == crc
        scales = np.frombuffer(frame, "<f4", 3 * len(tensors), 16).reshape(3, -1)
        frames[step], place = {}, 16 + 12 * len(tensors)
        for kind, cells, scale in zip(
            ("learned", "gradient", "update"), ("values", "changes", "changes"), scales, strict=True
        ):
            shown, errors = {}, {}
            for tensor, unit in zip(tensors, scale, strict=True):
                shown[tensor["name"]] = np.frombuffer(frame, "i1", tensor[cells], place) * np.float64(unit)
                errors[tensor["name"]] = 0.5 * float(unit)
                place += tensor[cells]
            frames[step][kind] = shown, errors
        assert place == size
    return frames


def live_picture(run: Path) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    content = (run / "live/picture.bin").read_bytes()
    magic, version, slot_bytes, newest = struct.unpack_from("<8sIIQ", content)
    assert (magic.rstrip(b"\0"), version) == (b"vitrine", 1)
    start = 24 + (newest % 2) * slot_bytes
    step, crc, values, changes = struct.unpack_from("<qIII", content, start)
    body = content[start + 24 : start + slot_bytes]
    assert zlib.crc32(body, zlib.crc32(content[start : start + 8])) == crc
    numbers = np.frombuffer(body, "<f4")
    return step, *np.split(numbers, [values, values + changes])


# What it finds --------------------------------------------------------------------------------------------------------


def test_the_history_lies_in_columns_and_in_rows(run):
    assert query(run, "SELECT min(step), count(*) FROM statistics") == [(1024, STEPS - 1024)]
    assert query(run, "SELECT DISTINCT block FROM columns") == [(0,)]


@pytest.mark.parametrize("step", [0, 150, 1_050], ids=["birth", "in columns", "in rows"])
def test_a_recorded_norm_is_that_of_the_keyframe(step, run):
    for name, tensor in parameters_at(run, step).items():
        norm = np.linalg.norm(tensor.astype(np.float64))
        assert statistic(run, step, name, "weight_norm") == pytest.approx(norm, rel=1e-5)
        assert statistic(run, step, name, "weight_max") == np.abs(tensor).max()


def test_gradient_norms_of_the_tensors_add_up_to_that_of_the_step(run):
    ((total,),) = query(run, "SELECT gradient_norm FROM steps WHERE step = 700")
    norms = [statistic(run, 700, name, "gradient_norm") for name in layout_of(run)["tensors"]]
    assert np.linalg.norm(norms) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("step", [150, 1_050], ids=["in columns", "in rows"])
def test_a_sampled_parameter_has_the_value_of_the_keyframe_to_the_bit(step, run):
    for name, tensor in parameters_at(run, step).items():
        found = sampled(run, step, name)
        assert len(found) == 8
        assert all(tensor.ravel()[place].tobytes() == value.tobytes() for place, (value, _) in found.items())


def test_a_value_of_the_film_is_within_its_error_of_the_keyframe(run):
    picks, born = picks_of(run)[0], parameters_at(run, 0)
    frames = frames_of(run)
    assert {0, STEPS} <= frames.keys()
    learned, errors = frames[STEPS]["learned"]
    for name, tensor in parameters_at(run, STEPS).items():
        value = born[name].ravel()[picks[name]] + learned[name]
        exact = tensor.ravel()[picks[name]]
        # Beside half a byte's step: what float32 rounds away of the difference and of the scale.
        assert np.all(np.abs(value - exact) <= errors[name] * 1.0001 + np.abs(exact) * 2.0**-23), name
    assert errors[QUERY] > 0


def test_the_index_of_the_token_ids_has_the_text_on_both_sides_of_the_cut(run):
    manifest = json.loads((run / "tokens/manifest.json").read_text())
    assert manifest["version"] == 2
    rows = list(struct.iter_unpack("<QQIHBB", (run / "tokens/index.bin").read_bytes()))
    assert len(rows) == manifest["index"]["documents"]
    assert [(offset, first, file, source, held) for offset, first, file, source, held, _ in rows] == [
        (0, 0, 0, 0, 0),
        (0, 0, 0, 0, 1),
    ]
    text = Path(manifest["sources"][0]["files"][0]["path"]).read_text()
    sizes = [manifest["files"][name]["tokens"] for name in ("train-0.bin", "validation.bin")]
    assert sum(sizes) == len(text)  # by characters
    reading = json.loads(query(run, "SELECT value FROM facts WHERE name = 'reading'")[0][0])
    assert reading["sources"][0]["train_tokens"] == sizes[0]
    assert (reading["sources"][0]["documents"], reading["validation_tokens"]) == (1, sizes[1])


def test_at_birth_the_film_shows_what_is_exactly_zero(run):
    learned, errors = frames_of(run)[0]["learned"]
    assert not any(shown.any() for shown in learned.values())
    assert not any(errors.values())


def test_a_gradient_of_the_film_is_within_its_error_of_the_sampled_one(run):
    picks = picks_of(run)[1]
    compared = 0
    for step, kinds in sorted(frames_of(run).items())[1:-1:4]:
        gradients, errors = kinds["gradient"]
        for name in gradients:
            shown = dict(zip(picks[name].tolist(), gradients[name].tolist(), strict=True))
            for place, (_, gradient) in sampled(run, step, name).items():
                if place in shown:
                    assert abs(shown[place] - gradient) <= errors[name] * 1.0001
                    compared += 1
    assert compared > 50


def test_the_counts_of_a_histogram_are_those_of_the_keyframe(run):
    for name, tensor in parameters_at(run, 0).items():
        text = "SELECT bins, counts FROM histograms WHERE step = 0 AND tensor = ? AND kind = 'weight'"
        ((bins, counts),) = query(run, text, name)
        expected = np.unique(np.ascontiguousarray(tensor).view("<u4") >> 21, return_counts=True)
        assert np.frombuffer(bins, "<u2").tolist() == expected[0].tolist()
        assert np.frombuffer(counts, "<u4").tolist() == expected[1].tolist()


def test_the_counts_of_every_histogram_add_up_to_the_size_of_its_tensor(run):
    sizes = {name: tensor.size for name, tensor in parameters_at(run, 0).items()}
    rows = query(run, "SELECT tensor, kind, counts FROM histograms")
    assert len(rows) == 3 * 3 * len(sizes)
    assert all(np.frombuffer(counts, "<u4").sum() == sizes[tensor] for tensor, _, counts in rows)


def test_the_live_picture_holds_the_sampled_numbers_to_the_bit(run):
    step, *parts = live_picture(run)
    assert 0 < step < STEPS
    shown = []
    for picks, numbers in zip((picks_of(run)[0], *(picks_of(run)[1],) * 2), parts, strict=True):
        places = [(name, place) for name, some in picks.items() for place in some.tolist()]
        shown.append(dict(zip(places, numbers, strict=True)))
    compared = 0
    for name in layout_of(run)["tensors"]:
        after = values_at(run, step + 1, name)
        for place, (value, gradient) in sampled(run, step, name).items():
            assert shown[0][name, place] == value
            if (name, place) in shown[1]:
                assert shown[1][name, place] == gradient
                assert shown[2][name, place] == after[place] - value
                compared += 1
    assert compared > 10


def test_the_digest_of_a_keyframe_can_be_made_again(run):
    total = hashlib.sha256()
    for name, tensor in sorted(parameters_at(run, 150).items()):
        total.update(f"{name} <f4 {tensor.shape}\n".encode() + tensor.tobytes())
    manifest = json.loads((run / "keyframes/step-00000150/manifest.json").read_text())
    assert (manifest["version"], manifest["digest"]) == (1, total.hexdigest())


def test_the_files_of_a_keyframe_are_those_of_its_manifest(run):
    folder = run / "keyframes/step-00000150"
    for name, facts in json.loads((folder / "manifest.json").read_text())["files"].items():
        content = (folder / name).read_bytes()
        assert facts == {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_matrix_is_stored_as_outputs_by_inputs(run):
    assert parameters_at(run, 0)[EXPAND].shape == (256, 64)
