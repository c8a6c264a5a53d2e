"""The studio beside a training: real commands, a real terminal, a browser that is a script."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.studio.conftest import SMALL, until
from tests.warm import Vitrine
from vitrine.runs.reader import RunReader

ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/#access=([\w-]+)")
LONG = [*SMALL, "--steps", "20000"]


@dataclass
class Command:
    """A command in a terminal of its own."""

    process: "subprocess.Popen[bytes]"
    terminal: int
    said: str = ""
    clients: list[httpx.Client] = field(default_factory=list)

    def reads(self, words: str, timeout_s: float = 120.0) -> str:
        """Wait until it has said this; all that it said so far."""
        began_s = time.monotonic()
        while words not in self.said:
            assert time.monotonic() - began_s < timeout_s, self.said
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    self.said += os.read(self.terminal, 65_536).decode("utf-8", "replace")
                except OSError:  # the other end is closed
                    assert words in self.said, self.said
        return self.said

    def presses_ctrl_c(self) -> None:
        os.write(self.terminal, b"\x03")

    def page(self) -> httpx.Client:
        """A browser that was let in."""
        self.reads("#access=")
        self.reads("\n")
        found = ADDRESS.search(self.said)
        headers = {"Authorization": f"Bearer {found[2]}"}
        client = httpx.Client(base_url=f"http://127.0.0.1:{found[1]}", headers=headers, timeout=30, verify=False)
        self.clients.append(client)
        assert client.get("/api/runs").status_code == 200
        return client


@contextlib.contextmanager
def in_terminal(*arguments: object, cwd: Path, **environment: str) -> Iterator[Command]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x28\x00\xc8\x00" + bytes(4))  # 40 rows, 200 columns
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "DISPLAY", "WAYLAND_DISPLAY")}
    process = Vitrine(
        arguments, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=cwd, env=env | environment
    )
    os.close(theirs)
    command = Command(process, ours)
    try:
        yield command
    finally:
        for client in command.clients:
            client.close()
        process.kill()
        process.wait()
        os.close(ours)


def gone(client: httpx.Client) -> bool:
    """Nobody is there, or another studio that has the port now and does not know this page."""
    try:
        return client.get("/api/runs").status_code == 401
    except httpx.TransportError:
        return True


def test_the_page_opens_with_the_training_and_stays_until_ctrl_c(tmp_path: Path, book_file: Path):
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    with contextlib.ExitStack() as taken:
        with contextlib.suppress(OSError):  # someone has it already, as well
            taken.enter_context(socket.create_server(("127.0.0.1", 8737)))
        with in_terminal(
            "train", book_file, "--run", "r", *SMALL, "--studio", cwd=tmp_path, BROWSER=str(browser)
        ) as command:
            client = command.page()
            assert client.base_url.port != 8737
            assert [run["name"] for run in client.get("/api/runs").json()["runs"]] == ["r"]
            assert until((tmp_path / "opened").is_file)
            assert ADDRESS.search((tmp_path / "opened").read_text())[0] == ADDRESS.search(command.said)[0]
            command.reads("Ctrl-C ends it")
            assert client.get("/api/runs/r").json()["steps_made"] == 160
            command.presses_ctrl_c()
            assert command.process.wait(20) == 0
            assert until(lambda: gone(client))


def test_the_first_ctrl_c_ends_the_training_and_saves_it_and_the_second_ends_the_page(tmp_path: Path, book_file: Path):
    with in_terminal("train", book_file, "--run", "r", *LONG, "--studio", cwd=tmp_path) as command:
        client = command.page()
        until(lambda: client.get("/api/runs/r").json()["steps_made"] > 20)
        command.presses_ctrl_c()
        command.reads("Continue: vitrine resume r")
        command.reads("Ctrl-C ends it")
        run = client.get("/api/runs/r").json()
        assert run["training"] is False
        assert run["events"][-1]["kind"] == "interrupted"
        assert run["keyframes"][-1] == run["steps_made"]
        cell = {"tensor": "final_norm.gain", "step": 3, "mode": "gradient"}
        assert client.get("/api/runs/r/tile", params=cell).headers["x-exact"] == "true"
        command.presses_ctrl_c()
        assert command.process.wait(20) == 130
        assert until(lambda: gone(client))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_page_goes_when_the_command_is_ended_by_another(tmp_path: Path, book_file: Path, number: int):
    with in_terminal("train", book_file, "--run", "r", *LONG, "--studio", cwd=tmp_path) as command:
        client = command.page()
        until(lambda: client.get("/api/runs/r").json()["steps_made"] > 5)
        command.process.send_signal(number)
        assert command.process.wait(30) == (143 if number == signal.SIGTERM else -number)
        assert until(lambda: gone(client))
    assert RunReader(tmp_path / "r").steps_made() > 5


def test_the_demo_in_a_terminal_opens_its_page(tmp_path: Path):
    with in_terminal("demo", "--for", "3s", "--run", "r", cwd=tmp_path) as command:
        client = command.page()
        until(lambda: client.get("/api/runs/r").json()["steps_made"] > 0)
        command.presses_ctrl_c()
        command.reads("Ctrl-C ends it", 90)
        command.presses_ctrl_c()
        assert command.process.wait(20) == 130


def test_json_stays_one_object_on_standard_output(tmp_path: Path, book_file: Path):
    line = ["train", book_file, "--run", "r", *SMALL, "--studio", "--no-browser", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Vitrine(line, cwd=tmp_path, text=True, **pipes) as command:
        while "Ctrl-C ends it" not in (said := command.stderr.readline()):
            assert said
        command.send_signal(signal.SIGINT)
        assert json.loads(command.stdout.read())["steps"] == 160
        assert command.wait(20) == 0
