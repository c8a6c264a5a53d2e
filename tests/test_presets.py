"""Sizes by one dial, and what follows from a choice."""

from itertools import pairwise
from typing import Any

import pytest

from vitrine.config import Config
from vitrine.errors import ConfigError
from vitrine.families.registry import FAMILIES
from vitrine.model.inventory import inventory
from vitrine.optimizers.registry import OPTIMIZERS
from vitrine.presets import EFFICIENCY, PRESETS, SIZES, Facts, choose_size, derive, preset_settings, resolve

FACTS = Facts(vocab_size=65, train_tokens=100_000)


def resolved(**settings: dict[str, Any]) -> Config:
    return resolve(settings, FACTS)


def parameters(preset: str, vocab_size: int = 256) -> int:
    config = resolve(PRESETS[preset], Facts(vocab_size=vocab_size, train_tokens=1))
    return sum(tensor.parameters for tensor in inventory(config.model))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_to_what_it_says(preset: str) -> None:
    config = resolve(PRESETS[preset], FACTS).model_dump(mode="json")
    said = {(s, key): value for s, values in PRESETS[preset].items() for key, value in values.items()}
    assert {(s, key): config[s][key] for s, key in said} == said


def test_resolving_leaves_the_preset_as_it_was() -> None:
    before = repr(PRESETS)
    for preset in PRESETS.values():
        resolve(preset, FACTS)
    assert repr(PRESETS) == before


def test_every_size_has_at_least_twice_the_parameters_of_the_one_before() -> None:
    assert all(2 * parameters(small) < parameters(large) for small, large in pairwise(SIZES))


def test_every_size_has_a_measured_efficiency() -> None:
    assert set(EFFICIENCY) == set(SIZES)


def test_gpt2_124m_has_the_published_number_of_parameters() -> None:
    assert parameters("gpt2-124m", vocab_size=50_257) == 124_439_808  # openai-community/gpt2, head tied


def test_a_misspelled_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^There is no preset 'nanno'\. Did you mean nano\?$"):
        preset_settings("nanno")


def test_a_preset_like_no_other_lists_them_all() -> None:
    with pytest.raises(ConfigError, match=r"There is no preset 'xyzzy'\. Known: nano, micro, .*, auto\."):
        preset_settings("xyzzy")


# What is derived


def test_facts_fill_in_vocabulary_device_threads_and_precision() -> None:
    config = resolve({}, Facts(vocab_size=77, train_tokens=1, device="cuda", threads=5, bfloat16=True))
    assert (config.model.vocab_size, config.machine.device, config.machine.threads, config.training.precision) == (
        (77, "cuda", 5, "bfloat16")
    )


@pytest.mark.parametrize(
    ("architecture", "d_ff", "bias", "tied"),
    [("gpt2", 4 * 96, True, True), ("llama", 256, False, False), ("qwen3", 256, False, False)],
)
def test_the_family_decides_width_of_mlp_biases_and_tying(architecture: str, d_ff: int, bias: bool, tied: bool) -> None:
    model = resolved(model={"architecture": architecture, "d_model": 96}).model
    assert (model.d_ff, model.bias, model.tie_embeddings) == (d_ff, bias, tied)


CASES: list[tuple[dict[str, dict[str, Any]], Facts]] = [
    ({}, FACTS),
    ({}, Facts(vocab_size=500, train_tokens=10**8, device="cuda", threads=3, bfloat16=True)),
    ({"training": {"steps": 60_000, "target_loss": 1.0}, "model": {"n_heads": 8}}, FACTS),
    ({"recording": {"statistics_every": 7}}, FACTS),
    *(({"optimizer": {"name": name}}, FACTS) for name in OPTIMIZERS),
    *(({"model": {"architecture": name, "d_model": 512}}, FACTS) for name in FAMILIES),
    *((preset, FACTS) for preset in PRESETS.values()),
]


def test_whatever_is_derived_says_how_and_nothing_that_is_given_does() -> None:
    seen: dict[str, set[str]] = {}
    always: dict[str, bool] = {}
    for settings, facts in CASES:
        config, hows = derive(settings, facts)
        assert all(hows.values())
        for section, keys in config.model_dump(mode="json").items():
            for key, value in keys.items():
                name = f"{section}.{key}"
                if key in settings.get(section, {}):
                    assert name not in hows
                else:
                    seen.setdefault(name, set()).add(repr(value))
                    always[name] = always.get(name, True) and name in hows
    varied = {name for name, values in seen.items() if len(values) > 1}
    assert len(varied) > 20
    assert {name for name in varied if not always[name]} == set()


def test_keys_and_values_have_as_many_heads_as_queries_unless_said() -> None:
    assert resolved(model={"n_heads": 8}).model.n_kv_heads == 8


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_each_rule_has_its_own_learning_rate(name: str) -> None:
    rates = {other: resolved(optimizer={"name": other}).optimizer.learning_rate for other in ("sgd", "adamw", "muon")}
    assert list(rates.values()).count(rates[name]) == 1


def test_a_given_learning_rate_is_kept() -> None:
    assert resolved(optimizer={"name": "adamw", "learning_rate": 0.123}).optimizer.learning_rate == 0.123


def test_a_wider_model_has_a_smaller_rate_for_embeddings() -> None:
    narrow, wide = (resolved(model={"d_model": width}).optimizer.adamw_learning_rate for width in (128, 512))
    assert wide == pytest.approx(narrow / 2)  # the square root of the widths' quotient


@pytest.mark.parametrize("steps", [1, 2, 9, 100, 10**6])
def test_any_number_of_steps_resolves(steps: int) -> None:
    config = resolved(training={"steps": steps}, optimizer={"name": "adamw"})
    assert config.schedule.warmup_steps < max(steps, 1)
    assert 1 <= config.training.evaluate_every <= 500


# auto


@pytest.mark.parametrize(
    ("train_tokens", "size"), [(1_000, "nano"), (300_000, "micro"), (1_000_000, "micro"), (10**9, "mini")]
)
def test_without_a_time_the_corpus_decides_the_size(train_tokens: int, size: str) -> None:
    assert choose_size(train_tokens) == size


def test_more_time_never_means_a_smaller_size() -> None:
    chosen = [SIZES.index(choose_size(10**9, 1e11, seconds)) for seconds in (1, 10, 100, 1_000, 10**4, 10**5, 10**7)]
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (0, len(SIZES) - 1)


def test_a_small_corpus_bounds_the_size_whatever_the_time() -> None:
    assert choose_size(1_000, 1e15, 1e9) == "nano"


def test_a_laptop_minute_on_a_million_tokens_is_a_small_model() -> None:
    assert choose_size(1_000_000, 1e11, 60) in ("nano", "micro")


def test_a_cadence_that_is_given_leaves_the_others_derived():
    derived = resolve(preset_settings("micro"), FACTS).recording
    given = resolve(preset_settings("micro") | {"recording": {"keyframe_every": 7}}, FACTS)
    assert given.recording == derived.model_copy(update={"keyframe_every": 7})
