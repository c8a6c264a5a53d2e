"""Which keyframes stay when the disk budget is full."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrine.checkpoint import thin
from vitrine.runs.keyframes import keyframe_path, keyframe_steps, longest_gap, victim


def kept_after(steps: int, every: int, room: int, keep: frozenset[int] = frozenset()) -> list[int]:
    """The keyframes of a run of so many steps, one at a time, as the trainer keeps them."""
    kept: list[int] = []
    for step in (*range(0, steps, every), steps):
        kept.append(step)
        while len(kept) > room and (out := victim(kept, keep)) is not None:
            kept.remove(out)
    return kept


@given(st.integers(1, 3_000), st.integers(1, 50), st.integers(2, 40))
def test_birth_and_the_newest_always_stay_and_never_more_than_there_is_room_for(steps, every, room):
    kept = kept_after(steps, every, room)
    assert (kept[0], kept[-1]) == (0, steps)
    assert len(kept) <= room


@given(st.sets(st.integers(0, 100), min_size=3), st.data())
def test_a_keyframe_that_is_to_be_kept_is_never_the_one_that_goes(steps, data):
    keep = data.draw(st.sets(st.sampled_from(sorted(steps))))
    assert victim(sorted(steps), keep) not in {*keep, min(steps), max(steps)}


@pytest.mark.parametrize("steps", [[], [0], [0, 5]])
def test_birth_and_the_newest_alone_have_no_victim(steps):
    assert victim(steps, ()) is None


def test_if_all_are_to_be_kept_none_goes():
    assert victim([0, 5, 10, 15], {5, 10}) is None


def test_of_evenly_spaced_keyframes_the_oldest_goes_first():
    assert victim([0, 10, 20, 30, 40], ()) == 10


def test_the_newest_are_dense_and_the_old_sparse():
    gaps = [b - a for a, b in itertools.pairwise(kept_after(10_000, 10, 50))]
    old, middle, new = (sum(gaps[i : i + 16]) for i in (0, 16, 32))
    assert old > 1.3 * middle > 1.3 * 2 * new
    assert gaps[-1] == 10


def test_all_stay_while_there_is_room():
    assert kept_after(400, 10, 41) == list(range(0, 401, 10))


@pytest.mark.parametrize(
    ("steps", "every", "room"),
    [
        (1_000, 7, 20),
        (10_000, 36, 300),
        (10_000, 36, 208),
        (100, 500, 9),
        (100, 10, 3),
        (3_000, 10, 2),
        (10_000, 6, 300),
        (20_000, 7, 40),
    ],
)
def test_the_longest_gap_is_that_between_the_keyframes_that_stay(steps, every, room):
    kept = kept_after(steps, every, room)
    assert longest_gap(steps, every, room) == max(b - a for a, b in itertools.pairwise(kept))


def test_folders_are_removed_until_they_fit_the_budget(tmp_path):
    for step in range(0, 100, 10):
        _keyframe(tmp_path, step, size_bytes=1_000)
    thin(tmp_path, budget_bytes=4_999, keep={10})
    steps = keyframe_steps(tmp_path)
    assert len(steps) == 4
    assert {0, 10, 90} < set(steps)


def test_steps_beyond_eight_digits_are_listed_in_their_order(tmp_path):
    for step in (123_456_789, 99_999_999, 7):
        _keyframe(tmp_path, step, size_bytes=1)
    assert keyframe_steps(tmp_path) == [7, 99_999_999, 123_456_789]


def _keyframe(folder: Path, step: int, size_bytes: int) -> None:
    keyframe_path(folder, step).mkdir()
    (keyframe_path(folder, step) / "model.safetensors").write_bytes(bytes(size_bytes))
