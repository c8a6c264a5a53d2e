"""Every number on the page says what it is, is written truly, and has the same value wherever it stands."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.studio.test_page import CELL, STEP, Browser, browser, pytestmark  # noqa: F401

LOOSE = """() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, at = node.parentElement;
    if (!/[0-9]/.test(node.textContent) || !at.checkVisibility() || at.closest('.hidden')) continue;
    if (at.closest('[data-figure], [data-text], input, textarea, select, kbd, title')) continue;
    found.push(node.textContent.trim());
  }
  return found;
}"""  # digits in visible text that are neither a number of the page nor a name or a text of the run
FIGURES = """() => [...document.querySelectorAll('[data-figure][data-value]')].filter(seen => seen.checkVisibility())
  .map(({ dataset, textContent }) => ({ ...dataset, text: textContent }))"""
UNITS = {"": 1.0, "×": 1.0, "%": 0.01, " MB": 1e6, " GB": 1e9, " seconds": 1.0, " minutes": 60.0, " hours": 3600.0}
PLACES = ("step", "place", "tick")  # where something is: not a quantity that could have two values


@dataclass(frozen=True)
class Figure:
    """A number as it is written: its value, and the half of its last digit, in the unit of the value."""

    value: float
    written: float
    half: float


def read(figure: dict[str, str]) -> Figure | None:
    """None: it is not finite."""
    text = re.sub("[,≈]|about ", "", figure["text"].replace("−", "-")).strip()
    found = re.fullmatch(r"(<?)([+-]?)(\d*)\.?(\d*)(?:e(-?\d+))?([%×]?| [A-Za-z]+)", text)
    if not found:
        assert text in ("∞", "-∞", "+∞", "NaN", "not a number", "off", "–", "✕", "under a second"), figure
        return None
    below, sign, whole, decimals, power, mark = found.groups()
    unit = 10.0 ** (int(power or 0) - len(decimals)) * UNITS[mark]
    written = float(f"{sign}{whole or 0}{decimals}") * unit
    scale = float(figure.get("scale", 1))
    value = float(figure["value"])
    if below:
        return Figure(value, written / 2, written / 2)
    return Figure(value, written * scale, unit * scale / 2)


def walk(browser: Browser) -> Iterator[tuple[str, list[str], list[dict[str, str]]]]:  # noqa: F811
    """Every view of the page, at one step."""
    page = browser.page

    def seen(name: str) -> tuple[str, list[str], list[dict[str, str]]]:
        return name, page.evaluate(LOOSE), page.evaluate(FIGURES)

    browser.open(step=STEP, cell=CELL)
    browser.exact()
    page.wait_for_selector("[aria-label='The likeliest next tokens']")
    yield seen("map")
    page.get_by_role("tab", name="this number").click()
    page.wait_for_selector("[data-biography]")
    yield seen("story")
    for tab, there in (
        ("rule", ".formula"),
        ("tensor", "[data-scatter]"),
        ("nudge", "[data-nudge]"),
        ("neuron", ".me"),
    ):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_selector(there)
        yield seen(tab)
    for phase in range(1, 5):
        browser.go(step=STEP, cell=CELL, view="step", phase=phase)
        page.wait_for_selector(f"[data-phase='{phase}'] .says")
        yield seen(f"phase {phase}")
    browser.go(step=STEP, cell=CELL, view="play")
    page.wait_for_selector("[data-bars=ready]")
    yield seen("playground")
    browser.go(step=STEP, cell=CELL, view="health")
    page.wait_for_selector("[data-verdict]")
    yield seen("health")
    browser.go(step=STEP, cell=CELL, view="article")
    page.wait_for_selector("[data-claim=random] [data-value]")
    yield seen("article")
    browser.go(step=STEP, cell=CELL, view="compare", **{"with": "other"})
    page.wait_for_selector("[data-result]")
    yield seen("compare")


def test_no_number_stands_alone_and_none_contradicts_another(browser: Browser, other: Path):  # noqa: F811
    known: dict[tuple[str, ...], tuple[Figure, str]] = {}
    for view, loose, figures in walk(browser):
        assert loose == [], view
        assert figures, view
        for raw in figures:
            figure = read(raw)
            if figure is None:
                continue
            assert abs(figure.value - figure.written) <= figure.half * 1.01 + 1e-12 * abs(figure.value), (view, raw)
            if raw["figure"] in PLACES:
                continue
            key = (raw["figure"], raw.get("of", ""), raw.get("step", ""), raw["run"])
            before, where = known.setdefault(key, (figure, view))
            room = (figure.half + before.half) * 1.01
            assert abs(figure.written - before.written) <= room, (key, view, figure, where, before)
