"""`vitrine serve`: starts the decoding process and the HTTP server."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from vitrine.errors import ConfigError, RunError
from vitrine.http.guard import is_local, local_hosts
from vitrine.http.local_server import LocalServer, listen
from vitrine.serving.app import make_app
from vitrine.serving.decoder_process import Decoding
from vitrine.serving.served_model import Model

MOST_ROWS = 1024


@dataclass(frozen=True)
class Options:
    """The options of the command.

    step: "last", "best", or one that has a keyframe.
    port: 0: a free one.
    key: the API key; empty: none.
    name: of the model; empty: the run folder's.
    template: a file with a chat template; empty: the run's own, if it has one.
    rows: texts decoded together.
    queue: further texts that may wait.
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
    """Serve a run until the process is interrupted. `say` gets the address once the server is ready."""
    if not 1 <= options.rows <= MOST_ROWS:
        raise ConfigError(f"--parallel must be 1 to {MOST_ROWS}: got {options.rows}. Try 64.")
    if options.queue < 0:
        raise ConfigError(f"--queue must be at least 0: got {options.queue}. Try 256.")
    model = Model.of(options.run, options.name, options.template)
    with listen(options.host, [options.port]) as listener:
        host, port = f"[{options.host}]" if ":" in options.host else options.host, listener.getsockname()[1]
        model.sandbox.start()
        decoding = Decoding(options.run, options.step, options.rows, options.queue)
        ready = decoding.start()
        if model.template:
            model.template.check(model.sandbox)
        model.step = ready.step
        hosts: frozenset[str] = frozenset()
        if is_local(options.host):
            named = local_hosts(port, host)
            hosts = named | {name.removesuffix(f":{port}") for name in named}  # a proxy may leave the port out
        elif not options.key:
            warn(f"Anyone who reaches {host}:{port} can use this model. --api-key asks for a key.")
        app = make_app(model, decoding, options.key, hosts)
        server = LocalServer(app, listener, lambda: decoding.end_jobs("The server is being stopped."))
        decoding.on_failure = server.stop
        drafts = f"drafted from {ready.drafted_from:,} tokens of its training text"
        if not ready.drafted_from:
            drafts = "not drafted: the run's training text is missing"
        say(
            f"{model.name}, step {ready.step}, {ready.precision}, {ready.threads} threads: http://{host}:{port}/v1\n"
            f"up to {options.rows} texts at once (rows of a product: {ready.sizes}); their cache takes up to "
            f"{ready.cache_bytes / 2**20:.0f} MiB; {options.queue} more may wait; "
            f"a text decoded by itself is {drafts}"
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_until_stopped()
        if decoding.failure:
            raise RunError(decoding.failure)
