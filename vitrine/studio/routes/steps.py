"""The routes of replayed steps: one parameter, one neuron, one tensor, the four phases; and health."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from vitrine.http.requests import while_there
from vitrine.runs.reader import RunReader
from vitrine.studio import schemas_run, schemas_step
from vitrine.studio.catalog import Listing, identity
from vitrine.studio.responses import Json, RefusalError, Text
from vitrine.studio.routes.runs import ERRORS, LARGEST, Name, Step
from vitrine.studio.tiles import keyframes, tensor_of
from vitrine.studio.worker_pool import Workers

PROMPT = 2_000  # characters of a prompt in an address
NUDGES = 32  # sizes in one request

Row = Annotated[int, Query(ge=0, lt=LARGEST, description="of the step's first micro-batch")]
Token = Annotated[int, Query(gt=-LARGEST, lt=LARGEST, description="by its place in the row; -1: the last")]
ParameterName = Annotated[str, Query(description="such as blocks.0.attention.query.weight[3,7]")]
PromptQuery = Annotated[
    Text | None, Query(max_length=PROMPT, description="a text that is read instead of the step's batch")
]
NeuronName = Annotated[str, Query(description="such as blocks.0.mlp.expand[12]")]


class NudgeRequest(BaseModel):
    """A parameter, and how far to move it, each in turn."""

    parameter: Text
    step: Annotated[int, Field(ge=0, lt=LARGEST)]
    sizes: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=NUDGES)]


def make_router(listing: Listing, workers: Workers) -> APIRouter:
    """The routes, for these runs."""
    router = APIRouter(prefix="/api/runs/{run}", responses=ERRORS)

    async def ask(
        request: Request, reader: RunReader, step: int, method: str, made: bool = True, **arguments: Any
    ) -> Any:
        """The replay worker's answer about a step. made: that was made; otherwise, about where one starts."""
        check_step(reader, step, replayed=made)
        job = workers.replay.ask(method, run=str(reader.path), identity=identity(reader), step=step, **arguments)
        return await while_there(request, job)

    @router.get("/step/{n}", response_model=schemas_step.Phases)
    async def step(request: Request, run: Name, n: int, row: Row = 0, token: Token = -1) -> Response:
        """A step in its four phases, seen from one token."""
        return Json(await ask(request, listing.open(run), n, "phases", row=row, token=token))

    @router.get("/parameter", response_model=schemas_step.Biography)
    async def parameter(request: Request, run: Name, name: ParameterName, step: Step) -> Response:
        """The biography of one parameter."""
        return Json(await ask(request, listing.open(run), step, "parameter", name=name))

    @router.get("/neuron", response_model=schemas_step.Neuron)
    async def neuron(
        request: Request,
        run: Name,
        name: NeuronName,
        step: Step,
        row: Row = 0,
        token: Token = -1,
        prompt: PromptQuery = None,
    ) -> Response:
        """One neuron: inputs times weights, the bias, the output; with a prompt, at any step and at the end of the run."""
        place = {"name": name, "row": row, "token": token, "prompt": prompt}
        return Json(await ask(request, listing.open(run), step, "neuron", made=prompt is None, **place))

    @router.get("/tensor", response_model=schemas_step.TensorView)
    async def tensor(request: Request, run: Name, name: str, step: Step) -> Response:
        """One tensor in a step, with a scatter of gradients against updates."""
        reader = listing.open(run)
        tensor_of(reader, name)
        return Json(await ask(request, reader, step, "tensor", name=name))

    @router.post("/nudge", response_model=schemas_step.Nudge)
    async def nudge(request: Request, run: Name, body: NudgeRequest) -> Response:
        """The loss of a step's own batch, with one parameter moved."""
        reader = listing.open(run)
        return Json(await ask(request, reader, body.step, "nudge", name=body.parameter, sizes=body.sizes))

    @router.get("/progress", response_model=schemas_step.Progress)
    async def progress(run: Name, step: Step) -> Response:
        """The progress of the replay worker, without waiting."""
        listing.open(run)
        stands = workers.replay.progress
        nothing = {"step": None, "from": None, "made": 0, "of": 0}
        return Json({"working": workers.replay.waiting > 0} | (stands or nothing) | {"wanted": workers.replay.waiting})

    @router.get("/health", response_model=schemas_run.Health)
    async def health(request: Request, run: Name) -> Response:
        """Verdicts on the run, each with its plot."""
        reader = listing.open(run)
        return Json(await while_there(request, workers.replay.ask("health", run=str(reader.path))))

    return router


def check_step(reader: RunReader, step: int, replayed: bool) -> int:
    """How many steps were made. Raises RefusalError if this one was not. replayed: whether the step itself is to be replayed."""
    made = max([reader.steps_made(), *keyframes(reader)])
    last = made - 1 if replayed else made
    if step < 0 or step > last:
        can = "be replayed" if replayed else "be shown"
        range_ = f"Give one from 0 to {last}." if last >= 0 else "It has made no step yet."
        raise RefusalError(404, f"{reader.path.name} has made {made} steps: step {step} cannot {can}. {range_}")
    return made
