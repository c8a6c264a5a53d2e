"""The routes that write a report for the page."""

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from vitrine.http.requests import while_there
from vitrine.studio import schemas_run
from vitrine.studio.catalog import Listing
from vitrine.studio.report.build import MOST_STEPS, Inside, Selection, make_report
from vitrine.studio.report.html import Shell
from vitrine.studio.responses import NEVER, Json, RefusalError, Text
from vitrine.studio.routes.runs import ERRORS, LARGEST, Name

Step = Annotated[int, Field(ge=0, lt=LARGEST)]


FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the report, to be saved",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class ReportRequest(BaseModel):
    """What to include in a report; empty: as in `vitrine report`. here: a step to keep in addition to the default ones."""

    steps: Annotated[list[Step], Field(max_length=MOST_STEPS)] = []
    here: Step | None = None
    cell: Annotated[Text, Field(max_length=200)] = ""
    prompt: Annotated[Text, Field(max_length=20_000)] | None = None


def make_router(listing: Listing) -> APIRouter:
    """The routes, for these runs. One report is written at a time."""
    router = APIRouter(prefix="/api/runs/{run}", responses=ERRORS)
    doing: dict[str, str] = {}  # by run

    @router.get("/report", response_model=schemas_run.ReportProgress)
    def progress(run: Name) -> Response:
        """The progress of a report, without waiting; empty: none is being written."""
        listing.open(run)
        return Json(schemas_run.ReportProgress(doing=doing.get(run, "")))

    @router.post("/report", responses=FILE, response_class=Response)
    async def report(request: Request, run: Name, body: ReportRequest) -> Response:
        """One HTML file with the page and the run in it; see docs/report.md. It contains parts of the user's text."""
        reader = listing.open(run)
        if doing:
            raise RefusalError(409, f"A report of {next(iter(doing))} is being written. Wait for it, or cancel it.")
        doing[run] = "the run and its curves"
        headers = {name: request.headers[name] for name in ("host", "authorization") if name in request.headers}
        selection = Selection(tuple(body.steps), body.cell, body.prompt, body.here)
        try:
            made = make_report(
                Inside(request.app, run, headers), reader, selection, Shell(), lambda what: doing.update({run: what})
            )
            written = await while_there(request, made)
        finally:
            doing.clear()
        name = f"attachment; filename=\"report.html\"; filename*=UTF-8''{quote(f'{run}.html', safe='')}"
        # Not served as HTML: it is to be saved, and must never run as a page of this origin.
        return Response(
            written.html, 200, {"Content-Disposition": name, "Cache-Control": NEVER}, "application/octet-stream"
        )

    return router
