"""The page, in the system's own browser: what it shows is what the run has."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.studio.conftest import BROWSER, Studio, serve, until
from vitrine.config import SamplingConfig
from vitrine.generation.sampling import filter_logits
from vitrine.inspection.views import inspect
from vitrine.runs.reader import RunReader

PAGE = Path(__file__).parents[2] / "vitrine" / "studio" / "page" / "index.html"
MISSING = (
    "no Chromium on this machine: the page was NOT tested"
    if BROWSER is None
    else "the page is not built (make page): it was NOT tested"
    if not PAGE.is_file()
    else ""
)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
sync_api = pytest.importorskip("playwright.sync_api")

OPENING_SEEN = "try { localStorage.setItem('vitrine.opening', 'seen') } catch {}"  # about:blank has no storage
STEP = 77  # neither a keyframe nor a frame of the film
CELL = "blocks.0.mlp.expand.weight[41,7]"


class Browser:
    """A page, and what its console said."""

    def __init__(self, page: "sync_api.Page", studio: Studio) -> None:
        self.page, self.studio, self.said = page, studio, list[str]()
        page.set_default_timeout(120_000)  # beside other programs, a worker may take a minute to start
        page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))

    def open(self, **where: object) -> "sync_api.Page":
        """The page, loaded anew where it stands at this place of the run."""
        if self.page.url != "about:blank":
            self.page.goto("about:blank")
        self.page.goto(f"{self.studio.address}&run=small&" + "&".join(f"{key}={value}" for key, value in where.items()))
        return self.page

    def go(self, **where: object) -> None:
        """The same page, at another place of the run."""
        place = "run=small&" + "&".join(f"{key}={value}" for key, value in where.items())
        self.page.evaluate(
            "place => new Promise(done => {"
            " addEventListener('hashchange', () => requestAnimationFrame(() => requestAnimationFrame(done)));"
            " location.hash = place })",
            place,
        )

    def identical(self) -> None:
        """Wait until the step is re-run, and every cell shown is the step's own."""
        try:
            self.page.wait_for_selector("[data-state=identical]")
        except sync_api.TimeoutError:
            pytest.fail(f"The step was not re-run. The page shows: {self.page.inner_text('body')}")

    def exact(self) -> None:
        self.identical()
        self.page.wait_for_function("() => { const s = window.vitrine.shown(); return s.exact && s.step === s.wanted }")


@pytest.fixture
def browser(chromium: "sync_api.Browser", studio: Studio) -> Iterator[Browser]:
    context = chromium.new_context(viewport={"width": 1280, "height": 720}, color_scheme="light")
    context.add_init_script(OPENING_SEEN)
    seen = Browser(context.new_page(), studio)
    yield seen
    context.close()
    assert seen.said == []


@pytest.fixture(scope="module")
def reader(runs: Path) -> RunReader:
    return RunReader(runs / "small")


def test_the_first_screen_names_all_that_was_learned(browser: Browser, reader: RunReader):
    page = browser.page
    page.goto(f"{browser.studio.address}&run=small")
    page.wait_for_selector("canvas")
    total = sum(tensor.parameters for tensor in inspect(reader).view.tensors)
    assert f"{total:,} learned numbers" in page.inner_text("header")
    for name in ("you chose", "it learned", "it writes", "the loss is the time line"):
        assert page.get_by_role("heading", name=name).is_visible()
    assert "access=" not in page.url
    overflow = page.evaluate("() => [document.body.scrollWidth - innerWidth, document.body.scrollHeight - innerHeight]")
    assert overflow == [0, 0]


def test_the_lens_shows_what_inspect_says(browser: Browser, reader: RunReader):
    page = browser.open(step=STEP, cell=CELL, side="number")
    browser.exact()
    life = inspect(reader, CELL, STEP).to_json()
    shown = page.locator(f'[data-cell="{CELL}"]')
    assert np.float32(shown.get_attribute("data-value")) == np.float32(life["before"])
    page.wait_for_selector(f'[data-biography="{CELL}"]')
    story = page.inner_text("[data-biography]").replace("−", "-")
    assert np.float32(life["birth"]) in [np.float32(x) for x in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", story)]
    page.get_by_role("button", name="gradient").click()
    page.wait_for_function(
        '([cell, wanted]) => Math.fround(Number(document.querySelector(`[data-cell="${cell}"]`)'
        "?.dataset.value?.replaceAll('−', '-'))) === Math.fround(wanted)",
        arg=[CELL, life["gradient"]],
    )


def test_dragging_the_time_line_goes_to_a_step_and_proves_it(browser: Browser):
    page = browser.open(step=150)
    page.wait_for_selector(".u-over")
    box = page.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 30, steps=6)
    page.mouse.up()
    assert int(page.get_by_label("Step", exact=True).first.input_value()) == 80
    browser.exact()
    page.locator("[data-state=identical]").click()
    assert "loss" in page.get_by_role("dialog").inner_text()
    page.wait_for_function("() => location.hash.includes('step=80')")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => window.vitrine.shown().wanted === 81")
    browser.exact()


def test_until_a_step_is_re_run_its_picture_is_marked_as_near(browser: Browser):
    page = browser.page
    page.route("**/api/runs/small/step/*", lambda route: None)  # never answered
    browser.open(step=STEP)
    page.wait_for_selector("text=≈ from step")
    shown = page.evaluate("() => window.vitrine.shown()")
    assert not shown["exact"]
    assert shown["step"] != STEP
    assert f"≈ from step {shown['step']}" in page.inner_text("section[aria-label^='It learned']")
    page.unroute_all(behavior="ignoreErrors")


def test_the_four_phases_follow_each_other(browser: Browser, studio: Studio):
    page = browser.open(step=STEP, view="step")
    browser.identical()
    phases = studio.json(f"runs/small/step/{STEP}")
    told = []
    for phase in range(1, 5):
        page.wait_for_selector(f'[data-phase="{phase}"]')
        told.append(page.inner_text("[data-phase]"))
        page.keyboard.press("Space")
    assert f"{100 * phases['forward']['target_probability']:.1f}%" in told[0]
    assert f"{phases['loss']['value']:.3f}" in told[1]
    assert f"{phases['loss']['same_batch_again']:.3f}" in told[3]
    page.wait_for_function(f"() => window.vitrine === undefined || location.hash.includes('step={STEP + 1}')")


def test_the_bars_are_what_the_library_would_draw_from(browser: Browser, studio: Studio):
    page = browser.open(step=160, view="play", prompt="The")
    page.wait_for_selector("[data-bars=ready]")
    logits = studio.post("runs/small/next", prompt="The", step=160).json()["logits"]
    for chosen in ({"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.6}, {"temperature": 1.3, "top_k": 20, "top_p": 0.8}):
        settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | chosen
        browser.go(step=160, view="play", prompt="The", **settings)
        kept = filter_logits(torch.tensor([logits]), SamplingConfig(**settings)).double().softmax(-1)[0].tolist()
        wanted = {token: p and pytest.approx(p, abs=2e-6) for token, p in enumerate(kept)}

        def as_wanted(wanted: dict[int, object] = wanted) -> bool:
            page.wait_for_timeout(20)
            bars = page.eval_on_selector_all("[data-token]", "all => all.map(b => [+b.dataset.token, +b.dataset.kept])")
            return len(bars) >= min(65, len(wanted)) and all(p == wanted[token] for token, p in bars)

        until(as_wanted)


def test_the_parameter_map_is_walked_with_the_keys(browser: Browser):
    page = browser.open(step=150, cell=CELL)
    page.wait_for_selector(f'[data-cell="{CELL}"]')
    page.locator("canvas[role=application]").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('td[aria-selected=true][data-cell="blocks.0.mlp.expand.weight[42,8]"]')
    page.keyboard.press("PageDown")
    page.wait_for_selector('td[aria-selected=true][data-cell^="blocks.0.mlp."]')


def test_a_run_started_from_the_page_is_watched_to_its_end(
    chromium: "sync_api.Browser", tmp_path: Path, own_cache: Path, prose: str
):
    (tmp_path / "runs").mkdir()
    with serve(tmp_path / "runs") as studio:
        context = chromium.new_context(viewport={"width": 1280, "height": 720})
        seen = Browser(context.new_page(), studio)
        page = seen.page
        page.goto(studio.address)
        page.get_by_role("button", name="Train on your text").click()
        page.get_by_label("Size", exact=True).select_option("demo")
        page.get_by_label("steps", exact=True).fill("10")
        page.get_by_label("name", exact=True).fill("pasted")
        page.get_by_label("Your text", exact=True).fill(prose[:20_000])
        page.wait_for_selector("text=numbers to learn", timeout=120_000)
        page.get_by_role("button", name="start training").click()
        page.wait_for_function("() => window.vitrine?.shown().wanted === 10", timeout=120_000)
        page.wait_for_selector("[data-state=end]", timeout=120_000)
        page.wait_for_function("() => window.vitrine.shown().exact", timeout=120_000)
        page.wait_for_function("() => location.hash.includes('run=pasted')")
        context.close()
        assert seen.said == []


def pixels_of(picture: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels of a PNG, (height, width, 3); scaled to (width, height) if wanted."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    return np.asarray(image.resize(size) if size else image).astype(np.int64)
