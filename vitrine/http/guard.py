"""The guard in front of each server: checks the host name, the origin and the secret of every request.

`TokenGuard` is for the studio, `KeyGuard` for `vitrine serve`.
"""

import hmac
import ipaddress
import re
from collections.abc import Callable, Collection

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrine.http.requests import TooLongError, answer_head, limit_body

MiB = 2**20
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

Refuse = Callable[[int, str], Response]  # a status and a sentence, in the shape of the server's errors


def is_local(host: str) -> bool:
    """Whether this address can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def local_hosts(port: int, *own: str) -> frozenset[str]:
    """The Host headers accepted on a loopback address. own: further names."""
    return frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]", *own))


class Guard:
    """Wraps a whole application: checks requests of every method and path.

    Args:
        hosts: accepted Host headers; empty: any. They stop pages that reach this machine by a DNS entry of
            their own (DNS rebinding).
        secret: required as Authorization: Bearer; empty: none is required.
        refuse: makes the answer to a refused request.
    """

    schemes: Collection[str] = ("http", "https")  # of this server's own pages: a proxy may add TLS
    body_bytes = 8 * MiB  # largest body of a request
    open = re.compile("")  # paths that need no secret
    missing, wrong = "", ""  # error texts for no secret, and for a wrong one
    too_long = ""  # error text for a body beyond `body_bytes`
    advice = ""  # advice for a request by another host name

    def __init__(self, app: ASGIApp, hosts: frozenset[str], refuse: Refuse, secret: str) -> None:
        self.app, self.hosts, self.refuse, self.secret = app, hosts, refuse, secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on to the application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif refusal := self._check_origin(scope) or self._admit(scope):
            await refusal(scope, receive, send)
        else:
            await self._pass_on(scope, receive, send)

    def _admit(self, scope: Scope) -> Response | None:
        """The answer to a request without the secret. A header, not a cookie: browsers send a cookie to every port."""
        if not self.secret or self.open.fullmatch(scope["path"]):
            return None
        given = header(scope, b"authorization")
        kind, _, secret = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if kind.lower() == "bearer" and hmac.compare_digest(secret.strip().encode("utf-8"), self.secret.encode()):
            return None
        return self.refuse(401, self.wrong if given else self.missing)

    def _check_origin(self, scope: Scope) -> Response | None:
        hosts, origins = header(scope, b"host"), header(scope, b"origin")
        if self.hosts and (len(hosts) != 1 or hosts[0].lower() not in self.hosts):
            named = ", ".join(sorted(self.hosts))
            sentence = f"This server answers as {named} only: got the Host {', '.join(hosts)!r}. {self.advice}"
            return self.refuse(403, sentence)
        own = {f"{scheme}://{host.lower()}" for scheme in self.schemes for host in hosts}
        if any(origin.lower() not in own for origin in origins):
            return self.refuse(403, f"This server answers no page of another site: got the Origin {origins[0]!r}.")
        return None

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """With a limit on what the body may hold, whether it says how long it is or not. HEAD is GET without the body."""
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            lengths = header(scope, b"content-length")
            if any(length.isdigit() and int(length[:20]) > self.body_bytes for length in lengths):
                raise TooLongError
            answer = answer_head if scope["method"] == "HEAD" else _answer
            await answer(self.app, scope, limit_body(receive, self.body_bytes), note_start)
        except TooLongError:
            if not started:
                await self.refuse(413, self.too_long)(scope, receive, send)


class KeyGuard(Guard):
    """Asks for an API key, if there is one."""

    open = re.compile("/health")  # it says nothing but whether the server is well
    missing = "This server asks for its API key. Send the header Authorization: Bearer KEY."
    wrong = "This is not the API key. Send the header Authorization: Bearer KEY."
    too_long = "The body is larger than 8 MiB. Send fewer prompts at once."
    advice = "Start it with --host to serve a network."


class TokenGuard(Guard):
    """Requires the token that the studio printed, except for the page's own files, which hold no data."""

    schemes = ("http",)
    body_bytes = 20 * MiB
    open = re.compile("/|/assets/[^/]+")
    missing = "The studio asks for its token. Open the address that vitrine studio printed when it started."
    wrong = "The studio was restarted, with a new token. Open the address that it printed last."
    too_long = "A request may hold 20 MB at most. Give a smaller text, or a file: vitrine train."
    advice = "Open the address that vitrine studio printed."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As `Guard`, with a Content-Security-Policy on every answer."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.decode().lower() not in HEADERS]
                message["headers"] = kept + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        await super().__call__(scope, receive, send_safely)


def header(scope: Scope, name: bytes) -> list[str]:
    """All values of a header."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


async def _answer(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)
