"""The studio's responses: JSON without NaN, raw numbers with their step, and errors of one sentence."""

import gzip
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator
from starlette.requests import Request
from starlette.responses import Response

from vitrine import _json

IMMUTABLE = "private, max-age=31536000, immutable"
ASK_AGAIN = "private, no-cache"  # may be cached, but is checked each time: mostly answered by 304
NEVER = "no-store"
# Never compressed: cells and frames shrink only to 0.85 to 0.93 of their size, at 36 MB/s (docs/experiments.md).
NUMBERS = "application/octet-stream"

# The schema of answers that are raw numbers, and of those that are events.
_HEADERS = {
    "X-Step": ("integer", "the step whose numbers these are"),
    "X-Exact": ("boolean", "whether they are known to be the run's own, to the bit"),
    "X-Shape": ("string", "rows and columns separated by a comma, or a count"),
}
RAW: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "raw little-endian numbers",
        "content": {NUMBERS: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {name: {"schema": {"type": kind}, "description": what} for name, (kind, what) in _HEADERS.items()},
    },
    304: {"description": "unchanged: the page has it already"},
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "server-sent events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


def _whole_characters(text: str) -> str:
    """Refuse half a surrogate pair, which JSON allows but UTF-8 cannot encode."""
    if not text.isascii() and any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError("text of whole characters")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]


class RefusalError(Exception):
    """A request that cannot be answered: a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Json(Response):
    """JSON; a number that is not finite becomes null."""

    media_type = "application/json"

    def __init__(self, content: Any = None, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(content, status_code, {"Cache-Control": NEVER} | dict(headers or {}))

    def render(self, content: Any) -> bytes:
        """The bytes; non-ASCII is escaped, since a folder's name may not be valid text."""
        return dumps(content).encode("ascii")


def error(status: int, sentence: str) -> Json:
    """The format of every error."""
    return Json({"error": sentence}, status)


def dumps(content: Any) -> str:
    """One line of JSON."""
    return _json.dumps(content, separators=(",", ":"))


def event(content: Any, number: str = "") -> str:
    """One server-sent event."""
    return (f"id: {number}\n" if number else "") + f"data: {dumps(content)}\n\n"


def numbers(
    request: Request,
    values: NDArray[Any] | bytes,
    *,
    step: int,
    exact: bool,
    fixed: str,
    shape: tuple[int, ...] = (),
    packed: bool = False,
) -> Response:
    """Raw little-endian numbers.

    Args:
        values: an array, or the bytes from a file.
        fixed: how long they may be cached: IMMUTABLE, ASK_AGAIN or NEVER.
        packed: whether to compress them, if the browser accepts it.
    """
    body = values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()
    shape = shape or (values.shape if isinstance(values, np.ndarray) else (len(values),))
    packed &= "gzip" in request.headers.get("accept-encoding", "")
    if packed:
        body = gzip.compress(body, 1, mtime=0)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {
        "X-Step": str(step),
        "X-Exact": str(exact).lower(),
        "X-Shape": ",".join(map(str, shape)),
        "Cache-Control": fixed,
        "ETag": tag,
        "Vary": "Accept-Encoding",
    }
    if packed:
        headers["Content-Encoding"] = "gzip"
    if fixed != NEVER and tag in request.headers.get("if-none-match", ""):
        return Response(None, 304, headers)
    return Response(body, 200, headers, NUMBERS)
