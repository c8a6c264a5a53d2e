"""The routes that read runs: listing, curves, event stream, film. They need no torch."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from numpy.typing import NDArray
from starlette.responses import Response, StreamingResponse

from vitrine.config import Config
from vitrine.errors import RunError, VitrineError
from vitrine.inspection.compare_runs import compare
from vitrine.inspection.health_by_history import history_headline
from vitrine.model.inventory import memory_parts, optimizer_memory
from vitrine.optimizers.registry import OPTIMIZERS
from vitrine.runs.chosen import Chosen
from vitrine.runs.film import PICKS, Film
from vitrine.runs.live import LiveReader
from vitrine.runs.reader import FILM, LIVE, TOKENIZER, RunReader, is_training
from vitrine.studio import schemas_run
from vitrine.studio import series as curves
from vitrine.studio.catalog import Listing, identity
from vitrine.studio.events import Cursor, film_steps, follow, is_paused, progress
from vitrine.studio.responses import ASK_AGAIN, EVENTS, IMMUTABLE, NEVER, RAW, Json, RefusalError, numbers
from vitrine.studio.tiles import keyframes, read_birth
from vitrine.text.tokenizer import load_tokenizer, spell

VOCABULARY = 2000  # the largest that is sent as a list of tokens
LARGEST = 2**31  # of numbers in requests

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schemas_run.Problem, "description": "what was wrong, in one sentence"},
    "5XX": {"model": schemas_run.Problem, "description": "what went wrong here, in one sentence"},
}

Name = Annotated[str, Path(description="a run, by the name that the listing gives it")]
Step = Annotated[int, Query(ge=0, lt=LARGEST, description="with the parameters that this step starts from")]
First = Annotated[int, Query(ge=0, lt=LARGEST)]
Last = Annotated[int, Query(ge=-1, lt=LARGEST, description="-1: the last there is")]
Pixels = Annotated[int, Query(ge=1, le=10_000)]
Version = Annotated[str, Query(description="the run's identity: with it, what never changes may be cached for good")]


def make_router(listing: Listing) -> APIRouter:
    """The routes, for these runs."""
    router = APIRouter(prefix="/api", responses=ERRORS)

    @router.get("/runs", response_model=schemas_run.Runs)
    def runs() -> Response:
        """Every run, the most recently recorded first."""
        readers, unreadable = listing.all()
        rows = []
        for name, reader in readers.items():
            try:
                rows.append(_row(name, reader))
            except (VitrineError, OSError) as error:  # a damaged or just deleted run must not affect the others
                unreadable[name] = str(error)
        rows.sort(key=lambda row: -row["modified_s"])
        broken: list[schemas_run.UnreadableRun] = [
            {"name": name, "error": reason} for name, reason in unreadable.items()
        ]
        return Json(schemas_run.Runs(runs=rows, unreadable=broken))

    @router.get("/compare", response_model=schemas_run.Comparison)
    def side_by_side(
        run: Annotated[tuple[str, ...], Query(description="a run's name; given 2 to 8 times", max_length=100)],
        pixels: Annotated[int, Query(ge=1, le=2000, description="points of each curve of the training loss")] = 400,
    ) -> Response:
        """Compare runs: the hyperparameters that differ, their curves by step, tokens and time, their samples."""
        return Json(compare([(name, listing.open(name)) for name in run], pixels).to_json())

    @router.get("/runs/{run}", response_model=schemas_run.RunInfo)
    def run(run: Name) -> Response:
        """All that a page needs to open a run."""
        return Json(_whole(run, listing.open(run)))

    @router.get("/runs/{run}/series", response_model=schemas_run.Series)
    def series(run: Name, name: str, first: First = 0, last: Last = -1, pixels: Pixels = 1000) -> Response:
        """One curve, as low and high per pixel."""
        return Json(curves.series(listing.open(run), name, first, last, pixels))

    @router.get("/runs/{run}/layers", response_model=schemas_run.Layers)
    def layers(
        run: Name,
        statistic: Annotated[str, Query(description="one of the run's statistics, such as gradient_norm")],
        by: Literal["part", "tensor"] = "part",
        first: First = 0,
        last: Last = -1,
        pixels: Pixels = 200,
    ) -> Response:
        """One statistic of every part of the model, or of every tensor: a curve each, on the same steps."""
        return Json(curves.layers(listing.open(run), statistic, by, first, last, pixels))

    headlines: dict[str, tuple[tuple[object, ...], schemas_run.HeadlineAnswer]] = {}

    @router.get("/runs/{run}/headline", response_model=schemas_run.HeadlineAnswer)
    def headline(run: Name) -> Response:
        """What is wrong with the run, by its recorded history only: no model is run. A second for 100,000 steps; then remembered."""
        reader = listing.open(run)
        now = identity(reader), reader.steps_made(), len(reader.evaluations()), len(reader.events())
        path = str(reader.path)
        if path not in headlines or headlines[path][0] != now:
            headlines[path] = now, {"headline": history_headline(reader)}
        return Json(headlines[path][1])

    @router.get("/runs/{run}/stream", responses=EVENTS, response_class=Response)
    def stream(request: Request, run: Name, cursor: str = "") -> Response:
        """Server-sent events: what is new since the cursor."""
        listing.open(run)
        at = Cursor.parse(request.headers.get("last-event-id") or cursor)
        headers = {"Cache-Control": NEVER, "X-Accel-Buffering": "no"}
        return StreamingResponse(follow(listing, run, at), 200, headers, "text/event-stream")

    _add_film(router, listing)
    return router


def _add_film(router: APIRouter, listing: Listing) -> None:
    @router.get("/runs/{run}/film/picks", responses=RAW, response_class=Response)
    def picks(request: Request, run: Name, v: Version = "") -> Response:
        """Places in the flattened tensors: of the values shown, then of the changes. uint32."""
        reader = listing.open(run)
        content = (open_film(reader).folder / PICKS).read_bytes()
        shape = (len(content) // 4,)
        return numbers(request, content, step=0, exact=True, fixed=fixed(reader, v), shape=shape, packed=True)

    @router.get("/runs/{run}/film/birth", responses=RAW, response_class=Response)
    def birth(request: Request, run: Name, v: Version = "") -> Response:
        """The value at birth of each parameter that the film shows. float32."""
        reader = listing.open(run)
        shown = open_film(reader).values.indices
        values = [read_birth(reader, name)[grid.ravel()] for name, grid in shown.items()]
        return numbers(request, np.concatenate(values), step=0, exact=True, fixed=fixed(reader, v))

    @router.get("/runs/{run}/film/{number}", responses=RAW, response_class=Response)
    def frame(request: Request, run: Name, number: Annotated[int, Path(ge=0, lt=LARGEST)], v: Version = "") -> Response:
        """One frame as stored in the file (docs/run-format.md). Rounded, so never exact."""
        reader = listing.open(run)
        film = open_film(reader)
        steps = film.steps()
        if number >= len(steps):
            raise RefusalError(
                404, f"The film has {len(steps)} frames, counted from 0: there is no frame {number} yet."
            )
        return numbers(request, film.raw(number), step=int(steps[number]), exact=False, fixed=fixed(reader, v))

    @router.get(
        "/runs/{run}/live", responses=RAW | {204: {"description": "there is no picture yet"}}, response_class=Response
    )
    def live(request: Request, run: Name) -> Response:
        """Request a live picture, and return the newest: values, gradients, updates at the picks. float32."""
        reader = listing.open(run)
        pictures = LiveReader(reader.path / LIVE)
        training = is_training(reader.path)
        if training:
            pictures.ask()
        picture = pictures.read() if training else None
        if picture is None:
            return Response(None, 204, {"Cache-Control": NEVER})
        parts = np.concatenate([picture.values, picture.gradients, picture.updates])
        return numbers(request, parts, step=picture.step, exact=True, fixed=NEVER)


def fixed(reader: RunReader, version: str) -> str:
    """How long an answer that never changes may be cached: for good only if the request gives the run's identity.

    Another run may have the same name later, and a resumed one makes its last steps again.
    """
    if not version:
        return ASK_AGAIN
    if version != identity(reader):
        raise RefusalError(
            409, "The run has changed since the page opened it: it was resumed or replaced. Open it again."
        )
    return IMMUTABLE


def open_film(reader: RunReader) -> Film:
    """The film of a run. Raises RefusalError if it has none."""
    try:
        return Film(reader.path / FILM)
    except RunError as error:
        raise RefusalError(404, str(error)) from None


def _row(name: str, reader: RunReader) -> schemas_run.RunSummary:
    """A run in the listing."""
    config, made = reader.config, reader.steps_made()
    measured, last = reader.evaluations(), reader.step_record(made - 1)
    return {
        "name": name,
        "parameters": sum(plan.parameters for plan in reader.tensors),
        "architecture": config.model.architecture,
        "steps": config.training.steps,
        "steps_made": made,
        "training": is_training(reader.path),
        "val_loss": measured[-1].loss if measured else None,
        "val_tokens": measured[-1].tokens if measured else 0,
        "val_whole": measured[-1].whole if measured else False,
        "train_loss": last.loss if last else None,
        "modified_s": reader.recorded_s(),
    }


def _whole(name: str, reader: RunReader) -> schemas_run.RunInfo:
    config, training = reader.config, is_training(reader.path)
    tensors = reader.tensors
    optimizer = OPTIMIZERS[config.optimizer.name]
    words = {hidden: optimizer.words(config.optimizer, hidden) for hidden in (True, False)}
    return {
        "name": name,
        "identity": identity(reader),
        "config": config.model_dump(mode="json"),
        "chosen": told(reader.chosen()),
        "tensors": [
            {
                "name": plan.name,
                "shape": list(plan.shape),
                "kind": plan.kind,
                "block": plan.block,
                "part": plan.part,
                "parameters": plan.parameters,
                "birth": plan.initialisation,
                "std": plan.std,
                "memory": list(optimizer_memory(config, plan)),
                "rule": words[plan.hidden].name,
            }
            for plan in tensors
        ],
        "rules": dict(words.values()),
        "terms": dict(optimizer.term_words),
        "main_terms": list(optimizer.main_terms),
        "parameters": sum(plan.parameters for plan in tensors),
        "vocab": _vocabulary(reader),
        "steps": config.training.steps,
        "steps_made": reader.steps_made(),
        "training": training,
        "paused": training and is_paused(reader),
        **progress(reader, training),
        "ended": None if training else reader.result() or None,
        "keyframes": keyframes(reader),
        "best_step": reader.best_step(),
        "guessing_loss": math.log(config.model.vocab_size),
        "events": reader.events(),
        "evaluations": [
            {
                "step": e.step,
                "loss": e.loss,
                "tokens": e.tokens,
                "whole": e.whole,
                "duration_s": e.duration_s,
                "final": e.final,
            }
            for e in reader.evaluations()
        ],
        "samples": reader.samples(),
        "film": _film(reader),
        "statistics_every": layout.every_of_late if (layout := reader.layout()) else None,
        "tied": any(tensor.owner and tensor.part == "head" for tensor in reader.every_tensor),
        "memory": {"computed": _memory(config), "measured_peak_bytes": reader.peak_memory_bytes()},
        "series": list(curves.NAMES),
        "statistics": list(curves.KNOWN),
    }


def told(chosen: Mapping[str, Chosen] | None) -> dict[str, schemas_run.Chosen] | None:
    """Who chose each hyperparameter, for the page."""
    return None if chosen is None else {name: {"by": by, "how": how} for name, (by, how) in chosen.items()}


def _memory(config: Config) -> schemas_run.Memory:
    parts = memory_parts(config)
    return {
        "parameters": parts["parameters"],
        "gradients": parts["gradients"],
        "optimizer": parts["optimizer"],
        "activations": parts["activations"],
    }


def _vocabulary(reader: RunReader) -> list[str] | None:
    """The text of every token id, unless there are too many."""
    size = reader.config.model.vocab_size
    if size > VOCABULARY:
        return None
    tokenizer = load_tokenizer(reader.path / TOKENIZER)
    return [spell(tokenizer, number) for number in range(size)]


def _film(reader: RunReader) -> schemas_run.FilmInfo | None:
    try:
        film = Film(reader.path / FILM)
    except RunError:
        return None
    return {
        "steps": film_steps(reader.path),
        "value_level": film.values.level,
        "change_level": film.changes.level,
        "frame_bytes": film.frame_bytes,
        "tensors": [
            {"name": name, "values": _pair(grid), "changes": _pair(film.changes.indices[name])}
            for name, grid in film.values.indices.items()
        ],
    }


def _pair(grid: NDArray[np.int64]) -> tuple[int, int]:
    rows, columns = grid.shape
    return rows, columns
