"""When something breaks, the page says what happened, and goes on."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.studio.conftest import Studio, remove, serve, until
from tests.studio.test_page import Browser, pytestmark, sync_api  # noqa: F401 - it skips
from tests.warm import Vitrine

STEP = 77
FAILED = "Failed to load resource"  # the browser's own line about a request that failed


@contextmanager
def window(chromium: "sync_api.Browser", studio: Studio) -> Iterator[Browser]:
    """A page of a browser of its own, let in; its console has nothing but failed requests."""
    context = chromium.new_context(viewport={"width": 1280, "height": 720})
    seen = Browser(context.new_page(), studio)
    yield seen
    context.close()
    assert [line for line in seen.said if FAILED not in line] == []


@pytest.fixture
def own(runs: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the run, to be broken."""
    shutil.copytree(runs / "small", tmp_path / "runs" / "small")
    return tmp_path / "runs"


def test_a_worker_that_is_killed_is_named_and_the_step_can_be_asked_for_again(
    chromium: "sync_api.Browser",
    own: Path,
):
    with serve(own) as studio, window(chromium, studio) as seen:
        studio.json("runs/small/step/3")  # the worker is there
        pids = studio.workers()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # it works on it for ever
        page = seen.open(step=STEP)
        page.wait_for_selector("[data-state=replaying]")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        page.wait_for_selector("[data-state=refused]")
        why = page.get_by_role("dialog", name="Why the step was not re-run")
        assert "ended unexpectedly" in why.inner_text()
        why.get_by_role("button", name="try again").click()
        seen.exact()


def test_a_studio_that_is_started_anew_lets_the_page_go_on(chromium: "sync_api.Browser", own: Path):
    port = free_port()
    with started(own, port) as first, window(chromium, first) as seen:
        page = seen.open(step=150)
        page.wait_for_function("() => window.vitrine?.shown()?.exact")
        first.process.kill()
        told = page.wait_for_selector("[data-broken=down]")  # beside the sentence of a request that was on its way
        assert f"vitrine studio --port {port}" in told.inner_text()
        first.process.wait()
        with started(own, port) as second:
            page.wait_for_selector("[data-broken=locked]", timeout=120_000)
            other = page.context.new_page()
            other.goto(second.address)  # as its sentence says
            page.wait_for_selector("[data-broken]", state="detached", timeout=120_000)
            page.locator("[role=slider]").focus()
            page.keyboard.press("ArrowLeft")
            page.wait_for_function("() => location.hash.includes('step=149')")
            seen.exact()


def test_a_run_that_is_deleted_is_gone_until_another_of_its_name_is_made(
    chromium: "sync_api.Browser",
    own: Path,
):
    shutil.copytree(own / "small", own.parent / "kept")
    shutil.copytree(own / "small", own / "second")
    with serve(own) as studio, window(chromium, studio) as seen:
        page = seen.open(step=150)
        page.wait_for_function("() => window.vitrine?.shown()?.exact")
        remove(own / "small")
        page.wait_for_selector("[data-broken=gone]", timeout=120_000)
        told = page.locator("[data-broken]")
        assert "The run small is gone" in told.inner_text()
        assert told.get_by_role("button", name="second").is_visible()
        with sqlite3.connect(own.parent / "kept" / "run.sqlite") as history:  # born later, and not so far yet
            history.execute("UPDATE events SET time_s = time_s + 100 WHERE kind = 'born'")
            history.execute("DELETE FROM steps WHERE step >= 100")
        (own.parent / "kept").rename(own / "small")
        page.wait_for_function("() => document.querySelector('[role=slider]')?.ariaValueMax === '100'", timeout=120_000)
        page.wait_for_selector("[data-broken]", state="detached")
        remove(own / "small")
        told.get_by_role("button", name="second").click(timeout=120_000)
        page.wait_for_selector("[data-broken]", state="detached")
        page.wait_for_function("() => location.hash.includes('run=second')")


def test_two_tabs_stand_at_two_steps(chromium: "sync_api.Browser", studio: Studio):
    with window(chromium, studio) as one, window(chromium, studio) as two:
        one.open(step=71)
        two.open(step=133)
        one.exact()
        two.exact()
        steps = [seen.page.evaluate("() => window.vitrine.shown().step") for seen in (one, two)]
        assert steps == [71, 133]


def test_an_answer_that_comes_late_for_a_step_that_was_left_is_dropped(
    chromium: "sync_api.Browser",
    studio: Studio,
):
    with window(chromium, studio) as seen:
        page, held = seen.page, []
        page.route(f"**/api/runs/small/step/{STEP}?*", lambda route: held.append(route))
        seen.open(step=STEP)
        page.wait_for_selector("[data-state=replaying]")
        until(lambda: page.wait_for_timeout(50) or held)
        page.locator("[role=slider]").focus()
        page.keyboard.press("ArrowRight")
        seen.exact()
        for route in held:
            route.continue_()
        page.wait_for_timeout(300)
        assert page.evaluate("() => window.vitrine.shown().step") == STEP + 1
        assert page.locator("[role=slider]").get_attribute("aria-valuenow") == str(STEP + 1)


def test_a_comparison_that_fails_is_said_plainly_with_what_differs(
    chromium: "sync_api.Browser",
    own: Path,
):
    with sqlite3.connect(own / "small" / "run.sqlite") as history:
        history.execute("UPDATE steps SET loss = loss + 0.001 WHERE step = ?", (STEP,))
    with serve(own) as studio, window(chromium, studio) as seen:
        page = seen.open(step=STEP)
        chip = page.wait_for_selector("[data-state=differs]", timeout=120_000)
        assert "not identical" in chip.inner_text()
        chip.click()
        told = page.get_by_role("dialog", name="What was compared").inner_text()
        assert "What differs" in told
        assert f"{STEP}" in told
        assert not page.evaluate("() => window.vitrine.shown().exact")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(runs: Path, port: int) -> Iterator[Studio]:
    """A studio on this port; it may be killed meanwhile."""
    process = Vitrine(["studio", runs, "--no-browser", "--port", port], stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()
    try:
        yield Studio(process, address, runs, None)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
