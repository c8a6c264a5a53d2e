"""Python processes that start at once: each is forked from one that has imported torch and Vitrine already.

For tests in which the process is the point: its signals, its streams, its death. It is a real process with a number, a
folder, an environment and streams of its own, and what it starts of Vitrine (workers, trainings, the studio beside one)
starts in the same way. What the environment decides when torch or Python starts (threads, instruction sets, encodings)
is that of the tests: a test that changes it starts Python itself.

A fork copies what libraries hold of their process (threads, locks, SQLite's open files). So a process forks nothing
itself, but asks another one, its nursery, which does nothing else. The nursery's child forks and ends; the grandchild
is then adopted by the process that asked, which can wait for it.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import warnings
from collections.abc import Sequence
from multiprocessing import util
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: adopt the orphans among all descendants
Popen = subprocess.Popen
_nursery: socket.socket | None = None  # how it is asked
_asking = threading.Lock()


class Python(Popen):
    """`python ARGUMENTS`, such as -m MODULE or -c CODE. As subprocess.Popen, with streams, cwd, env, start_new_session."""

    def _execute_child(self, args: Any, *how: Any) -> None:  # type: ignore[override]
        if sys.platform != "linux":
            super()._execute_child([sys.executable, *map(str, args)], *how)  # type: ignore[misc]
            return
        cwd, env, pipes, own_session = how[4], how[5], how[9:15], how[20]
        streams = [own if own != -1 else number for number, own in enumerate((pipes[0], pipes[3], pipes[5]))]
        self.pid = _fork(args, dict(enumerate(streams)), cwd, env, own_session)
        self._child_created = True
        self._close_pipe_fds(*pipes)


class Vitrine(Python):
    """`vitrine ARGUMENTS`."""

    def __init__(self, arguments: Sequence[object], **how: Any) -> None:
        super().__init__(["-m", "vitrine", *arguments], **how)


def vitrine(
    *arguments: object, check: bool = False, timeout_s: float = 120, stdin: str | None = None, **how: Any
) -> "subprocess.CompletedProcess[str]":
    """The command, run to its end. how: as for subprocess.Popen."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with Vitrine(arguments, **pipes, text=True, **how) as process:
        try:
            output, said = process.communicate(stdin, timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise AssertionError(f"vitrine {arguments} ended with {process.returncode}: {said}")
    return subprocess.CompletedProcess(arguments, process.returncode, output, said)


def _fork(words: Sequence[object], files: dict[int, int], cwd: Any, env: Any, own_session: bool) -> int:
    """Ask for a process; its number. files: by the numbers that they will have there, those that they have here."""
    order = {"words": [str(word) for word in words], "cwd": str(cwd or Path.cwd()), "env": {**(env or os.environ)}}
    content = json.dumps({**order, "own_session": own_session, "files": [*files]}).encode()
    with _asking:
        nursery = _nursery or _start_nursery()
        socket.send_fds(nursery, [len(content).to_bytes(4)], [*files.values()])
        nursery.sendall(content)
        return int.from_bytes(nursery.recv(8, socket.MSG_WAITALL))


def _start_nursery() -> socket.socket:
    """For the process that runs the tests."""
    global _nursery
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", f"from tests.warm import serve; serve({theirs.fileno()})"]
    process = Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    theirs.close()
    _adopt_by(ours)

    def leave() -> None:
        ours.close()
        process.wait(20)

    atexit.register(leave)
    return ours


def _adopt_by(nursery: socket.socket) -> None:
    """This process asks that nursery from now on, and adopts what it forks."""
    global _nursery
    _nursery = nursery
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


# In a nursery:


def serve(number: int) -> None:
    """Import what takes long, then fork whenever this socket asks for it, until it is closed."""
    import vitrine.api
    import vitrine.cli.main
    import vitrine.run
    import vitrine.studio.command  # noqa: F401 - with torch, all that takes long

    gc.collect()
    gc.freeze()  # the garbage collector would touch, and so copy, all that was imported
    _serve(socket.socket(fileno=number))


def _serve(asker: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal: it is meant for those who ask
    while True:
        size, files, _, _ = socket.recv_fds(asker, 4, 64)
        if not size:
            return
        order = json.loads(asker.recv(int.from_bytes(size), socket.MSG_WAITALL))
        own, parents = os.pipe()
        between = os.fork()
        if between == 0:
            if child := os.fork():
                os.write(parents, child.to_bytes(8))
                os._exit(0)
            for unwanted in (asker.detach(), own, parents):
                os.close(unwanted)
            _become(order, files)
        os.waitpid(between, 0)
        child_number = os.read(own, 8)
        for file in (*files, own, parents):
            os.close(file)
        asker.sendall(child_number)


# In the process that was forked:


def _become(order: dict[str, Any], files: Sequence[int]) -> NoReturn:
    """Be Python with these words, and end with it."""
    status = 1
    try:
        if order["own_session"]:
            os.setsid()
        _take(dict(zip(order["files"], files, strict=True)))
        if order["own_session"] and os.isatty(0):
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        _have_nursery()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        from vitrine.cli import main

        main.STARTED_S = time.monotonic()
        subprocess.Popen, util.spawnv_passfds = _Started, _spawn  # type: ignore[misc]
        how, what, *words = order["words"]
        sys.argv = [what, *words] if how == "-m" else ["-c", *words]
        if how == "-c":
            exec(what, {"__name__": "__main__"})
        else:
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
            runpy.run_module(what, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _take(files: dict[int, int]) -> None:
    """Give these files the numbers that they should have. files: by those, the ones that they have."""
    above = max(*files, *files.values()) + 1
    moved = {wanted: fcntl.fcntl(file, fcntl.F_DUPFD, above) for wanted, file in files.items()}
    for file in files.values():
        os.close(file)
    for wanted, file in moved.items():
        os.dup2(file, wanted)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering, encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process lives
        for number, mode, buffering in ((0, "r", -1), (1, "w", -1), (2, "w", 1))
    )


def _have_nursery() -> None:
    """While nothing is open yet, and there is one thread: fork the process that is asked for others."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        with contextlib.suppress(OSError):
            _serve(theirs)
        os._exit(0)
    theirs.close()
    _adopt_by(ours)


class _Started(Python):
    """What subprocess.Popen is there."""

    def _execute_child(self, args: Any, *how: Any) -> None:  # type: ignore[override]
        if list(args[:2]) == [sys.executable, "-m"] and args[2] in ("vitrine", "vitrine.studio.companion"):
            super()._execute_child(args[1:], *how)
        else:
            Popen._execute_child(self, args, *how)  # type: ignore[attr-defined]


def _spawn(path: bytes, words: Sequence[str], passed: Sequence[int]) -> int:
    """What multiprocessing.util.spawnv_passfds is there."""
    return _fork(words[words.index("-c") :], {file: file for file in (0, 1, 2, *map(int, passed))}, None, None, False)
