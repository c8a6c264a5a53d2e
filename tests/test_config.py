"""The hyperparameters: names, values, layers, and the sentence that each mistake gets."""

import os
from pathlib import Path
from typing import Any

import pytest

from vitrine.config import SECTIONS, Config, check_name, load_toml, merge, parse_settings, validate
from vitrine.errors import ConfigError
from vitrine.presets import Facts, resolve

FACTS = Facts(vocab_size=65, train_tokens=100_000)


def resolved(**settings: dict[str, Any]) -> Config:
    return resolve(settings, FACTS)


def refusal(**settings: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(settings, FACTS)
    return str(caught.value)


# Every hyperparameter


@pytest.mark.parametrize("name", [f"{s}.{k}" for s, section in SECTIONS.items() for k in section.model_fields])
def test_every_hyperparameter_has_a_description(name: str) -> None:
    section, key = name.split(".")
    assert SECTIONS[section].model_fields[key].description


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolved().training.steps = 3  # type: ignore[misc]


def test_tokens_per_step_multiplies_rows_micro_batches_and_context() -> None:
    config = resolved(model={"context": 10}, training={"batch_size": 3, "accumulation": 7})
    assert config.tokens_per_step == 210


# TOML


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": {"architecture": "gpt2", "dropout": 0.25}, "optimizer": {"name": "adamw"}},
        {"data": {"validation": ["held out.txt", 'ümläut\\"quote".txt'], "corpus": ["a", "b"], "weights": [1, 0.5]}},
        {"training": {"seed": 2**63 - 1, "parent": "runs/a@5"}, "optimizer": {"learning_rate": 1e-30}},
        {"data": {"validation": 0}, "sampling": {"temperature": 0}},
    ],
)
def test_a_resolved_config_survives_toml(settings: dict[str, Any], tmp_path: Path) -> None:
    config = resolved(**settings)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert validate(load_toml(path)) == config


def test_a_resolved_config_resolves_to_itself() -> None:
    config = resolved(model={"d_model": 96}, training={"steps": 77})
    assert resolve(config.model_dump(mode="json"), Facts(vocab_size=9, train_tokens=1, threads=64)) == config


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"There is no file nowhere\.toml\. Give --config a TOML file"):
        load_toml(Path("nowhere.toml"))


def test_a_folder_is_no_file_of_hyperparameters(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_toml(tmp_path)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbf[model]\nn_layers = 2\n")
    assert load_toml(path) == {"model": {"n_layers": 2}}


@pytest.mark.parametrize("content", [b"[model\nn_layers = 2", b"\xff\xfe"])
def test_a_broken_file_is_refused_with_the_reason(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML: "):
        load_toml(path)


def test_a_value_outside_a_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flat.toml"
    path.write_text("n_layers = 2")
    with pytest.raises(ConfigError, match=r"n_layers is outside a section\. Write it below one of: \[model\]"):
        load_toml(path)


def test_a_misspelled_key_in_a_file_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "typo.toml"
    path.write_text("[model]\nn_layer = 2")
    with pytest.raises(ConfigError, match=r"^model\.n_layer is not a hyperparameter\. Did you mean model\.n_layers\?$"):
        load_toml(path)


# Names


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("model.n_layer", "model.n_layers"),
        ("optimizer.lerning_rate", "optimizer.learning_rate"),
        ("modle.n_heads", "model.n_heads"),
        ("training.stepz", "training.steps"),
        ("n_layers", "model.n_layers"),
        ("steps", "training.steps"),
        ("model.learning_rate", "optimizer.learning_rate"),
    ],
)
def test_a_misspelled_name_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_name(wrong)
    assert str(caught.value) == f"{wrong} is not a hyperparameter. Did you mean {right}?"


def test_a_name_like_no_other_lists_those_of_its_section() -> None:
    with pytest.raises(ConfigError, match=r"sampling\.xyzzy is not a hyperparameter\. Known in \[sampling\]: temp"):
        check_name("sampling.xyzzy")


def test_a_misspelled_name_is_refused_when_resolving_too() -> None:
    assert refusal(model={"contxt": 3}) == "model.contxt is not a hyperparameter. Did you mean model.context?"


def test_an_unknown_section_is_refused() -> None:
    assert refusal(modell={}).startswith("modell is not a hyperparameter.")


# --set


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("model.n_layers=6", 6),
        ("model.n_layers = 6 ", 6),
        ("optimizer.learning_rate=1e-3", 1e-3),
        ("optimizer.learning_rate=.5", 0.5),
        ("optimizer.betas=[0.9, 0.99]", [0.9, 0.99]),
        ("model.bias=true", True),
        ("model.bias=False", False),
        ("data.tokenizer=bpe:512", "bpe:512"),
        ("data.tokenizer='char'", "char"),
        ("data.tokenizer=a=b.json", "a=b.json"),
        ("training.parent=", ""),
    ],
)
def test_set_reads_a_value_as_toml_or_as_plain_text(pair: str, value: Any) -> None:
    section, key = pair.partition("=")[0].strip().split(".")
    found = parse_settings([pair])[section][key]
    assert (found, type(found)) == (value, type(value))


def test_set_without_an_equals_sign_is_refused_with_an_example() -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value, for example model\.n_layers=6: got 'model\.n_layers'"):
        parse_settings(["model.n_layers"])


def test_set_checks_the_name() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean model\.n_layers\?"):
        parse_settings(["model.n_layer=6"])


def test_of_two_equal_names_in_set_the_later_wins() -> None:
    assert parse_settings(["model.context=8", "model.context=9"]) == {"model": {"context": 9}}


# Layers


def test_later_layers_win_key_by_key() -> None:
    assert merge({"model": {"context": 1, "d_model": 2}}, {"model": {"context": 3}, "data": {"tokenizer": "char"}}) == {
        "model": {"context": 3, "d_model": 2},
        "data": {"tokenizer": "char"},
    }


def test_merging_changes_no_layer() -> None:
    layer: dict[str, dict[str, Any]] = {"model": {"context": 1}}
    merge(layer, {"model": {"context": 2}})
    assert layer == {"model": {"context": 1}}


def test_auto_takes_an_earlier_setting_away() -> None:
    assert merge({"model": {"d_ff": 7}}, {"model": {"d_ff": "auto"}}) == {"model": {}}


@pytest.mark.parametrize(
    "name",
    ["model.n_kv_heads", "model.d_ff", "optimizer.learning_rate", "schedule.warmup_steps", "training.steps"],
)
def test_auto_means_derived(name: str) -> None:
    section, key = name.split(".")
    assert resolved(**{section: {key: "auto"}}) == resolved()


# Wrong values


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("training.steps", 0, "training.steps must be at least 1: got 0."),
        ("training.steps", 2.5, "training.steps must be a whole number: got 2.5."),
        ("training.seed", -1, "training.seed must be at least 0: got -1."),
        ("model.n_layers", "6", "model.n_layers must be a whole number: got '6'."),
        ("model.n_layers", True, "model.n_layers must be a whole number: got True."),
        ("model.context", 1, "model.context must be at least 2: got 1."),
        ("model.dropout", 1.0, "model.dropout must be at most 0.9999847412: got 1.0."),
        ("training.steps", 10**22, f"training.steps must be at most 1e+15: got {10**22}."),
        ("training.batch_size", 10**400, "training.batch_size must be at most 16,777,216: got 1.00e+400."),
        ("training.batch_size", 2**62, f"training.batch_size must be at most 16,777,216: got {2**62}."),
        ("model.d_model", 1e308, "model.d_model must be at most 16,777,216: got 1.00e+308."),
        ("optimizer.weight_decay", 1e308, "optimizer.weight_decay must be at most 1e+15: got 1e+308."),
        ("optimizer.learning_rate", 1e308, "optimizer.learning_rate must be at most 1e+15: got 1e+308."),
        ("recording.histograms", 10**9, "recording.histograms must be at most 1,000,000: got 1000000000."),
        ("model.bias", "maybe", "model.bias must be true or false: got 'maybe'."),
        (
            "model.architecture",
            "gtp2",
            "model.architecture must be 'gpt2', 'llama', 'olmo2', 'qwen2' or 'qwen3': got 'gtp2'.",
        ),
        ("optimizer.learning_rate", -0.1, "optimizer.learning_rate must be greater than 0: got -0.1."),
        ("optimizer.learning_rate", 0, "optimizer.learning_rate must be greater than 0: got 0."),
        ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate must be a finite number: got nan."),
        ("optimizer.learning_rate", float("inf"), "optimizer.learning_rate must be a finite number: got inf."),
        ("optimizer.name", "adam", "optimizer.name must be 'adamw', 'lion', 'muon' or 'sgd': got 'adam'."),
        ("optimizer.betas", [0.9], "optimizer.betas must be two numbers: got [0.9]."),
        ("optimizer.betas", [0.9, 0.8, 0.7], "optimizer.betas must be two numbers: got [0.9, 0.8, 0.7]."),
        ("optimizer.betas", 0.9, "optimizer.betas must be two numbers: got 0.9."),
        ("optimizer.betas", [0.9, 1.5], "optimizer.betas must be less than 1: got 1.5."),
        ("sampling.top_p", 2, "sampling.top_p must be at most 1: got 2."),
        ("sampling.top_p", 0, "sampling.top_p must be greater than 0: got 0."),
        ("sampling.temperature", -1, "sampling.temperature must be at least 0: got -1."),
        ("sampling.repetition_penalty", 0, "sampling.repetition_penalty must be at least 0.01: got 0."),
        ("data.validation", 1.5, "data.validation must be less than 1 or a list: got 1.5."),
        ("data.validation", [3], "data.validation must be a number or text in quotes: got [3]."),
        ("data.tokenizer", 5, "data.tokenizer must be text in quotes: got 5."),
        ("model.head_dim", 0, "model.head_dim must be at least 1: got 0."),
        ("recording.mirror", "mlflow", "recording.mirror must be 'tensorboard', 'wandb' or 'trackio': got 'mlflow'."),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(name: str, value: Any, sentence: str) -> None:
    section, key = name.split(".")
    assert refusal(**{section: {key: value}}) == sentence


def test_more_threads_than_any_machine_has_are_refused_with_the_cores_that_are_here() -> None:
    assert refusal(machine={"threads": 10**6}) == (
        f"machine.threads must be at most 1,024: got 1,000,000. This machine has {os.cpu_count()} cores."
    )


@pytest.mark.parametrize(("value", "count"), [(1e3, 1000), (20.0, 20)])
def test_a_whole_number_may_be_written_as_a_float(value: float, count: int) -> None:
    assert resolved(training={"steps": value}) == resolved(training={"steps": count})


def test_the_heads_share_the_width_unless_it_is_said_how_wide_one_is() -> None:
    assert resolved(model={"d_model": 96, "n_heads": 4}).model.head_dim == 24
    assert resolved(model={"d_model": 100, "n_heads": 3, "head_dim": 64}).model.attention_width == 192
    assert resolved(model={"d_model": 96, "n_heads": 4, "head_dim": "auto"}).model.head_dim == 24


def test_a_run_of_before_there_was_a_head_dim_is_read_as_it_was() -> None:
    settings = resolved().model_dump(mode="json")
    del settings["model"]["head_dim"], settings["recording"]["mirror"]
    assert validate(settings) == resolved()


def test_a_missing_value_is_named() -> None:
    settings = resolved().model_dump(mode="json")
    del settings["model"]["d_ff"]
    with pytest.raises(ConfigError, match=r"^model\.d_ff is missing\. Give it .* with --set model\.d_ff=VALUE\.$"):
        validate(settings)


# Values that contradict each other


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            {"d_model": 100, "n_heads": 3},
            "model.d_model must be divisible by model.n_heads: got 100 and 3. Try model.d_model = 102, "
            "or give model.head_dim as well.",
        ),
        (
            {"d_model": 2, "n_heads": 8},
            "model.d_model must be divisible by model.n_heads: got 2 and 8. Try model.d_model = 16, "
            "or give model.head_dim as well.",
        ),
        (
            {"d_model": 48, "n_heads": 6, "n_kv_heads": 4},
            "model.n_heads must be divisible by model.n_kv_heads: got 6 and 4. Try model.n_kv_heads = 2.",
        ),
        (
            {"d_model": 48, "n_heads": 4, "n_kv_heads": 8},
            "model.n_heads must be divisible by model.n_kv_heads: got 4 and 8. Try model.n_kv_heads = 4.",
        ),
        (
            {"architecture": "llama", "d_model": 12, "n_heads": 4},
            "Rotary positions rotate channels in pairs, so model.head_dim (default: d_model / n_heads) must "
            "be even: got 3. Try model.head_dim = 4.",
        ),
        (
            {"architecture": "gpt2", "d_model": 32, "n_heads": 4, "head_dim": 16},
            "In the gpt2 family, model.n_heads times model.head_dim must equal model.d_model: got 4 times 16, and 32. "
            "Leave model.head_dim out, or try model.architecture = llama.",
        ),
        (
            {"architecture": "gpt2", "bias": False},
            "model.bias = false is not possible in the gpt2 family: all of its layers have biases. "
            "Try model.architecture = llama.",
        ),
        (
            {"architecture": "gpt2", "tie_embeddings": False},
            "model.tie_embeddings = false is not possible in the gpt2 family: its output head is its embedding. "
            "Try model.architecture = llama.",
        ),
        (
            {"architecture": "gpt2", "n_heads": 4, "n_kv_heads": 2},
            "The gpt2 family has no grouped-query attention: got model.n_heads = 4 and model.n_kv_heads = 2. "
            "Make them equal, or try model.architecture = llama.",
        ),
        (
            {"architecture": "qwen3", "bias": True},
            "model.bias = true is not possible in the qwen3 family: its MLPs have no biases. "
            "Try model.architecture = llama.",
        ),
    ],
)
def test_an_architecture_that_no_class_can_hold_is_refused(model: dict[str, Any], sentence: str) -> None:
    assert refusal(model=model) == sentence


@pytest.mark.parametrize(
    "model",
    [
        {"architecture": "gpt2", "d_model": 12, "n_heads": 4},  # an odd head_dim is no matter without rotation
        {"architecture": "llama", "bias": True},
        {"architecture": "llama", "tie_embeddings": True},
        {"architecture": "qwen3", "n_heads": 4, "n_kv_heads": 1},
    ],
)
def test_what_a_class_can_hold_is_accepted(model: dict[str, Any]) -> None:
    config = resolved(model=model).model
    assert {key: getattr(config, key) for key in model} == model


def test_warmup_as_long_as_the_training_is_refused() -> None:
    assert refusal(schedule={"warmup_steps": 40}, training={"steps": 40}) == (
        "schedule.warmup_steps must be less than training.steps: got 40 and 40. Try schedule.warmup_steps = 2."
    )


def test_a_weight_is_needed_for_each_source() -> None:
    assert refusal(data={"corpus": ["a", "b"], "weights": [1.0]}) == (
        "data.weights needs one number for each source: got 1 weights for 2 sources."
    )


@pytest.mark.parametrize("goal", [{"patience": 3}, {"target_loss": 1.5}])
def test_a_goal_on_the_validation_loss_needs_validation_text(goal: dict[str, Any]) -> None:
    assert refusal(training=goal, data={"validation": 0}) == (
        "training.target_loss and training.patience need validation text: got data.validation = 0. "
        "Try data.validation = 0.1."
    )
