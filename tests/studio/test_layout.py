"""The page at every size: nothing is cut off, outside of the window or under something else; and anyone can use it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.studio.conftest import Studio
from tests.studio.test_page import CELL, OPENING_SEEN, STEP, Browser, pytestmark, sync_api  # noqa: F401

AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
SIZES = [(1280, 720), (1366, 768), (1440, 900), (1920, 1080), (1024, 700), (820, 1180), (390, 844)]
OFTEN = [(1280, 720), (390, 844)]  # the others in the long tests
VIEWS = {
    "map": ({}, "[data-lens]"),
    "number": ({"side": "number"}, "[data-biography]"),
    "table": ({"table": 1}, "[data-tensors]"),
    "forward": ({"view": "step", "phase": 1}, "[data-phase='1'] .says"),
    "backward": ({"view": "step", "phase": 3}, "[data-phase='3'] .says"),
    "update": ({"view": "step", "phase": 4}, "[data-phase='4'] .says"),
    "playground": ({"view": "play"}, "[data-bars=ready]"),
    "health": ({"view": "health"}, "[data-verdict]"),
    "article": ({"view": "article"}, "[data-claim=random] [data-value]"),
    "compare": ({"view": "compare", "with": "other"}, "[data-result]"),
    "tour": ({"tour": 4}, "[data-station='4'] .options"),
}
MISFITS = """() => {
  const found = [], [wide, high] = [document.documentElement.clientWidth, innerHeight], single = innerWidth < 900;
  const name = at => `${at.tagName.toLowerCase()} «${(at.innerText || at.ariaLabel || '').trim().slice(0, 40)}»`;
  const scrolls = at => /auto|scroll/.test(getComputedStyle(at).overflowX + getComputedStyle(at).overflowY);
  const hides = at => /hidden|clip/.test(getComputedStyle(at).overflowX);
  const above = function*(at) { for (let p = at.parentElement; p; p = p.parentElement) yield p; };
  if (document.documentElement.scrollWidth > wide) found.push('the page is wider than its window');
  if (!single && document.documentElement.scrollHeight > high) found.push('the page is higher than its window');
  for (const at of document.body.querySelectorAll('*')) {
    if (at.closest('.hidden, svg, canvas, .uplot, [data-preview], [role=tooltip]') || !at.checkVisibility()) continue;
    const active = at.matches('button, select, input, textarea, summary');
    if (!active && ![...at.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
    const box = at.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const inside = [...above(at)].some(scrolls);
    if (!inside && (box.left < -1 || box.right > wide + 1)) found.push('beside the window: ' + name(at));
    if (!inside && !single && (box.top < -1 || box.bottom > high + 1)) found.push('above or below the window: ' + name(at));
    if (hides(at) && !active && at.scrollWidth > at.clientWidth + 1) found.push('cut off: ' + name(at));
    for (const around of above(at)) {
      if (scrolls(around)) break;
      const edge = around.getBoundingClientRect();
      if (hides(around) && (box.right > edge.right + 1.5 || box.left < edge.left - 1.5 || box.bottom > edge.bottom + 3)) {
        found.push('cut off by what is around it: ' + name(at));
        break;
      }
    }
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    if (!active || inside || x < 0 || y < 0 || x > wide || y > high) continue;
    const top = document.elementFromPoint(x, y);
    if (top && !at.contains(top) && !top.contains(at) && !top.closest('[role=dialog], [aria-label^="The loss curve"]'))
      found.push(`${name(at)} lies under ${name(top)}`);
  }
  return [...new Set(found)];
}"""


def opened(chromium: "sync_api.Browser", studio: Studio, size: tuple[int, int], **how: str) -> Browser:
    """A window of a size, with scrollbars that take room on a desk and none on a phone."""
    context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, has_touch=size[0] < 900, **how)
    context.add_init_script(OPENING_SEEN)
    return Browser(context.new_page(), studio)


def views(seen: Browser) -> Iterator[str]:
    """Stand in every view, one after the other."""
    seen.open(step=STEP, cell=CELL)
    seen.exact()
    for name, (place, there) in VIEWS.items():
        seen.go(step=STEP, cell=CELL, **place)
        seen.page.wait_for_selector(there, state="attached")
        seen.page.evaluate("() => new Promise(done => setTimeout(done, 150))")
        yield name


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(size, marks=[] if size in OFTEN else [pytest.mark.full], id="x".join(map(str, size)))
        for size in SIZES
    ],
)
def test_nothing_is_cut_off_or_covered(chromium: "sync_api.Browser", studio: Studio, size: tuple[int, int]):
    seen = opened(chromium, studio, size)
    misfits = {view: found for view in views(seen) if (found := seen.page.evaluate(MISFITS))}
    seen.page.context.close()
    assert misfits == {}
    assert seen.said == []


@pytest.mark.usefixtures("other")
@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed (npm ci in web/)")
@pytest.mark.full
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_can_be_used_by_anyone(chromium: "sync_api.Browser", studio: Studio, scheme: str):
    seen = opened(chromium, studio, SIZES[0], color_scheme=scheme, bypass_csp=True)
    found = {}
    for view in views(seen):
        seen.page.evaluate(AXE.read_text(encoding="utf-8"))
        report = seen.page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
        grave = [one for one in report["violations"] if one["impact"] in ("serious", "critical")]
        found |= {f"{view}: {one['id']}": [node["target"] for node in one["nodes"]] for one in grave}
    seen.page.context.close()
    assert found == {}


def test_the_tour_is_walked_by_the_keyboard_alone(chromium: "sync_api.Browser", studio: Studio):
    seen = opened(chromium, studio, SIZES[0])
    page = seen.open(step=STEP, cell=CELL)
    seen.exact()
    page.locator("[data-tour-button]").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-station=start]")
    page.keyboard.press("Enter")
    for station in range(1, 11):
        page.wait_for_selector(f"[data-station='{station}']")
        assert page.evaluate("() => document.activeElement.closest('[data-station]') !== null")
        page.wait_for_selector("[data-station] .ask")
        page.keyboard.press("ArrowRight")
    page.wait_for_selector("[data-station]", state="detached")
    seen.page.context.close()
    assert seen.said == []


@pytest.mark.parametrize("side", [pytest.param("writes", marks=pytest.mark.full), "number"])
def test_nothing_jumps_while_a_step_is_re_run(chromium: "sync_api.Browser", studio: Studio, side: str):
    seen = opened(chromium, studio, SIZES[0])
    page = seen.open(step=STEP, cell=CELL, side=side)
    seen.exact()
    page.evaluate(
        """() => {
          const boxes = () => JSON.stringify([...document.querySelectorAll('header, main section, [data-tour=timeline]')]
            .filter(part => part.closest('.page') && !part.closest('[popover], dialog'))
            .map(part => { const { x, y, width, height } = part.getBoundingClientRect(); return [x, y, width, height].map(Math.round); }));
          window.stood = new Set([boxes()]);
          window.watching = setInterval(() => window.stood.add(boxes()), 20);
        }"""
    )
    seen.go(step=STEP + 30, cell=CELL, side=side)
    seen.exact()
    assert page.evaluate("() => window.stood.size") == 1
    page.context.close()
