"""What a reader should learn from the page alone: each answer within three clicks, visible without scrolling, and true."""

import contextlib
import json
import math
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.studio.conftest import Studio, serve
from tests.studio.test_page import CELL, OPENING_SEEN, STEP, Browser, browser, pytestmark, sync_api  # noqa: F401

CLAIMS = json.loads((Path(__file__).parents[2] / "web/src/lib/article.json").read_text(encoding="utf-8"))
PLACE = [claim["name"] for claim in CLAIMS]
SEEN = """place => {
  const box = place.getBoundingClientRect();
  if (box.top < 0 || box.left < 0 || box.bottom > innerHeight || box.right > innerWidth) return false;
  for (let p = place.parentElement; p; p = p.parentElement) {
    const around = p.getBoundingClientRect();
    if (getComputedStyle(p).overflowY !== 'visible' && (box.bottom > around.bottom + 1 || box.top < around.top - 1))
      return false;
  }
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return place.contains(top);
}"""  # it is on the screen, in no part that would have to be scrolled, and nothing lies over it


@dataclass
class Reader:
    """Somebody at the page, who is allowed so many clicks."""

    page: "sync_api.Page"
    clicks: int = 0

    def click(self, name: str, role: Any = "button") -> "Reader":
        self.clicks += 1
        self.page.get_by_role(role, name=name, exact=True).first.click()
        return self

    def press(self, selector: str) -> "Reader":
        self.clicks += 1
        self.page.locator(selector).first.click()
        return self

    def reads(self, selector: str, *answers: str) -> str:
        """What stands there, once it says all of this."""
        place = self.page.locator(selector).first
        for answer in answers:
            self.page.wait_for_function(
                "([place, answer]) => document.querySelector(place)?.innerText.includes(answer)", arg=[selector, answer]
            )
        assert place.evaluate(SEEN), f"{selector} cannot be seen without scrolling"
        assert self.clicks <= 3
        return place.inner_text()


@pytest.fixture
def reader(browser: Browser) -> Reader:  # noqa: F811
    browser.open(step=STEP, cell=CELL)
    browser.exact()
    return Reader(browser.page)


@pytest.fixture(scope="module")
def info(studio: Studio) -> dict:
    return studio.json("runs/small")


@pytest.fixture(scope="module")
def phases(studio: Studio) -> dict:
    return studio.json(f"runs/small/step/{STEP}")


@pytest.fixture(scope="module")
def life(studio: Studio) -> dict:
    return studio.json("runs/small/parameter", name=CELL, step=STEP)


def claim(reader: Reader, name: str) -> str:
    """A claim of the article, and the number that shows it."""
    reader.click("article")
    if PLACE.index(name) > 5:
        reader.press(f"nav[aria-label=Claims] button >> nth={PLACE.index(name)}")
    reader.page.wait_for_function(f"() => !document.querySelector('[data-claim={name}]').innerText.includes('…')")
    said = reader.reads(f"[data-claim={name}] [data-shown]")
    return f"{reader.reads(f'[data-claim={name}] .why')} {said}"


def kinds(info: dict) -> dict[str, int]:
    sums = dict.fromkeys(("weight", "embedding", "bias", "gain"), 0)
    for tensor in info["tensors"]:
        sums[tensor["kind"]] += tensor["parameters"]
    return sums


def minus(value: float, digits: int) -> str:
    return f"{value:.{digits}g}".replace("-", "−")


def how_many_parameters_and_which_tensor_holds_most(reader: Reader, info: dict, **_: Any) -> None:
    reader.reads("[data-tour=count]", f"{info['parameters']:,}")
    most = max(info["tensors"], key=lambda tensor: tensor["parameters"])
    reader.click("table").reads("tbody tr[data-tensor]", most["name"], f"{most['parameters']:,}")


def what_a_person_chose(reader: Reader, info: dict, **_: Any) -> None:
    config = info["config"]
    four = [config["model"]["n_layers"], config["model"]["d_model"], config["training"]["batch_size"]]
    reader.reads("[data-tour=hyperparameters] .intro", "learning never changes these")
    said = reader.reads(
        "[data-tour=hyperparameters] [data-chosen-all]", *map(str, four), str(config["optimizer"]["name"])
    )
    assert "batch" in said


def whether_temperature_acts_in_training(reader: Reader, **_: Any) -> None:
    reader.reads("[data-tour=decoding] h3", "AFTER TRAINING")
    reader.reads("[data-tour=decoding] p", "they change the bars, not the weights")


def whether_the_amount_of_data_is_a_parameter(reader: Reader, **_: Any) -> None:
    assert "more data means more steps, not more parameters" in claim(reader, "hyperparameters")


def what_one_weight_connects(reader: Reader, life: dict, **_: Any) -> None:
    reader.click("this number", "tab").reads("[data-biography] .body p", "strength of a connection", life["connects"])


def what_a_bias_is(reader: Reader, info: dict, **_: Any) -> None:
    said = claim(reader, "bias")
    assert "learned like a weight" in said
    assert f"{kinds(info)['bias']:,} biases" in said
    assert "have none and lose little" in said


def whether_all_parameters_are_weights(reader: Reader, info: dict, **_: Any) -> None:
    said = claim(reader, "two-kinds")
    for kind, words in (("weight", "are weights"), ("embedding", "embeddings"), ("bias", "biases"), ("gain", "gains")):
        assert f"{kinds(info)[kind]:,} {words}" in said


def what_they_were_before_the_first_step(reader: Reader, info: dict, **_: Any) -> None:
    said = claim(reader, "random")
    assert "the same seed gives the same values, and another seed others" in said
    assert f"seed {info['config']['training']['seed']}" in said


def the_loss_before_learning(reader: Reader, info: dict, studio: Studio, **_: Any) -> None:
    said = claim(reader, "random")
    first = studio.json("runs/small/series", name="loss", first=0, last=0, pixels=1)["low"][0]
    tokens = round(math.exp(info["guessing_loss"]))
    assert f"{first:.4g}" in said
    assert f"guessing among {tokens} tokens has the logarithm of their number, {info['guessing_loss']:.4g}" in said


def what_was_predicted_in_a_step(reader: Reader, phases: dict, **_: Any) -> None:
    forward = phases["forward"]
    reader.click("step")
    reader.reads("[data-tour=batch] .text", forward["tokens"][-1].strip())
    likeliest, p = forward["probabilities"][0]
    said = reader.reads("[data-tour=out] li", f"{100 * p:.0f}%" if p >= 0.1 else f"{100 * p:.1f}%")
    assert likeliest.strip() in said


def the_loss_of_one_token(reader: Reader, phases: dict, **_: Any) -> None:
    reader.click("step").click("2 loss how surprised was it")
    loss = phases["loss"]["tokens"][phases["forward"]["token"]]
    reader.reads("[data-tour=out] .box", "minus the logarithm", "−ln", f"{loss:.4g}")


def what_a_gradient_is_checked_by_hand(reader: Reader, life: dict, **_: Any) -> None:
    reader.click("this number", "tab").click("nudge", "tab")
    reader.page.wait_for_selector("[data-nudge]")
    reader.reads("[data-biography] .body p", "its sign says which way the loss rises, its size how fast")
    gradient = reader.page.locator("[data-figure='gradient'][data-value]").last
    assert np.float32(gradient.get_attribute("data-value")) == np.float32(life["gradient"])
    assert gradient.evaluate(SEEN)


def how_one_weight_changed(reader: Reader, life: dict, **_: Any) -> None:
    reader.click("this number", "tab").reads("[data-biography] .four", "before", "gradient", "update", "after")
    for what, key in (("parameter", "before"), ("gradient", "gradient"), ("update", "update"), ("parameter", "after")):
        shown = reader.page.locator(f".four [data-figure='{what}'][data-value='{life[key]}']")
        assert shown.count() == 1, key
    reader.click("rule", "tab").reads("[data-biography] .formula", life["rule"]["formula"].split()[0])
    reader.reads("[data-biography] .terms .sum", "the rule gives")


def whether_a_larger_gradient_is_a_larger_update(reader: Reader, **_: Any) -> None:
    said = claim(reader, "backward")
    assert "a larger gradient is not always a larger update" in said
    assert "% of the numbers moved along their gradient" in said


def which_part_moves_fastest(reader: Reader, phases: dict, **_: Any) -> None:
    moves = {
        tensor["name"]: tensor["update_norm"]["value"] / tensor["weight_norm"]["value"]
        for tensor in phases["tensors"]
        if tensor["weight_norm"]["value"]
    }
    reader.click("table").click("moves")
    reader.reads("tbody tr[data-tensor]", max(moves, key=moves.__getitem__))
    reader.page.get_by_role("button", name="moves").click()
    reader.clicks += 1
    reader.reads("tbody tr[data-tensor]", min(moves, key=moves.__getitem__))


def what_the_learning_rate_is_now(reader: Reader, phases: dict, info: dict, **_: Any) -> None:
    reader.reads("[data-tour=hyperparameters] .now", f"{phases['update']['learning_rate']:.4g}")
    reader.reads("[data-tour=hyperparameters] .schedule", info["config"]["schedule"]["name"])
    reader.click("this number", "tab").click("rule", "tab")
    reader.reads("[data-biography] .formula", "learning rate")


def whether_it_over_fits(reader: Reader, studio: Studio, **_: Any) -> None:
    verdicts = {verdict["name"]: verdict for verdict in studio.json("runs/small/health")["verdicts"]}
    reader.click("health")
    reader.page.wait_for_selector("[data-verdict='over-fitting']")
    reader.reads("[data-verdict='over-fitting'] .words", verdicts["over-fitting"]["sentence"][:30])


def who_set_the_weights(reader: Reader, info: dict, **_: Any) -> None:
    said = claim(reader, "itself")
    assert "No person sets a weight, but people fix the rule, the text and the end of training" in said
    assert f"{info['steps_made']} steps set {info['parameters']:,} numbers" in said


def what_temperature_and_cuts_do_to_the_bars(reader: Reader, **_: Any) -> None:
    reader.click("playground")
    reader.page.wait_for_selector("[data-bars=ready]")
    bars = reader.page.locator("[data-bars] [data-token]")

    def largest() -> float:
        return max(float(kept) for kept in bars.evaluate_all("bars => bars.map(bar => bar.dataset.kept)"))

    reader.page.get_by_label("temperature", exact=True).fill("0.2")
    cold = largest()
    reader.page.get_by_label("temperature", exact=True).fill("1.5")
    assert largest() < cold
    reader.page.get_by_label("top-k", exact=True).fill("5")
    reader.reads("[data-cut='top-k']", "cuts")
    assert sum(cut == "" for cut in bars.evaluate_all("bars => bars.map(bar => bar.dataset.cut)")) == 5
    reader.page.get_by_label("top-k", exact=True).fill("0")
    reader.page.get_by_label("top-p", exact=True).fill("0.9")
    reader.reads("[data-cut='top-p']", "cuts")


def what_an_activation_is(reader: Reader, **_: Any) -> None:
    said = claim(reader, "weights")
    assert "its activation, is computed anew for each text" in said


def what_optimizer_state_adds(reader: Reader, info: dict, **_: Any) -> None:
    reader.click("health")
    reader.reads("[aria-label=Memory] ul", "optimizer", f"{info['memory']['computed']['optimizer'] / 1e6:.3g} MB")


def what_it_wrote_at_birth_half_way_and_now(reader: Reader, **_: Any) -> None:
    reader.click("playground").click("birth, half-way, now")
    for number, label in enumerate(("at birth", "half-way", "here")):
        reader.reads(f".texts article:nth-of-type({number + 1}) h3", label)


def what_two_runs_chose_differently(reader: Reader, studio: Studio, **_: Any) -> None:
    reader.click("compare").press(".choices button >> text=other")
    differs = studio.json("compare", run=["small", "other"], pixels=400)["differs"]
    assert "optimizer.name" in {row["key"] for row in differs}
    reader.reads("[data-differs='optimizer.name']", "muon")
    reader.reads("[data-result^='validation loss']")


ROUTES: list[Callable[..., None]] = [
    how_many_parameters_and_which_tensor_holds_most,
    what_a_person_chose,
    whether_temperature_acts_in_training,
    whether_the_amount_of_data_is_a_parameter,
    what_one_weight_connects,
    what_a_bias_is,
    whether_all_parameters_are_weights,
    what_they_were_before_the_first_step,
    the_loss_before_learning,
    what_was_predicted_in_a_step,
    the_loss_of_one_token,
    what_a_gradient_is_checked_by_hand,
    how_one_weight_changed,
    whether_a_larger_gradient_is_a_larger_update,
    which_part_moves_fastest,
    what_the_learning_rate_is_now,
    whether_it_over_fits,
    who_set_the_weights,
    what_temperature_and_cuts_do_to_the_bars,
    what_an_activation_is,
    what_optimizer_state_adds,
    what_it_wrote_at_birth_half_way_and_now,
    what_two_runs_chose_differently,
]


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.__name__)
def test_the_page_says(
    route: Callable[..., None], reader: Reader, studio: Studio, info: dict, phases: dict, life: dict
):
    route(reader, studio=studio, info=info, phases=phases, life=life)


def test_the_page_says_where_and_why_a_training_went_wrong(chromium: "sync_api.Browser", runs: Path, tmp_path: Path):
    sick = Path(shutil.copytree(runs / "small", tmp_path / "small"))
    with contextlib.closing(sqlite3.connect(sick / "run.sqlite")) as history, history:
        history.execute("UPDATE steps SET loss = loss + 30 WHERE step > 40")
    with serve(sick) as studio:
        context = chromium.new_context(viewport={"width": 1280, "height": 720})
        context.add_init_script(OPENING_SEEN)
        page = Browser(context.new_page(), studio).open(step=100)
        page.wait_for_selector("main")
        flag = studio.json("runs/small/headline")["headline"]
        reader = Reader(page).press("[data-flag]")
        assert page.get_attribute("[data-flag]", "data-flag") == str(flag["step"])
        reader.reads("#wrong", flag["blame"], flag["sentence"], f"open step {flag['step']}")
        page.keyboard.press("Escape")
        head = studio.json("runs/small/health")["headline"]
        assert head["blame"] == flag["blame"]
        reader.click("health").reads("[data-headline]", head["blame"])
        context.close()
