"""Who may ask: on the loopback address this machine alone, and with an API key only who has it."""

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from vitrine.serving.errors import ApiError

OPEN = ("/health",)  # answered without a key: it says nothing but whether the server is well


class Gate:
    """Stands before the application.

    Args:
        key: the API key; empty: none is asked for.
        hosts: names that the Host header may have; empty: any. On the loopback address they are its own, so that
            no page from elsewhere gets through by a DNS entry that names this machine.
    """

    def __init__(self, app: ASGIApp, key: str, hosts: frozenset[str]) -> None:
        self.app, self.key, self.hosts = app, key, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                await error.to_response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        hosts = _header(scope, b"host")
        if self.hosts and (len(hosts) != 1 or hosts[0].lower() not in self.hosts):
            raise ApiError(
                403,
                f"This server answers as {', '.join(sorted(self.hosts))} alone: got the Host {', '.join(hosts)!r}. "
                "Start it with --host to serve a network.",
            )
        origins = _header(scope, b"origin")
        if any(origin.partition("://")[2].lower() not in {host.lower() for host in hosts} for origin in origins):
            raise ApiError(403, f"This server does not answer pages of other sites: got the Origin {origins[0]!r}.")
        if self.key and scope["path"] not in OPEN:
            given = _header(scope, b"authorization")
            kind, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
            right = hmac.compare_digest(key.strip().encode(), self.key.encode())
            if kind.lower() != "bearer" or not right:
                what = "This is not the API key" if given else "This server asks for its API key"
                raise ApiError(401, f"{what}. Send the header Authorization: Bearer KEY.", code="invalid_api_key")


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
