"""Who may ask: only a browser that was given the token, on this machine, from this very page."""

import hmac
import json
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 20 * 2**20  # largest body of a request
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Stands before the whole application, whatever the method and the path.

    Args:
        token: is asked for once, in the address of the page, and then as a cookie.
        port: that the server listens on: Host and Origin must name it, so that no other site gets through by DNS.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self.app, self.token, self.cookie = app, token, f"vitrine-{port}"
        self.hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, let in, or pass on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.decode().lower() not in HEADERS]
                message["headers"] = kept + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        refused = self._refuse(scope)
        if refused:
            await _refusal(send_safely, *refused)
        elif scope["path"] == "/" and (given := dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token")):
            await self._let_in(scope, send_safely, given)
        elif not self._is_token(known := self._cookie(scope)):
            sentence = "This page needs its token: open the address that vitrine studio printed when it started."
            if known:
                sentence = "The studio was started anew, with a new token: open the address that it printed last."
            await _refusal(send_safely, 401, sentence)
        else:
            await self._pass_on(scope, receive, send_safely)

    def _refuse(self, scope: Scope) -> tuple[int, str] | None:
        hosts, origins = _header(scope, b"host"), _header(scope, b"origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            named = ", ".join(sorted(self.hosts))
            return 403, f"The studio answers on this machine alone, as {named}: got the Host {', '.join(hosts)!r}."
        if any(origin.lower() not in {f"http://{host}" for host in self.hosts} for origin in origins):
            return 403, f"The studio answers its own page alone: got the Origin {', '.join(origins)!r}."
        return None

    async def _let_in(self, scope: Scope, send: Send, given: str) -> None:
        """From the address into a cookie, and out of the address again."""
        if not self._is_token(given):
            await _refusal(
                send, 401, "This token is not the studio's. Open the address that vitrine studio printed last."
            )
            return
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        rest = urlencode([(name, value) for name, value in pairs if name != "token"])
        cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        headers = [
            (b"location", ("/" + ("?" + rest if rest else "")).encode("latin-1")),
            (b"set-cookie", cookie.encode("latin-1")),
            (b"cache-control", b"no-store"),
            (b"content-length", b"0"),
        ]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _cookie(self, scope: Scope) -> str:
        """The token that the browser keeps for this port; empty if it has none."""
        for header in _header(scope, b"cookie"):
            try:
                found = SimpleCookie(header).get(self.cookie)
            except CookieError:
                continue
            if found:
                return found.value
        return ""

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """With a limit on what the body may hold, whether it says how long it is or not."""
        too_long = (
            f"A request may hold {BODY_BYTES // 2**20} MB at most. Give a smaller text, or a file: vitrine train."
        )
        lengths = _header(scope, b"content-length")
        if any(length.isdigit() and int(length) > BODY_BYTES for length in lengths):
            await _refusal(send, 413, too_long)
            return
        received, answered = 0, False

        async def receive_some() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > BODY_BYTES:
                raise _TooLongError
            return message

        async def note_start(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, receive_some, note_start)
        except _TooLongError:
            if not answered:
                await _refusal(send, 413, too_long)


class _TooLongError(BaseException):
    """Passes through what catches exceptions on the way."""


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


async def _refusal(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
