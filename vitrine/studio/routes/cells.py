"""The routes of cells of tensors as raw numbers: a rectangle of one tensor, or several whole tensors."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from vitrine.http.requests import while_there
from vitrine.runs.reader import RunReader
from vitrine.studio.catalog import Listing, identity
from vitrine.studio.responses import NEVER, RAW, numbers
from vitrine.studio.routes.runs import ERRORS, LARGEST, Name, Step, Version, fixed
from vitrine.studio.routes.steps import check_step
from vitrine.studio.tiles import MEMORY, Floats, Tile, check_mode, read_births, read_tiles, tile_of, tiles_of
from vitrine.studio.worker_pool import Workers

TENSORS = 10_000  # in one request

Mode = Annotated[str, Query(description="birth, value, learned, gradient, update, or memory:NAME")]
Place = Annotated[int, Query(ge=0, lt=LARGEST)]
Size = Annotated[int, Query(ge=1, lt=LARGEST)]
Every = Annotated[
    int, Query(ge=1, le=2**24, description="K, a power of two: one cell of each K x K square, the film's pick")
]
Tensors = Annotated[
    tuple[str, ...], Query(max_length=TENSORS, description="in this order; none: every tensor that has the mode")
]


def make_router(listing: Listing, workers: Workers) -> APIRouter:
    """The routes, for these runs."""
    router = APIRouter(prefix="/api/runs/{run}", responses=ERRORS)

    async def cells(
        request: Request, reader: RunReader, step: int, mode: str, tiles: list[Tile], v: str, shape: tuple[int, ...]
    ) -> Response:
        """The numbers of these tiles, one tile after the other: from a keyframe, or by the replay worker."""
        kept = fixed(reader, v)
        check_mode(reader, mode, tiles)
        found, exact = await run_in_threadpool(on_disk, reader, step, mode, tiles), True
        if found is None:
            made = check_step(reader, step, replayed=mode in ("gradient", "update"))
            job = workers.replay.ask(
                "cells", run=str(reader.path), identity=identity(reader), step=step, mode=mode, tiles=tuple(tiles),
                replayed=step < made,
            )  # fmt: skip
            found, exact = await while_there(request, job)
        fixed_for, at = kept if exact else NEVER, 0 if mode == "birth" else step
        return numbers(request, found, step=at, exact=exact, fixed=fixed_for, shape=shape)

    async def rectangle(
        run: Name, tensor: str,
        row: Place = 0, column: Place = 0, rows: Size = 256, columns: Size = 256, every: Every = 1,
    ) -> tuple[RunReader, Tile]:  # fmt: skip
        reader = listing.open(run)
        return reader, tile_of(reader, tensor, row, column, rows, columns, every)

    Rectangle = Annotated[tuple[RunReader, Tile], Depends(rectangle)]  # noqa: N806 - a type

    @router.get("/tile", responses=RAW, response_class=Response)
    async def tile(request: Request, found: Rectangle, step: Step, mode: Mode, v: Version = "") -> Response:
        """A rectangle of a tensor, in cells; at most 65,536 numbers. float32."""
        reader, part = found
        return await cells(request, reader, step, mode, [part], v, part.grid)

    @router.get("/tiles", responses=RAW, response_class=Response)
    async def tiles(
        request: Request, run: Name, step: Step, mode: Mode, tensor: Tensors = (), every: Every = 1, v: Version = ""
    ) -> Response:
        """Whole tensors, one after the other, each row by row; at most 1,048,576 numbers. float32."""
        reader = listing.open(run)
        parts = tiles_of(reader, tensor, mode, every)
        return await cells(request, reader, step, mode, parts, v, (sum(part.size for part in parts),))

    @router.get("/picks", responses=RAW, response_class=Response)
    def picks(request: Request, found: Rectangle, v: Version = "") -> Response:
        """The places of such a tile's numbers in the flattened tensor. uint32."""
        reader, part = found
        places = part.places().astype("<u4")
        return numbers(request, places, step=0, exact=True, fixed=fixed(reader, v), shape=part.grid, packed=True)

    return router


def on_disk(reader: RunReader, step: int, mode: str, tiles: Sequence[Tile]) -> Floats | None:
    """Cells from keyframes, flattened; None if they have to be computed."""
    if mode in ("gradient", "update"):
        return None
    if mode == "birth":
        return flattened(read_births(reader, tiles))
    memory = mode.removeprefix(MEMORY) if mode.startswith(MEMORY) else ""
    found = read_tiles(reader, step, tiles, memory)
    if found is None or mode != "learned":
        return None if found is None else flattened(found)
    return flattened(found) - flattened(read_births(reader, tiles))


def flattened(tiles: Sequence[Floats]) -> Floats:
    """The numbers of several tiles, one tile after the other."""
    return np.concatenate([tile.ravel() for tile in tiles])
