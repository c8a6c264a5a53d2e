"""Builds a report: one HTML file with the studio's page and its data for one run. Needs no torch in this process.

The studio's application gets the page's requests, and its answers are stored in the file, so a report shows the same as
the studio. `bundle` defines their format in the file; `html` is the page around them.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import PurePath
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message

from vitrine import __version__
from vitrine._json import CONSTANTS
from vitrine.errors import RunError, VitrineError
from vitrine.runs.film import Film, grid_shape
from vitrine.runs.reader import FILM, RunReader
from vitrine.studio.report.bundle import CUTS, Answer, ShortFilm, cut_film, pack_answers
from vitrine.studio.report.html import Shell
from vitrine.studio.report.parameters import Numbers, Parameters, read_parameters

LARGEST_BYTES = 5_000_000
SMALLEST = 0.25  # the best compression of a film that is expected, as a share of its raw bytes
MOST_STEPS = 8  # of steps kept in full
SERIES = ("loss", "gradient_norm", "learning_rate", "tokens_per_s", "memory_bytes", "validation")
REQUESTS = CONSTANTS["requests"]  # the page's requests: a report has answers to the same ones
PIXELS = REQUESTS["curve_pixels"]
PARTS = REQUESTS["scale_parts"]  # of the run: the page chooses its colour scales by their highest norms
OVERVIEW = REQUESTS["overview_cells"]  # cells of all tensors in one picture
AROUND = 12  # exact cells on each side of the chosen one
NUDGES = tuple(REQUESTS["nudges"])
WARNING = (
    "It contains text of what the model was trained on, and text that the model wrote: check it before you share it."
)
NO_ROOM = f"The parameters do not fit into a report of {LARGEST_BYTES / 1e6:.0f} MB beside the rest."
Say = Callable[[str], None]


@dataclass(frozen=True)
class Selection:
    """What to include in a report in addition to the film and the curves.

    steps: in full; empty: the first, one half-way and the last, if keyframes are near. cell: whose history is included;
    empty: one of the first matrix. prompt: None: the page's default. here: a further step, the one that the page shows.
    """

    steps: tuple[int, ...] = ()
    cell: str = ""
    prompt: str | None = None
    here: int | None = None


@dataclass(frozen=True)
class Report:
    """The file and its contents. parts: bytes of each. refused: steps that could not be kept, and why.

    alive: the steps whose parameters are in it, as `numbers`; none: `still` says why.
    """

    html: bytes
    run: str
    steps: list[int]
    cell: str
    frames: int
    frames_recorded: int
    cells: int
    parameters: int
    changes: bool
    alive: list[int]
    numbers: str
    still: str
    parts: dict[str, int]
    refused: dict[int, str] = field(default_factory=dict)


class Inside:
    """A client of the application for one run: sends requests as a browser would, without a network.

    Args:
        headers: that the guard requires.
    """

    def __init__(self, app: ASGIApp, run: str, headers: Mapping[str, str]) -> None:
        self.app, self.run, self.headers = app, run, headers

    async def ask(
        self, path: str, query: Mapping[str, Any] | None = None, body: dict[str, Any] | None = None
    ) -> Answer:
        """The answer, even an error. path: below the run; with a leading /: below /api."""
        whole = f"/api{path}" if path.startswith("/") else f"/api/runs/{self.run}/{path}".rstrip("/")
        waiting = [b"" if body is None else json.dumps(body).encode()]
        start: dict[str, Any] = {}
        said = bytearray()

        async def receive() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            await asyncio.Event().wait()  # never disconnects: a cancellation ends this, too
            raise AssertionError

        async def send(message: Message) -> None:
            start.update(message)
            said.extend(message.get("body", b""))

        headers = {"content-type": "application/json", **self.headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET" if body is None else "POST",
            "scheme": "http",
            "path": whole,
            "raw_path": quote(whole, errors="surrogateescape").encode(),
            "query_string": urlencode(query or {}).encode(),
            "root_path": "",
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
            "client": None,
            "server": None,
        }
        await self.app(scope, receive, send)
        given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(path, dict(query or {}), start["status"], given, bytes(said), body)


async def make_report(inside: Inside, reader: RunReader, selection: Selection, shell: Shell, say: Say) -> Report:
    """Collect all answers, and add as much of the film as fits.

    Raises RunError for a selection that is not possible. say: called with what is being done.
    """
    info = await _about(inside, "")
    steps = choose_steps(reader, info, selection)
    asking = Asking(inside, info, selection, say)
    await asking.start()
    # The end of the run has a keyframe, unless it was killed or still trains: replaying up to it could take long.
    end = [info["steps_made"]] if info["steps_made"] in info["keyframes"] else []
    for step in [*steps, *end]:
        await asking.step(step)
    if not info["film"]:
        await asking.pictures([0, *end])
    await asking.health()
    say("the film")
    about = {
        "run": inside.run,
        "steps": asking.full,
        "begin": info["steps_made"] if end or not asking.full else asking.full[-1],
        "cell": asking.cell,
        "made_s": time.time(),
        "training": info["training"],
        "version": __version__,
        "warning": WARNING,
    }
    answers = [_without_folders(answer, reader) for answer in asking.answers]
    parameters = await run_in_threadpool(_parameters, reader, info)
    report = await run_in_threadpool(fit, reader, info, about, answers, shell, parameters)
    return replace(report, refused=asking.refused)


def choose_steps(reader: RunReader, info: dict[str, Any], selection: Selection) -> list[int]:
    """The steps to keep in full."""
    made, wanted = info["steps_made"], set(selection.steps)
    if selection.here is not None and selection.here < made:
        wanted.add(selection.here)
    for step in wanted:
        if not 0 <= step < made:
            hint = f"Give steps from 0 to {made - 1}." if made else "It has made none yet."
            raise RunError(f"{reader.path.name} has made {made} steps: step {step} cannot be kept. {hint}")
    if len(wanted) > MOST_STEPS:
        raise RunError(f"A report keeps {MOST_STEPS} steps in full at most: got {len(wanted)}. Leave some out.")
    at_hand = [step for step in info["keyframes"] if step < made]
    if at_hand and not selection.steps:
        wanted |= {at_hand[0], min(at_hand, key=lambda step: abs(step - made / 2)), at_hand[-1]}
    return sorted(wanted)


class Asking:
    """Sends the page's requests, and keeps the answers; errors too, so that the page shows the same sentence."""

    def __init__(self, inside: Inside, info: dict[str, Any], selection: Selection, say: Say) -> None:
        self.inside, self.info, self.say = inside, info, say
        self.cell = selection.cell or _first_cell(info)
        self.prompt = _first_prompt(info) if selection.prompt is None else selection.prompt
        self.tensor, _, place = self.cell.rstrip("]").partition("[")
        shape = next((t["shape"] for t in info["tensors"] if t["name"] == self.tensor), None)
        digits = place.split(",")
        if shape is None or len(digits) != len(shape) or not all(digit.isdecimal() for digit in digits):
            raise RunError(
                f"A parameter is named with its place, such as {_first_cell(info)}: got {self.cell[:200]!r}."
            )
        places = [int(digit) for digit in digits]
        if any(at >= size for at, size in zip(places, shape, strict=True)):
            raise RunError(
                f"{self.tensor} has the shape {tuple(shape)}, counted from 0: there is no {self.cell[:200]}."
            )
        self.row, self.column = places[0] if len(places) == 2 else 0, places[-1]
        self.answers: list[Answer] = []
        self.full: list[int] = []  # the steps that could be replayed
        self.refused: dict[int, str] = {}  # those that could not, and why

    async def keep(
        self, path: str, query: Mapping[str, Any] | None = None, body: dict[str, Any] | None = None
    ) -> Answer:
        """Send a request, and keep the answer."""
        answer = await self.inside.ask(path, query, body)
        self.answers.append(answer)
        return answer

    async def start(self) -> None:
        """Keep the run, what its hyperparameters are, and its curves."""
        self.say("the run and its curves")
        await self.keep("/hyperparameters")
        listing = await _about(self.inside, "/runs")
        mine = [row | {"training": False} for row in listing["runs"] if row["name"] == self.inside.run]
        self.answers.append(_json("/runs", {"runs": mine, "unreadable": []}))
        own = [f"{self.tensor}/{name}" for name in ("weight_norm", "gradient_norm", "update_norm")]
        await self._series([*SERIES, *(own if self.info["statistics_every"] else ())])
        for statistic in self.info["statistics"]:
            await self.keep("layers", {"statistic": statistic, "by": "part", **self._whole(PIXELS // 4)})
            await self.keep("layers", {"statistic": statistic, "by": "tensor", **self._whole(PARTS)})

    async def pictures(self, steps: list[int]) -> None:
        """If there is no film, keep cells of every tensor at the start and at the end."""
        shapes = {tensor["name"]: tuple(tensor["shape"]) for tensor in self.info["tensors"]}
        level = 0
        while sum(math.prod(grid_shape(shape, level)) for shape in shapes.values()) > OVERVIEW:
            level += 1
        for step in steps:
            await self.keep("tiles", {"step": step, "mode": "value", "every": 1 << level})

    async def health(self) -> None:
        """Keep the verdicts and their curves."""
        self.say("health")
        await self.keep("headline")
        said = json.loads((await self.keep("health")).content)
        known = {answer.query["name"] for answer in self.answers if answer.path == "series"}
        plots = [verdict["plot"] for verdict in said.get("verdicts", ())]
        await self._series(sorted({name for plot in plots if plot for name in plot["series"]} - known))

    async def _series(self, names: list[str]) -> None:
        for name in names:
            await self.keep("series", {"name": name, **self._whole(PIXELS)})

    def _whole(self, pixels: int) -> dict[str, int]:
        """Up to the step that the run had reached at the first request."""
        return {"last": max(0, self.info["steps_made"] - 1), "pixels": pixels}

    async def step(self, step: int) -> None:
        """Keep one step in full; for the end of the run, after which no step was made, what exists."""
        made = step < self.info["steps_made"]
        self.say(f"step {step} in full" if made else "the end")
        if made:
            answer = await self.keep(f"step/{step}", {"row": 0, "token": -1})
            phases = json.loads(answer.content)
            if answer.status == 200:
                self.full.append(step)
                await self._stories(step, phases["forward"]["token"])
            else:
                self.refused[step] = phases["error"]
        for mode in ("birth", "value", "learned", *(("gradient", "update") if step in self.full else ())):
            await self._tile(step, mode)
        if step in self.full:
            sizes = [self._reach() * share for share in NUDGES]
            await self.keep("nudge", None, {"parameter": self.cell, "step": step, "sizes": sizes})
        await self.keep("next", None, {"prompt": self.prompt, "step": step})

    async def _stories(self, step: int, token: int) -> None:
        """Keep the history of the chosen cell, its tensor and its neuron."""
        await self.keep("parameter", {"name": self.cell, "step": step})
        await self.keep("tensor", {"name": self.tensor, "step": step})
        tensor = next(tensor for tensor in self.info["tensors"] if tensor["name"] == self.tensor)
        if tensor["block"] is not None and tensor["kind"] == "weight":
            layer = self.tensor.removesuffix(".weight")
            await self.keep("neuron", {"name": f"{layer}[{self.row}]", "step": step, "row": 0, "token": token})

    async def _tile(self, step: int, mode: str) -> None:
        """Keep the cells around the chosen one."""
        top, left = max(0, self.row - AROUND), max(0, self.column - AROUND)
        place = {
            "row": top,
            "column": left,
            "rows": self.row + AROUND + 1 - top,
            "columns": self.column + AROUND + 1 - left,
        }
        await self.keep("tile", {"tensor": self.tensor, "step": step, "mode": mode, **place})

    def _reach(self) -> float:
        """How far the cell is nudged at most: about half of what is large among its neighbours."""
        tiles = [a for a in self.answers if a.path == "tile" and a.query["mode"] == "value" and a.status == 200]
        sizes = np.abs(np.frombuffer(tiles[-1].content, "<f4")) if tiles else np.zeros(1)
        large = float(np.quantile(sizes[np.isfinite(sizes)], 0.995)) if np.isfinite(sizes).any() else 0.0
        return _round_up(large) / 2 if large > 0 else 0.05


def fit(
    reader: RunReader,
    info: dict[str, Any],
    about: dict[str, Any],
    answers: list[Answer],
    shell: Shell,
    parameters: Parameters | str = "",
) -> Report:
    """The largest report that is not too large: with as much of the film as fits, and then with the parameters.

    For parameters in bfloat16, the film is cut further if it must be. parameters: or why the report cannot have any.
    """
    parts = Parts(reader, info, about, answers, shell, parameters)
    cuts = range(len(CUTS) if parts.film else 1)
    whole = next((cut for cut in cuts if parts.fits(cut, "")), None)
    if whole is None:
        size = len(parts.page(cuts[-1], ""))
        raise RunError(
            f"A report has {LARGEST_BYTES:,} bytes at most: this one comes to {size:,}. Keep fewer steps: --steps 0."
        )
    choices: list[tuple[int, Numbers]] = [(whole, "float32"), *((cut, "bfloat16") for cut in cuts[whole:])]
    fitting = (choice for choice in choices if isinstance(parameters, Parameters) and parts.fits(*choice))
    return parts.report(*next(fitting, (whole, "")))


class Parts:
    """The parts of one report, each packed once. cut: of CUTS. numbers: of the parameters; empty: without them."""

    def __init__(
        self,
        reader: RunReader,
        info: dict[str, Any],
        about: dict[str, Any],
        answers: list[Answer],
        shell: Shell,
        parameters: Parameters | str,
    ) -> None:
        self.info, self.about, self.answers, self.shell, self.parameters = info, about, answers, shell, parameters
        self.reader, self.film = reader, Film(reader.path / FILM) if info["film"] else None
        self.short = cache(self._cut)
        self.model = cache(parameters.packed) if isinstance(parameters, Parameters) else None

    def fits(self, cut: int, numbers: Numbers) -> bool:
        """Whether the file is small enough; most films that are too large need not be packed to know it."""
        short = self.short(cut)
        return (
            not (short and short.raw_bytes * SMALLEST > LARGEST_BYTES) and len(self.page(cut, numbers)) <= LARGEST_BYTES
        )

    def page(self, cut: int, numbers: Numbers) -> bytes:
        """The whole file."""
        return self.shell.page(f"{self.about['run']} · Vitrine", WARNING, self.data(cut, numbers))

    def data(self, cut: int, numbers: Numbers) -> dict[str, bytes]:
        """What stands in the file beside the page."""
        short = self.short(cut)
        here = _of_this_file(self.info, self.about["run"], short)
        packed = {"answers": pack_answers(self.about | self._alive(numbers), [_json("", here), *self.answers])}
        packed |= {"film": short.packed} if short else {}
        return packed | ({"model": self.model(numbers)} if self.model and numbers else {})

    def _cut(self, cut: int) -> ShortFilm | None:
        return cut_film(self.reader, self.film, CUTS[cut], self.info["steps_made"]) if self.film else None

    def _alive(self, numbers: Numbers) -> dict[str, Any]:
        """What the report says of its parameters."""
        if isinstance(self.parameters, str):
            return {"alive": [], "numbers": "", "still": self.parameters}
        if not numbers:
            return {"alive": [], "numbers": "", "still": NO_ROOM}
        return {"alive": self.parameters.steps, "numbers": numbers, "still": ""}

    def report(self, cut: int, numbers: Numbers) -> Report:
        """The file, and its contents."""
        short, html = self.short(cut), self.page(cut, numbers)
        sizes = {name: math.ceil(len(part) / 3) * 4 for name, part in self.data(cut, numbers).items()}
        made = self.info["steps_made"]
        return Report(
            html=html,
            run=self.about["run"],
            steps=self.about["steps"],
            cell=self.about["cell"],
            frames=len(short.steps) if short else 0,
            frames_recorded=int((self.film.steps() <= made).sum()) if self.film else 0,
            cells=short.values.count if short else 0,
            parameters=self.info["parameters"],
            changes=bool(short and short.changes.count),
            parts=sizes | {"page": len(html) - sum(sizes.values())},
            **self._alive(numbers),
        )


def _parameters(reader: RunReader, info: dict[str, Any]) -> Parameters | str:
    """The parameters that the report carries, or why it cannot."""
    try:
        return read_parameters(reader, info["keyframes"])
    except VitrineError as error:
        return str(error)


def _of_this_file(info: dict[str, Any], run: str, short: ShortFilm | None) -> dict[str, Any]:
    """The run as this file has it: with the film included here, and no longer in training."""
    here = info | {"film": short and short.info, "training": False, "paused": False}
    here |= {"left_s": None, "disk_expected_bytes": None}
    here["config"] = _plain_names(info["config"])
    if here["ended"] and "run" in here["ended"]:
        here["ended"] = here["ended"] | {"run": run}
    return here


def _plain_names(config: dict[str, Any]) -> dict[str, Any]:
    """The names of the training files, without their folders."""
    data, training = config["data"], config["training"]
    data = {key: [PurePath(name).name for name in value] if key == "corpus" else value for key, value in data.items()}
    if not isinstance(data["validation"], int | float):
        data["validation"] = PurePath(str(data["validation"])).name
    data["tokenizer"] = PurePath(data["tokenizer"]).name
    return config | {"data": data, "training": training | {"parent": PurePath(training["parent"]).name}}


def _without_folders(answer: Answer, reader: RunReader) -> Answer:
    """Replace the run's folder by its name in the sentences of an answer."""
    if answer.headers.get("content-type") != "application/json":
        return answer
    folder = json.dumps(f"{reader.path.parent}/")[1:-1].encode()
    return replace(answer, content=answer.content.replace(folder, b""))


async def _about(inside: Inside, path: str) -> dict[str, Any]:
    answer = await inside.ask(path)
    said: dict[str, Any] = json.loads(answer.content)
    if answer.status != 200:
        raise RunError(said["error"])
    return said


def _json(path: str, content: dict[str, Any]) -> Answer:
    return Answer(path, {}, 200, {"content-type": "application/json"}, json.dumps(content).encode("ascii"))


def _first_cell(info: dict[str, Any]) -> str:
    """Where the page begins: see readCell in web/src/lib/address.ts."""
    tensors = info["tensors"]
    first = next((tensor for tensor in tensors if tensor["part"] == "attention.query"), tensors[0])
    place = [min(at, size - 1) for at, size in zip((3, 7), first["shape"], strict=False)]
    return f"{first['name']}[{','.join(map(str, place))}]"


def _first_prompt(info: dict[str, Any]) -> str:
    """The page's default prompt: see defaultPrompt in web/src/lib/writing.svelte.ts."""
    prompt, known = "The ", info["vocab"]
    if known is None or all(letter in known for letter in prompt):
        return prompt
    return str(info["samples"][0]["prompt"]) if info["samples"] else ""


def _round_up(number: float) -> float:
    power = 10.0 ** math.floor(math.log10(number))
    return next(step * power for step in (1, 2, 5, 10) if number <= step * power * (1 + 1e-9))
