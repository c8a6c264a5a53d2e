"""The live picture: written for who looks, seldom, and never seen torn."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from vitrine.runs import live
from vitrine.runs.live import PICTURE, WANTED, LiveReader, LiveWriter, Picture


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=clock, time=time.time))
    return clock


def picture_of(step: int, size: int = 12) -> Picture:
    """A picture whose every number is its step."""
    values, changes = np.full(size, step, np.float32), np.full(size // 4, step, np.float32)
    return Picture(step, values, changes, -changes)


def test_nothing_is_due_while_nobody_asks(clock, tmp_path):
    writer = LiveWriter(tmp_path)
    for _ in range(100):
        clock.now_s += 0.1
        assert not writer.due()


def test_a_picture_is_due_once_someone_asks(clock, tmp_path):
    writer = LiveWriter(tmp_path / "live")
    assert not writer.due()
    LiveReader(tmp_path / "live").ask()
    clock.now_s += 0.11  # it looks ten times a second
    assert writer.due()


def test_at_most_two_pictures_a_second_are_due(clock, tmp_path):
    LiveReader(tmp_path).ask()
    writer, written = LiveWriter(tmp_path), 0
    for step in range(4_000):  # four seconds of a thousand steps each
        if writer.due():
            writer.write(picture_of(step))
            written += 1
        clock.now_s += 0.001
    assert 7 <= written <= 8


def test_a_request_is_forgotten_after_some_seconds(clock, tmp_path):
    LiveReader(tmp_path).ask()
    writer = LiveWriter(tmp_path)
    assert writer.due()
    old_s = time.time() - live.WANTED_FOR_S - 0.1
    os.utime(tmp_path / WANTED, (old_s, old_s))
    clock.now_s += 1
    assert not writer.due()


def test_a_reader_finds_the_newest_picture_to_the_bit(tmp_path):
    writer = LiveWriter(tmp_path)
    values = np.array([0.1, -0.0, 1e-45, 3e38], np.float32)
    for step in range(3):
        writer.write(Picture(step, values, values[:2], values[2:]))
    seen = LiveReader(tmp_path).read()
    assert seen
    assert seen.step == 2
    assert seen.values.tobytes() == values.tobytes()
    assert (seen.gradients.tobytes(), seen.updates.tobytes()) == (values[:2].tobytes(), values[2:].tobytes())


def test_there_is_no_picture_before_the_first(tmp_path):
    assert LiveReader(tmp_path).read() is None


def test_a_picture_of_which_half_is_from_another_step_is_not_shown(tmp_path):
    writer = LiveWriter(tmp_path)
    for step in (1, 2):
        writer.write(picture_of(step))
    file = tmp_path / PICTURE
    content = file.read_bytes()
    slot = (len(content) - live.HEAD.itemsize) // 2
    newest = live.HEAD.itemsize  # the second picture lies in the first place
    torn = content[: newest + slot // 2] + content[newest + slot + slot // 2 :] + content[newest + slot :]
    assert len(torn) == len(content)
    file.write_bytes(torn)
    assert LiveReader(tmp_path).read() is None


def test_the_picture_that_is_being_written_is_not_the_one_that_is_read(tmp_path):
    writer = LiveWriter(tmp_path)
    for step in (1, 2):
        writer.write(picture_of(step))
    file = tmp_path / PICTURE
    content = bytearray(file.read_bytes())
    older = live.HEAD.itemsize + (len(content) - live.HEAD.itemsize) // 2
    content[older + 20 :] = bytes(len(content) - older - 20)
    file.write_bytes(content)
    seen = LiveReader(tmp_path).read()
    assert seen
    assert seen.step == 2


def test_a_training_that_starts_again_is_seen_by_who_looks(tmp_path):
    LiveWriter(tmp_path).write(picture_of(1))
    reader = LiveReader(tmp_path)
    reader.read()
    LiveWriter(tmp_path).write(picture_of(2, size=20))
    seen = reader.read()
    assert seen
    assert (seen.step, len(seen.values)) == (2, 20)


WRITE_300 = """
import sys
from pathlib import Path
import numpy as np
from vitrine.runs.live import LiveWriter, Picture

writer = LiveWriter(Path(sys.argv[1]))
for step in range(1, 301):
    values = np.full(200_000, step, np.float32)
    writer.write(Picture(step, values, values[:50_000], values[:50_000]))
"""


def test_while_another_process_writes_300_pictures_a_reader_sees_only_whole_ones_in_their_order(tmp_path):
    reader, torn, seen = LiveReader(tmp_path), [], []
    with subprocess.Popen([sys.executable, "-c", WRITE_300, str(tmp_path)]) as writer:
        while writer.poll() is None:
            picture = reader.read()
            if picture:
                seen.append(picture.step)
                parts = picture.values, picture.gradients, picture.updates
                torn.extend(picture.step for part in parts if not (part == picture.step).all())
    assert writer.returncode == 0
    assert not torn
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
