"""Handling of requests in both servers: client disconnects, limits of bodies, and HEAD."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

GONE = 499  # the status for a client that has disconnected


class TooLongError(BaseException):
    """A body is too long. A BaseException, so that `except Exception` does not catch it."""


async def while_there(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """Wait for an answer; cancel it and raise ClientDisconnect if the client disconnects."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


def limit_body(receive: Receive, most_bytes: int) -> Receive:
    """Pass the body on; raise TooLongError if it is too long."""
    received = 0

    async def receive_some() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most_bytes:
            raise TooLongError
        return message

    return receive_some


async def answer_head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer HEAD as GET without the body; a stream ends after its headers."""
    started = asyncio.Event()

    async def send_start(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            started.set()

    answering = asyncio.ensure_future(app({**scope, "method": "GET"}, receive, send_start))
    starting = asyncio.ensure_future(started.wait())
    await asyncio.wait((answering, starting), return_when=asyncio.FIRST_COMPLETED)
    if answering.done():
        answering.result()
    for task in (answering, starting):
        task.cancel()
    await asyncio.gather(answering, starting, return_exceptions=True)
    await send({"type": "http.response.body", "body": b""})
