"""Tiles of tensors: which cells a request names, and reading them from a keyframe without torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine._files import sha256
from vitrine.errors import RunError, nearest
from vitrine.model.inventory import TensorSpec, optimizer_memory
from vitrine.runs.film import pick
from vitrine.runs.reader import KEYFRAMES, RunReader
from vitrine.runs.retention import keyframe_path, keyframe_steps
from vitrine.studio.responses import RefusalError

CELLS, ALL_CELLS = 65_536, 2**20  # numbers in a tile at most, and in several tiles together: 4 MiB
MODES = ("birth", "value", "learned", "gradient", "update")
MEMORY = "memory:"
PARAMETERS, MEMORIES = "model.safetensors", "optimizer.safetensors"
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Tile:
    """A rectangle of a tensor; a vector is a matrix of one row.

    shape: of the tensor, as the model has it. row, column, rows, columns: in cells.
    every: of each square of `every` by `every` cells one is taken, the film's pick; 1: each cell.
    seed: of the run: it decides the picks.
    """

    tensor: str
    shape: tuple[int, ...]
    row: int
    column: int
    rows: int
    columns: int
    every: int = 1
    seed: int = 0

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the whole tensor."""
        return _matrix(self.shape)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the numbers that are taken."""
        return -(-self.rows // self.every), -(-self.columns // self.every)

    @property
    def size(self) -> int:
        """How many numbers are taken."""
        return self.grid[0] * self.grid[1]

    def places(self) -> NDArray[np.int64]:
        """Their places in the flattened tensor."""
        starts = self.row // self.every, self.column // self.every
        squares = tuple(slice(start, start + count) for start, count in zip(starts, self.grid, strict=True))
        return pick(self.tensor, self.shape, self.every.bit_length() - 1, self.seed, (squares[0], squares[1]))

    def cut(self, whole: Floats) -> Floats:
        """These numbers, cut from a whole tensor."""
        if self.every > 1:
            return np.asarray(whole.reshape(-1)[self.places()])
        matrix = whole.reshape(self.matrix)
        return matrix[self.row : self.row + self.rows, self.column : self.column + self.columns]


def tensor_of(reader: RunReader, name: str) -> TensorSpec:
    """The tensor of this name. Raises RefusalError if the model has none."""
    tensors = {plan.name: plan for plan in reader.tensors}
    if name not in tensors:
        raise RefusalError(404, f"There is no tensor {name!r}. {nearest(name, tensors)}")
    return tensors[name]


def tile_of(reader: RunReader, name: str, row: int, column: int, rows: int, columns: int, every: int) -> Tile:
    """The requested rectangle, cut to the tensor. Raises RefusalError if nothing is left."""
    plan = tensor_of(reader, name)
    _check_every(every)
    height, width = _matrix(plan.shape)
    if row >= height or column >= width:
        raise RefusalError(
            404, f"{name} has {height} rows and {width} columns, counted from 0: there is no cell [{row}, {column}]."
        )
    if row % every or column % every:
        raise RefusalError(400, f"With every={every}, row and column are multiples of it: got {row} and {column}.")
    rows, columns = min(rows, height - row), min(columns, width - column)
    tile = Tile(name, plan.shape, row, column, rows, columns, every, reader.config.training.seed)
    if tile.size > CELLS:
        raise RefusalError(
            400, f"A tile has at most {CELLS:,} cells: got {tile.grid[0]} x {tile.grid[1]}. Ask for several."
        )
    return tile


def tiles_of(reader: RunReader, names: Sequence[str], mode: str, every: int) -> list[Tile]:
    """Tiles of whole tensors; without names: all that have this mode. Raises RefusalError for too many cells."""
    _check_every(every)
    plans = [tensor_of(reader, name) for name in names]
    if len({plan.name for plan in plans}) < len(plans):
        raise RefusalError(400, "A tensor is named twice. Name each once.")
    if not plans:
        config, memory = reader.config, mode.removeprefix(MEMORY)
        plans = [
            plan for plan in reader.tensors if not mode.startswith(MEMORY) or memory in optimizer_memory(config, plan)
        ]
    seed = reader.config.training.seed
    tiles = [Tile(plan.name, plan.shape, 0, 0, *_matrix(plan.shape), every, seed) for plan in plans]
    size = sum(tile.size for tile in tiles)
    if size > ALL_CELLS:
        raise RefusalError(
            400,
            f"At most {ALL_CELLS:,} cells go into one answer: got {size:,}. Ask for fewer tensors, or a larger every.",
        )
    return tiles


def check_mode(reader: RunReader, mode: str, tiles: Sequence[Tile]) -> None:
    """Raises RefusalError for an unknown mode, or one that a tensor does not have."""
    if not mode.startswith(MEMORY):
        if mode not in MODES:
            raise RefusalError(400, f"mode is one of {', '.join(MODES)} or {MEMORY}NAME: got {mode[:100]!r}.")
        return
    name = mode.removeprefix(MEMORY)
    for tile in tiles:
        kept = optimizer_memory(reader.config, tensor_of(reader, tile.tensor))
        if name not in kept:
            raise RefusalError(
                404,
                f"The optimizer keeps no {name[:100]!r} of {tile.tensor}. It keeps: {', '.join(kept) or 'nothing'}.",
            )
    if not tiles:
        raise RefusalError(404, f"The optimizer keeps no {name[:100]!r} of any tensor.")


def read_tiles(reader: RunReader, step: int, tiles: Sequence[Tile], memory: str = "") -> list[Floats] | None:
    """Tiles of the parameters that a step starts from, or of the optimizer state; None if no keyframe has them."""
    file = keyframe_path(reader.path / KEYFRAMES, step) / (MEMORIES if memory else PARAMETERS)
    try:
        if not _is_sound(file, *_stamp(file)):
            return None
        tensors = _mapped(file)
        return [tile.cut(tensors[f"{tile.tensor}.{memory}" if memory else tile.tensor]) for tile in tiles]
    except (FileNotFoundError, KeyError):
        return None


def read_births(reader: RunReader, tiles: Sequence[Tile]) -> list[Floats]:
    """Tiles of the initial parameters."""
    found = read_tiles(reader, 0, tiles)
    if found is None:
        raise RunError(f"{reader.path} has no sound keyframe of step 0. vitrine verify {reader.path} says more.")
    return found


def read_birth(reader: RunReader, name: str) -> Floats:
    """The initial values of a whole tensor, flattened."""
    shape = tensor_of(reader, name).shape
    return read_births(reader, [Tile(name, shape, 0, 0, *_matrix(shape))])[0].ravel()


def read_whole(reader: RunReader, step: int) -> Floats | None:
    """Every parameter that a step starts from, in the order of the run's tensors; None if no sound keyframe has them."""
    tiles = [Tile(tensor.name, tensor.shape, 0, 0, *_matrix(tensor.shape)) for tensor in reader.tensors]
    found = read_tiles(reader, step, tiles)
    return None if found is None else np.concatenate([part.ravel() for part in found])


def keyframes(reader: RunReader) -> list[int]:
    """The steps that have keyframes."""
    return keyframe_steps(reader.path / KEYFRAMES)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def _check_every(every: int) -> None:
    if every & (every - 1):
        raise RefusalError(400, f"every is a power of two, such as 1, 2, 4 or 8: got {every}.")


def _mapped(file: Path) -> dict[str, Floats]:
    """The tensors of a safetensors file, memory-mapped: only what is used is read."""
    with open(file, "rb") as content:
        size = int.from_bytes(content.read(8), "little")
        header: dict[str, Any] = json.loads(content.read(size))
    raw = np.memmap(file, np.uint8, "r", offset=8 + size) if file.stat().st_size > 8 + size else np.empty(0, np.uint8)
    header.pop("__metadata__", None)
    return {
        name: raw[slice(*facts["data_offsets"])].view("<f4").reshape(facts["shape"]) for name, facts in header.items()
    }


def _stamp(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=256)
def _is_sound(file: Path, changed: int, size: int) -> bool:
    """Whether a file of a keyframe agrees with its manifest; cached until the file changes."""
    try:
        manifest: dict[str, Any] = json.loads((file.parent / "manifest.json").read_text(encoding="utf-8"))
        return bool(sha256(file) == manifest["files"][file.name]["sha256"])
    except (OSError, ValueError, KeyError):
        return False
