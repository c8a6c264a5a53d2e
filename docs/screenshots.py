"""Takes the pictures of the studio in docs/: `python docs/screenshots.py RUN [OTHER...]`; OTHER are runs to compare with.

It needs Playwright and an installed Chromium. Look at each picture before you commit it.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Page, sync_playwright

from vitrine.runs.reader import RunReader

DOCS = Path(__file__).parent
SIZE = {"width": 1280, "height": 720}
LARGEST_BYTES = 200_000
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")


@dataclass(frozen=True)
class Picture:
    """A file of docs/. where: the page's address; ready: what to wait for; press: a button to press first, `times` times."""

    file: str
    scheme: str
    where: dict[str, object] = field(default_factory=dict)
    ready: str = "[data-state=identical], [data-state=end]"
    press: str = ""
    times: int = 1


def pictures(steps: int, others: list[str]) -> Iterator[Picture]:
    """The pictures of a run with this many steps."""
    step = 2 * steps // 30 * 10
    yield Picture("studio-opening", "light", {}, "[data-act=end]", "next", 2)
    yield Picture("studio-numbers", "light", {"step": step, "side": "writes"})
    yield Picture("studio-step", "dark", {"step": step, "view": "step", "phase": 1, "token": 40}, ".stages")
    yield Picture("studio-backward", "light", {"step": step, "view": "step", "phase": 3, "token": 40}, ".stages")
    playground = {"step": steps, "view": "play", "prompt": "The ", "top_p": 0.9, "top_k": 20}
    yield Picture("studio-playground", "dark", playground, "[data-proof]", "birth, half-way, now")
    yield Picture("studio-tour", "light", {"step": step, "tour": 7}, "[data-station]")
    yield Picture("studio-health", "light", {"step": step, "view": "health"}, "[data-verdict]")
    yield Picture("studio-new-run", "dark", {"step": step}, "[data-plan]", "continue from")
    if others:
        compared = {"step": step, "view": "compare", "with": ",".join(others)}
        yield Picture("studio-compare", "light", compared, "[data-differs]")


def main() -> None:
    """Start the studio, take the pictures, and stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run that was trained to its end")
    parser.add_argument("others", type=Path, nargs="*", help="runs to compare it with")
    parser.add_argument("--out", type=Path, default=DOCS, help="where the pictures go")
    given = parser.parse_args()
    steps, name = RunReader(given.run).steps_made(), given.run.resolve().name
    browser = next((path for known in BROWSERS if (path := shutil.which(known))), None)
    if browser is None:
        sys.exit("There is no Chromium on this machine. Install one, then try again.")
    with studio(given.run, *given.others) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=QUIET)
        for picture in pictures(steps, [other.resolve().name for other in given.others]):
            context = chromium.new_context(viewport=SIZE, color_scheme=picture.scheme, reduced_motion="reduce")
            page = context.new_page()
            page.goto(f"{address}&{urlencode({'run': name} | picture.where)}" if picture.where else address)
            save(page, given.out / f"{picture.file}.jpg", picture)
            context.close()
        chromium.close()


def save(page: Page, file: Path, picture: Picture) -> None:
    """Wait until everything is shown, and write the page as a JPEG of at most LARGEST_BYTES."""
    if picture.where and picture.where.get("view") != "compare":  # this view has no timeline
        page.wait_for_selector("[data-state=identical], [data-state=end]", timeout=120_000)
    for _ in range(picture.times if picture.press else 0):
        page.get_by_role("button", name=picture.press).click()
    page.wait_for_selector(picture.ready, timeout=120_000)
    page.wait_for_function("() => !document.body.innerText.includes('asking the model…')", timeout=60_000)
    page.wait_for_function("() => window.vitrine?.shown()?.exact ?? true", timeout=60_000)
    page.get_by_role("button", name="stop", exact=True).wait_for(state="hidden", timeout=60_000)
    page.wait_for_timeout(2500)  # until the last frames are painted
    for quality in range(92, 40, -6):
        content = page.screenshot(type="jpeg", quality=quality)
        if len(content) < LARGEST_BYTES:
            break
    file.write_bytes(content)
    print(f"{file}  {len(content):,} bytes")


@contextmanager
def studio(*runs: Path) -> Iterator[str]:
    """Start `vitrine studio` on these runs; returns its address."""
    command = [sys.executable, "-m", "vitrine", "studio", *map(str, runs), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    main()
