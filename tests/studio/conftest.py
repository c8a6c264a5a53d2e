import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import jsonschema_rs
import numpy as np
import pytest

from tests.conftest import made_once, vitrine_in
from tests.warm import Vitrine

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSER = next(
    (
        path
        for name in ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SMALL = [
    *("--preset", "demo", "--steps", "160"),
    *(f"--set={pair}" for pair in (
        "model.n_layers=2", "model.d_model=24", "model.n_heads=2", "model.context=32", "training.batch_size=4",
        "training.evaluate_every=40", "recording.keyframe_every=30", "recording.film_frames=12",
    )),
]  # fmt: skip


@dataclass
class Studio:
    """A real server, and a client that has its token."""

    process: "subprocess.Popen[str]"
    address: str
    runs: Path
    client: httpx.Client

    @property
    def url(self) -> str:
        return self.address.split("/#")[0]

    @property
    def token(self) -> str:
        return self.address.split("access=")[1]

    def get(self, path: str, **query: object) -> httpx.Response:
        return as_declared(self.client.get(f"/api/{path}", params=query))

    def json(self, path: str, **query: object) -> dict:
        answer = self.get(path, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, **body: object) -> httpx.Response:
        return as_declared(self.client.post(f"/api/{path}", json=body))

    def cells(self, run: str, **query: object) -> np.ndarray:
        answer = self.get(f"runs/{run}/tile", **query)
        assert answer.status_code == 200, answer.text
        shape = tuple(map(int, answer.headers["x-shape"].split(",")))
        return np.frombuffer(answer.content, "<f4").reshape(shape)

    def workers(self) -> list[int]:
        """The process numbers of the workers."""
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True, check=True)
        rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
        return [
            int(pid)
            for pid, parent, name in rows
            if int(parent) == self.process.pid and name in ("vitrine replays", "vitrine writes")
        ]


SCHEMA = json.loads((Path(__file__).parents[2] / "web" / "openapi.json").read_text(encoding="utf-8"))


def operation_of(method: str, path: str) -> tuple[str, dict] | None:
    """The path of the schema that an address belongs to, and what it says of this method."""
    for template, methods in sorted(SCHEMA["paths"].items(), key=lambda item: item[0].count("{")):
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path) and method.lower() in methods:
            return template, methods[method.lower()]
    return None


def as_declared(answer: httpx.Response) -> httpx.Response:
    """Every JSON answer that a test sees has the shape that the schema gives it, and no key beyond that."""
    found = operation_of(answer.request.method, answer.request.url.raw_path.decode().partition("?")[0])
    if found and answer.headers.get("content-type") == "application/json":
        responses, status = found[1]["responses"], str(answer.status_code)
        declared = responses[status if status in responses else f"{status[0]}XX"]["content"]["application/json"]
        jsonschema_rs.validate(strict({**declared["schema"], "components": SCHEMA["components"]}), answer.json())
    return answer


def strict(schema: object) -> object:
    """The same schema, allowing no key that it does not name."""
    if isinstance(schema, dict):
        closed = {"additionalProperties": False} if "properties" in schema else {}
        return closed | {key: strict(value) for key, value in schema.items()}
    return [strict(value) for value in schema] if isinstance(schema, list) else schema


def trained(factory: pytest.TempPathFactory, name: str, book_file: Path, *arguments: object) -> Path:
    """The run of that name, which all workers share."""

    def make(folder: Path) -> None:
        vitrine_in(folder, "train", book_file, "--run", "run", *arguments, check=True)

    return made_once(factory, f"studio-{name}", make) / "run"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, own_cache: Path, book_file: Path) -> Path:
    """A folder with one run that was trained to its end: 160 steps, keyframes at 0, 30, 60 ... 150 and 160."""
    folder = tmp_path_factory.mktemp("studio") / "runs"
    shutil.copytree(trained(tmp_path_factory, "small", book_file, *SMALL), folder / "small")
    return folder


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, runs: Path, book_file: Path) -> Path:
    """A second run in the same folder: another optimizer, a learned vocabulary, 40 steps."""
    changed = ["--steps", "40", "--set=optimizer.name=muon", "--set=data.tokenizer=bpe:300"]
    made = trained(tmp_path_factory, "other", book_file, *SMALL, *changed)
    return Path(shutil.copytree(made, runs / "other"))


@pytest.fixture(scope="session")
def studio(runs: Path) -> Iterator[Studio]:
    """A server over that folder."""
    with serve(runs) as served:
        yield served


def plainly(arguments: list[object], **how: object) -> "subprocess.Popen[str]":
    """`vitrine ARGUMENTS`, as a user starts it."""
    return subprocess.Popen([sys.executable, "-m", "vitrine", *map(str, arguments)], **how)


@pytest.fixture(scope="session")
def chromium() -> Iterator["Browser"]:
    """The system's browser; one for all tests of a worker, which have windows of their own."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield browser
        browser.close()
    asyncio.set_event_loop(None)


class serve:  # noqa: N801 - used as a function
    """`vitrine studio`, as a process, until it is left."""

    def __init__(self, *runs: Path, port: int = 0, start: Callable[..., "subprocess.Popen[str]"] = Vitrine) -> None:
        process = start(["studio", *runs, "--no-browser", "--port", port], stdout=subprocess.PIPE, text=True)
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#access=[\w-]{20,}", address)
        url, token = address.split("/#access=")
        headers = {"Authorization": f"Bearer {token}"}
        client = httpx.Client(base_url=url, headers=headers, timeout=300, verify=False)
        self.studio = Studio(process, address, runs[0], client)

    def __enter__(self) -> Studio:
        return self.studio

    def __exit__(self, *error: object) -> None:
        self.studio.client.close()
        self.studio.process.terminate()
        self.studio.process.wait(20)
        self.studio.process.stdout.close()


def until(true, timeout_s: float = 90.0):
    """Wait until something is so."""
    began_s = time.monotonic()
    while not (found := true()):
        assert time.monotonic() - began_s < timeout_s, "it did not come to be"
        time.sleep(0.02)
    return found


def remove(folder: Path) -> None:
    """Delete a run that is looked at: SQLite may put its own files into it meanwhile."""

    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    until(gone)
