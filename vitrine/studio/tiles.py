"""Cells of tensors: which are asked for, and how they are read from a keyframe without torch."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from vitrine.census import TensorPlan, census
from vitrine.errors import RunError, nearest
from vitrine.runs.keyframes import keyframe_path, keyframe_steps
from vitrine.runs.reader import KEYFRAMES, RunReader
from vitrine.studio.answers import RefusalError

CELLS = 65_536  # in a tile at most
MODES = ("birth", "value", "learned", "gradient", "update")
MEMORY = "memory:"
PARAMETERS, MEMORIES = "model.safetensors", "optimizer.safetensors"
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Tile:
    """A rectangle of a tensor; a vector is a matrix of one row."""

    tensor: str
    shape: tuple[int, int]
    row: int
    column: int
    rows: int
    columns: int

    def cut(self, whole: Floats) -> Floats:
        """This rectangle of a whole tensor."""
        matrix = whole.reshape(self.shape)
        return matrix[self.row : self.row + self.rows, self.column : self.column + self.columns]


def tensor_of(reader: RunReader, name: str) -> TensorPlan:
    """The tensor of this name. Raises RefusalError if the model has none."""
    tensors = {plan.name: plan for plan in census(reader.config.model)}
    if name not in tensors:
        raise RefusalError(404, f"There is no tensor {name!r}. {nearest(name, tensors)}")
    return tensors[name]


def tile_of(reader: RunReader, name: str, row: int, column: int, rows: int, columns: int) -> Tile:
    """The rectangle that is asked for; what reaches beyond the tensor is cut off. Raises RefusalError if nothing is left."""
    shape = tensor_of(reader, name).shape
    height, width = (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])
    if row >= height or column >= width:
        raise RefusalError(
            404, f"{name} has {height} rows and {width} columns, counted from 0: there is no cell [{row}, {column}]."
        )
    rows, columns = min(rows, height - row), min(columns, width - column)
    if rows * columns > CELLS:
        raise RefusalError(400, f"A tile has at most {CELLS:,} cells: got {rows} x {columns}. Ask for several.")
    return Tile(name, (height, width), row, column, rows, columns)


def read_tile(reader: RunReader, step: int, tile: Tile, memory: str = "") -> Floats | None:
    """A tile of the parameters that a step starts from, or of the optimizer's memory; None if no keyframe has it."""
    path = keyframe_path(reader.path / KEYFRAMES, step)
    file = path / (MEMORIES if memory else PARAMETERS)
    try:
        if not _is_sound(file, *_stamp(file)):
            return None
        with safe_open(file, "numpy") as tensors:
            name = f"{tile.tensor}.{memory}" if memory else tile.tensor
            if name not in tensors.keys():  # noqa: SIM118 - the library's object is no mapping
                return None
            part = tensors.get_slice(name)
            rows, columns = (slice(tile.row, tile.row + tile.rows), slice(tile.column, tile.column + tile.columns))
            cells: Floats = part[columns] if len(part.get_shape()) == 1 else part[rows, columns]
    except FileNotFoundError:
        return None
    return cells.reshape(tile.rows, tile.columns)


def read_birth(reader: RunReader, name: str) -> Floats:
    """A whole tensor as it was born, flattened."""
    shape = tensor_of(reader, name).shape
    height, width = (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])
    whole = read_tile(reader, 0, Tile(name, (height, width), 0, 0, height, width))
    if whole is None:
        raise RunError(f"{reader.path} has no sound keyframe of its birth. vitrine verify {reader.path} says more.")
    return whole.ravel()


def keyframes(reader: RunReader) -> list[int]:
    """The steps whose parameters lie on disk."""
    return keyframe_steps(reader.path / KEYFRAMES)


def _stamp(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=256)
def _is_sound(file: Path, changed: int, size: int) -> bool:
    """Whether a file of a keyframe is what its manifest says; worked out once, as long as the file stays the same."""
    try:
        manifest: dict[str, Any] = json.loads((file.parent / "manifest.json").read_text(encoding="utf-8"))
        with open(file, "rb") as content:
            return bool(hashlib.file_digest(content, "sha256").hexdigest() == manifest["files"][file.name]["sha256"])
    except (OSError, ValueError, KeyError):
        return False
