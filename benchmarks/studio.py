"""The cost of the studio's page, compared with its limits: a real server, real runs, a headless Chromium.

    python -m benchmarks.studio [--text FILE] [--steps N] [--pairs N] [--only NAME]...

- paint: from entering the address to the first cells on the screen; under 1 s;
- script: all scripts that the page loads, compressed; under 200 kB;
- reentry: from releasing the timeline to every cell of that step, replayed and compared, for a model of 0.8 M parameters;
  under 2 s (the median; the first one, which waits for torch to start, is printed as well);
- frames: time between frames while 10.7 M parameters are panned and zoomed; 99% of them under 50 ms;
- opening: bytes to open a run of 100,000 steps; under 2 MB;
- training: how much longer training takes while the page follows it; under 3%, the median of pairs measured in turns.

It makes its own runs, in a temporary folder. The run of 100,000 steps is a short one whose history was extended with the
trainer's own store and made-up losses. Prints a table on standard error, with the name of the renderer, and one JSON object
on standard output. There is no pass or fail.
"""

import argparse
import gzip
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.corpora import tinyshakespeare
from vitrine.runs.reader import RunReader
from vitrine.runs.records import StepRecord
from vitrine.runs.store import Store

PAGE = Path(__file__).parents[1] / "vitrine" / "studio" / "page"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SIZE = {"width": 1280, "height": 720}
LARGE = [
    "model.architecture=qwen3", "model.n_layers=6", "model.n_heads=6", "model.d_model=384", "model.context=256",
    "training.batch_size=2", "data.tokenizer=char",
]  # fmt: skip
LONG = 100_000  # steps
EXACT = "() => window.vitrine?.still?.() && window.vitrine.shown()?.exact"
BUDGETS = {
    "paint": ("s to the first cells", 1.0),
    "script": ("kB of script, compressed", 200.0),
    "reentry": ("s from the drag to the step, compared", 2.0),
    "frames": ("ms between pictures, the 99th of 100", 50.0),
    "opening": ("MB to open 100,000 steps", 2.0),
    "training": ("% longer training, watched", 3.0),
}


def main() -> None:
    """Make the selected measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of the 0.8 M run, and of each watched training")
    parser.add_argument("--pairs", type=int, default=5, help="of trainings, watched and not")
    parser.add_argument("--only", action="append", choices=BUDGETS, help="measure only this; may be repeated")
    parser.add_argument("--text", type=Path, help="a text to train on; without it, tinyshakespeare")
    given = parser.parse_args()
    text = given.text or tinyshakespeare()
    wanted = given.only or list(BUDGETS)
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser_path is None or not (PAGE / "index.html").is_file():
        sys.exit("There is no Chromium on this machine, or the page is not built. Install one; make page.")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        runs = Path(folder) / "runs"
        make_runs(runs, text, given.steps, wanted)
        chromium = playwright.chromium.launch(executable_path=browser_path, args=QUIET)
        renderer = renderer_of(chromium)
        with studio(runs) as address:
            measures: dict[str, Callable[[], dict[str, Any]]] = {
                "paint": lambda: paint(chromium, address),
                "script": lambda: {"value": script_bytes() / 1000},
                "reentry": lambda: reentry(chromium, address, given.steps),
                "frames": lambda: frames(chromium, address),
                "opening": lambda: opening(chromium, address),
                "training": lambda: training(chromium, address, runs, text, given.steps, given.pairs),
            }
            for name in wanted:
                print(f"{name}...", file=sys.stderr)
                found[name] = measures[name]()
        chromium.close()
    report(found, renderer)


def report(found: dict[str, dict[str, Any]], renderer: dict[str, str]) -> None:
    """Print the table and the JSON."""
    print(f"\ndrawn by {renderer['renderer']}, {renderer['browser']}", file=sys.stderr)
    for name, numbers in found.items():
        unit, budget = BUDGETS[name]
        numbers |= {"budget": budget, "within": numbers["value"] <= budget}
        word = "within" if numbers["within"] else "OVER"
        print(f"{name:<10}{numbers['value']:10.3f} {unit:<42}{word} {budget:g}", file=sys.stderr)
    print(json.dumps(renderer | {"measured": found}))


def make_runs(folder: Path, text: Path, steps: int, wanted: list[str]) -> None:
    """The runs to measure: demo (0.8 M parameters), large (10.7 M), long (100,000 steps)."""
    if {"paint", "reentry", "opening"} & {*wanted}:
        train(folder / "demo", text, "--preset", "demo", "--steps", str(steps))
    if "frames" in wanted:
        train(folder / "large", text, "--steps", "2", *(f"--set={pair}" for pair in LARGE))
    if "opening" in wanted:
        shutil.copytree(folder / "demo", folder / "long")
        lengthen(folder / "long")
    folder.mkdir(exist_ok=True)


def train(folder: Path, text: Path, *options: str) -> None:
    """Run a training to its end."""
    command = [sys.executable, "-m", "vitrine", "train", str(text), "--run", str(folder), *options]
    subprocess.run(command, check=True, capture_output=True, text=True)


def lengthen(run: Path) -> None:
    """Extend a run's history to LONG steps, with the trainer's own store and made-up losses."""
    reader = RunReader(run)
    made, draws = reader.steps_made(), np.random.default_rng(0)
    last = reader.step_record(made - 1)
    assert last is not None
    config = run / "config.toml"
    config.write_text(re.sub(r"(?m)^steps = \d+", f"steps = {LONG}", config.read_text(encoding="utf-8")), "utf-8")
    with Store(run / "run.sqlite") as store:
        layout = store.layout()
        numbers = store.statistics_row(layout.step(layout.row(made - 1))) if layout else None
        for step in range(made, LONG):
            loss = float(np.float32(1.5 + 0.4 * math.exp(-step / 2e4) + draws.normal(0, 0.03)))
            store.write(StepRecord(step, loss, 0.5, 1e-3, last.tokens + step, last.duration_s, last.memory_bytes))
            if layout and numbers is not None and layout.has(step):
                store.write_statistics(step, numbers, layout)


@contextmanager
def studio(runs: Path) -> Iterator[str]:
    """Start the studio's server; returns its address."""
    command = [sys.executable, "-m", "vitrine", "studio", str(runs), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextmanager
def page_of(chromium: Browser, address: str, hash_: str = "") -> Iterator[Page]:
    """A new page with access; hash_: the address to open in it."""
    context = chromium.new_context(viewport=SIZE, reduced_motion="reduce")  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{address}&{hash_}" if hash_ else address)
    yield page
    context.close()


def renderer_of(chromium: Browser) -> dict[str, str]:
    """The renderer of the page: a graphics card, or the CPU."""
    session = chromium.new_browser_cdp_session()
    gpu = session.send("SystemInfo.getInfo").get("gpu", {})
    attributes, canvas = gpu.get("auxAttributes", {}), gpu.get("featureStatus", {}).get("2d_canvas", "unknown")
    named = attributes.get("glRenderer") or "no graphics card (software rendering)"
    with_page = chromium.new_page()
    agent = str(with_page.evaluate("() => navigator.userAgent"))
    with_page.close()
    return {"renderer": f"{named}; 2d canvas: {canvas}", "browser": f"Chromium {chromium.version}", "agent": agent}


def paint(chromium: Browser, address: str) -> dict[str, Any]:
    """Seconds from navigation to the first cells, in new pages with empty caches."""
    taken = []
    for _ in range(5):
        with page_of(chromium, address, "run=demo&step=0") as page:
            page.wait_for_function("() => performance.getEntriesByName('first-cells').length > 0")
            taken.append(page.evaluate("() => performance.getEntriesByName('first-cells')[0].startTime") / 1000)
    return {"value": statistics.median(taken), "all": taken}


def script_bytes() -> int:
    """Size of all scripts of the page, compressed with gzip."""
    return sum(len(gzip.compress(file.read_bytes(), 9)) for file in PAGE.rglob("*.js"))


def reentry(chromium: Browser, address: str, steps: int) -> dict[str, Any]:
    """Seconds from releasing the timeline until the step is identical and all of its cells are shown."""
    taken = []
    with page_of(chromium, address, f"run=demo&step={steps}") as page:
        page.wait_for_function(EXACT, timeout=60_000)
        box = page.locator(".u-over").bounding_box()
        assert box is not None
        for share in (0.31, 0.83, 0.47, 0.66, 0.12, 0.93):
            page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 30)
            page.mouse.down()
            page.mouse.move(box["x"] + box["width"] * share, box["y"] + 30, steps=5)
            page.mouse.up()
            began_s = time.perf_counter()
            page.wait_for_selector("[data-state=identical]", timeout=120_000)
            page.wait_for_function(EXACT, timeout=60_000)
            taken.append(time.perf_counter() - began_s)
    return {"value": statistics.median(taken[1:]), "first": taken[0], "all": taken}


WATCH = """() => { window.gaps = []; let last = performance.now();
    const tick = now => { window.gaps.push(now - last); last = now; requestAnimationFrame(tick); };
    requestAnimationFrame(tick); }"""


def frames(chromium: Browser, address: str) -> dict[str, Any]:
    """Milliseconds between frames while a model of 10.7 M parameters is zoomed in, panned and zoomed out."""
    with page_of(chromium, address, "run=large") as page:
        page.wait_for_function(EXACT, timeout=120_000)
        box = page.locator("canvas[role=application]").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4
        page.mouse.move(x, y)
        page.evaluate(WATCH)
        for turn in range(3):
            for _ in range(16):
                page.mouse.wheel(0, -150)
                page.wait_for_timeout(30)
            page.mouse.down()
            for i in range(60):
                page.mouse.move(x + 150 * math.sin(i / 9 + turn), y + 100 * math.cos(i / 7))
                page.wait_for_timeout(16)
            page.mouse.up()
            for _ in range(16):
                page.mouse.wheel(0, 150)
                page.wait_for_timeout(30)
        gaps = sorted(page.evaluate("() => window.gaps.slice(1)"))
        page.wait_for_function(EXACT, timeout=60_000)
    under = sum(gap < 50 for gap in gaps) / len(gaps)
    return {
        "value": gaps[math.ceil(0.99 * len(gaps)) - 1],
        "median": statistics.median(gaps), "longest": gaps[-1], "share_under_50_ms": under, "pictures": len(gaps),
    }  # fmt: skip


def opening(chromium: Browser, address: str) -> dict[str, Any]:
    """Megabytes sent until a run of 100,000 steps is completely shown on the page."""
    with page_of(chromium, address, "") as page:
        page.goto("about:blank")
        session, received = page.context.new_cdp_session(page), list[int]()
        session.send("Network.enable")
        session.send("Network.setCacheDisabled", {"cacheDisabled": True})
        session.on("Network.dataReceived", lambda event: received.append(event["dataLength"]))
        page.goto(f"{address}&run=long&step={LONG}")  # as a link: the opening plays its film besides
        page.wait_for_function("() => window.vitrine?.still?.()", timeout=60_000)
        page.wait_for_timeout(4000)
        steps = page.evaluate("() => window.vitrine.shown().wanted")
    assert steps == LONG
    return {"value": sum(received) / 1e6, "pieces": len(received)}


def training(chromium: Browser, address: str, runs: Path, text: Path, steps: int, pairs: int) -> dict[str, Any]:
    """How many percent longer a step takes while a page follows the run; with and without, in turns."""
    ratios = []
    for i in range(pairs):
        taken = {}
        for watched in (True, False) if i % 2 else (False, True):
            run = runs / f"{'watched' if watched else 'alone'}-{i}"
            command = [sys.executable, "-m", "vitrine", "train", str(text), "--run", str(run)]
            options = ["--preset", "demo", "--steps", str(steps)]
            process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if watched:
                while not (run / "run.sqlite").is_file() and process.poll() is None:
                    time.sleep(0.05)
                with page_of(chromium, address, f"run={run.name}&step=live"):
                    process.wait()
            process.wait()
            reader = RunReader(run)
            records = [reader.step_record(step) for step in range(steps // 4, reader.steps_made())]
            taken[watched] = statistics.median(record.duration_s for record in records if record)
        ratios.append(taken[True] / taken[False])
    return {"value": 100 * (statistics.median(ratios) - 1), "ratios": ratios}


if __name__ == "__main__":
    main()
