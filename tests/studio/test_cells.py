"""Many tensors in one answer, and one true cell of each square: the same numbers as cell by cell, and the film's choice."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.studio.conftest import Studio
from vitrine.inspection.replay import Replayer
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.model.inventory import inventory, optimizer_memory
from vitrine.runs.film import pick, picks_at
from vitrine.runs.reader import RunReader
from vitrine.studio import tiles
from vitrine.studio.responses import RefusalError

STEP = 153
EXPAND = "blocks.0.mlp.expand.weight"  # 96 x 24


@pytest.fixture(scope="module")
def reader(runs: Path) -> RunReader:
    return RunReader(runs / "small")


@pytest.fixture(scope="module")
def opened(reader: RunReader) -> ReplayedStep:
    return Replayer(reader).replay(STEP)


def batch(studio: Studio, **query: object) -> np.ndarray:
    answer = studio.get("runs/small/tiles", **query)
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["x-shape"]) * 4 == len(answer.content)
    return np.frombuffer(answer.content, "<f4")


@pytest.mark.parametrize("mode", ["value", "gradient", "update", "birth", "learned", "memory:first_moment"])
def test_all_tensors_in_one_answer_are_the_library_s_to_the_bit(
    studio: Studio, reader: RunReader, opened: ReplayedStep, mode: str
):
    born = load_file(reader.path / "keyframes/step-00000000/model.safetensors")
    expected = b""
    for plan in inventory(reader.config.model):
        tensor = opened.tensor(plan.name)
        expected += {
            "value": tensor.before,
            "gradient": tensor.gradient,
            "update": tensor.update,
            "birth": born[plan.name],
            "learned": tensor.before - born[plan.name],
            "memory:first_moment": tensor.memory_before["first_moment"],
        }[mode].tobytes()
    assert batch(studio, step=STEP, mode=mode).tobytes() == expected


def test_the_tensors_come_in_the_order_that_was_asked_for(studio: Studio, reader: RunReader):
    names = [EXPAND, "final_norm.gain", "embedding.weight"]
    kept = load_file(reader.path / "keyframes/step-00000150/model.safetensors")
    assert batch(studio, step=150, mode="value", tensor=names).tobytes() == b"".join(kept[n].tobytes() for n in names)


@pytest.mark.parametrize("every", [1, 2, 8, 64])
def test_one_cell_of_each_square_is_the_film_s_choice(studio: Studio, reader: RunReader, every: int):
    kept = load_file(reader.path / "keyframes/step-00000150/model.safetensors")
    shapes, seed = {plan.name: plan.shape for plan in inventory(reader.config.model)}, reader.config.training.seed
    grids = picks_at(shapes, every.bit_length() - 1, seed).indices
    expected = np.concatenate([kept[name].ravel()[grid.ravel()] for name, grid in grids.items()])
    assert np.array_equal(batch(studio, step=150, mode="value", every=every), expected)
    place = {"tensor": EXPAND, "rows": 1000, "columns": 1000, "every": every}
    tile = studio.cells("small", **place, step=150, mode="value")
    assert np.array_equal(tile, kept[EXPAND].ravel()[grids[EXPAND]])
    picks = studio.get("runs/small/picks", **place)
    assert np.array_equal(np.frombuffer(picks.content, "<u4"), grids[EXPAND].ravel())
    assert picks.headers["x-shape"] == ",".join(map(str, grids[EXPAND].shape))


def test_the_cells_of_a_region_are_those_of_the_whole_and_each_lies_in_its_square(studio: Studio, opened: ReplayedStep):
    place = {"tensor": EXPAND, "row": 16, "column": 8, "rows": 37, "columns": 9, "every": 4}
    whole = studio.cells("small", tensor=EXPAND, rows=96, columns=24, every=4, step=STEP, mode="gradient")
    region = studio.cells("small", **place, step=STEP, mode="gradient")
    assert np.array_equal(region, whole[4:14, 2:5])
    places = np.frombuffer(studio.get("runs/small/picks", **place).content, "<u4").reshape(region.shape)
    assert np.array_equal(places // 24 // 4, np.arange(4, 14)[:, None].repeat(3, 1))
    assert np.array_equal(places % 24 // 4, np.arange(2, 5)[None].repeat(10, 0))
    assert np.array_equal(opened.tensor(EXPAND).gradient.ravel()[places], region)


def test_some_squares_are_picked_as_all_of_them_are():
    shape = (701, 333)
    for level in (0, 1, 3, 6):
        grid = pick("a", shape, level, 7)
        part = pick("a", shape, level, 7, (slice(2, 9), slice(1, 5)))
        assert np.array_equal(part, grid[2:9, 1:5])


def test_a_coarse_picture_of_a_region_holds_only_cells_of_the_finer_one(studio: Studio):
    coarse, fine = (
        set(np.frombuffer(studio.get("runs/small/picks", tensor=EXPAND, every=every).content, "<u4").tolist())
        for every in (8, 4)
    )
    assert coarse < fine


def test_every_tensor_says_what_the_optimizer_remembers_of_it(studio: Studio, reader: RunReader):
    told = {tensor["name"]: tensor["memory"] for tensor in studio.json("runs/small")["tensors"]}
    kept = load_file(reader.path / "keyframes/step-00000150/optimizer.safetensors")
    assert {f"{name}.{kind}" for name, kinds in told.items() for kind in kinds} == set(kept)


@pytest.mark.parametrize("settings", [{}, {"name": "muon"}, {"name": "sgd", "momentum": 0.9}, {"name": "sgd"}])
def test_what_the_optimizer_will_remember_is_what_it_has(reader: RunReader, settings: dict):
    from vitrine.training.distributed import Processes
    from vitrine.training.state import build_state

    optimizer = reader.config.optimizer.model_copy(update={"momentum": 0.0} | settings)
    config = reader.config.model_copy(update={"optimizer": optimizer})
    state = build_state(config, Processes())[1].optimizer
    expected = {f"{t.name}.{kind}" for t in inventory(config.model) for kind in optimizer_memory(config, t)}
    assert set(state.named_state()) == expected


def test_many_cells_are_kept_for_good_by_who_says_which_run_is_meant(studio: Studio):
    query = {"step": 150, "mode": "value", "v": studio.json("runs/small")["identity"]}
    kept = studio.get("runs/small/tiles", **query)
    assert "immutable" in kept.headers["cache-control"]
    again = studio.client.get(kept.request.url, headers={"If-None-Match": kept.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert studio.get("runs/small/tiles", **(query | {"v": "another"})).status_code == 409


@pytest.mark.parametrize(("query", "status", "words"), [
    ({"every": 3}, 400, "a power of two"),
    ({"tensor": ["final_norm.gain", "final_norm.gain"]}, 400, "named twice"),
    ({"tensor": ["final_norm.gain", "../../config.toml"]}, 404, "no tensor"),
    ({"mode": "colour"}, 400, "mode is one of"),
    ({"mode": "memory:momentum"}, 404, "of any tensor"),
    ({"mode": "memory:momentum", "tensor": ["final_norm.gain"]}, 404, "It keeps: first_moment, second_moment"),
    ({"mode": "gradient", "step": 160}, 404, "cannot be replayed"),
])  # fmt: skip
def test_cells_that_cannot_be_are_refused_in_a_sentence(studio: Studio, query: dict, status: int, words: str):
    answer = studio.get("runs/small/tiles", **({"step": 150, "mode": "value"} | query))
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text


def test_a_place_that_is_no_corner_of_a_square_is_refused(studio: Studio):
    answer = studio.get("runs/small/tile", tensor=EXPAND, step=150, mode="value", row=6, every=4)
    assert (answer.status_code, "multiples" in answer.json()["error"]) == (400, True)


def test_no_answer_is_larger_than_it_may_be(reader: RunReader, monkeypatch: pytest.MonkeyPatch):
    size = sum(plan.parameters for plan in inventory(reader.config.model))
    monkeypatch.setattr(tiles, "ALL_CELLS", size)
    assert sum(tile.size for tile in tiles.tiles_of(reader, [], "value", 1)) == size
    monkeypatch.setattr(tiles, "ALL_CELLS", size - 1)
    with pytest.raises(RefusalError, match=f"got {size:,}. Ask for fewer tensors"):
        tiles.tiles_of(reader, [], "value", 1)
    assert tiles.tiles_of(reader, [], "value", 2)
