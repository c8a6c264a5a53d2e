"""Who may ask: programs of this machine by one of its names, no page of another site, and only with a secret.

`TokenGuard` stands before the studio, `KeyGuard` before `vitrine serve`.
"""

import hmac
import ipaddress
from collections.abc import Callable, Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

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
    """Whether only this machine reaches this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def local_hosts(port: int, *own: str) -> frozenset[str]:
    """What the Host header may be where only this machine asks. own: other names than the usual ones."""
    return frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]", *own))


class Guard:
    """Stands before a whole application, whatever the method and the path.

    Args:
        hosts: what the Host header may be; empty: anything. With them no page gets through by a DNS entry for this
            machine.
        refuse: makes the answer to what is refused.
    """

    schemes: Collection[str] = ("http", "https")  # of pages that this server's own address gave: a proxy may add TLS
    body_bytes = 8 * MiB  # largest body of a request
    too_long = ""  # a sentence
    advice = ""  # for those who ask by another name

    def __init__(self, app: ASGIApp, hosts: frozenset[str], refuse: Refuse) -> None:
        self.app, self.hosts, self.refuse = app, hosts, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, let in, or pass on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif refusal := self._check_origin(scope) or self._admit(scope):
            await refusal(scope, receive, send)
        else:
            await self._pass_on(scope, receive, send)

    def _admit(self, scope: Scope) -> Response | None:
        """The answer to who is not let in."""
        raise NotImplementedError

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
    """Asks for an API key, if there is one. key: empty: none is asked for."""

    too_long = "The body is larger than 8 MiB. Send fewer prompts at once."
    advice = "Start it with --host to serve a network."
    open = ("/health",)  # answered without a key: it says nothing but whether the server is well

    def __init__(self, app: ASGIApp, hosts: frozenset[str], refuse: Refuse, key: str) -> None:
        super().__init__(app, hosts, refuse)
        self.key = key

    def _admit(self, scope: Scope) -> Response | None:
        if not self.key or scope["path"] in self.open:
            return None
        given = header(scope, b"authorization")
        kind, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if kind.lower() == "bearer" and _equal(key.strip(), self.key):
            return None
        what = "This is not the API key" if given else "This server asks for its API key"
        return self.refuse(401, f"{what}. Send the header Authorization: Bearer KEY.")


class TokenGuard(Guard):
    """Lets in only the browser that was given the token, in the address of the page; from then on it is a cookie."""

    schemes = ("http",)
    body_bytes = 20 * MiB
    too_long = "A request may hold 20 MB at most. Give a smaller text, or a file: vitrine train."
    advice = "Open the address that vitrine studio printed."

    def __init__(self, app: ASGIApp, port: int, refuse: Refuse, token: str) -> None:
        super().__init__(app, local_hosts(port), refuse)
        self.token, self.cookie = token, f"vitrine-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same, and each answer says what the page may load."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.decode().lower() not in HEADERS]
                message["headers"] = kept + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        await super().__call__(scope, receive, send_safely)

    def _admit(self, scope: Scope) -> Response | None:
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope["path"] == "/" and (given := dict(query).get("token")):
            if not _equal(given, self.token):
                return self.refuse(
                    401, "This token is not the studio's. Open the address that vitrine studio printed last."
                )
            # From the address into a cookie, and out of the address again.
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            headers = {"Location": "/" + ("?" + rest if rest else ""), "Set-Cookie": cookie}
            return Response(None, 303, headers | {"Cache-Control": "no-store"})
        if _equal(known := self._known(scope), self.token):
            return None
        sentence = "This page needs its token: open the address that vitrine studio printed when it started."
        if known:
            sentence = "The studio was started anew, with a new token: open the address that it printed last."
        return self.refuse(401, sentence)

    def _known(self, scope: Scope) -> str:
        """The token that the browser keeps for this port; empty if it has none."""
        for cookies in header(scope, b"cookie"):
            try:
                found = SimpleCookie(cookies).get(self.cookie)
            except CookieError:
                continue
            if found:
                return found.value
        return ""


def header(scope: Scope, name: bytes) -> list[str]:
    """All values of a header."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _equal(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


async def _answer(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)
