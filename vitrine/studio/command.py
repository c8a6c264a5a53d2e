"""`vitrine studio`: the address, and the server behind it."""

import contextlib
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from vitrine.errors import ConfigError, RunError
from vitrine.studio.app import make_app

HOST = "127.0.0.1"
PORT, TRIED = 8737, 20  # the first port that is tried, and how many after it, where none is asked for


def serve(runs: Sequence[str], port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve these runs until the process is interrupted.

    Args:
        runs: run folders, or folders of run folders; one that does not exist yet is a place for new runs.
        port: 0: the first that is free.
        browser: whether to open the page, where there is a screen.
        say: is given the page's address.
    """
    folders = [Path(run) for run in runs]
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file. Give vitrine studio a run folder, or a folder of runs.")
    with _listen(port) as listener:
        port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
        address = f"http://{HOST}:{port}/?token={token}"
        app = make_app(folders, token, port)
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
        )
        say(address)
        if browser and has_screen():
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listener])


def has_screen() -> bool:
    """Whether a browser would be seen: a person sits there, and has more than a terminal."""
    if os.environ.get("CI"):
        return False
    named = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return named or sys.platform in ("darwin", "win32")


def _listen(port: int) -> socket.socket:
    """A socket on the loopback address, on this port or on the first that is free."""
    wanted = [port] if port else [*range(PORT, PORT + TRIED), 0]
    for number in wanted:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, number))
            listener.listen()
        except OSError as error:
            listener.close()
            reason = error.strerror
            continue
        return listener
    raise ConfigError(f"--port {port} cannot be used: {reason}. Try another, or leave it out.")
