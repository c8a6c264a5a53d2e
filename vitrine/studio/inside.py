"""The routes that look inside a step: cells of tensors, one parameter, one neuron, the four phases."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from vitrine.runs.reader import RunReader
from vitrine.studio.answers import Json, RefusalError, numbers
from vitrine.studio.api import LARGEST, Name, Step, Version, fixed
from vitrine.studio.listing import Listing
from vitrine.studio.tiles import MEMORY, MODES, Floats, Tile, read_birth, read_tile, tile_of

Place = Annotated[int, Query(ge=0, lt=LARGEST)]
Size = Annotated[int, Query(ge=1, lt=LARGEST)]


def make_router(listing: Listing) -> APIRouter:
    """The routes, for these runs."""
    router = APIRouter(prefix="/api/runs/{run}", default_response_class=Json)

    @router.get("/tile")
    async def tile(
        request: Request,
        run: Name,
        tensor: str,
        step: Step,
        mode: str,
        row: Place = 0,
        column: Place = 0,
        rows: Size = 256,
        columns: Size = 256,
        v: Version = "",
    ) -> Response:
        """Exact cells of a tensor, float32. mode: birth, value, learned, gradient, update, or memory:NAME."""
        reader = listing.open(run)
        kept, part = fixed(reader, v), tile_of(reader, tensor, row, column, rows, columns)
        _check_mode(mode)
        cells, step = on_disk(reader, step, mode, part), 0 if mode == "birth" else step
        if cells is None:
            raise RefusalError(503, "Steps between keyframes cannot be entered yet.")
        return numbers(request, cells, step=step, exact=True, fixed=kept)

    return router


def on_disk(reader: RunReader, step: int, mode: str, part: Tile) -> Floats | None:
    """Cells that a keyframe holds; None if they have to be worked out."""
    if mode == "birth":
        return part.cut(read_birth(reader, part.tensor))
    if mode.startswith(MEMORY):
        return read_tile(reader, step, part, mode.removeprefix(MEMORY))
    if mode not in ("value", "learned"):
        return None
    values = read_tile(reader, step, part)
    if values is None or mode == "value":
        return values
    return np.subtract(values, part.cut(read_birth(reader, part.tensor)))


def _check_mode(mode: str) -> None:
    if mode not in MODES and not (mode.startswith(MEMORY) and mode != MEMORY):
        raise RefusalError(400, f"mode is one of {', '.join(MODES)} or {MEMORY}NAME: got {mode[:100]!r}.")
