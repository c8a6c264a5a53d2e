"""The data of a report: answers of the studio, and as much of the film as fits. Needs no torch.

web/src/lib/bundle.ts reads both, and answers the page's requests from them as the studio would.
"""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.errors import RunError
from vitrine.runs.film import Film, Picks, picks_at
from vitrine.runs.reader import RunReader
from vitrine.studio.tiles import read_birth

VERSION = 1
NUMBERS = ("x-step", "x-exact", "x-shape", "content-type")  # headers that the page reads


@dataclass(frozen=True)
class Answer:
    """The studio's answer to one request about the run. path: below /api/runs/RUN/."""

    path: str
    query: dict[str, Any]
    status: int
    headers: dict[str, str]
    content: bytes
    body: dict[str, Any] | None = None  # of a POST


@dataclass(frozen=True)
class Cut:
    """How much of a film: frames, and cells in each; without changes, the gradients and updates are left out."""

    frames: int
    values: int
    changes: int


# Tried in turn until the file fits: all cells, then fewer; gradients and updates are left out before values are.
CUTS = (
    Cut(100, 262_144, 65_536),
    Cut(100, 65_536, 16_384),
    Cut(60, 65_536, 16_384),
    Cut(48, 65_536, 16_384),
    Cut(100, 65_536, 0),
    Cut(60, 65_536, 0),
    Cut(60, 16_384, 0),
    Cut(24, 16_384, 0),
    Cut(10, 4_096, 0),
)


@dataclass
class ShortFilm:
    """A part of a film: fewer frames, of fewer cells, each as it was recorded."""

    steps: list[int]
    values: Picks
    changes: Picks
    picks: NDArray[np.uint32]
    birth: NDArray[np.float32]
    scales: list[NDArray[np.float32]] = field(default_factory=list)
    cells: list[bytes] = field(default_factory=list)

    @property
    def info(self) -> dict[str, Any]:
        """Its description for the page, in the format of a film's."""
        sizes = [
            {"name": name, "values": list(grid.shape), "changes": list(self.changes.indices[name].shape)}
            for name, grid in self.values.indices.items()
        ]
        tensors = len(sizes)
        return {
            "steps": self.steps,
            "value_level": self.values.level,
            "change_level": self.changes.level,
            "frame_bytes": 16 + 12 * tensors + self.values.count + 2 * self.changes.count,
            "tensors": sizes,
        }

    @property
    def raw_bytes(self) -> int:
        """Its size before compression."""
        return self.birth.nbytes + self.picks.nbytes + sum(map(len, self.cells))

    @cached_property
    def packed(self) -> bytes:
        """A line of JSON with the lengths of its parts, then the parts; compressed."""
        parts = [self.picks.astype("<u4").tobytes(), self.birth.astype("<f4").tobytes()]
        parts += [scales.astype("<f4").tobytes() for scales in self.scales]
        parts += self.cells
        return pack({"version": VERSION, "frames": len(self.steps)}, parts)


def cut_film(reader: RunReader, film: Film, cut: Cut, last_step: int) -> ShortFilm:
    """Frames spread evenly over the film, the first and the last among them; every cell is one of the film's."""
    config = reader.config
    seed, shapes = config.training.seed, {t["name"]: tuple(t["shape"]) for t in film.facts["tensors"]}
    values, of_values = _coarser(film.values, shapes, seed, cut.values)
    changes, of_changes = _coarser(film.changes, shapes, seed, cut.changes)
    birth = [read_birth(reader, name)[grid.ravel()] for name, grid in values.indices.items()]
    picks = np.concatenate([_flat(values), _flat(changes)])
    short = ShortFilm([], values, changes, picks.astype(np.uint32), np.concatenate(birth))
    count = int(np.searchsorted(film.steps(), last_step, "right"))
    chosen = np.unique(np.rint(np.linspace(0, count - 1, min(cut.frames, count))).astype(int))
    spread, before = np.array(values.sizes), (np.zeros(values.count, np.int8), np.ones(values.count))
    for number in chosen:
        step, scales, cells = film.stored(int(number))
        value, gradient, update = np.split(cells, [film.values.count, film.values.count + film.changes.count])
        kept, scale = value[of_values], np.repeat(scales[0].astype(np.float64), spread)
        guessed = foretold(before[0], before[1], scale)
        before = kept, scale
        short.steps.append(step)
        short.scales.append(scales)
        rest = (kept.astype(np.int16) - guessed).astype(np.int8)
        short.cells.append(b"".join(part.tobytes() for part in (rest, gradient[of_changes], update[of_changes])))
    return short


def foretold(cells: NDArray[np.int8], scale: NDArray[np.float64], now: NDArray[np.float64]) -> NDArray[np.int16]:
    """The next frame as predicted if only the scale changed: the differences are small, and compress well."""
    with np.errstate(all="ignore"):
        same = np.floor(cells * scale / now + 0.5)
    return np.where(np.isfinite(same), same, 0).clip(-127, 127).astype(np.int16)


def pack(head: dict[str, Any], parts: Sequence[bytes]) -> bytes:
    """A line of JSON, then the parts; compressed. The line has the length of each part."""
    line = json.dumps(head | {"sizes": [len(part) for part in parts]}, allow_nan=False, separators=(",", ":"))
    return gzip.compress(b"".join([line.encode("ascii"), b"\n", *parts]), 6, mtime=0)


def pack_answers(about: dict[str, Any], answers: Sequence[Answer]) -> bytes:
    """Pack the answers of the studio, and the description of the report."""
    index = [
        {
            "path": answer.path,
            "query": {key: str(value) for key, value in answer.query.items()},
            "body": answer.body,
            "status": answer.status,
            "headers": {name: value for name, value in answer.headers.items() if name in NUMBERS},
        }
        for answer in answers
    ]
    return pack({"version": VERSION, "about": about, "answers": index}, [answer.content for answer in answers])


def _coarser(fine: Picks, shapes: dict[str, tuple[int, ...]], seed: int, cells: int) -> tuple[Picks, NDArray[np.int64]]:
    """The finest picks of at most `cells` of a film's cells, and their places in its frames; 0: none."""
    if cells == 0:
        none = {name: np.empty((0, 0), np.int64) for name in shapes}
        return Picks(fine.level, none), np.empty(0, np.int64)
    coarse = fine
    while coarse.count > cells and any(grid.size > 1 for grid in coarse.indices.values()):
        coarse = picks_at(shapes, coarse.level + 1, seed)
    places, start = [], 0
    for name, grid in fine.indices.items():
        shape = shapes[name]
        rows, columns = np.divmod(coarse.indices[name].ravel(), shape[-1])
        # A vector is one row; each pick lies in its own square.
        places.append(start + (rows >> fine.level) * grid.shape[1] + (columns >> fine.level))
        start += grid.size
    found = np.concatenate(places)
    if not np.array_equal(_flat(fine)[found], _flat(coarse)):
        raise RunError("The film's cells are not those of its seed, so it cannot be cut. Is it from another run?")
    return coarse, found


def _flat(picks: Picks) -> NDArray[np.int64]:
    return np.concatenate([grid.ravel() for grid in picks.indices.values()])
