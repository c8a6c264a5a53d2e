"""The film: the same few parameters of every tensor at many steps, as bytes. Needs no torch.

Each pick is one real parameter, never a mean. A matrix is divided into squares of side 2^level; each square shows one
of its parameters. The pick of a square is the pick of one of its four quarters, chosen by a hash. So every parameter of a
coarse picture is also in every finer one.

A frame has for each pick the change of its value since initialisation, its gradient, and its update. Each is a byte times
a scale of its tensor: rounded, so never exact.
"""

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine._files import whole_file
from vitrine.errors import RunError
from vitrine.randomness import keyed_hash

FORMAT_VERSION = 1
MANIFEST, PICKS, FRAMES = "manifest.json", "picks.bin", "frames.bin"
VALUE_CELLS, CHANGE_CELLS = 262_144, 65_536  # the most values in a frame, and the most gradients and updates
MAX_FRAMES = 200
HEADER = np.dtype([("step", "<i8"), ("crc", "<u4"), ("size", "<u4")])

Shapes = Mapping[str, tuple[int, ...]]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Picks:
    """Which parameters a picture shows, at one level.

    indices: by tensor, (rows, columns) of the grid of squares: the place of the pick in the flattened tensor.
    """

    level: int
    indices: dict[str, NDArray[np.int64]]

    @property
    def count(self) -> int:
        """How many parameters are shown."""
        return sum(grid.size for grid in self.indices.values())

    @property
    def sizes(self) -> list[int]:
        """How many of each tensor."""
        return [grid.size for grid in self.indices.values()]

    def places(self, starts: Mapping[str, int]) -> NDArray[np.int64]:
        """All picks as places in a flat buffer. starts: where each tensor starts in it."""
        return np.concatenate([starts[name] + grid.ravel() for name, grid in self.indices.items()])


def grid_shape(shape: tuple[int, ...], level: int) -> tuple[int, int]:
    """How many squares of side 2^level cover a tensor, down and across; a vector is one row."""
    rows, columns = (1, shape[0]) if len(shape) == 1 else shape
    side = 1 << level
    return -(-rows // side), -(-columns // side)


def choose_picks(shapes: Shapes, cells: int, seed: int) -> Picks:
    """The finest picks with at most `cells` parameters. All tensors have the same level, so they stay to scale."""
    level = 0
    while sum(rows * columns for rows, columns in (grid_shape(shape, level) for shape in shapes.values())) > cells:
        if all(grid_shape(shape, level) == (1, 1) for shape in shapes.values()):
            break
        level += 1
    return picks_at(shapes, level, seed)


def picks_at(shapes: Shapes, level: int, seed: int) -> Picks:
    """One parameter for each square of every tensor; see the module."""
    return Picks(level, {name: pick(name, shape, level, seed) for name, shape in shapes.items()})


def pick(
    name: str, shape: tuple[int, ...], level: int, seed: int, squares: tuple[slice, slice] = (slice(None), slice(None))
) -> NDArray[np.int64]:
    """The parameter that each square of side 2^level of a tensor shows, as its place in the flattened tensor.

    squares: a range of squares, down and across; by default all.
    """
    rows, columns = (1, shape[0]) if len(shape) == 1 else shape
    axes = (
        np.arange(size, dtype=np.uint64)[part] for size, part in zip(grid_shape(shape, level), squares, strict=True)
    )
    i, j = np.meshgrid(*axes, indexing="ij")
    key, one = np.uint64(keyed_hash(seed, "film", name)), np.uint64(1)
    for finer in reversed(range(level)):  # from each square to one of its quarters, down to a single parameter
        bits = _mix(_mix((i << np.uint64(32)) + j + np.uint64(finer << 26)) ^ key)
        i = np.minimum(2 * i + (bits & one), np.uint64((rows - 1) >> finer))
        j = np.minimum(2 * j + (bits >> one & one), np.uint64((columns - 1) >> finer))
    return (i * np.uint64(columns) + j).astype(np.int64)


def film_bytes(shapes: Shapes, frames: int) -> int:
    """The size of a film with this many frames."""
    values, changes = (choose_picks(shapes, cells, 0).count for cells in (VALUE_CELLS, CHANGE_CELLS))
    return frames * _frame_bytes(len(shapes), values, changes)


@dataclass(frozen=True)
class Frame:
    """One picture, at the picks of a film, in their order.

    learned: change of the parameters that the step starts from since initialisation; gradients: before clipping;
    updates: as applied. errors: largest rounding error, by tensor: half of the scale.
    """

    step: int
    learned: Floats
    gradients: Floats
    updates: Floats
    errors: dict[str, Floats]


class Film:
    """A film, open for reading, also during training. Raises RunError if the run has none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = _read_manifest(folder)
        shapes = {tensor["name"]: tuple(tensor["shape"]) for tensor in self.facts["tensors"]}
        numbers = np.fromfile(folder / PICKS, "<u4").astype(np.int64)
        expected = sum(tensor["values"] + tensor["changes"] for tensor in self.facts["tensors"])
        if len(numbers) != expected:
            raise RunError(f"{folder / PICKS} has {len(numbers)} picks; {expected} were written. It is damaged.")
        self.values, numbers = _read_picks(numbers, shapes, self.facts["levels"]["values"])
        self.changes, _ = _read_picks(numbers, shapes, self.facts["levels"]["changes"])
        self.frame_bytes = int(self.facts["frame_bytes"])

    def steps(self) -> NDArray[np.int64]:
        """The steps that have frames, in order."""
        return _frame_steps(self.folder / FRAMES, self.frame_bytes)

    def raw(self, number: int) -> bytes:
        """The number-th frame as it stands in the file."""
        with open(self.folder / FRAMES, "rb") as file:
            file.seek(number * self.frame_bytes)
            return file.read(self.frame_bytes)

    def stored(self, number: int) -> tuple[int, Floats, NDArray[np.int8]]:
        """The number-th frame before scaling: its step, the scales (3, tensors), and a byte for each pick."""
        raw = self.raw(number)
        if len(raw) < self.frame_bytes:
            raise RunError(f"{self.folder / FRAMES} has {len(self.steps())} frames: there is no frame {number}.")
        header = np.frombuffer(raw[: HEADER.itemsize], HEADER)[0]
        body = raw[HEADER.itemsize :]
        if checksum(int(header["step"]), body) != header["crc"]:
            raise RunError(f"Frame {number} of {self.folder / FRAMES} is damaged: its checksum differs.")
        tensors = len(self.values.indices)
        scales = np.frombuffer(body[: 12 * tensors], "<f4").reshape(3, tensors)
        return int(header["step"]), scales, np.frombuffer(body[12 * tensors :], np.int8)

    def frame(self, number: int) -> Frame:
        """The number-th frame."""
        step, scales, cells = self.stored(number)
        parts = np.split(cells, [self.values.count, self.values.count + self.changes.count])
        sizes = (self.values.sizes, self.changes.sizes, self.changes.sizes)
        learned, gradients, updates = (
            _times(part, np.repeat(scale, size)) for part, scale, size in zip(parts, scales, sizes, strict=True)
        )
        errors = dict(zip(("learned", "gradients", "updates"), scales * np.float32(0.5), strict=True))
        return Frame(step, learned, gradients, updates, errors)


class FilmWriter:
    """A film, open for writing. Frames are appended to one file; an incomplete one is ignored and overwritten.

    Args:
        folder: of the film; created if it does not exist.
        shapes: of the tensors, in the order of a frame.
        seed: of the run; it determines the picks.
        resumed_at: frames of this step and later ones are removed, because they will be made again.
    """

    def __init__(self, folder: Path, shapes: Shapes, seed: int, resumed_at: int) -> None:
        self.values, self.changes = (choose_picks(shapes, cells, seed) for cells in (VALUE_CELLS, CHANGE_CELLS))
        self.frame_bytes = _frame_bytes(len(shapes), self.values.count, self.changes.count)
        if not (folder / MANIFEST).is_file():
            self._begin(folder, shapes)
        self.frames = folder / FRAMES
        self.frames.touch()
        kept = [int(step) for step in _frame_steps(self.frames, self.frame_bytes) if step < resumed_at]
        os.truncate(self.frames, len(kept) * self.frame_bytes)
        self.last_step = kept[-1] if kept else -1

    def write(self, step: int, learned: Floats, gradients: Floats, updates: Floats) -> None:
        """Add a frame; see `Frame`."""
        frame = encode(step, (learned, gradients, updates), (self.values, self.changes))
        with open(self.frames, "ab") as file:
            file.write(frame)
        self.last_step = step

    def _begin(self, folder: Path, shapes: Shapes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / PICKS, "wb") as file:
            for picks in (self.values, self.changes):
                for grid in picks.indices.values():
                    file.write(grid.astype("<u4").tobytes())
        facts = {
            "version": FORMAT_VERSION,
            "frame_bytes": self.frame_bytes,
            "levels": {"values": self.values.level, "changes": self.changes.level},
            "tensors": [
                {"name": name, "shape": shape, "values": v.size, "changes": c.size}
                for (name, shape), v, c in zip(
                    shapes.items(), self.values.indices.values(), self.changes.indices.values(), strict=True
                )
            ],
        }
        with whole_file(folder / MANIFEST, durable=False) as temporary:
            temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def encode(step: int, numbers: tuple[Floats, Floats, Floats], picks: tuple[Picks, Picks]) -> bytes:
    """A frame as bytes of the file: learned, gradients and updates, at the picks of values and of changes."""
    scaled = [
        _to_bytes(part, sizes)
        for part, sizes in zip(numbers, (picks[0].sizes, picks[1].sizes, picks[1].sizes), strict=True)
    ]
    body = b"".join(scale.tobytes() for scale, _ in scaled) + b"".join(cells.tobytes() for _, cells in scaled)
    return np.array((step, checksum(step, body), HEADER.itemsize + len(body)), HEADER).tobytes() + body


def checksum(step: int, body: bytes) -> int:
    """CRC-32 of the step and the body. The step is included to detect a picture at the wrong step."""
    return zlib.crc32(body, zlib.crc32(np.int64(step).astype("<i8").tobytes()))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def _frame_bytes(tensors: int, values: int, changes: int) -> int:
    return HEADER.itemsize + 12 * tensors + values + 2 * changes


def _frame_steps(frames: Path, frame_bytes: int) -> NDArray[np.int64]:
    """The steps of the complete frames of a file; a frame that a kill left incomplete does not count."""
    count = frames.stat().st_size // frame_bytes if frames.is_file() else 0
    if not count:
        return np.empty(0, np.int64)
    raw = np.memmap(frames, np.uint8, "r", shape=(count, frame_bytes))
    return np.ascontiguousarray(raw[:, : HEADER.itemsize]).view(HEADER)["step"].ravel().astype(np.int64)


def _to_bytes(numbers: Floats, sizes: list[int]) -> tuple[Floats, NDArray[np.int8]]:
    """Bytes from -127 to 127, and the scale of each tensor that converts them back."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    scales = (np.maximum.reduceat(np.abs(numbers), starts) / 127).astype("<f4")
    # A tensor with a NaN or infinite number gets a NaN or infinite scale, and bytes 0.
    odd = ~np.isfinite(scales)
    factors = 1 / np.where((scales > 0) & ~odd, scales, 1).astype(np.float64)
    if (
        factors.max() < np.finfo(np.float32).max
    ):  # else stay in float64, where the inverse of the smallest scale is finite
        factors = factors.astype(np.float32)
    if odd.any():
        numbers = np.where(np.repeat(odd, sizes), np.float32(0), numbers)
    return scales, np.rint(numbers * np.repeat(factors, sizes)).clip(-127, 127).astype(np.int8)


def _times(cells: NDArray[np.int8], scales: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # 0 times a scale that is not finite is NaN: nothing is known of these values
        return cells.astype(np.float32) * scales


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = int(facts["version"])
    except FileNotFoundError:
        raise RunError(f"{folder} has no film: recording.enabled was false, or no step was made yet.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / MANIFEST} cannot be read: {error}.") from None
    if version > FORMAT_VERSION:
        raise RunError(
            f"{folder} has format version {version}; this Vitrine reads up to version {FORMAT_VERSION}. "
            "Use a newer Vitrine."
        )
    return facts


def _read_picks(numbers: NDArray[np.int64], shapes: Shapes, level: int) -> tuple[Picks, NDArray[np.int64]]:
    indices = {}
    for name, shape in shapes.items():
        height, width = grid_shape(shape, level)
        indices[name], numbers = numbers[: height * width].reshape(height, width), numbers[height * width :]
    return Picks(level, indices), numbers
