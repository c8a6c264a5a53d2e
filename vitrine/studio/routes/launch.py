"""The routes that start and control trainings: hyperparameters, plan, new runs, commands to a training."""

import asyncio
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from vitrine.config import Settings, parse_seconds
from vitrine.errors import CorpusError, RunError
from vitrine.http.requests import while_there
from vitrine.presets import PRESETS
from vitrine.runs.control import acknowledged, ask
from vitrine.runs.reader import CONFIG, is_training
from vitrine.studio import schemas_run
from vitrine.studio.catalog import Listing
from vitrine.studio.hyperparameter_form import hyperparameters, read_settings
from vitrine.studio.responses import Json, RefusalError, Text
from vitrine.studio.routes.runs import ERRORS, LARGEST, Name
from vitrine.studio.tiles import keyframes
from vitrine.studio.worker_pool import Workers
from vitrine.text.builtin import keep, python_topics

NAME = re.compile(r"\w[\w .-]{0,63}")
TRAININGS = 4  # at once, in the studio's folders: more would only compete for the cores
STARTS_S, ANSWERS_S, LOOK_EVERY_S = 30.0, 5.0, 0.05  # how long to wait for a new run, and for an answer to a command
PYTHON = "python"  # the text of Python's own documentation


class Parent(BaseModel):
    """The keyframe from which a new run starts."""

    run: Text
    step: Annotated[int, Field(ge=0, lt=LARGEST)]


class Choice(BaseModel):
    """The user's choices for a new run. corpus: "python", or a run whose text is used again."""

    model_config = ConfigDict(populate_by_name=True)

    text: Text = ""
    corpus: Text = ""
    preset: Text = "auto"
    settings: dict[str, Any] = {}
    steps: Annotated[int, Field(ge=0, lt=LARGEST)] = 0
    for_time: str = Field("", alias="for", max_length=20, description="such as 90s, 10m or 2h")
    parent: Parent | None = None

    @property
    def for_s(self) -> float:
        """Seconds; 0: no limit."""
        return parse_seconds(self.for_time) if self.for_time else 0.0

    @property
    def checked_preset(self) -> str:
        """The preset, if it exists; empty if the architecture is the parent's."""
        if self.preset not in (*PRESETS, "auto", ""):
            raise RunError(f"There is no preset {self.preset[:100]!r}. There are: {', '.join(['auto', *PRESETS])}.")
        return "" if self.parent and self.preset == "auto" else self.preset


class NewRun(Choice):
    """The choices for a new run, with its name."""

    name: Text


class TrainingCommand(BaseModel):
    """A command to a training."""

    action: Literal["pause", "resume", "stop", "snapshot"]


def make_router(listing: Listing, workers: Workers) -> APIRouter:
    """The routes, for these runs."""
    router = APIRouter(prefix="/api", responses=ERRORS)
    starts: dict[str, Start] = {}

    @router.get("/hyperparameters", response_model=schemas_run.Hyperparameters)
    def chosen() -> Response:
        """Every hyperparameter, explained; and the presets."""
        return Json(hyperparameters())

    @router.post("/plan", response_model=schemas_run.Plan)
    async def plan(request: Request, body: Choice) -> Response:
        """The plan of a choice: parameters, memory, time."""
        corpus = await run_in_threadpool(corpus_of, listing, body)
        job = workers.writing.ask(
            "plan",
            corpus=corpus,
            preset=body.checked_preset,
            settings=read_settings(body.settings),
            steps=body.steps,
            for_s=body.for_s,
            parent=parent_of(listing, body),
        )
        return Json(await while_there(request, job))

    @router.post("/runs", response_model=schemas_run.Started)
    async def start(body: NewRun) -> Response:
        """Start a training as a separate process. started: whether its folder exists already."""
        path = new_path(listing, body.name)
        if body.name in starts and starts[body.name].error() is None:
            raise RefusalError(409, f"{body.name} is being started already.")
        corpus = await run_in_threadpool(corpus_of, listing, body)
        check_trainings(listing, [new for new in starts.values() if new.error() is None and not new.there])
        new = starts[body.name] = Start.begin(command(listing, body, path, corpus), path)
        began_s = time.monotonic()
        while time.monotonic() - began_s < STARTS_S and not new.there:
            if (error := new.error()) is not None:
                del starts[body.name]
                raise RefusalError(400, error)
            await asyncio.sleep(LOOK_EVERY_S)
        name = next((name for name, known in listing.paths().items() if known == path), body.name)
        return Json(schemas_run.Started(name=name, started=new.there))

    @router.get("/starting", response_model=schemas_run.AllStarting)
    def starting() -> Response:
        """Trainings that were started here and have no folder yet, or failed before they had one: then with the reason."""
        for name in [name for name, new in starts.items() if new.there]:
            starts.pop(name).process.poll()
        return Json({"starting": [{"name": name, "error": new.error()} for name, new in starts.items()]})

    @router.post("/runs/{run}/requests", response_model=schemas_run.Acknowledged)
    async def requests(run: Name, body: TrainingCommand) -> Response:
        """Tell a training to pause, to continue, to stop, or to keep a keyframe; it answers between two steps."""
        path = listing.open(run).path
        if not is_training(path):
            raise RefusalError(409, f"{run} is not being trained now, so it cannot {body.action}.")
        number, began_s, step = ask(path, body.action), time.monotonic(), None
        while step is None and time.monotonic() - began_s < ANSWERS_S:
            await asyncio.sleep(LOOK_EVERY_S)
            step = acknowledged(path, number)
        return Json(schemas_run.Acknowledged(acknowledged=step is not None, step=step))

    return router


def check_trainings(listing: Listing, starting: "list[Start]") -> None:
    """Raises RefusalError if the limit of trainings at once is reached."""
    training = [name for name, path in listing.paths().items() if is_training(path)]
    if len(training) + len(starting) >= TRAININGS:
        names = ", ".join([*training, *(new.path.name for new in starting)])
        raise RefusalError(
            429,
            f"At most {TRAININGS} runs train at once, and these are training: {names}. Wait for one, or stop it; "
            "`vitrine train` in a terminal has no such limit.",
        )


def corpus_of(listing: Listing, choice: Choice) -> list[str]:
    """The files to learn from: the sent text, stored in the cache; or the files of a known name."""
    if choice.text.strip():
        return [str(keep_text(choice.text))]
    if choice.corpus == PYTHON:
        return [str(python_topics())]
    if choice.corpus:
        return listing.open(choice.corpus).config.data.corpus
    if choice.parent:
        return []
    raise CorpusError("There is no text to learn from. Paste some, or drop a file.")


def keep_text(text: str) -> Path:
    """Store a text in the cache; equal texts share a file."""
    content = text.encode("utf-8")
    return keep(f"text-{hashlib.sha256(content).hexdigest()[:16]}.txt", content)


def parent_of(listing: Listing, choice: Choice) -> str:
    """RUN@STEP, of a run that is listed and a keyframe that it has."""
    if choice.parent is None:
        return ""
    reader = listing.open(choice.parent.run)
    if choice.parent.step not in keyframes(reader):
        raise RefusalError(404, f"{choice.parent.run} has no keyframe of step {choice.parent.step} to start from.")
    return f"{reader.path}@{choice.parent.step}"


def new_path(listing: Listing, name: str) -> Path:
    """The folder for a new run of this name. Raises RefusalError if the name is invalid or taken."""
    if not NAME.fullmatch(name) or name.endswith((" ", ".")):
        raise RefusalError(
            400,
            "A run's name has letters, digits, spaces, points, hyphens or underscores, 64 at most, and begins with a "
            f"letter or a digit: got {name[:100]!r}.",
        )
    path = listing.home / name
    if path.exists() or name in listing.paths():
        raise RefusalError(409, f"There is a run {name!r} already. Give this one another name.")
    return path


def command(listing: Listing, body: NewRun, path: Path, corpus: list[str]) -> list[str]:
    """The `vitrine train` command line of these choices."""
    settings: Settings = read_settings(body.settings)
    pairs = [f"{section}.{key}={_toml(value)}" for section, keys in settings.items() for key, value in keys.items()]
    wanted = {"run": str(path), "preset": body.checked_preset, "from": parent_of(listing, body)}
    if body.steps:
        wanted["steps"] = str(body.steps)
    elif body.for_s:
        wanted["for"] = f"{body.for_s:.3f}"
    options = [f"--{name}={value}" for name, value in wanted.items() if value]
    options += [f"--set={pair}" for pair in pairs]
    return [sys.executable, "-m", "vitrine", "train", *options, "--", *corpus]


@dataclass
class Start:
    """A training that was started and has no folder yet."""

    process: "subprocess.Popen[bytes]"
    path: Path
    said: IO[bytes]

    @classmethod
    def begin(cls, command: list[str], path: Path) -> "Start":
        """Start it in its own session, so that it continues when the studio ends."""
        said = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        except OSError as error:
            raise RunError(f"The training could not be started: {error}.") from None
        return cls(process, path, said)

    @property
    def there(self) -> bool:
        """Whether the run can be listed."""
        return (self.path / CONFIG).is_file()

    def error(self) -> str | None:
        """Its last message, if it ended without making a run."""
        status = self.process.poll()
        if status is None or self.there:
            return None
        self.said.seek(0)
        lines = self.said.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"The training ended at once, with status {status}."


def _toml(value: Any) -> str:
    return json.dumps(value)  # JSON's numbers, strings, lists and booleans are valid TOML
