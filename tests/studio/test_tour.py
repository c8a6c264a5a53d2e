"""The guided parts of the page: the opening, a dropped text, and the tour, walked to its end. Its numbers are the run's."""

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.studio.conftest import Studio, serve
from tests.studio.test_page import Browser, browser, pytestmark  # noqa: F401 - fixtures
from vitrine.inspection.neuron import open_neuron
from vitrine.inspection.parameter import find_address
from vitrine.inspection.replay import Replayer
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.inspection.views import inspect
from vitrine.model.inventory import inventory
from vitrine.runs.reader import RunReader

sync_api = pytest.importorskip("playwright.sync_api")

CELL = "blocks.0.attention.query.weight[3,7]"
TENSOR = "blocks.0.attention.query.weight"
STEP = 120  # a keyframe: the tour may stand at it, and it is there at once


@pytest.fixture(scope="module")
def reader(runs: Path) -> RunReader:
    return RunReader(runs / "small")


@pytest.fixture(scope="module")
def opened(reader: RunReader) -> ReplayedStep:
    """The step of the tour, as the library opens it."""
    return Replayer(reader).replay(STEP)


@pytest.fixture(scope="module")
def total(reader: RunReader) -> int:
    return sum(plan.parameters for plan in inventory(reader.config.model))


@pytest.fixture(scope="module")
def only_small(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio with one run, which is the newest whatever other tests have trained."""
    folder = tmp_path_factory.mktemp("only")
    shutil.copytree(runs / "small", folder / "small")
    with serve(folder) as studio:
        yield studio


@pytest.fixture(params=["no-preference"])
def visitor(request: pytest.FixtureRequest, chromium: "sync_api.Browser", only_small: Studio) -> Iterator[Browser]:
    """Who has never been here."""
    context = chromium.new_context(viewport={"width": 1280, "height": 720}, reduced_motion=request.param)
    seen = Browser(context.new_page(), only_small)
    yield seen
    context.close()
    assert seen.said == []


def text_of(page: "sync_api.Page", selector: str) -> str:
    return page.inner_text(selector).replace("−", "-")


def shows(text: str, value: float, digits: int) -> bool:
    """Whether a text has this number, rounded to so many digits. How it is written hangs on its size."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)
    return any(float(number) == pytest.approx(value, rel=0.51 * 10 ** (1 - digits)) for number in numbers)


# --- the opening ---------------------------------------------------------------------------------------------------


def test_the_opening_goes_from_one_number_to_all_of_them_and_any_key_ends_it(
    visitor: Browser, only_small: Studio, reader: RunReader, total: int
):
    page = visitor.page
    page.clock.install()
    page.goto(only_small.address)
    page.wait_for_selector("[data-act=one]")
    assert page.get_attribute("[data-counter]", "data-counter") == "1"
    name, row, column, value = re.search(
        r"([\w.]+)\[(\d+),(\d+)\] of «small».*: (-?[\d.e-]+)", text_of(page, "[data-act]")
    ).groups()
    born = load_file(reader.path / "keyframes/step-00000000/model.safetensors")[name]
    assert np.float32(value) == born[int(row), int(column)]
    while page.get_attribute("[data-act]", "data-act") != "all":
        page.clock.run_for(1_000)
    assert page.get_attribute("[data-counter]", "data-counter") == str(total)
    page.clock.resume()
    page.keyboard.press("a")
    page.wait_for_selector("[data-act]", state="detached")
    assert page.evaluate("() => window.vitrine.shown().wanted") == reader.steps_made()
    page.goto(only_small.url)
    page.wait_for_selector("canvas[role=application]")
    assert page.locator("[data-act]").count() == 0  # it is shown once
    page.get_by_label("The opening once more").click()
    page.wait_for_selector("[data-act=one]")
    page.mouse.click(640, 300)
    page.wait_for_selector("[data-act]", state="detached")


@pytest.mark.parametrize("visitor", ["reduce"], indirect=True)
def test_with_less_motion_the_opening_is_three_stills(
    visitor: Browser, only_small: Studio, reader: RunReader, total: int
):
    page = visitor.page
    page.goto(only_small.address)
    page.wait_for_selector("[data-act=all]")
    assert page.get_attribute("[data-counter]", "data-counter") == str(total)
    page.get_by_role("button", name="next").click()
    page.wait_for_selector("[data-act=nonsense]")
    said = text_of(page, "[data-act]")
    guess = math.log(reader.config.model.vocab_size)
    assert f"its first loss is {reader.step_record(0).loss:.2f}" in said
    assert f"= {guess:.3f}" in said
    assert reader.samples()[0].text.split()[0] in said
    page.get_by_role("button", name="next").click()
    page.wait_for_selector("[data-act=end]")
    assert page.get_attribute("[data-played]", "data-played") == str(reader.steps_made())
    page.get_by_role("button", name="to the studio").click()
    page.wait_for_selector("[data-act]", state="detached")


def test_a_link_that_says_where_to_stand_is_not_covered(visitor: Browser, only_small: Studio):
    visitor.page.goto(only_small.address)
    page = visitor.open(step=STEP)
    page.wait_for_selector("canvas[role=application]")
    assert page.locator("[data-act]").count() == 0


def test_a_run_without_a_film_has_no_opening(
    chromium: "sync_api.Browser",
    runs: Path,
    tmp_path: Path,
):
    shutil.copytree(runs / "small", tmp_path / "runs" / "small")
    shutil.rmtree(tmp_path / "runs" / "small" / "film")
    with serve(tmp_path / "runs") as studio:
        context = chromium.new_context()
        seen = Browser(context.new_page(), studio)
        seen.page.goto(studio.address)
        seen.page.wait_for_selector("[data-state=end]")
        assert seen.page.locator("[data-act]").count() == 0
        context.close()
        assert seen.said == []


# --- a dropped text ------------------------------------------------------------------------------------------------


def test_a_text_dropped_on_the_page_opens_a_new_run_with_it(browser: Browser):  # noqa: F811
    page = browser.open(step=160)
    invitation = page.get_by_role("button", name="Drop your text here")
    assert "about" not in invitation.inner_text()  # nothing is said before it was timed
    with page.expect_response("**/api/plan", timeout=180_000) as planned:
        invitation.hover()
    seconds = planned.value.json()["duration_s"]
    page.wait_for_function("() => /about|under/.test(document.querySelector('.drop').innerText)")
    if 1 <= seconds < 120:
        assert f"about {seconds:.0f} seconds" in invitation.inner_text()
    files = page.evaluate_handle(
        "() => { const d = new DataTransfer(); d.items.add(new File(['To be, or not. '.repeat(40)], 'my diary.txt')); return d }"
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": files})
    assert "Drop your text here" in page.inner_text("[data-drop]")
    page.dispatch_event("body", "drop", {"dataTransfer": files})
    assert page.get_by_label("Your text", exact=True).input_value() == "To be, or not. " * 40
    assert page.get_by_label("name", exact=True).input_value() == "my-diary"


# --- the tour ------------------------------------------------------------------------------------------------------


class Walk:
    """A tour that is walked: what its panel says, and what is done in it."""

    def __init__(self, page: "sync_api.Page") -> None:
        self.page = page

    def at(self, station: str) -> None:
        self.page.wait_for_selector(f'[data-station="{station}"]')

    def says(self, part: str = "[data-station]") -> str:
        """Once everything is measured."""
        self.page.wait_for_function("() => !document.querySelector('[data-station]').innerText.includes('…')")
        return text_of(self.page, part)

    def guess(self, number: int = 0) -> str:
        """Answer, and what is revealed then."""
        self.says()
        options = self.page.locator(".options button")
        (options.nth(number) if options.count() else self.page.get_by_role("button", name="look")).click()
        self.page.wait_for_selector("[data-reveal]")
        return self.says("[data-reveal]")

    def done(self) -> None:
        self.page.wait_for_selector("[data-task=done]")

    def next(self) -> None:
        self.page.get_by_role("button", name="next", exact=False).last.click()


def test_the_tour_is_walked_to_its_end_and_its_numbers_are_the_run_s(
    browser: Browser,  # noqa: F811
    reader: RunReader,
    opened: ReplayedStep,
    total: int,
):
    page = browser.open(step=STEP, cell=CELL)
    browser.identical()
    walk = Walk(page)
    page.get_by_role("button", name="Tour").click()
    walk.at("start")
    page.get_by_role("button", name="The whole tour").click()

    walk.at("1")
    life = inspect(reader, CELL, STEP).to_json()
    said = walk.says()
    assert {np.float32(life["before"]), np.float32(life["birth"])} <= {
        np.float32(x) for x in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", said)
    }
    assert page.evaluate("document.activeElement.id") == "tour-title"
    neuron = open_neuron(opened, find_address(reader, "blocks.0.attention.query[3]"), 0, 31)
    assert shows(walk.guess(1), neuron.total, digits=4)
    page.get_by_role("tab", name="neuron").click()
    walk.done()
    walk.next()

    walk.at("2")
    weights = sum(plan.parameters for plan in inventory(reader.config.model) if plan.kind == "weight")
    assert f"{weights:,} weights: {100 * weights / total:.0f}%" in walk.guess()
    place = page.evaluate("() => window.vitrine.where('blocks.1.mlp.expand.bias', 0, 5)")
    page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    walk.done()
    walk.next()

    walk.at("3")
    assert walk.guess().count(f"{total:,} parameters") == 2
    page.get_by_label("temperature", exact=True).fill("1.2")
    walk.done()
    walk.next()

    walk.at("4")
    guess = math.log(reader.config.model.vocab_size)
    revealed = walk.guess(1)
    assert shows(revealed, reader.step_record(0).loss, digits=4)
    assert f"{guess:.3f}" in revealed
    for button in ("seed 1", "seed 2", "seed 1", "×0", "×50"):
        born = int(page.get_attribute("[data-reinits]", "data-reinits"))
        page.get_by_role("button", name=button, exact=True).click()
        page.wait_for_selector(f'[data-reinits="{born + 1}"]')
    rows = page.locator("[data-reinits] tbody tr").all_inner_texts()
    assert rows[0] == rows[2] != rows[1]
    assert f"{guess:.3f}" in rows[3]  # without spread, to the digit
    walk.done()
    walk.next()

    walk.at("5")
    walk.guess()
    assert reader.result()["digest"][:8] in walk.says()
    page.get_by_label("your text").fill("The other")
    walk.done()
    walk.next()

    walk.at("6")
    page.wait_for_selector(".options")
    batch = opened.micro_batches[0]
    assert shows(walk.says(), batch.losses[0][31], digits=3)  # the last token of the first window
    walk.guess()
    assert shows(walk.says(), batch.loss, digits=4)
    page.locator(".letter").nth(12).click()
    walk.done()
    walk.next()

    walk.at("7")
    page.wait_for_selector(".options")
    gradient = opened.tensor(TENSOR).gradient
    assert shows(walk.says(), gradient[3, 7], digits=4)
    measured = re.search(r"Measured: (\S+)\. Gradient times move", walk.guess())
    assert measured
    assert ("falls ✓" in walk.says()) == measured[1].startswith("-")
    page.get_by_role("tab", name="nudge").click()
    page.get_by_label("Nudge this number").fill("0.4")
    walk.done()
    walk.next()

    walk.at("8")
    page.get_by_role("button", name="look").wait_for()
    update = opened.tensor(TENSOR).update
    along = int(((np.sign(gradient) == np.sign(update)) & (gradient != 0)).sum())
    assert f"{along} of {update.size}" in walk.guess()
    made = reader.step_column("loss")[1]
    assert f"in {int((np.diff(made) > 0).sum())} of {len(made) - 1} steps" in walk.says()
    page.get_by_label("Step", exact=True).first.fill("60")
    page.keyboard.press("Enter")
    walk.done()
    walk.next()

    walk.at("9")
    digest = reader.result()["digest"][:8]
    assert walk.guess().count(digest) == 2
    page.get_by_label("Play the training").click()
    walk.done()
    walk.next()

    walk.at("10")
    page.wait_for_selector("[data-claim=random]")
    walk.guess(1)
    page.locator("[data-claim=two-kinds] button").first.click()
    walk.done()
    page.get_by_role("button", name="end of the tour").click()
    page.wait_for_selector("[data-station]", state="detached")
    page.wait_for_function("() => !location.hash.includes('tour=')")


def test_a_link_opens_a_station_and_the_keys_go_on_back_and_out(browser: Browser):  # noqa: F811
    page = browser.open(step=STEP, tour="short.2")
    walk = Walk(page)
    walk.at("short.2")
    assert "2 of 5" in walk.says()
    page.keyboard.press("ArrowRight")
    walk.at("short.3")
    page.wait_for_function("() => location.hash.includes('tour=short.3')")
    page.wait_for_function("() => document.activeElement.id === 'tour-title'")
    page.keyboard.press("ArrowLeft")
    walk.at("short.2")
    page.keyboard.press("Escape")
    page.wait_for_selector("[data-station]", state="detached")
    assert page.evaluate("document.activeElement.innerText") == "Tour"


def test_a_live_number_leads_to_where_it_stands(browser: Browser):  # noqa: F811
    page = browser.open(step=STEP, tour=6)
    browser.identical()
    walk = Walk(page)
    walk.says()
    page.locator(".live", has_text=re.compile(rf"^{STEP}$")).click()
    ring = page.wait_for_selector("rect.flash").bounding_box()
    assert ring["y"] == pytest.approx(page.locator("[data-tour=timeline]").bounding_box()["y"], abs=12)
