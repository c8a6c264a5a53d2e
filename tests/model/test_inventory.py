"""Census, FLOPs and memory, against numbers worked by hand."""

import subprocess
import sys
from typing import Any

import pytest

from vitrine.config import Config
from vitrine.model.inventory import flops_per_token, inventory, make_plan, optimizer_numbers
from vitrine.presets import PRESETS, Facts, resolve


def resolved(**settings: dict[str, Any]) -> Config:
    return resolve(settings, Facts(vocab_size=10, train_tokens=1000))


def tiny(architecture: str, **settings: Any) -> Config:
    """d_model 8, 2 heads of 4, d_ff 12, 1 layer, context 6, vocabulary 10."""
    model = {"architecture": architecture, "n_layers": 1, "n_heads": 2, "d_model": 8, "d_ff": 12, "context": 6}
    return resolved(model=model, **settings)


def parameters(config: Config) -> int:
    return sum(tensor.parameters for tensor in inventory(config.model))


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        # embedding, positions, 2 norms, 4 projections with biases, 2 MLP matrices with biases, last norm
        ("gpt2", 10 * 8 + 6 * 8 + 2 * 16 + 4 * (64 + 8) + (96 + 12) + (96 + 8) + 16),
        # embedding, head, 2 gains, 4 projections, 3 MLP matrices, last gain
        ("llama", 10 * 8 + 10 * 8 + 2 * 8 + 4 * 64 + 3 * 96 + 8),
        # the same, and gains of query and key
        ("qwen3", 10 * 8 + 10 * 8 + 2 * 8 + 4 * 64 + 3 * 96 + 8 + 2 * 4),
        # llama's, and biases of query, key and value
        ("qwen2", 10 * 8 + 10 * 8 + 2 * 8 + 4 * 64 + 3 * 96 + 8 + 3 * 8),
        # llama's, and gains of all queries and of all keys
        ("olmo2", 10 * 8 + 10 * 8 + 2 * 8 + 4 * 64 + 3 * 96 + 8 + 2 * 8),
    ],
)
def test_the_parameters_are_counted_as_by_hand(architecture: str, count: int) -> None:
    assert parameters(tiny(architecture)) == count


def test_grouped_queries_make_keys_and_values_smaller() -> None:
    model = {"architecture": "llama", "n_heads": 4, "n_kv_heads": 1, "d_model": 8}
    shapes = {tensor.name: tensor.shape for tensor in inventory(resolved(model=model).model)}
    assert [shapes[f"blocks.0.attention.{part}.weight"] for part in ("query", "key", "value", "output")] == [
        (8, 8),
        (2, 8),
        (2, 8),
        (8, 8),
    ]


def test_heads_may_be_wider_than_their_share_of_the_model() -> None:
    model = tiny(
        "llama",
    ).model.model_copy(update={"head_dim": 6})
    shapes = {tensor.name: tensor.shape for tensor in inventory(model)}
    assert [shapes[f"blocks.0.attention.{part}.weight"] for part in ("query", "key", "output")] == [
        (12, 8),
        (12, 8),
        (8, 12),
    ]
    weights = 4 * 12 * 8 + 3 * 96 + 80
    assert flops_per_token(model) == 6 * weights + 12 * 1 * 6 * 12  # layers, context, channels of all heads


def test_names_are_unique_and_in_reading_order() -> None:
    names = [tensor.name for tensor in inventory(resolve(PRESETS["demo"], Facts(65, 1)).model)]
    assert len(set(names)) == len(names)
    assert (names[0], names[1], names[-1]) == ("embedding.weight", "positions.weight", "final_norm.bias")
    assert names.index("blocks.0.mlp.shrink.bias") < names.index("blocks.1.attention_norm.gain")


def test_each_kind_has_its_name() -> None:
    kinds = {tensor.name: tensor.kind for tensor in inventory(tiny("gpt2").model)}
    assert {name: kinds[name] for name in kinds if not name.startswith("blocks")} == {
        "embedding.weight": "embedding",
        "positions.weight": "embedding",
        "final_norm.gain": "gain",
        "final_norm.bias": "bias",
    }
    assert kinds["blocks.0.attention.query.weight"] == "weight"
    assert kinds["blocks.0.mlp.expand.bias"] == "bias"


@pytest.mark.parametrize(
    ("architecture", "multiplying"),
    [("gpt2", 4 * 64 + 2 * 96 + 80), ("llama", 4 * 64 + 3 * 96 + 80)],  # 80: the head, tied or not
)
def test_flops_are_six_a_weight_and_twelve_a_channel_of_context(architecture: str, multiplying: int) -> None:
    attention = 12 * 1 * 6 * 8  # layers, context, width
    assert flops_per_token(tiny(architecture).model) == 6 * multiplying + attention


@pytest.mark.parametrize(
    ("optimizer", "numbers"),
    [
        ({"name": "sgd"}, 0),
        ({"name": "sgd", "momentum": 0.9}, 728),
        ({"name": "adamw"}, 2 * 728),
        ({"name": "muon"}, (4 * 64 + 3 * 96) + 2 * (728 - (4 * 64 + 3 * 96))),
    ],
)
def test_the_optimizer_remembers_as_many_numbers_as_its_rule_needs(optimizer: dict[str, Any], numbers: int) -> None:
    config = tiny("llama", optimizer=optimizer)
    assert parameters(config) == 728
    assert optimizer_numbers(config, inventory(config.model)) == numbers


def test_the_plan_adds_up() -> None:
    config = tiny("llama", optimizer={"name": "adamw"}, training={"batch_size": 4, "accumulation": 5})
    plan = make_plan(config, 10**9)
    assert (plan.parameters, plan.keyframe_bytes, plan.tokens_per_step) == (728, 12 * 728, 4 * 5 * 6)
    assert {part: plan.memory[part] for part in ("parameters", "gradients", "optimizer")} == {
        "parameters": 4 * 728,
        "gradients": 4 * 728,
        "optimizer": 8 * 728,
    }
    assert plan.memory_bytes == sum(plan.memory.values())
    assert plan.fits


def test_activations_grow_with_the_micro_batch_and_not_with_their_number() -> None:
    def activations(**training: int) -> int:
        return make_plan(tiny("qwen3", training=training), 10**9).memory["activations"]

    assert activations(batch_size=8) == 2 * activations(batch_size=4)
    assert activations(batch_size=4, accumulation=9) == activations(batch_size=4)


def test_a_model_larger_than_the_memory_does_not_fit() -> None:
    config = resolved(model={"architecture": "gpt2", "n_heads": 1, "d_model": 1000, "n_layers": 1})
    needed = make_plan(config, 10**12).memory_bytes
    assert make_plan(config, int(needed / 0.89)).fits
    assert not make_plan(config, needed).fits


def test_the_plan_needs_no_torch() -> None:
    code = "import sys, vitrine.model.inventory, vitrine.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
