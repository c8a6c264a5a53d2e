"""The page's views beside the parameter map: what they draw is what was recorded, and what they start trains."""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.studio.conftest import Studio, serve
from tests.studio.test_page import OPENING_SEEN, Browser, pytestmark, sync_api  # noqa: F401 - it skips
from vitrine.runs.reader import RunReader

STEP = 77


@pytest.fixture
def seen(chromium: "sync_api.Browser", studio: Studio, other: Path) -> Iterator[Browser]:
    """A page that has two runs to look at."""
    context = chromium.new_context(viewport={"width": 1280, "height": 720}, reduced_motion="reduce")
    browser = Browser(context.new_page(), studio)
    yield browser
    context.close()
    assert browser.said == []


def numbers(text: str) -> list[float]:
    """What an attribute of a drawn curve holds."""
    return [float(part) for part in text.split()]


def test_what_was_chosen_differently_and_the_curves_of_two_runs_are_the_true_ones(seen: Browser, studio: Studio):
    page = seen.open(view="compare", **{"with": "other"})
    page.wait_for_selector("[data-differs]")
    truth = studio.json("compare", run=["small", "other"], pixels=400)
    keys = "rows => rows.map(row => row.dataset.differs)"
    chosen = page.eval_on_selector_all("[data-differs]", keys)
    assert "optimizer.name" in chosen
    assert "schedule.warmup_steps" not in chosen  # it follows from the number of steps
    page.get_by_role("button", name="what follows from it").click()
    shown = page.eval_on_selector_all("[data-differs]", keys)
    assert shown[: len(chosen)] == chosen
    assert sorted(shown) == sorted(row["key"] for row in truth["differs"])
    row = page.locator('[data-differs="optimizer.name"] td')
    assert row.all_inner_texts() == ["adamw", "muon"]
    for axis, label in (("steps", "by step"), ("tokens", "by tokens"), ("seconds", "by time")):
        page.get_by_role("button", name=label).click()
        for run in truth["runs"]:
            curve = page.locator(f'[data-curve="{run["name"]}"]')
            page.wait_for_function(
                "([name, last]) => Number(document.querySelector(`[data-curve='${name}']`).dataset.x.split(' ').at(-1)) === last",
                arg=[run["name"], run["loss"][axis][-1]],
            )
            assert numbers(curve.get_attribute("data-x")) == run["loss"][axis]
            assert numbers(curve.get_attribute("data-low")) == run["loss"]["low"]
            losses = curve.locator("td").evaluate_all("cells => cells.map(cell => Number(cell.textContent))")
            assert losses == run["validation"]["loss"]
    page.wait_for_function("() => location.hash.includes('with=other') && location.hash.includes('axis=seconds')")
    parameters = page.locator('[data-result="learned numbers"] td').all_inner_texts()
    assert parameters == [f"{run['parameters']:,}" for run in truth["runs"]]


def test_a_comparison_reads_what_was_recorded_at_the_place_it_names(seen: Browser, studio: Studio):
    page = seen.open(view="compare", **{"with": "other"})
    page.wait_for_selector("[data-result]")
    page.locator(".u-over").hover(position={"x": 1, "y": 60})
    small, _ = studio.json("compare", run=["small", "other"], pixels=400)["runs"]
    read = page.locator('[data-reading] [data-figure="loss of the batch"]').first
    assert read.get_attribute("data-step") == "0"
    assert float(read.get_attribute("data-value")) == small["loss"]["low"][0]
    assert f"{small['loss']['low'][0]:.3f} at step 0" in page.inner_text("[data-reading]")


def test_a_run_is_added_to_a_comparison_and_left_out_again(seen: Browser):
    page = seen.open(view="compare")
    page.get_by_role("button", name="other").click()
    page.wait_for_selector('[data-curve="other"]', state="attached")
    page.get_by_role("button", name="Leave other out").click()
    page.wait_for_selector("text=Which run should small be compared with?")


def test_health_draws_the_curves_that_a_verdict_was_judged_by(seen: Browser, studio: Studio):
    page = seen.open(view="health", step=100)
    page.wait_for_selector("[data-verdict]", timeout=120_000)
    verdicts = studio.json("runs/small/health")["verdicts"]
    drawn = 0
    for verdict in verdicts:
        row = page.locator(f'[data-verdict="{verdict["name"]}"]')
        assert row.get_attribute("data-level") == verdict["level"]
        assert verdict["sentence"] in row.inner_text()
        plot = verdict["plot"]
        for name in plot["series"] if plot else []:
            path = row.locator(f'[data-series="{name}"]')
            path.wait_for(state="attached")
            series = studio.json("runs/small/series", name=name, first=plot["first"], last=plot["last"], pixels=176)
            low = [value for value in series["low"] if value is not None]
            assert numbers(path.get_attribute("data-low")) == low
            drawn += 1
        if plot and not plot["series"]:
            probed = row.locator("[data-probed]").evaluate_all(
                "dots => dots.map(dot => [Number(dot.dataset.probed), Number(dot.dataset.value)])"
            )
            assert probed == [list(point) for point in plot["points"]]
    assert drawn >= 4


def test_health_begins_with_the_headline_and_what_to_try(chromium: "sync_api.Browser", runs: Path, tmp_path: Path):
    sick = Path(shutil.copytree(runs / "small", tmp_path / "small"))
    with contextlib.closing(sqlite3.connect(sick / "run.sqlite")) as history, history:
        history.execute("UPDATE steps SET loss = loss + 30 WHERE step > 40")
    with serve(sick) as studio:
        context = chromium.new_context(viewport={"width": 1280, "height": 720})
        context.add_init_script(OPENING_SEEN)
        page = Browser(context.new_page(), studio).open(view="health", step=100)
        page.wait_for_selector("[data-headline]", timeout=120_000)
        head = studio.json("runs/small/health")["headline"]
        assert (head["blame"], head["step"]) == ("learning rate too high", 41)
        first = page.locator("[data-verdict]").first
        assert first.get_attribute("data-verdict") == head["name"]
        assert first.locator("[data-headline]").inner_text() == head["blame"]
        assert head["cause"] in first.inner_text()
        context.close()


def test_health_shows_each_part_over_time_and_the_memory_by_part(seen: Browser, studio: Studio):
    page = seen.open(view="health")
    page.wait_for_selector("[data-layer]", state="attached")
    for statistic in ("weight_norm", "gradient_norm", "update_ratio"):
        layers = studio.json("runs/small/layers", statistic=statistic, by="part", pixels=110)
        for row in layers["rows"]:
            path = page.locator(f'[data-layer="{row["name"]}/{statistic}"]')
            assert numbers(path.get_attribute("data-low")) == row["low"]
    computed = studio.json("runs/small")["memory"]["computed"]
    bars = page.locator("[data-memory]").evaluate_all(
        "bars => bars.map(b => [b.dataset.memory, Number(b.dataset.bytes)])"
    )
    assert dict(bars) == computed


def test_the_time_line_is_a_slider_for_the_keyboard(seen: Browser):
    page = seen.open(step=80)
    slider = page.get_by_role("slider", name="Step")
    slider.focus()
    for key, step in (("ArrowRight", 81), ("ArrowUp", 82), ("ArrowLeft", 81), ("PageUp", 97), ("PageDown", 81),
                      ("PageDown", 65), ("Home", 0), ("ArrowLeft", 0), ("End", 160), ("ArrowRight", 160)):  # fmt: skip
        page.keyboard.press(key)
        assert slider.get_attribute("aria-valuenow") == str(step), key
    assert slider.get_attribute("aria-valuetext").startswith("step 160 of 160")
    assert slider.get_attribute("aria-valuemax") == "160"


def test_events_stand_on_the_time_line_with_their_words(seen: Browser):
    page = seen.open(step=80)
    page.locator("[data-words][aria-label^='step 160: ended']").wait_for()  # the events come one after the other
    event = page.locator("[data-words]").last
    assert event.get_attribute("aria-label") == "step 160: ended: all its steps were made"
    event.click()
    assert page.get_by_role("slider", name="Step").get_attribute("aria-valuenow") == "160"


def test_the_backward_pass_shows_the_gradient_of_each_tensor(seen: Browser, studio: Studio):
    page = seen.open(step=STEP, view="step", phase=3)
    page.wait_for_selector("[data-part]", timeout=120_000)
    phases = studio.json(f"runs/small/step/{STEP}")
    norms = {row["name"]: row for row in phases["tensors"]}
    shown = page.get_attribute('[data-part="block 1 expand"]', "data-size")
    assert float(shown) == norms["blocks.1.mlp.expand.weight"]["gradient_norm"]["value"]
    page.keyboard.press("Space")
    page.wait_for_selector('[data-phase="4"]')
    tensor = norms["blocks.0.attention.query.weight"]
    shown = page.get_attribute('[data-part="block 0 query"]', "data-size")
    assert float(shown) == pytest.approx(tensor["update_norm"]["value"] / tensor["weight_norm"]["value"])
    drawn = page.locator("svg[data-p]")
    assert float(drawn.get_attribute("data-p")) == phases["forward"]["target_probability"]
    assert float(drawn.get_attribute("data-loss")) == phases["loss"]["tokens"][phases["forward"]["token"]]


def test_writing_is_proven_to_change_no_parameter(seen: Browser, runs: Path):
    page = seen.open(step=160, view="play", prompt="The")
    page.wait_for_selector("[data-bars=ready]")
    page.get_by_label("length").fill("8")
    page.get_by_role("button", name="birth, half-way, now").click()
    proof = page.wait_for_selector("[data-proof=true]", timeout=120_000)
    total = sum(tensor["parameters"] for tensor in seen.studio.json("runs/small")["tensors"])
    assert f"0 of {total:,} parameters changed" in proof.inner_text()
    page.get_by_role("button", name="stop", exact=True).wait_for(state="hidden", timeout=120_000)
    proof.click()
    told = page.inner_text(".digests")
    for step in (0, 160):
        manifest = json.loads((runs / "small" / "keyframes" / f"step-{step:08}" / "manifest.json").read_text())
        assert told.count(manifest["digest"][:16]) == 2, step


def test_a_run_goes_on_from_a_keyframe_with_another_learning_rate(
    chromium: "sync_api.Browser",
    runs: Path,
    tmp_path: Path,
):
    (tmp_path / "runs").mkdir()
    with serve(tmp_path / "runs", runs / "small") as studio:
        context = chromium.new_context(viewport={"width": 1280, "height": 720})
        browser = Browser(context.new_page(), studio)
        page = browser.page
        browser.open(step=130)
        page.get_by_role("button", name="continue from 120").click()
        page.get_by_label("steps", exact=True).fill("12")
        page.get_by_placeholder("search").fill("learning_rate")
        page.locator('[id="set-optimizer.learning_rate"]').fill("0.5x")
        page.wait_for_selector('[data-refused="optimizer.learning_rate"]', timeout=120_000)
        assert "0.5x" in page.inner_text('[data-refused="optimizer.learning_rate"]')
        page.locator('[id="set-optimizer.learning_rate"]').fill("0.0007")
        page.wait_for_selector("[data-plan]", timeout=120_000)
        page.get_by_role("button", name="train on from step 120").click()
        page.wait_for_function("() => window.vitrine?.shown()?.wanted === 12", timeout=120_000)
        page.wait_for_selector("[data-state=end]", timeout=120_000)
        context.close()
        made = RunReader(tmp_path / "runs" / "small-from-120")
        assert made.config.optimizer.learning_rate == 0.0007
        assert made.config.training.parent.endswith("small@120")
        birth = studio.cells("small-from-120", tensor="blocks.0.mlp.expand.weight", step=0, mode="value")
        then = studio.cells("small", tensor="blocks.0.mlp.expand.weight", step=120, mode="value")
        assert birth.tobytes() == then.tobytes()
        assert [line for line in browser.said if "400" not in line] == []  # the plan that was refused
