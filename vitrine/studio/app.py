"""The studio's ASGI application: guard, errors, page, and the routes of `studio.routes`."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response

from vitrine import __version__
from vitrine.errors import VitrineError
from vitrine.http.guard import TokenGuard, local_hosts
from vitrine.http.requests import GONE
from vitrine.studio.catalog import Listing
from vitrine.studio.report.html import NO_PAGE, PAGE
from vitrine.studio.responses import IMMUTABLE, NUMBERS, RefusalError, error
from vitrine.studio.routes import cells, launch, playground, report, runs, steps
from vitrine.studio.worker_pool import Workers


def make_app(folders: list[Path], token: str, port: int) -> FastAPI:
    """The application that `vitrine studio` serves.

    Args:
        folders: run folders, or folders of run folders.
        token: required in each request; see `http.guard`.
        port: on which it will listen, on the loopback address.
    """
    listing, workers = Listing(folders), Workers.make()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await workers.close()

    app = FastAPI(
        title="Vitrine studio",
        version=__version__,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.workers = workers
    app.include_router(runs.make_router(listing))
    app.include_router(cells.make_router(listing, workers))
    app.include_router(steps.make_router(listing, workers))
    app.include_router(playground.make_router(listing, workers))
    app.include_router(launch.make_router(listing, workers))
    app.include_router(report.make_router(listing))
    _add_errors(app)
    _add_page(app)
    app.add_middleware(
        GZipMiddleware, minimum_size=1000, compresslevel=1, exclude_content_types=("text/event-stream", NUMBERS)
    )
    app.add_middleware(TokenGuard, hosts=local_hosts(port), refuse=error, secret=token)
    return app


def _add_errors(app: FastAPI) -> None:
    """Answer every error with one sentence, the same that a command would print."""

    @app.exception_handler(RefusalError)
    async def refused(request: Request, problem: RefusalError) -> Response:
        return error(problem.status, problem.sentence)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, problem: ClientDisconnect) -> Response:
        return error(GONE, "The page no longer waits for this answer.")

    @app.exception_handler(VitrineError)
    async def wrong(request: Request, problem: VitrineError) -> Response:
        return error(400, str(problem))

    @app.exception_handler(OSError)
    async def disk(request: Request, problem: OSError) -> Response:
        if isinstance(problem, FileNotFoundError):
            return error(404, "A file of the run is gone: its folder was just moved or deleted. Open it again.")
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Make room on the disk." if full else "Check the disk, and the permissions there."
        return error(507 if full else 503, f"The disk refused: {problem.strerror or problem}. {advice}")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> Response:
        first = problem.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or "The body"
        reason = str(first["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
        return error(422, f"{name} has a wrong value ({reason}): got {str(first.get('input'))[:200]!r}.")

    @app.exception_handler(HTTPException)
    async def not_there(request: Request, problem: HTTPException) -> Response:
        sentences = {
            404: f"There is nothing at {request.scope['path']!r}.",
            405: f"{request.method} is not allowed for {request.scope['path']!r}.",
        }
        answer = error(problem.status_code, sentences.get(problem.status_code, str(problem.detail)))
        answer.headers.update(problem.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def mistake(request: Request, problem: Exception) -> Response:
        return error(500, "The studio failed because of a bug; its terminal shows the error. Please report it.")


def _add_page(app: FastAPI) -> None:
    """Add the page's files, which were built from web/ into this package."""

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        file = PAGE / "index.html"
        if not file.is_file():
            return error(503, NO_PAGE)
        return FileResponse(file, headers={"Cache-Control": "no-cache"})

    @app.get("/assets/{name}", include_in_schema=False)
    def asset(name: str) -> Response:
        # Looked up, never joined to a path; the names of built files contain a digest, so their content never changes.
        files = {file.name: file for file in (PAGE / "assets").glob("*") if file.is_file()}
        if name not in files:
            raise HTTPException(404)
        return FileResponse(files[name], headers={"Cache-Control": IMMUTABLE})
