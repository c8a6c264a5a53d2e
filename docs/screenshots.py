"""Writes the pictures of the studio in docs/, from a run: `python docs/screenshots.py RUN`.

It needs Playwright and a Chromium of the system. Each picture is looked at before it is committed.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Page, sync_playwright

from vitrine.runs.reader import RunReader

DOCS = Path(__file__).parent
SIZE = {"width": 1280, "height": 720}
LARGEST_BYTES = 200_000
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pictures(steps: int) -> list[tuple[str, str, dict[str, object], str]]:
    """File name, light or dark, where the page stands, and what to wait for; the run has so many steps."""
    step = 2 * steps // 30 * 10
    bars = "[data-bars=ready]"
    return [
        ("studio-numbers", "light", {"step": step, "side": "writes"}, "[data-state=identical]"),
        ("studio-step", "dark", {"step": step, "view": "step", "phase": 1, "token": 40}, "[data-phase] .stages"),
        ("studio-playground", "dark", {"step": steps, "view": "play", "prompt": "The function ", "top_p": 0.9}, bars),
    ]


def main() -> None:
    """Start the studio, take the pictures, end it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run that was trained to its end")
    parser.add_argument("--out", type=Path, default=DOCS, help="where the pictures go")
    given = parser.parse_args()
    steps, name = RunReader(given.run).steps_made(), given.run.resolve().name
    browser = next((path for known in BROWSERS if (path := shutil.which(known))), None)
    if browser is None:
        sys.exit("There is no Chromium on this machine. Install one, then try again.")
    with studio(given.run) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=QUIET)
        for file, scheme, where, ready in pictures(steps):
            context = chromium.new_context(viewport=SIZE, color_scheme=scheme, reduced_motion="reduce")
            page = context.new_page()
            page.goto(address)  # lets it in
            page.goto("about:blank")
            page.goto(f"{address.split('/?')[0]}/#{urlencode({'run': name} | where)}")
            save(page, given.out / f"{file}.jpg", ready)
            context.close()
        chromium.close()


def save(page: Page, file: Path, ready: str) -> None:
    """Wait until all is there, and write the page as a JPEG of at most LARGEST_BYTES."""
    page.wait_for_selector("[data-state=identical], [data-state=end]", timeout=120_000)
    page.wait_for_selector(ready, timeout=60_000)
    page.wait_for_function("() => !document.body.innerText.includes('asking the model…')", timeout=60_000)
    page.wait_for_function("() => window.vitrine?.shown().exact ?? true", timeout=60_000)
    if (write := page.get_by_role("button", name="write 200 tokens")).count():
        write.click()
        page.get_by_role("button", name="stop", exact=True).wait_for(state="hidden", timeout=60_000)
    page.wait_for_timeout(2500)  # the last pictures are painted
    for quality in range(92, 40, -6):
        content = page.screenshot(type="jpeg", quality=quality)
        if len(content) < LARGEST_BYTES:
            break
    file.write_bytes(content)
    print(f"{file}  {len(content):,} bytes")


@contextmanager
def studio(run: Path) -> Iterator[str]:
    """`vitrine studio` on one run, and its address."""
    command = [sys.executable, "-m", "vitrine", "studio", str(run), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    main()
