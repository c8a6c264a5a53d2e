"""The article's claims: the view has a live number for each, and the page of the documentation says the same."""

import json
import re
from pathlib import Path

from tests.studio.test_page import CELL, STEP, Browser, browser, pytestmark  # noqa: F401

ROOT = Path(__file__).parents[2]
CLAIMS = json.loads((ROOT / "web/src/lib/article.json").read_text(encoding="utf-8"))
KNOWN = "() => [...document.querySelectorAll('[data-shown]')].every(shown => !shown.innerText.includes('…'))"


def test_the_documentation_goes_through_the_same_claims_in_the_same_order():
    text = (ROOT / "docs/article.md").read_text(encoding="utf-8")
    places = [
        text.index(f"«{claim['says']}»\n\n**{claim['verdict'].capitalize()}.** {claim['why']}") for claim in CLAIMS
    ]
    assert places == sorted(places)
    assert len(places) == text.count("\n## ") == 10


def test_the_experiment_with_biases_is_the_documented_one():
    source = (ROOT / "web/src/lib/article.ts").read_text(encoding="utf-8")
    found = re.search(r"with: ([\d.]+), without: ([\d.]+), seeds: (\d+)", source)
    assert found
    text = " ".join((ROOT / "docs/experiments.md").read_text(encoding="utf-8").split())
    assert f"with biases (104,128 parameters) {float(found[1]):.4f} on average" in text
    assert f"without (102,848) {float(found[2]):.4f}" in text


def test_each_claim_is_shown_by_numbers_of_the_open_run_which_lead_to_their_place(browser: Browser):  # noqa: F811
    page = browser.open(step=STEP, cell=CELL, view="article")
    page.wait_for_selector("[data-claim]")
    page.wait_for_function(KNOWN)
    numbers = page.eval_on_selector_all(
        "[data-claim]",
        "claims => claims.map(claim => [claim.dataset.claim,"
        " [...claim.querySelectorAll('[data-value]')].map(number => number.dataset.run)])",
    )
    assert [name for name, _ in numbers] == [claim["name"] for claim in CLAIMS]
    for name, runs in numbers:
        assert runs, name
        assert set(runs) - {"docs/experiments.md"} == {"small"}, name
    page.locator("[data-claim=weights] button").first.click()
    page.wait_for_selector(f"[data-biography='{CELL}']")
    assert "view=" not in page.evaluate("() => location.hash") or "view=map" in page.evaluate("() => location.hash")
