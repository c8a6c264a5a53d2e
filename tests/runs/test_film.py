"""The film: picks that nest, frames that come back, and what a kill or a fault leaves of them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrine.errors import RunError
from vitrine.runs import film
from vitrine.runs.film import FRAMES, MANIFEST, VALUE_CELLS, Film, FilmWriter, choose_picks, picks_at

SHAPES = {"wide": (5, 31), "tall": (40, 3), "vector": (17,)}
shapes = st.one_of(st.tuples(st.integers(1, 70)), st.tuples(st.integers(1, 70), st.integers(1, 70)))


@given(shapes, st.integers(0, 6), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_every_pick_lies_in_its_own_square(shape, level, seed):
    grid = picks_at({"a": shape}, level, seed).indices["a"]
    rows, columns = np.divmod(grid, shape[-1])
    squares = np.indices(grid.shape)
    assert grid.shape == (-(-(shape[0] if len(shape) == 2 else 1) // 2**level), -(-shape[-1] // 2**level))
    assert np.array_equal(np.stack([rows, columns]) >> level, squares)
    assert grid.max() < np.prod(shape)


@given(shapes, st.integers(1, 6), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_coarse_picks_are_among_the_finer_ones(shape, level, seed):
    coarse, finer = (set(picks_at({"a": shape}, n, seed).indices["a"].flat) for n in (level, level - 1))
    assert coarse <= finer


@given(shapes, st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_picks_are_all_different(shape, level):
    grid = picks_at({"a": shape}, level, 1).indices["a"]
    assert len(np.unique(grid)) == grid.size


def test_at_the_finest_level_every_parameter_is_picked():
    assert picks_at({"a": (3, 5)}, 0, 1).indices["a"].ravel().tolist() == list(range(15))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("level", [1, 2, 4])
def test_picks_favour_no_row_and_no_column_of_their_squares(level, seed):
    grid = picks_at({"a": (1024, 512)}, level, seed).indices["a"]
    for places in np.divmod(grid, 512):
        share = np.bincount(places.ravel() % 2**level, minlength=2**level) / grid.size
        sigma = (2.0**-level / grid.size) ** 0.5  # of a fair choice
        assert np.abs(share - 2.0**-level).max() < 4.5 * sigma


def test_another_seed_or_another_name_picks_others():
    grids = [picks_at({name: (64, 64)}, 3, seed).indices[name] for name, seed in [("a", 1), ("b", 1), ("a", 2)]]
    assert not np.array_equal(grids[0], grids[1])
    assert not np.array_equal(grids[0], grids[2])


@given(st.lists(shapes, min_size=1, max_size=5), st.integers(5, 5_000))
@settings(max_examples=60, deadline=None)
def test_the_finest_picks_that_fit_are_chosen(some, cells):
    named = {str(number): shape for number, shape in enumerate(some)}
    chosen = choose_picks(named, cells, 1)
    assert chosen.count <= cells
    assert chosen.level == 0 or picks_at(named, chosen.level - 1, 1).count > cells


def test_a_large_model_shows_at_most_so_many_values_and_more_than_a_quarter_of_them():
    large = {f"blocks.{i}": (1_024, 4_096) for i in range(40)} | {"norm": (1_024,)}
    assert VALUE_CELLS / 4.1 < choose_picks(large, VALUE_CELLS, 1).count <= VALUE_CELLS


def test_places_are_those_of_the_tensors_in_a_flat_buffer():
    picks = picks_at({"a": (2, 3), "b": (4,)}, 0, 1)
    assert picks.places({"a": 16, "b": 0}).tolist() == [16, 17, 18, 19, 20, 21, 0, 1, 2, 3]


def test_picks_on_disk_are_those_that_were_chosen(tmp_path):
    named = {"a": (900, 700), "b": (33,)}
    writer, read = FilmWriter(tmp_path, named, 1, 0), Film(tmp_path)
    assert (read.values.level, read.changes.level) == (writer.values.level, writer.changes.level) == (1, 2)
    for written, back in ((writer.values, read.values), (writer.changes, read.changes)):
        assert all(np.array_equal(written.indices[name], back.indices[name]) for name in named)


def test_a_frame_comes_back_within_its_errors(tmp_path):
    random = np.random.default_rng(1)
    sizes, count = [155, 120, 17], 292
    scales = np.repeat([1e-6, 1.0, 1e20], sizes)
    numbers = [(random.standard_normal(count) * scales).astype(np.float32) for _ in range(3)]
    FilmWriter(tmp_path, SHAPES, 1, 0).write(7, *numbers)
    frame = Film(tmp_path).frame(0)
    assert frame.step == 7
    for kind, before in zip(("learned", "gradients", "updates"), numbers, strict=True):
        off = np.abs(getattr(frame, kind).astype(np.float64) - before)
        # Where a number lies half-way between two bytes, the product's own rounding comes on top.
        assert np.all(off <= np.repeat(frame.errors[kind], sizes) * np.float64(1.0001))


def test_the_largest_magnitude_of_a_tensor_comes_back_as_good_as_exact(tmp_path):
    numbers = np.zeros(292, np.float32)
    numbers[[3, 200, 290]] = [0.125, -3e-5, 7e8]
    FilmWriter(tmp_path, SHAPES, 1, 0).write(0, numbers, numbers, numbers)
    np.testing.assert_allclose(Film(tmp_path).frame(0).updates, numbers, rtol=1e-6)


def test_where_nothing_changed_a_frame_says_exactly_zero(tmp_path):
    nothing = np.zeros(292, np.float32)
    FilmWriter(tmp_path, SHAPES, 1, 0).write(0, nothing, nothing, nothing)
    frame = Film(tmp_path).frame(0)
    assert not np.concatenate([frame.learned, frame.gradients, frame.updates, *frame.errors.values()]).any()


def test_a_transposed_tensor_shows_other_numbers(tmp_path):
    tensor = np.arange(5 * 31, dtype=np.float32).reshape(5, 31)
    shape = {"wide": (5, 31)}
    writer = FilmWriter(tmp_path, shape, 1, 0)
    for step, numbers in enumerate((tensor, np.ascontiguousarray(tensor.T))):
        picked = numbers.ravel()[writer.values.places({"wide": 0})]
        writer.write(step, picked, picked, picked)
    read = Film(tmp_path)
    straight, transposed = (read.frame(number).learned.reshape(5, 31) for number in range(2))
    assert np.abs(straight - tensor).max() < 1
    assert np.abs(transposed - tensor).max() > 50


def test_a_film_is_as_large_as_it_was_said_to_be(tmp_path):
    named = {"a": (900, 700), "b": (33,)}
    written(tmp_path, range(3), named)
    assert (tmp_path / FRAMES).stat().st_size == film.film_bytes(named, 3)


def test_a_film_of_200_frames_of_any_model_stays_below_80_mb():
    for side in (64, 400, 511, 512, 724, 2_000):
        assert film.film_bytes({f"{i}": (side, side) for i in range(100)}, 200) < 80_000_000


@pytest.mark.parametrize("left", [1, 15, 16, 17, 400])
def test_a_half_written_last_frame_is_ignored_and_overwritten(left, tmp_path):
    written(tmp_path, range(3))
    file = tmp_path / FRAMES
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 3 * 2 + left])
    assert Film(tmp_path).steps().tolist() == [0, 1]
    written(tmp_path, [2], resumed_at=2)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(("resumed_at", "left"), [(10, [0, 5]), (11, [0, 5, 10]), (0, []), (99, [0, 5, 10, 15])])
def test_frames_of_the_step_that_is_resumed_and_of_later_ones_are_dropped(resumed_at, left, tmp_path):
    written(tmp_path, [0, 5, 10, 15])
    writer = FilmWriter(tmp_path, SHAPES, 1, resumed_at)
    assert Film(tmp_path).steps().tolist() == left
    assert writer.last_step == (left[-1] if left else -1)


def test_a_film_made_in_two_parts_equals_one_made_in_one(tmp_path):
    written(tmp_path / "one", range(6))
    written(tmp_path / "two", range(5))
    written(tmp_path / "two", range(3, 6), resumed_at=3)
    for name in (FRAMES, MANIFEST, film.PICKS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("place", [0, 8, 16, 40, 60, 300, -1])
def test_a_flipped_bit_of_a_frame_is_refused_by_name(place, tmp_path):
    written(tmp_path, range(2))
    file = tmp_path / FRAMES
    content = bytearray(file.read_bytes())
    start = Film(tmp_path).frame_bytes if place >= 0 else 0
    content[start + place] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"Frame 1 of .*frames\.bin is damaged"):
        Film(tmp_path).frame(1)


def test_a_film_that_grows_is_read_as_far_as_it_is(tmp_path):
    writer = written(tmp_path, range(2))
    read = Film(tmp_path)
    assert read.steps().tolist() == [0, 1]
    write(writer, 2)
    assert read.steps().tolist() == [0, 1, 2]
    assert read.frame(2).step == 2


def test_a_run_without_a_film_says_why(tmp_path):
    with pytest.raises(RunError, match=r"has no film: recording\.enabled was false"):
        Film(tmp_path)


def test_a_newer_format_is_refused_by_name(tmp_path):
    written(tmp_path, [])
    manifest = tmp_path / MANIFEST
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(RunError, match=r"format version 2; this Vitrine reads up to version 1\. Use a newer Vitrine"):
        Film(tmp_path)


def written(folder: Path, steps, named=SHAPES, resumed_at: int = 0) -> FilmWriter:
    """A film of these tensors with frames of these steps."""
    writer = FilmWriter(folder, named, 1, resumed_at)
    for step in steps:
        write(writer, step)
    return writer


def write(writer: FilmWriter, step: int) -> None:
    random = np.random.default_rng(step)
    sizes = writer.values.count, writer.changes.count, writer.changes.count
    writer.write(step, *(random.standard_normal(size, dtype=np.float32) for size in sizes))
