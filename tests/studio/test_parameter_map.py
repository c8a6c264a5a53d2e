"""The pixel law: each colour of the parameter map is one true number of the run at its step. And that a breach is caught."""

# ruff: noqa: F811 - fixtures
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.studio.conftest import Studio, serve, trained, until
from tests.studio.test_page import STEP, Browser, browser, pixels_of, pytestmark  # noqa: F401 - fixtures
from vitrine.run import Run
from vitrine.runs.film import picks_at

sync_api = pytest.importorskip("playwright.sync_api")

CELLS = 200
KEYFRAME = 150
WIDE_STEP = 5
WIDE = [  # more cells than the first picture has: zoomed out, a pixel is one of four
    *("--preset", "demo", "--steps", "8"),
    *(f"--set={pair}" for pair in (
        "model.n_layers=2", "model.d_model=104", "model.n_heads=2", "model.d_ff=624", "model.context=16",
        "training.batch_size=2", "recording.keyframe_every=4",
    )),
]  # fmt: skip
TENSORS = ("blocks.0.mlp.expand.weight", "blocks.1.mlp.shrink.weight", "blocks.1.attention.key.weight",
           "embedding.weight", "blocks.0.mlp.expand.bias")  # fmt: skip

Truth = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, own_cache: Path, book_file: Path) -> Iterator[Studio]:
    """A server over a model of 359,000 parameters, that made eight steps."""
    folder = tmp_path_factory.mktemp("wide") / "runs"
    shutil.copytree(trained(tmp_path_factory, "wide", book_file, *WIDE), folder / "small")
    with serve(folder) as studio:
        yield studio


@pytest.fixture
def wide_browser(chromium: "sync_api.Browser", wide: Studio) -> Iterator[Browser]:
    context = chromium.new_context(viewport={"width": 1280, "height": 720}, color_scheme="light")
    seen = Browser(context.new_page(), wide)
    yield seen
    context.close()
    assert seen.said == []


def truth_of(folder: Path, step: int, mode: str) -> Truth:
    """What the library says, without the studio: the file of a keyframe where there is one."""
    birth = load_file(folder / "keyframes" / "step-00000000" / "model.safetensors")
    if mode == "birth":
        return birth
    keyframe = folder / "keyframes" / f"step-{step:08d}" / "model.safetensors"
    if keyframe.exists() and mode in ("value", "rms"):
        return load_file(keyframe)
    tensors = Run(folder).step(step).tensors
    if mode == "learned":
        return {name: tensor.before - birth[name] for name, tensor in tensors.items()}
    if mode.startswith("memory:"):
        return {name: tensor.memory_before[mode.removeprefix("memory:")] for name, tensor in tensors.items()}
    part = {"value": "before", "rms": "before", "gradient": "gradient", "update": "update"}[mode]
    return {name: getattr(tensor, part) for name, tensor in tensors.items()}


def still(page: "sync_api.Page") -> None:
    page.wait_for_function("() => window.vitrine?.still() && vitrine.shown()?.exact", timeout=120_000)


def check_law(
    page: "sync_api.Page",
    truth: Truth,
    level: int = 0,
    seed: int = 1,
    tensors: Sequence[str] = TENSORS,
) -> None:
    """Colours inverted at CELLS cells equal the numbers, within one step of the colour scale. Raises AssertionError.

    level: a pixel shows one cell of each square of side 2^level, the very one that the film's hash picks.
    """
    still(page)
    pixels = pixels_of(page.screenshot())
    palette = np.array(page.evaluate("() => window.vitrine.palette()"))
    steps, draws, looked = (len(palette) - 1) // 2, np.random.default_rng(0), 0
    picks = picks_at({name: numbers.shape for name, numbers in truth.items()}, level, seed).indices
    for name in tensors:
        numbers = np.atleast_2d(truth[name])
        cells = [[int(draws.integers(size)) for size in numbers.shape] for _ in range(70)]
        scale, places = page.evaluate(
            "([name, cells]) => [vitrine.scale(name), cells.map(c => vitrine.where(name, ...c))]", [name, cells]
        )
        for (row, column), where in zip(cells, places, strict=True):
            x, y = where["x"] + where["width"] / 2, where["y"] + where["height"] / 2
            distance = np.abs(palette - pixels[int(y), int(x)]).sum(1)
            if distance.min() > 3:
                continue  # under the ring that marks the chosen cell
            value = float(numbers.flat[picks[name][row >> level, column >> level]])
            share = value / scale["full"]
            if scale["bend"]:
                share = np.arcsinh(value / scale["bend"]) / np.arcsinh(scale["full"] / scale["bend"])
            wanted = np.clip(share, -1, 1) * steps
            assert abs(int(distance.argmin()) - steps - wanted) <= 1.001, (name, row, column, value)
            looked += 1
    assert looked >= CELLS


def test_the_law_holds_in_each_mode(browser: Browser, runs: Path):
    page = browser.open(step=STEP)
    for mode in ("birth", "value", "learned", "gradient", "update", "memory:second_moment"):
        browser.go(step=STEP, mode=mode)
        check_law(page, truth_of(runs / "small", STEP, mode))


def test_zoomed_out_each_pixel_is_one_true_cell_of_its_square(wide_browser: Browser, wide: Studio):
    page = wide_browser.open(step=WIDE_STEP)
    for mode in ("value", "update"):
        wide_browser.go(step=WIDE_STEP, mode=mode)
        check_law(page, truth_of(wide.runs / "small", WIDE_STEP, mode), level=1)
        assert page.inner_text("[data-cells]") == "1 in 4, each real"


def test_zoomed_in_every_cell_is_shown_with_its_number(wide_browser: Browser, wide: Studio):
    page = wide_browser.open(step=WIDE_STEP, cell="blocks.1.mlp.expand.weight[500,90]")
    wide_browser.identical()
    still(page)
    page.get_by_role("button", name="zoom in").click()
    page.wait_for_function("() => document.querySelector('[data-cells]').innerText === 'every cell, each real'")
    still(page)
    truth = truth_of(wide.runs / "small", WIDE_STEP, "value")["blocks.1.mlp.expand.weight"]
    pixels = pixels_of(page.screenshot())
    palette = np.array(page.evaluate("() => window.vitrine.palette()"))
    scale = page.evaluate("() => window.vitrine.scale('blocks.1.mlp.expand.weight')")
    for row, column in ((499, 88), (501, 91), (498, 93)):
        where = page.evaluate("c => vitrine.where('blocks.1.mlp.expand.weight', ...c)", [row, column])
        colour = pixels[int(where["y"]) + 4, int(where["x"]) + 4]
        shade = int(np.abs(palette - colour).sum(1).argmin()) - 127
        assert abs(shade - np.clip(truth[row, column] / scale["full"], -1, 1) * 127) <= 1.001


def test_wheel_drag_and_two_fingers_move_the_map(wide_browser: Browser):
    page = wide_browser.page
    touch = page.context.new_cdp_session(page)
    touch.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    wide_browser.open(step=4)
    still(page)
    cell = ["blocks.1.mlp.expand.weight", 300, 50]

    def seen() -> tuple[float, float, float]:
        """The middle of the cell, and how large the map is."""
        where, zoom = page.evaluate("c => [vitrine.where(...c), vitrine.camera.view.zoom]", cell)
        return where["x"] + where["width"] / 2, where["y"] + where["height"] / 2, zoom

    def fingers(kind: str, *places: float) -> None:  # all at the height of the cell
        points = [{"x": x, "y": y, "id": i} for i, x in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def comes_to(x: float, y: float, zoom: float) -> None:
        until(lambda: page.wait_for_timeout(20) or seen() == pytest.approx((x, y, zoom), abs=0.1))

    x, y, zoom = seen()
    assert zoom == 1
    u, v = int(x), int(y)
    page.mouse.move(u, v)
    page.mouse.wheel(0, -800)
    zoom = 2 ** (800 * 0.0026)
    x, y = u + zoom * (x - u), v + zoom * (y - v)  # the point under the wheel stays
    comes_to(x, y, zoom)

    chosen = page.get_attribute("canvas[role=application]", "aria-label")
    page.mouse.down()
    page.mouse.move(u + 20, v - 5, steps=4)
    page.mouse.up()
    comes_to(x + 20, y - 5, zoom)
    assert page.get_attribute("canvas[role=application]", "aria-label") == chosen  # a drag chooses no cell

    x, y, zoom = seen()
    fingers("touchStart", x - 20, x + 20)
    for apart in (30, 40):
        fingers("touchMove", x - apart, x + apart)
    fingers("touchEnd")
    comes_to(x, y, 2 * zoom)

    page.mouse.move(u, v)
    page.mouse.wheel(0, 5000)
    page.wait_for_function("() => vitrine.camera.view.zoom === 1")


def test_a_mean_is_shown_under_its_own_name_alone(wide_browser: Browser, wide: Studio):
    page = wide_browser.open(step=4, mode="rms")
    still(page)
    assert page.inner_text("[data-cells]") == "RMS of 16 cells"
    pixels = pixels_of(page.screenshot())
    palette = np.array(page.evaluate("() => window.vitrine.palette()"))
    name = "blocks.0.mlp.expand.weight"
    truth, scale = truth_of(wide.runs / "small", 4, "rms")[name], page.evaluate("n => vitrine.scale(n)", name)
    for row, column in ((0, 100), (88, 40), (400, 0), (620, 64)):
        where = page.evaluate("c => vitrine.where(...c)", [name, row, column])
        shade = int(np.abs(palette - pixels[int(where["y"]), int(where["x"])]).sum(1).argmin()) - 127
        block = truth[row : row + 4, column : column + 4].astype(np.float64)
        assert abs(shade - min(1, np.sqrt((block**2).mean()) / scale["full"]) * 127) <= 1.001
    page.get_by_role("button", name="now", exact=True).click()
    page.wait_for_function("() => document.querySelector('[data-cells]').innerText === '1 in 4, each real'")


# --- seeded faults: the server lies, and the law, or the page, finds out --------------------------------------------


def lie(
    page: "sync_api.Page", studio: Studio, change: Callable[[np.ndarray, dict], np.ndarray], **headers: str
) -> None:
    """Whole pictures come changed by this function; it gets the numbers, and what was asked for."""

    def answer(route: "sync_api.Route") -> None:
        asked = {key: values[0] for key, values in parse_qs(urlparse(route.request.url).query).items()}
        real = route.fetch()
        numbers = change(np.frombuffer(real.body(), "<f4").copy(), asked)
        route.fulfill(response=real, body=numbers.astype("<f4").tobytes(), headers={**real.headers, **headers})

    page.route(re.compile(r"/tiles\?"), answer)


def tensors_of(studio: Studio, every: int = 1) -> Iterator[tuple[str, slice, tuple[int, int]]]:
    """Where each tensor's numbers are in a whole picture."""
    start = 0
    for tensor in studio.json("runs/small")["tensors"]:
        rows, columns = (-(-size // every) for size in ([1, *tensor["shape"]])[-2:])
        yield tensor["name"], slice(start, start + rows * columns), (rows, columns)
        start += rows * columns


def transposed(studio: Studio, numbers: np.ndarray) -> np.ndarray:
    for name, part, (rows, columns) in tensors_of(studio):
        if name == "blocks.1.attention.key.weight" or "expand.weight" in name:
            numbers[part] = numbers[part].reshape(rows, columns).T.ravel()
    return numbers


def at_another_step(studio: Studio, step: int) -> np.ndarray:
    answer = studio.get("runs/small/tiles", step=step, mode="value")
    return np.frombuffer(answer.content, "<f4")


@pytest.mark.parametrize("fault", ["a transposed tensor", "an off-by-one step", "a stale tile"])
def test_the_law_catches(browser: Browser, studio: Studio, runs: Path, fault: str):
    faults = {
        "a transposed tensor": lambda numbers, asked: transposed(studio, numbers),
        "an off-by-one step": lambda numbers, asked: at_another_step(studio, STEP + 1),
        "a stale tile": lambda numbers, asked: at_another_step(studio, KEYFRAME),
    }
    lie(browser.page, studio, faults[fault])
    page = browser.open(step=STEP)
    browser.identical()
    truth = truth_of(runs / "small", STEP, "value")
    with pytest.raises(AssertionError, match=r"weight|bias"):
        check_law(page, truth)
    page.unroute_all(behavior="ignoreErrors")


def test_the_law_catches_a_mean_instead_of_a_pick(wide_browser: Browser, wide: Studio):
    truth = truth_of(wide.runs / "small", 4, "value")

    def means(numbers: np.ndarray, asked: dict) -> np.ndarray:
        for name, part, _ in tensors_of(wide, 2):
            whole = np.atleast_2d(truth[name]).astype(np.float64)
            padded = np.pad(whole, [(0, size % 2) for size in whole.shape], mode="edge")
            halves = (padded[i::2, j::2] for i in (0, 1) for j in (0, 1))
            numbers[part] = np.mean(list(halves), axis=0).ravel()
        return numbers

    lie(wide_browser.page, wide, means)
    page = wide_browser.open(step=4)
    with pytest.raises(AssertionError, match=r"weight|bias"):
        check_law(page, truth, level=1)
    page.unroute_all(behavior="ignoreErrors")


@pytest.mark.parametrize(
    ("header", "told"), [({"x-step": str(STEP + 1)}, f"of step {STEP + 1} where step {STEP} was asked"), ({"x-shape": "7"}, "numbers, 7, where")]
)  # fmt: skip
def test_the_page_refuses_numbers_of_another_step_or_shape(browser: Browser, studio: Studio, header: dict, told: str):
    lie(browser.page, studio, lambda numbers, asked: numbers, **header)
    page = browser.open(step=STEP)
    page.wait_for_selector(f"text={told}", timeout=120_000)
    shown = page.evaluate("() => vitrine.shown()")
    assert not shown["exact"]
    assert shown["source"] == "film"
    page.unroute_all(behavior="ignoreErrors")


@pytest.mark.parametrize("fault", ["one comparison failed", "nothing was compared", "the machine differs"])
def test_the_page_calls_nothing_identical_on_the_servers_word_alone(browser: Browser, fault: str):
    def answer(route: "sync_api.Route") -> None:
        real = route.fetch()
        phases = json.loads(real.text())
        assert phases["exact"]
        if fault == "one comparison failed":
            phases["compared"][-1]["equal"] -= 1
        elif fault == "nothing was compared":
            phases["compared"] = []
        else:
            phases["differs"] = ["torch"]
        route.fulfill(response=real, body=json.dumps(phases))

    page = browser.page
    page.route(re.compile(rf"/step/{STEP}\?"), answer)
    browser.open(step=STEP)
    page.wait_for_selector("[data-state=differs]", timeout=120_000)
    page.wait_for_selector("text=not exact")
    assert page.locator("[data-state=identical]").count() == 0
    assert not page.evaluate("() => vitrine.shown().exact")
    page.unroute_all(behavior="ignoreErrors")


def test_what_is_not_finite_is_hatched(browser: Browser, chromium: "sync_api.Browser", studio: Studio):
    name = "blocks.0.mlp.expand.weight"

    def broken(numbers: np.ndarray, asked: dict) -> np.ndarray:
        numbers[next(part for tensor, part, _ in tensors_of(studio) if tensor == name)] = np.nan
        return numbers

    lie(browser.page, studio, broken)
    page = browser.open(step=KEYFRAME)
    still(page)
    page.wait_for_selector("text=not finite")
    pixels = pixels_of(page.screenshot())
    first, last = (page.evaluate("c => vitrine.where(...c)", [name, *cell]) for cell in ((30, 4), (60, 20)))
    area = pixels[int(first["y"]) : int(last["y"]), int(first["x"]) : int(last["x"])].reshape(-1, 3)
    assert {tuple(map(int, pixel)) for pixel in area} == {(0xC0, 0, 0xC0), (0, 0, 0)}
    page.unroute_all(behavior="ignoreErrors")


def test_a_run_that_was_made_anew_is_opened_again(browser: Browser, studio: Studio):
    page, asked = browser.page, list[str]()
    page.on("request", lambda request: asked.append(urlparse(request.url).path + "?" + urlparse(request.url).query))
    refused = []

    def once(route: "sync_api.Route") -> None:
        if refused:
            return route.continue_()
        refused.append(True)
        return route.fulfill(status=409, json={"error": "The run has changed since the page opened it."})

    page.route(re.compile(r"/tiles\?"), once)
    browser.open(step=KEYFRAME)
    still(page)
    assert sum(bool(re.fullmatch(r"/api/runs/small\?", path)) for path in asked) >= 2
    assert all("v=" in path for path in asked if "/tile" in path)
    browser.said[:] = [text for text in browser.said if "409" not in text]
    page.unroute_all(behavior="ignoreErrors")
