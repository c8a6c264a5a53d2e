"""Who chose each hyperparameter: what a run remembers of it."""

from typing import Any

import pytest

from vitrine.config import Config
from vitrine.presets import Facts, derive
from vitrine.runs.chosen import CHANGED, DEFAULT, Chosen, Layer, chosen_fact, read_chosen, who_chose

LAYERS = (
    Layer("parent", "as in runs/a@3", {"model": {"n_layers": 2, "context": 32, "n_heads": 2}}),
    Layer("preset", "of the preset nano", {"model": {"n_layers": 3, "context": 48}}),
    Layer("you", "given when the run was started", {"model": {"n_layers": 4}, "data": {"corpus": ["a.txt"]}}),
    Layer(None, "", {"data": {"corpus": ["/there/a.txt"]}}),
)


def resolved(**settings: dict[str, Any]) -> tuple[Config, dict[str, str]]:
    return derive(settings, Facts(vocab_size=65, train_tokens=1000))


@pytest.mark.parametrize(
    ("name", "by", "how"),
    [
        ("model.n_layers", "you", "given when the run was started"),
        ("model.context", "preset", "of the preset nano"),
        ("model.n_heads", "parent", "as in runs/a@3"),
        ("model.d_ff", "derived", "8/3 of model.d_model"),
        ("training.batch_size", "default", DEFAULT),
        ("data.corpus", "you", "given when the run was started"),  # the path was only spelled out
    ],
)
def test_each_hyperparameter_was_chosen_by_the_last_layer_that_has_it(name: str, by: str, how: str) -> None:
    config, hows = resolved(model={"n_layers": 4, "context": 48, "n_heads": 2}, data={"corpus": ["/there/a.txt"]})
    found = who_chose(LAYERS, hows, config)[name]
    assert found.by == by
    assert found.how.startswith(how)


def test_auto_gives_a_choice_back() -> None:
    config, hows = resolved()
    layers = (*LAYERS, Layer("you", "", {"model": {"n_layers": "auto"}}))
    assert who_chose(layers, hows, config)["model.n_layers"] == Chosen("default", DEFAULT)


def test_the_fact_is_read_back_and_a_value_changed_since_is_of_the_one_who_changed_it() -> None:
    config, hows = resolved()
    chosen = who_chose((), hows, config)
    fact = chosen_fact(chosen, config)
    assert read_chosen(fact, config) == chosen
    machine = config.machine.model_copy(update={"threads": config.machine.threads + 1})
    assert read_chosen(fact, config.model_copy(update={"machine": machine})) == chosen | {
        "machine.threads": Chosen("you", CHANGED)
    }


def test_a_run_without_the_fact_does_not_know() -> None:
    assert read_chosen("", resolved()[0]) is None
