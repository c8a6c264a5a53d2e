"""A report: one file that says what the run says, asks no network, and lets nothing out of its text."""

import gzip
import html
import json
import re
import shutil
import sqlite3
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch

from tests import warm
from tests.conftest import made_once
from tests.studio.conftest import SMALL, Studio, until
from tests.studio.test_page import MISSING, OPENING_SEEN, pixels_of
from tests.warm import Vitrine
from vitrine.errors import RunError
from vitrine.generation.sampling import filter_logits
from vitrine.inspection.views import inspect
from vitrine.run import Run
from vitrine.runs.control import ask
from vitrine.runs.film import Film
from vitrine.runs.reader import RunReader, is_training
from vitrine.studio.events import is_paused
from vitrine.studio.report import build as reporting
from vitrine.studio.report.html import Shell
from vitrine.studio.report.parameters import read_parameters
from vitrine.studio.tiles import read_birth

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
sync_api = pytest.importorskip("playwright.sync_api")

CELL = "blocks.0.mlp.expand.weight[41,7]"
HOSTILE = "<img src=x onerror=hacked=1> <script>"
HOOK = """window.drawn = []; const draw = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) { drawn.push(text); return draw.call(this, text, ...rest) }"""


@dataclass
class Opened:
    """A report in the browser, what its console said, and what it asked for."""

    page: "sync_api.Page"
    file: Path
    said: list[str]
    asked: list[str]

    def go(self, **where: object) -> "sync_api.Page":
        self.page.goto("about:blank")
        self.page.goto(f"{self.file.as_uri()}#{urlencode(where)}" if where else self.file.as_uri())
        return self.page


@pytest.fixture(scope="module")
def file(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the small run, as the command writes it."""

    def make(folder: Path) -> None:
        said = write(runs / "small", folder / "small.html", "--steps", "birth,120,150")
        assert "check it before you share it" in said
        assert "in full: 0, 120, 150" in said

    return made_once(tmp_path_factory, "report", make) / "small.html"


Open = Callable[..., Opened]


@pytest.fixture
def open_report(chromium: "sync_api.Browser") -> Iterator[Open]:
    """Opens a file without a network. At the end nothing may have been said on the console, or asked for."""
    opened, contexts = [], []

    def open_it(file: Path, width: int = 1280, height: int = 720) -> Opened:
        context = chromium.new_context(viewport={"width": width, "height": height}, offline=True)
        context.add_init_script(HOOK)
        contexts.append(context)
        page, said, asked = context.new_page(), list[str](), list[str]()
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        opened.append(Opened(page, file, said, asked))
        return opened[-1]

    yield open_it
    for context in contexts:
        context.close()
    for report in opened:
        assert report.said == []
        ours = (report.file.as_uri(), "blob:", "data:", "about:")
        assert [url for url in report.asked if not url.startswith(ours)] == []


@pytest.fixture(scope="module")
def reader(runs: Path) -> RunReader:
    return RunReader(runs / "small")


def write(run: Path, out: Path, *options: object) -> str:
    """Write a report; what the command said."""
    return warm.vitrine("report", run, "--out", out, "--cell", CELL, *options, check=True).stdout


def cell_at(page: "sync_api.Page", name: str) -> float:
    shown = page.wait_for_selector(f'[data-cell="{name}"][data-value]').get_attribute("data-value")
    return np.float32(shown.replace("−", "-"))


def test_the_cells_of_a_report_are_those_of_the_run(file: Path, open_report: Open, reader: RunReader):
    report = open_report(file)
    for step in (0, 120, 150):
        page = report.go(run="small", step=step, cell=CELL, side="number")
        page.wait_for_selector("[data-state=identical]")
        for near in (CELL, "blocks.0.mlp.expand.weight[40,6]", "blocks.0.mlp.expand.weight[45,10]"):
            assert cell_at(page, near) == np.float32(inspect(reader, near, step).to_json()["before"])
        life = inspect(reader, CELL, step).to_json()
        page.wait_for_selector(f'[data-biography="{CELL}"]')
        story = page.inner_text("[data-biography]").replace("−", "-")
        assert np.float32(life["birth"]) in [np.float32(x) for x in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", story)]
        page.get_by_role("button", name="gradient").click()
        page.wait_for_function(
            '([cell, wanted]) => Math.fround(Number(document.querySelector(`[data-cell="${cell}"]`)'
            "?.dataset.value?.replaceAll('−', '-'))) === Math.fround(wanted)",
            arg=[CELL, life["gradient"]],
        )
        page.get_by_role("tab", name="nudge").click()
        page.wait_for_selector("[data-nudge]")


@pytest.mark.parametrize("mode", ["value", "update"])
def test_the_film_of_a_report_has_the_colours_of_the_film_of_the_run(
    file: Path, open_report: Open, chromium: "sync_api.Browser", reader: RunReader, mode: str
):
    film = Film(reader.path / "film")
    number = len(film.steps()) // 2
    frame = film.frame(number)
    page = open_report(file).go(run="small", step=frame.step, cell="final_norm.gain[0]", mode=mode)
    page.wait_for_function(f"() => window.vitrine?.shown().step === {frame.step}")
    page.wait_for_timeout(200)
    pixels = pixels_of(page.screenshot())
    palette = np.array(page.evaluate("() => window.vitrine.palette()"))
    steps, looked, start, draws = (len(palette) - 1) // 2, 0, 0, np.random.default_rng(2)
    picks, numbers = (film.values, frame.learned) if mode == "value" else (film.changes, frame.updates)
    for name, grid in picks.indices.items():
        part, start = numbers[start : start + grid.size], start + grid.size
        if grid.shape[0] == 1 or name == "embedding.weight":
            continue
        born = read_birth(reader, name)[grid.ravel()] if mode == "value" else 0
        values, scale = born + part, page.evaluate("name => window.vitrine.scale(name)", name)
        for place in draws.integers(grid.size, size=20):
            row, column = divmod(int(place), grid.shape[1])
            where = page.evaluate("c => window.vitrine.where(...c)", [name, row << picks.level, column << picks.level])
            size = max(where["width"], where["height"]) * (1 << picks.level) / 2
            colour = pixels[int(where["y"] + size), int(where["x"] + size)]
            share = float(values[place]) / scale["full"]
            if scale["bend"]:
                share = np.arcsinh(float(values[place]) / scale["bend"]) / np.arcsinh(scale["full"] / scale["bend"])
            distance = np.abs(palette - colour).sum(1)
            assert distance.min() <= 3
            assert abs((int(distance.argmin()) - steps) - np.clip(share, -1, 1) * steps) <= 1.5, (name, row, column)
            looked += 1
    assert looked >= 200


def test_a_report_says_what_it_does_not_hold(file: Path, open_report: Open):
    page = open_report(file).go(run="small", step=77, side="number", view="cabinet")
    page.wait_for_selector("[data-state=report]")
    assert "This report has steps 0, 120, 150 in full" in page.inner_text("main")
    page.locator("[data-state=report] button", has_text="120").click()
    page.wait_for_selector("[data-state=identical]")
    page.get_by_role("button", name="playground").click()
    page.wait_for_selector("[data-bars=ready]")
    page.get_by_label("your text").fill("Then")
    page.wait_for_selector("text=This report can run the model at steps 0 and 160 only. Open the run itself")
    assert page.get_by_role("button", name="write").is_disabled()
    assert page.get_by_role("button", name="Your text…").count() == 0


def test_a_report_runs_its_model_writes_and_turns_one_parameter(file: Path, open_report: Open, reader: RunReader):
    cell, run = "final_norm.gain[3]", Run(reader.path)
    page = open_report(file).go(run="small", view="play", step=160, cell=cell)
    page.wait_for_selector("[data-bars=ready] [data-kept]")
    assert "computed by this page" not in page.inner_text("main")  # this prompt's predictions were recorded
    page.get_by_label("your text").fill("Then the ")
    page.wait_for_selector("text=≈ computed by this page")
    page.wait_for_selector("text=parameters run on this page, in float32")
    model, ids = run.model(160), torch.tensor([run.tokenizer.encode("Then the ").ids])

    def far() -> float:
        """How far the bars are from those of torch, at most."""
        bars = page.eval_on_selector_all("[data-kept]", "bars => bars.map(b => [+b.dataset.token, +b.dataset.kept])")
        with torch.no_grad():
            kept = filter_logits(model(ids)[:, -1], run.config.sampling)[0].softmax(-1)
        return max(abs(share - float(kept[token])) for token, share in bars)

    assert far() < 1e-5
    page.get_by_role("button", name="× 10").click()
    page.wait_for_selector("text=most moved")
    assert far() > 0.01
    gain = model.get_parameter("final_norm.gain").detach()
    own = float(gain[3])
    gain[3] = 10 * own
    until(lambda: far() < 1e-5)
    page.get_by_role("button", name="put it back").click()
    gain[3] = own
    until(lambda: far() < 1e-5)

    def write(button: str) -> list[str]:
        page.get_by_role("button", name=button).click()
        page.wait_for_selector("article .caret", state="detached")
        return page.locator("article").all_inner_texts()

    page.get_by_label("length").fill("30")
    [first] = write("write 30 tokens")
    assert "at the end step 160 ≈ computed by this page" in " ".join(first.split())
    assert len(first.partition("Then the ")[2]) == 30
    assert write("write 30 tokens") == [first]
    page.get_by_role("spinbutton", name="seed").fill("2")
    assert write("write 30 tokens") != [first]
    assert ["at birth" in text for text in write("birth and end")] == [True, False]
    assert page.evaluate("() => document.documentElement.scrollHeight") <= 720


def test_every_view_of_a_report_opens(file: Path, open_report: Open, runs: Path):
    report = open_report(file)
    page = report.go(run="small", view="step", step=150, phase=2)
    page.wait_for_selector('[data-phase="2"] .says')
    page = report.go(run="small", view="health")
    page.wait_for_selector("text=loss at birth")
    page = report.go(run="small", view="play", step=160, top_k=3)
    page.wait_for_selector("text=top-k cuts")
    page = report.go(run="another")
    page.wait_for_selector("text=This report holds only the run small.")
    assert str(runs) not in file.read_text()


@pytest.mark.full  # it takes its ten seconds
def test_the_time_lapse_runs_from_birth_to_the_end_and_can_be_saved(file: Path, open_report: Open, tmp_path: Path):
    page = open_report(file).go()
    page.wait_for_selector("canvas[data-film=playing]")
    with page.expect_download(timeout=120_000) as saved:
        page.get_by_role("button", name="save the film").click()
        page.wait_for_function(
            "() => { const s = +document.querySelector('[data-film]').dataset.step; return s > 20 && s < 140 }"
        )
    page.wait_for_selector("canvas[data-film=still][data-step='160']")
    saved.value.save_as(tmp_path / "film.webm")
    assert saved.value.suggested_filename == "small-training.webm"
    film = (tmp_path / "film.webm").read_bytes()
    assert film[:4] == b"\x1a\x45\xdf\xa3"
    assert len(film) > 50_000
    steps = [int(m[1]) for text in page.evaluate("() => drawn") if (m := re.fullmatch(r"step (\d+) of 160", text))]
    assert steps[0] == 0
    assert steps[-1] == 160
    page.get_by_role("button", name="look inside").click()
    page.wait_for_selector("[data-state=end]")


def test_the_poster_sets_the_first_sentence_against_the_last(
    file: Path, open_report: Open, reader: RunReader, tmp_path: Path, chromium: "sync_api.Browser"
):
    page = open_report(file).go()
    page.wait_for_selector("canvas[data-film=playing]")
    page.get_by_role("button", name="hold").click()
    page.wait_for_timeout(100)
    page.evaluate("() => { drawn.length = 0 }")
    with page.expect_download() as saved:
        page.get_by_role("button", name="save the poster").click()
    saved.value.save_as(tmp_path / "poster.png")
    words = " ".join(page.evaluate("() => drawn"))
    assert "birth" in words
    assert f"after {reader.steps_made()} steps" in words
    samples = [sample for sample in reader.samples() if sample.temperature > 0]
    for sample in (samples[0], samples[-1]):
        start = "".join((sample.prompt + sample.text).split())[:12]
        assert start in "".join(words.split())
    content = (tmp_path / "poster.png").read_bytes()
    assert struct.unpack(">II", content[16:24]) == (2560, 1440)
    pixels = pixels_of(content, (640, 360))
    left, right = pixels[50:225, :320], pixels[50:225, 320:]
    assert np.abs(left - right).mean() > 1  # what was learned can be seen
    assert len(np.unique(right.reshape(-1, 3), axis=0)) > 50


def test_on_a_phone_the_film_and_the_text_are_stacked(file: Path, open_report: Open, reader: RunReader):
    page = open_report(file, 390, 844).go()
    page.wait_for_selector("canvas[data-film=playing]")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert "".join(reader.samples()[-1].text.split())[:12] in "".join(page.inner_text("body").split())
    page.get_by_role("button", name="look inside").click()
    page.wait_for_selector("[data-state=end]")


def test_nothing_can_be_loaded_or_run_but_the_page_itself(file: Path, open_report: Open):
    report = open_report(file)
    page = report.go(run="small", step=0)
    page.wait_for_selector("[data-state=identical]")
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.head.append(s) }"
    )
    assert page.evaluate("() => window.hacked") is None
    assert page.evaluate("() => fetch('http://127.0.0.1:9/').then(() => 'loaded', () => 'blocked')") == "blocked"
    assert any("Content Security Policy" in text for text in report.said)
    report.said.clear()  # just these two
    report.asked.clear()


def unpack(file: Path, name: str) -> tuple[dict, list[bytes]]:
    import base64

    found = re.search(rf'<script type="application/octet-stream" id="{name}">([^<]*)<', file.read_text("utf-8"))
    line, _, rest = gzip.decompress(base64.b64decode(found[1])).partition(b"\n")
    head, parts = json.loads(line), []
    for size in head["sizes"]:
        parts.append(rest[:size])
        rest = rest[size:]
    return head, parts


def test_a_report_names_no_folder_of_whoever_trained(file: Path, runs: Path, book_file: Path):
    _, parts = unpack(file, "answers")
    whole = b"".join(parts)
    assert str(runs).encode() not in whole
    assert str(book_file.parent).encode() not in whole
    assert book_file.name.encode() in whole


def test_a_report_says_what_each_hyperparameter_is_and_who_chose_it(file: Path):
    head, parts = unpack(file, "answers")
    answers = {
        kept["path"]: json.loads(part)
        for kept, part in zip(head["answers"], parts, strict=True)
        if kept["path"][:1] in ("", "/")
    }
    info = answers[""]
    assert set(answers["/hyperparameters"]["descriptions"]) == set(info["chosen"])


def test_what_does_not_fit_is_left_out_in_turn_and_at_last_refused(
    file: Path, reader: RunReader, monkeypatch: pytest.MonkeyPatch
):
    head, parts = unpack(file, "answers")
    info, found = json.loads(parts[0]), []

    def shrink() -> None:
        """One byte less than the last report had, until there is nothing left to leave out."""
        while True:
            report = reporting.fit(reader, info, head["about"], [], Shell())
            assert len(report.html) <= reporting.LARGEST_BYTES
            found.append((report.changes, report.frames, report.cells))
            monkeypatch.setattr(reporting, "LARGEST_BYTES", len(report.html) - 1)

    with pytest.raises(RunError, match="bytes at most"):
        shrink()
    whole = len(Film(reader.path / "film").steps())
    assert found[0] == (True, whole, sum(grid.size for grid in Film(reader.path / "film").values.indices.values()))
    without = [part for part in found if not part[0]]
    assert without[0][1:] == found[0][1:]  # gradients and updates go before any of the picture
    assert without[-1][1:] < found[0][1:]


def test_parameters_are_rounded_before_the_film_is_cut_for_them_and_left_out_at_last(
    file: Path, reader: RunReader, monkeypatch: pytest.MonkeyPatch
):
    head, parts = unpack(file, "answers")
    info, parameters, found = json.loads(parts[0]), read_parameters(reader, [0, 160]), []
    while not found or found[-1].numbers:
        report = reporting.fit(reader, info, head["about"], [], Shell(), parameters)
        assert len(report.html) <= reporting.LARGEST_BYTES
        found.append(report)
        monkeypatch.setattr(reporting, "LARGEST_BYTES", len(report.html) - 1)
    whole, rounded, *fewer, without = found
    assert (whole.numbers, whole.alive) == ("float32", [0, 160])
    assert (rounded.numbers, rounded.alive) == ("bfloat16", [0, 160])
    assert rounded.parts["model"] < 0.6 * whole.parts["model"]
    film = [(report.changes, report.frames, report.cells) for report in found]
    assert film[0] == film[1] > film[-2] < film[-1]  # cut for the parameters only, and larger again without them
    assert {report.numbers for report in fewer} == {"bfloat16"}
    assert (without.numbers, without.alive, without.still) == ("", [], reporting.NO_ROOM)


def test_a_run_without_a_film_or_a_step_still_has_a_report(runs: Path, tmp_path: Path, open_report: Open):
    shutil.copytree(runs / "small", tmp_path / "newborn")
    shutil.rmtree(tmp_path / "newborn" / "film")
    for keyframe in (tmp_path / "newborn" / "keyframes").glob("step-*[1-9]*"):
        shutil.rmtree(keyframe)
    with sqlite3.connect(tmp_path / "newborn" / "run.sqlite") as history:
        for table in ("steps", "evaluations", "samples", "statistics", "columns", "histograms"):
            history.execute(f"DELETE FROM {table}")
    said = write(tmp_path / "newborn", tmp_path / "out.html")
    assert "in full: none" in said
    assert "none was recorded" in said
    page = open_report(tmp_path / "out.html").go(run="newborn", step=0, cell=CELL)
    assert cell_at(page, CELL) == np.float32(inspect(RunReader(runs / "small"), CELL, 0).to_json()["birth"])


def test_a_run_in_training_with_a_hostile_name_is_reported_as_it_stands(
    book_file: Path, tmp_path: Path, open_report: Open
):
    run = tmp_path / HOSTILE
    command = ["train", book_file, "--run", run, *SMALL, "--steps", 100000, "--set=machine.threads=1"]
    training = Vitrine(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: (run / "run.sqlite").is_file() and RunReader(run).steps_made() > 20, 60)
        ask(run, "pause")
        until(lambda: is_paused(RunReader(run)))
        write(run, tmp_path / "out.html", "--steps", 0)
        assert is_training(run)
    finally:
        training.terminate()
        training.wait(30)
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert f"<title>{html.escape(HOSTILE)} · Vitrine</title>" in text
    assert HOSTILE not in text
    assert len(re.findall("<script", text)) == 5  # the page's own, the forward pass; answers, film, parameters
    assert len(re.findall("</script", text)) == 5
    page = open_report(tmp_path / "out.html").go(run=HOSTILE, step=0)
    page.wait_for_selector("[data-state=identical]")
    assert page.evaluate("() => window.hacked") is None
    assert page.title() == f"{HOSTILE} · Vitrine"
    assert page.get_by_role("button", name="go live").count() == 0
    assert "while the run was being trained" in page.get_by_text("report of").get_attribute("title")


# --- from the page ---------------------------------------------------------------------------------------------------


@pytest.fixture
def page(chromium: "sync_api.Browser", studio: Studio) -> Iterator["sync_api.Page"]:
    context = chromium.new_context(viewport={"width": 1280, "height": 720})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.add_init_script(OPENING_SEEN)
    page, said = context.new_page(), list[str]()
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    assert said == []


def test_the_button_writes_a_report_of_where_the_page_stands(
    page: "sync_api.Page", studio: Studio, tmp_path: Path, open_report: Open, reader: RunReader
):
    page.goto(f"{studio.address}&" + urlencode({"run": "small", "step": 77, "cell": CELL, "prompt": "When "}))
    page.wait_for_selector("[data-state=identical]", timeout=120_000)
    page.get_by_role("button", name="Share").click()
    menu = page.get_by_role("dialog", name="Share")
    assert "It contains text of yours" in menu.inner_text()
    with page.expect_download(timeout=120_000) as saved:
        menu.get_by_role("button", name="write the report").click()
        menu.get_by_text("writing:").wait_for()
    saved.value.save_as(tmp_path / "report.html")
    assert saved.value.suggested_filename == "small.html"
    assert (tmp_path / "report.html").stat().st_size <= 5_000_000
    menu.get_by_text("saved where your browser").wait_for()
    report = open_report(tmp_path / "report.html").go(run="small", step=77, cell=CELL, prompt="When ", side="number")
    report.wait_for_selector("[data-state=identical]")
    assert cell_at(report, CELL) == np.float32(inspect(reader, CELL, 77).to_json()["before"])
    report.get_by_role("button", name="playground").click()
    report.wait_for_selector("[data-bars=ready]")


def test_a_report_that_is_cancelled_makes_way_for_the_next(page: "sync_api.Page", studio: Studio):
    page.goto(f"{studio.address}&run=small&step=159")
    page.wait_for_selector("canvas")
    page.get_by_role("button", name="Share").click()
    page.get_by_role("button", name="write the report").click()
    until(lambda: studio.json("runs/small/report")["doing"])
    second = studio.post("runs/small/report")
    assert second.status_code == 409
    assert "is being written" in second.json()["error"]
    page.get_by_role("button", name="cancel").click()
    page.get_by_role("button", name="write the report").wait_for()
    until(lambda: studio.json("runs/small/report")["doing"] == "")


def test_the_studio_answers_others_while_it_writes_a_report(studio: Studio):
    written = []
    work = threading.Thread(target=lambda: written.append(studio.post("runs/small/report", steps=[0], cell=CELL)))
    work.start()
    slowest = 0.0
    while work.is_alive():
        slowest = max(slowest, studio.get("runs/small/report").elapsed.total_seconds())
    assert written[0].status_code == 200
    assert written[0].headers["content-disposition"].startswith("attachment")
    assert written[0].headers["content-type"] == "application/octet-stream"
    assert slowest < 2


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"steps": [160]}, "step 160 cannot be kept"),
        ({"cell": "no.such[1]"}, "A parameter is named with its place"),
        ({"steps": [1] * 9}, "steps has a wrong value"),
    ],
)
def test_a_wish_of_the_page_is_refused_in_the_same_sentence(studio: Studio, body: dict, sentence: str):
    refused = studio.post("runs/small/report", **body)
    assert refused.status_code in (400, 422)
    assert sentence in refused.json()["error"]


def test_an_address_is_followed_although_the_page_has_written_its_own_over_it(page: "sync_api.Page", studio: Studio):
    page.goto(studio.address)
    page.wait_for_function("() => location.hash.includes('step=')")
    page.evaluate(
        "() => { const own = location.hash; location.hash = 'run=small&step=77'; history.replaceState(null, '', own); }"
    )
    page.wait_for_function("() => location.hash.includes('step=77')")
    assert page.get_by_label("Step", exact=True).first.input_value() == "77"


STATES = [
    {"step": "77", "mode": "learned", "cell": CELL, "side": "number"},
    {"step": "120", "view": "step", "phase": "3", "row": "1", "token": "5"},
    {"step": "150", "view": "play", "prompt": "The cat & <b>", "temperature": "0.35", "top_k": "7", "top_p": "0.5"},
    {"step": "0", "mode": "birth", "view": "health"},
]


@pytest.mark.parametrize("place", ["studio", "report"])
def test_a_copied_link_restores_every_state(
    page: "sync_api.Page", studio: Studio, file: Path, open_report: Open, place: str
):
    if place == "report":
        page = open_report(file).page
    page.goto(f"{studio.address}&run=small" if place == "studio" else f"{file.as_uri()}#run=small")
    page.get_by_role("button", name="Share").wait_for()
    other = page.context.new_page()
    for state in STATES:
        wanted = {"run": "small", **state}
        page.evaluate("place => { location.hash = place }", urlencode(wanted))
        page.wait_for_function(
            "step => document.querySelector('[role=slider]').ariaValueNow === step", arg=state["step"]
        )
        page.get_by_role("button", name="Share").click()
        link = page.get_by_label("Address of this view").input_value()
        if place == "studio":
            page.get_by_role("button", name="copy link").click()
            page.get_by_role("button", name="copied").wait_for()
            assert page.evaluate("() => navigator.clipboard.readText()") == link
        page.keyboard.press("Escape")
        assert "access=" not in link
        other.goto("about:blank")
        other.goto(link)
        other.wait_for_selector(".title")
        for shown in (page, other):
            parts = shown.evaluate("() => Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")
            assert {key: parts.get(key) for key in wanted} == wanted
        assert other.get_by_label("Step", exact=True).first.input_value() == state["step"]
        if "phase" in state:
            other.wait_for_selector(f'[data-phase="{state["phase"]}"]')
        if "prompt" in state:
            assert other.get_by_label("your text").input_value() == state["prompt"]
            assert float(other.get_by_label("temperature", exact=True).input_value()) == float(state["temperature"])
            assert other.get_by_label("top-k", exact=True).input_value() == state["top_k"]
        if "mode" in state and "view" not in state:
            assert other.get_by_role("button", name="learned so far").get_attribute("aria-pressed") == "true"
            other.wait_for_selector(f'td[aria-selected=true][data-cell="{CELL}"]')
