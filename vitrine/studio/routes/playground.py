"""The routes of the playground: next-token logits, generated text, and models initialised with other seeds."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from vitrine.config import SamplingConfig, merge, validate
from vitrine.http.requests import while_there
from vitrine.runs.reader import TOKENIZER, RunReader
from vitrine.studio import schemas_run
from vitrine.studio.catalog import Listing, identity
from vitrine.studio.responses import EVENTS, NEVER, Json, RefusalError, Text, event
from vitrine.studio.routes.runs import ERRORS, LARGEST, Name
from vitrine.studio.routes.steps import check_step
from vitrine.studio.tiles import keyframes
from vitrine.studio.worker_pool import DONE, Worker, Workers
from vitrine.text.tokenizer import encode, load_tokenizer

NEW_TOKENS, PROMPT = 400, 100_000  # tokens in one text; characters in a prompt
MOST_SPREAD = 1000.0

Prompt = Annotated[Text, Field(max_length=PROMPT)]
WrittenAt = Annotated[int, Field(ge=0, lt=LARGEST)]


class NextRequest(BaseModel):
    """A prompt, and the step whose parameters are used."""

    prompt: Prompt
    step: WrittenAt


class GenerateRequest(BaseModel):
    """A prompt and the decoding hyperparameters; the defaults are the run's."""

    prompt: Prompt = ""
    step: WrittenAt
    max_new_tokens: Annotated[int, Field(ge=1, le=NEW_TOKENS)] = 200
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1

    def sampling(self, reader: RunReader) -> SamplingConfig:
        """The run's own, with the given ones replaced; validated."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return validate(merge(reader.config.model_dump(mode="json"), {"sampling": given})).sampling


class BirthRequest(BaseModel):
    """A seed, and a factor for its random values."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    spread: Annotated[float, Field(ge=0, le=MOST_SPREAD, allow_inf_nan=False)] = 1.0


def make_router(listing: Listing, workers: Workers) -> APIRouter:
    """The routes, for these runs."""
    router = APIRouter(prefix="/api/runs/{run}", responses=ERRORS)

    def worker_for(reader: RunReader, step: int) -> Worker:
        """The text worker reads keyframes; any other step needs the replay worker."""
        return workers.writing if step in keyframes(reader) else workers.replay

    @router.post("/next", response_model=schemas_run.Next)
    async def following(request: Request, run: Name, body: NextRequest) -> Response:
        """The ids of a prompt, and the raw logit of every possible next token."""
        reader = listing.open(run)
        check(reader, body.prompt, body.step)
        job = worker_for(reader, body.step).ask(
            "next", run=str(reader.path), identity=identity(reader), step=body.step, prompt=body.prompt
        )
        return Json(await while_there(request, job))

    @router.post("/births", response_model=schemas_run.Birth)
    async def births(request: Request, run: Name, body: BirthRequest) -> Response:
        """The run's model, re-initialised with this seed and spread: its first numbers, and its loss on the batch of step 0."""
        reader = listing.open(run)
        job = workers.writing.ask(
            "births", run=str(reader.path), identity=identity(reader), seed=body.seed, spread=body.spread
        )
        return Json(await while_there(request, job))

    @router.post("/generate", responses=EVENTS, response_class=Response)
    async def generate(request: Request, run: Name, body: GenerateRequest) -> Response:
        """Server-sent events: the text in pieces; at the end the whole text, its step, and whether the parameters are exact.

        Without a keyframe, the parameters are replayed from the keyframe before. This ends when the page no longer waits.
        """
        reader = listing.open(run)
        check(reader, body.prompt, body.step)
        messages = worker_for(reader, body.step).follow(
            "generate",
            run=str(reader.path),
            identity=identity(reader),
            step=body.step,
            prompt=body.prompt,
            max_new_tokens=body.max_new_tokens,
            sampling=body.sampling(reader).model_dump(),
            seed=body.seed,
        )
        first = await while_there(
            request, anext(messages)
        )  # so that an error before the first piece has its HTTP status
        return StreamingResponse(
            _pieces(first, messages, body.step), 200, {"Cache-Control": NEVER}, "text/event-stream"
        )

    return router


def check(reader: RunReader, prompt: str, step: int) -> None:
    """Raise PromptError or RefusalError if the prompt cannot be continued."""
    check_step(reader, step, replayed=False)
    encode(load_tokenizer(reader.path / TOKENIZER), prompt)


async def _pieces(
    first: tuple[str, Any], messages: AsyncGenerator[tuple[str, Any], None], step: int
) -> AsyncGenerator[str, None]:
    async with contextlib.aclosing(messages):
        message = first
        try:
            while message[0] != DONE:
                yield event({"text": message[1]})
                message = await anext(messages)
            yield event({"done": True, "step": step} | message[1])
        except RefusalError as error:
            yield event({"error": error.sentence})
