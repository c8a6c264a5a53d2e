"""`vitrine serve`: the process that decodes, and the server before it."""

import contextlib
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from vitrine.errors import ConfigError
from vitrine.serving.app import make_app
from vitrine.serving.decoder_process import Decoding
from vitrine.serving.served_model import Model

LOCAL = ("127.0.0.1", "localhost", "[::1]")
MOST_ROWS = 1024


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    step: "last", "best", or one that has a keyframe.
    port: 0: one that is free.
    key: the API key; empty: none.
    name: of the model; empty: the run folder's.
    template: a file with a chat template; empty: the run's own, if it has one.
    rows: texts that are decoded together.
    queue: texts that may wait besides.
    """

    run: str
    step: str = "last"
    host: str = "127.0.0.1"
    port: int = 8000
    key: str = ""
    name: str = ""
    template: str = ""
    rows: int = 64
    queue: int = 256


def serve(options: Options, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Serve a run until the process is interrupted. `say` is given the address when requests are answered."""
    if not 1 <= options.rows <= MOST_ROWS:
        raise ConfigError(f"--parallel must be 1 to {MOST_ROWS}: got {options.rows}. Try 64.")
    if options.queue < 0:
        raise ConfigError(f"--queue must be at least 0: got {options.queue}. Try 256.")
    model = Model.of(options.run, options.name, options.template)
    with _listen(options.host, options.port) as listener:
        host, port = options.host, listener.getsockname()[1]
        decoding = Decoding(options.run, options.step, options.rows, options.queue)
        ready = decoding.start()
        model.step = ready.step
        local = _is_local(host)
        hosts = frozenset(f"{each}{end}" for each in LOCAL for end in (f":{port}", "")) if local else frozenset()
        if not local and not options.key:
            warn(f"Anyone who reaches {host}:{port} can use this model. --api-key asks for a key.")
        settings = uvicorn.Config(
            make_app(model, decoding, options.key, hosts),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
        )
        shown = f"[{host}]" if ":" in host else host
        drafts = f"drafted from {ready.drafted_from:,} tokens of its training text"
        if not ready.drafted_from:
            drafts = "not drafted: the run's training text is not at hand"
        say(
            f"{model.name}, step {ready.step}, {ready.precision}, {ready.threads} threads: http://{shown}:{port}/v1\n"
            f"up to {options.rows} texts at once (rows of a product: {ready.sizes}); their cache takes up to "
            f"{ready.cache_bytes / 2**20:.0f} MiB; {options.queue} more may wait; "
            f"a text that is alone is {drafts}"
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listener])


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{host}:{port} cannot be used: {error.strerror}. Try another --port, or 0.") from None
    return listener
