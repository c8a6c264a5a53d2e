"""`vitrine studio`: finds a port, starts the server, and opens the page."""

import contextlib
import os
import secrets
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

from vitrine.errors import RunError
from vitrine.http.local_server import LocalServer, listen
from vitrine.studio.app import make_app

HOST = "127.0.0.1"
PORT, TRIED = 8737, 20  # without --port: the first port to try, and how many after it


def serve(runs: Sequence[str], port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve these runs until the process is interrupted.

    Args:
        runs: run folders, or folders of run folders; one that does not exist yet will hold new runs.
        port: 0: the first that is free.
        browser: whether to open the page, where there is a screen.
        say: called with the page's address.
    """
    folders = [Path(run) for run in runs]
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file. Give vitrine studio a run folder, or a folder of runs.")
    with listen(HOST, [port] if port else [*range(PORT, PORT + TRIED), 0]) as listener:
        port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
        address, app = f"http://{HOST}:{port}/#access={token}", make_app(folders, token, port)
        server = LocalServer(app, listener, app.state.workers.end_jobs)
        say(address)
        if browser and has_screen():
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_until_stopped()


def has_screen() -> bool:
    """Whether a browser can be shown: an interactive terminal on a graphical desktop."""
    if os.environ.get("CI"):
        return False
    named = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return named or sys.platform in ("darwin", "win32")
