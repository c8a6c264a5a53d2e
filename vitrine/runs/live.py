"""The live picture: the current values of the film's picks, for viewers of a run in training. Needs no torch.

`live/picture.bin` holds two pictures and the number of the newest. The trainer writes into the older one, then increases
the number. A checksum tells a reader that a picture changed while it was copied; it then reads again. Pictures are written
only on request: a viewer touches `live/wanted`, and the request expires after some seconds.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrine._files import whole_file
from vitrine.runs.film import Floats, checksum

PICTURE, WANTED = "picture.bin", "wanted"
WANTED_FOR_S, EVERY_S, LOOK_EVERY_S = 5.0, 0.5, 0.1
HEAD = np.dtype([("magic", "S8"), ("version", "<u4"), ("slot_bytes", "<u4"), ("newest", "<u8")])
SLOT = np.dtype([("step", "<i8"), ("crc", "<u4"), ("values", "<u4"), ("changes", "<u4"), ("unused", "<u4")])
MAGIC, FORMAT_VERSION = b"vitrine", 1


@dataclass(frozen=True)
class Picture:
    """The exact values of the film's picks at one step: values that it starts from, gradients, updates. float32."""

    step: int
    values: Floats
    gradients: Floats
    updates: Floats


class LiveWriter:
    """The trainer's side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.looked_s = self.wrote_s = -1e9
        self.is_wanted = False
        self.newest = 0

    def due(self) -> bool:
        """Whether a picture is requested, and the last one is old enough: at most two per second."""
        now = time.monotonic()
        if now - self.looked_s > LOOK_EVERY_S:
            self.looked_s = now
            try:
                self.is_wanted = time.time() - (self.folder / WANTED).stat().st_mtime < WANTED_FOR_S
            except OSError:
                self.is_wanted = False
        return self.is_wanted and now - self.wrote_s > EVERY_S

    def write(self, picture: Picture) -> None:
        """Write a picture into the older of the two slots, then make it the newest."""
        body = b"".join(part.astype("<f4").tobytes() for part in (picture.values, picture.gradients, picture.updates))
        counts = len(picture.values), len(picture.gradients)
        slot = np.array((picture.step, checksum(picture.step, body), *counts, 0), SLOT).tobytes() + body
        path = self.folder / PICTURE
        if self.newest == 0:
            head = np.array((MAGIC, FORMAT_VERSION, len(slot), 0), HEAD)
            with whole_file(path, durable=False) as temporary:
                temporary.write_bytes(head.tobytes() + bytes(2 * len(slot)))
        self.newest += 1
        file = np.memmap(path, np.uint8, "r+")
        place = HEAD.itemsize + (self.newest % 2) * len(slot)
        file[place : place + len(slot)] = np.frombuffer(slot, np.uint8)
        file[HEAD.itemsize - 8 : HEAD.itemsize] = np.frombuffer(np.uint64(self.newest).tobytes(), np.uint8)
        self.wrote_s = time.monotonic()


class LiveReader:
    """The viewer's side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self) -> None:
        """Request pictures. Repeat this every few seconds."""
        with contextlib.suppress(OSError):  # on a full disk or in a read-only folder there is no live picture
            self.folder.mkdir(exist_ok=True)
            (self.folder / WANTED).touch()

    def read(self) -> Picture | None:
        """The newest picture; None if there is none yet."""
        for _ in range(10):
            try:
                file = np.memmap(self.folder / PICTURE, np.uint8, "r")
            except (FileNotFoundError, NotADirectoryError, ValueError):
                return None
            head = file[: HEAD.itemsize].tobytes()
            facts = np.frombuffer(head, HEAD)[0]
            if not facts["newest"]:
                return None
            size = int(facts["slot_bytes"])
            place = HEAD.itemsize + int(facts["newest"] % 2) * size
            raw = file[place : place + size].tobytes()
            slot, body = np.frombuffer(raw[: SLOT.itemsize], SLOT)[0], raw[SLOT.itemsize :]
            if checksum(int(slot["step"]), body) == slot["crc"]:
                ends = np.cumsum([slot["values"], slot["changes"]])
                return Picture(int(slot["step"]), *np.split(np.frombuffer(body, "<f4"), ends))
        return None
