"""Which keyframes stay: birth, the newest, the best, those that were asked for, and others as there is room."""

import itertools
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrine import train
from vitrine.errors import RunError
from vitrine.runs import disk
from vitrine.runs.reader import KEYFRAMES, RunReader
from vitrine.runs.retention import keyframe_path, keyframe_steps, longest_gap, victim
from vitrine.training import checkpoint
from vitrine.training.checkpoint import KeyframeWriter, Snapshot, remove_partial, save_keyframe, thin


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


@pytest.mark.parametrize(("every", "room"), [(399, 300), (399, 1_900), (399, 9_000)])
def test_of_a_very_long_run_the_longest_gap_is_found_in_a_part_of_it(every, room, monkeypatch):
    exact = longest_gap(1_500_000, every, room)
    monkeypatch.setattr("vitrine.runs.retention.MANY", 1_000)
    assert exact / 1.5 <= longest_gap(1_500_000, every, room) <= 1.5 * exact
    assert longest_gap(2**53, 1, room) >= 2**53 // room  # and at once


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


def test_what_is_no_keyframe_is_not_listed(tmp_path):
    _keyframe(tmp_path, 5, size_bytes=1)
    for name in ("step-abc", "step-", "step-5", "step-00000007.old", ".step-00000009.out"):
        (tmp_path / name).mkdir()
    assert keyframe_steps(tmp_path) == [5]


SETTINGS: dict[str, Any] = {
    "model.n_layers": 1,
    "model.d_model": 16,
    "model.n_heads": 2,
    "model.context": 16,
    "training.batch_size": 2,
    "training.evaluate_every": 6,
    "training.evaluation_tokens": 256,
    "data.tokenizer": "char",
    "recording.keyframe_every": 5,
    "recording.enabled": False,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-4,  # so slow that it only falls
}


@pytest.mark.parametrize("room", [1000, 10], ids=["room for all", "room for ten"])
def test_keyframes_take_what_was_announced_also_where_each_evaluation_is_the_best(room, book, tmp_path, monkeypatch):
    save, size = KeyframeWriter.save, 70_000  # bytes of one, about
    monkeypatch.setattr(KeyframeWriter, "save", lambda self, state, must=False: save(self, state, True))  # a fast disk
    settings = SETTINGS | {"recording.disk_budget": room * size}
    run = train(book, run=tmp_path / "run", steps=90, settings=settings)
    folder, said = run.path / KEYFRAMES, disk.recording(run.config)
    used = sum(file.stat().st_size for file in folder.glob("step-*/*"))
    losses = [e.loss for e in run.sampled_evaluations()]
    assert sum(loss < min(losses[:i], default=9) for i, loss in enumerate(losses)) > 10
    assert said.keyframe_bytes == pytest.approx(size, rel=0.1)
    assert used == pytest.approx(said.keyframes * said.keyframe_bytes, rel=0.2)
    assert {0, run.best_step(), 90} <= {*keyframe_steps(folder)}
    if room == 1000:
        assert keyframe_steps(folder) == [*range(0, 90, 5), *sorted({run.best_step(), 90})]


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyframeWriter:
    """Of keyframes of a single number, every ten steps; `save` is given a Snapshot."""
    monkeypatch.setattr(checkpoint, "take_snapshot", lambda state: state)
    writer = KeyframeWriter(tmp_path, SimpleNamespace(keyframe_every=10, disk_budget=10**9))
    for step in (0, 10):
        writer.save(_snapshot(step), must=True)
    return writer


def test_a_superseded_best_goes_once_the_new_one_is_safe(writer):
    for step in (14, 17):
        writer.best(step)
        writer.save(_snapshot(step), must=True)
        writer.flush()
        assert keyframe_steps(writer.folder) == [0, 10, step]


def test_a_superseded_best_that_someone_asked_for_or_that_is_of_the_cadence_stays(writer):
    for step in (14, 20, 27):
        writer.best(step)
        writer.asked.add(14)
        writer.save(_snapshot(step), must=True)
    writer.flush()
    assert keyframe_steps(writer.folder) == [0, 10, 14, 20, 27]


def test_the_old_best_stays_while_the_new_one_cannot_be_written(writer, monkeypatch):
    writer.best(14)
    writer.save(_snapshot(14), must=True)
    writer.flush()
    monkeypatch.setattr(checkpoint, "save_file", _refuse)
    writer.best(17)
    writer.save(_snapshot(17), must=True)
    with pytest.raises(RunError):
        writer.flush()
    assert keyframe_steps(writer.folder) == [0, 10, 14]


def test_a_best_that_comes_while_another_keyframe_is_being_written_does_not_take_the_old_one_away(writer, monkeypatch):
    writer.best(14)
    writer.save(_snapshot(14), must=True)
    writer.flush()
    evaluated = threading.Event()
    monkeypatch.setattr(checkpoint, "save_keyframe", lambda *args: (evaluated.wait(30), save_keyframe(*args)))
    writer.recording.disk_budget = 1
    writer.save(_snapshot(20))
    writer.best(21)
    evaluated.set()
    writer.flush()
    assert keyframe_steps(writer.folder) == [0, 14, 20]


def test_a_keyframe_goes_whole_even_if_its_removal_breaks_off_and_the_next_start_clears_up(tmp_path, monkeypatch):
    for step in (0, 5, 10):
        save_keyframe(tmp_path, _snapshot(step))
    with monkeypatch.context() as broken:
        broken.setattr(checkpoint.shutil, "rmtree", lambda path, ignore_errors=False: ignore_errors or _refuse())
        with pytest.raises(OSError, match="no more"):
            thin(tmp_path, 1, set())
    assert keyframe_steps(tmp_path) == [0, 10]
    assert len([*tmp_path.iterdir()]) == 3
    remove_partial(tmp_path)
    assert len([*tmp_path.iterdir()]) == 2


def test_a_snapshot_that_someone_asked_for_is_known_after_a_resume(copy):
    from vitrine.recording.history import History

    history = History(copy / "run.sqlite", enabled=True)
    history.store.event(7, "snapshot")
    assert history.snapshots() == {7}
    history.store.close()
    assert RunReader(copy).events()[-1].kind == "snapshot"


def _snapshot(step: int) -> Snapshot:
    return Snapshot(step, {"weight": torch.full((3,), float(step))}, {})


def _refuse(*arguments: object, **named: object) -> None:
    raise OSError("no more")


def _keyframe(folder: Path, step: int, size_bytes: int) -> None:
    keyframe_path(folder, step).mkdir()
    (keyframe_path(folder, step) / "model.safetensors").write_bytes(bytes(size_bytes))
