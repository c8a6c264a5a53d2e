"""The decoder against transformers' own classes, and the promises of its parts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitrine.config import ModelConfig
from vitrine.families.registry import FAMILIES
from vitrine.model import decoder as model_module
from vitrine.model.decoder import (
    Decoder,
    RMSNorm,
    apply_rope,
    attend,
    causal_mask,
    dropout,
    initialise,
    random_bits,
    rope_table,
)
from vitrine.model.inventory import inventory
from vitrine.model.loss import next_token_loss
from vitrine.presets import PRESETS, Facts, resolve

SIZE = {"n_layers": 2, "n_heads": 4, "d_model": 24, "d_ff": 37, "context": 19}  # head_dim 6, odd widths

# What each family can vary, beside its plain form.
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {"architecture": "gpt2"},
    "gpt2, odd heads": {"architecture": "gpt2", "n_heads": 3, "d_model": 21, "d_ff": 5},
    "gpt2, other epsilon": {"architecture": "gpt2", "norm_epsilon": 0.1},
    "llama": {"architecture": "llama"},
    "llama, biases": {"architecture": "llama", "bias": True},
    "llama, grouped": {"architecture": "llama", "n_kv_heads": 2},
    "llama, one key head": {"architecture": "llama", "n_kv_heads": 1},
    "llama, tied": {"architecture": "llama", "tie_embeddings": True},
    "llama, other base": {"architecture": "llama", "rope_base": 500.0},
    "llama, other epsilon": {"architecture": "llama", "norm_epsilon": 0.1},
    "llama, all at once": {"architecture": "llama", "bias": True, "n_kv_heads": 2, "tie_embeddings": True},
    "qwen3": {"architecture": "qwen3"},
    "qwen3, grouped": {"architecture": "qwen3", "n_kv_heads": 2},
    "qwen3, tied": {"architecture": "qwen3", "tie_embeddings": True, "n_heads": 3, "d_model": 30, "n_layers": 1},
    "qwen3, other epsilon": {"architecture": "qwen3", "norm_epsilon": 0.1},
    "qwen2": {"architecture": "qwen2"},
    "qwen2, grouped, tied": {"architecture": "qwen2", "n_kv_heads": 2, "tie_embeddings": True},
    "qwen2, wide heads": {"architecture": "qwen2", "head_dim": 10},
    "olmo2": {"architecture": "olmo2"},
    "olmo2, grouped, tied": {"architecture": "olmo2", "n_kv_heads": 2, "tie_embeddings": True},
    "olmo2, wide heads, other epsilon": {"architecture": "olmo2", "head_dim": 10, "norm_epsilon": 0.1},
}


def config_of(vocab_size: int = 41, **settings: Any) -> ModelConfig:
    return resolve({"model": SIZE | settings}, Facts(vocab_size=vocab_size, train_tokens=1)).model


def scrambled(config: ModelConfig, seed: int = 1, **kwargs: Any) -> Decoder:
    """A decoder in which no parameter has a special value: gains are not one, biases not zero."""
    model = Decoder(config, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if name.endswith("gain") else 0.3 * noise)
    return model


def some_tokens(config: ModelConfig, batch: int = 3, seq: int = 0, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, seq or config.context), generator=generator)


# Against transformers


def reference(config: ModelConfig, ours: dict[str, Tensor]) -> nn.Module:
    """The transformers class of the family, holding the same weights."""
    import transformers

    if config.architecture == "gpt2":
        theirs: Any = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.context,
                n_embd=config.d_model,
                n_layer=config.n_layers,
                n_head=config.n_heads,
                n_inner=config.d_ff,
                layer_norm_epsilon=config.norm_epsilon,
                attn_implementation="eager",
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    else:
        common = {
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.context,
            "hidden_size": config.d_model,
            "intermediate_size": config.d_ff,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "rms_norm_eps": config.norm_epsilon,
            "tie_word_embeddings": config.tie_embeddings,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
            "attn_implementation": "eager",
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        biases = {"attention_bias": config.bias, "mlp_bias": config.bias} if config.architecture == "llama" else {}
        chosen, model = {
            "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
            "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
            "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
            "olmo2": (transformers.Olmo2Config, transformers.Olmo2ForCausalLM),
        }[config.architecture]
        theirs = model(chosen(**common, **biases))
    missing, unexpected = theirs.load_state_dict(their_names(config, ours), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    assert bool(missing) <= config.tie_embeddings
    theirs.tie_weights()
    return theirs.eval()


def their_names(config: ModelConfig, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters (or their gradients) by the names, and in the shapes, of transformers."""
    if config.architecture == "gpt2":
        return gpt2_names(config, ours)
    theirs = {"model.embed_tokens.weight": ours["embedding.weight"], "model.norm.weight": ours["final_norm.gain"]}
    if not config.tie_embeddings:
        theirs["lm_head.weight"] = ours["head.weight"]
    parts = {
        "attention_norm.gain": "input_layernorm.weight",
        "mlp_norm.gain": "post_attention_layernorm.weight",
        "post_attention_norm.gain": "post_attention_layernorm.weight",
        "post_mlp_norm.gain": "post_feedforward_layernorm.weight",
        "attention.query_norm.gain": "self_attn.q_norm.weight",
        "attention.key_norm.gain": "self_attn.k_norm.weight",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "mlp.expand": "mlp.up_proj",
        "mlp.gate": "mlp.gate_proj",
        "mlp.shrink": "mlp.down_proj",
    }
    for layer in range(config.n_layers):
        for our_part, their_part in parts.items():
            for end in ("", ".weight", ".bias"):
                found = ours.get(f"blocks.{layer}.{our_part}{end}")
                if found is not None:
                    theirs[f"model.layers.{layer}.{their_part}{end}"] = found
    return theirs


def gpt2_names(config: ModelConfig, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2 keeps query, key and value in one matrix, and all matrices transposed."""
    theirs = {
        "transformer.wte.weight": ours["embedding.weight"],
        "transformer.wpe.weight": ours["positions.weight"],
        "transformer.ln_f.weight": ours["final_norm.gain"],
        "transformer.ln_f.bias": ours["final_norm.bias"],
    }
    for layer in range(config.n_layers):
        us, them = f"blocks.{layer}", f"transformer.h.{layer}"
        for end, turn in (("weight", lambda w: w.T), ("bias", lambda b: b)):
            joined = [ours[f"{us}.attention.{part}.{end}"] for part in ("query", "key", "value")]
            theirs[f"{them}.attn.c_attn.{end}"] = turn(torch.cat(joined))
            theirs[f"{them}.attn.c_proj.{end}"] = turn(ours[f"{us}.attention.output.{end}"])
            theirs[f"{them}.mlp.c_fc.{end}"] = turn(ours[f"{us}.mlp.expand.{end}"])
            theirs[f"{them}.mlp.c_proj.{end}"] = turn(ours[f"{us}.mlp.shrink.{end}"])
        for end, name in (("weight", "gain"), ("bias", "bias")):
            theirs[f"{them}.ln_1.{end}"] = ours[f"{us}.attention_norm.{name}"]
            theirs[f"{them}.ln_2.{end}"] = ours[f"{us}.mlp_norm.{name}"]
    return theirs


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str) -> None:
    config = config_of(**VARIANTS[variant])
    model = scrambled(config)
    tokens = some_tokens(config)
    with torch.no_grad():
        theirs = reference(config, dict(model.named_parameters()))(tokens).logits
        assert theirs.std() > 0.1
        assert (model(tokens) - theirs).abs().max() < 1e-4


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_transformers(variant: str) -> None:
    config = config_of(**VARIANTS[variant])
    model, tokens = scrambled(config), some_tokens(config)
    theirs: Any = reference(config, dict(model.named_parameters()))
    next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()
    next_token_loss(theirs(tokens[:, :-1]).logits, tokens[:, 1:]).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = their_names(config, {name: parameter.grad for name, parameter in model.named_parameters()})
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        # Sums of some hundred float32 products, in another order; the largest gradients are near one.
        torch.testing.assert_close(gradient, expected[name], atol=2e-5, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


# Two ways to attend


@pytest.mark.parametrize("seq", [7, 64, 150])  # below, at and above the queries that are taken together
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_attention_by_a_custom_autograd_is_torchs_and_so_are_its_gradients(n_kv_heads: int, seq: int) -> None:
    generator = torch.Generator().manual_seed(3)
    heads = (4, n_kv_heads, n_kv_heads, 4)
    *qkv, weights = (torch.randn(2, n, seq, 5, generator=generator).double().requires_grad_() for n in heads)
    ours = attend(*qkv, causal_mask(seq, weights.device))
    theirs = nn.functional.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)  # float64 rounding alone
    found, expected = (torch.autograd.grad((mixed * weights).sum(), qkv) for mixed in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_contexts_above_and_below_the_limit_of_the_custom_autograd_agree(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(architecture=family, n_kv_heads=4 if family == "gpt2" else 2)
    written, tokens = scrambled(config), some_tokens(config)
    monkeypatch.setattr(model_module, "CUSTOM_AUTOGRAD_CONTEXT", config.context - 1)
    fused = scrambled(config)
    with torch.no_grad():
        assert (written(tokens) - fused(tokens)).abs().max() < 1e-4


def test_the_mask_hides_the_tokens_after_each() -> None:
    hidden = float("-inf")
    assert causal_mask(3, torch.device("cpu")).tolist() == [[0, hidden, hidden], [0, 0, hidden], [0, 0, 0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_token_changes_no_earlier_logit(family: str) -> None:
    config = config_of(architecture=family)
    model, tokens = scrambled(config), some_tokens(config)
    changed = tokens.clone()
    changed[:, 11] = (changed[:, 11] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert (before[:, 11:] != after[:, 11:]).any(dim=-1).all()


# Parts


def test_rms_norm_is_torchs_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(4)
    ours = RMSNorm(7, 1e-3)
    ours.gain.data = torch.randn(7, generator=generator)
    theirs = nn.RMSNorm(7, eps=1e-3)
    theirs.weight.data = ours.gain.data.clone()
    x, weights = torch.randn(2, 5, 7, generator=generator)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    (ours(a) * weights).sum().backward()
    (theirs(b) * weights).sum().backward()
    torch.testing.assert_close(ours(a), theirs(b), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.gain.grad, theirs.weight.grad, atol=1e-5, rtol=1e-5)


def test_rope_turns_by_the_position_times_a_falling_frequency() -> None:
    cos, sin = rope_table(context=6, head_dim=4, base=100.0)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 1, 6, 4)
    turned = apply_rope(x, cos, sin)[0, 0, 5]
    fast, slow = 5.0, 5.0 * 100 ** (-2 / 4)  # channels 0 and 2 are a pair, and 1 and 3
    by_hand = [
        1 * math.cos(fast) - 3 * math.sin(fast),
        2 * math.cos(slow) - 4 * math.sin(slow),
        3 * math.cos(fast) + 1 * math.sin(fast),
        4 * math.cos(slow) + 2 * math.sin(slow),
    ]
    assert turned.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_rope_makes_scores_depend_on_the_distance_alone() -> None:
    cos, sin = rope_table(context=9, head_dim=6, base=10_000.0)
    q, k = torch.randn(2, 6, generator=torch.Generator().manual_seed(5))
    turned_q = apply_rope(q.expand(1, 1, 9, 6), cos, sin)[0, 0]
    turned_k = apply_rope(k.expand(1, 1, 9, 6), cos, sin)[0, 0]
    scores = turned_q @ turned_k.T
    assert scores.diagonal(3).tolist() == pytest.approx([float(scores[0, 3])] * 6, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_close_to_float32(family: str) -> None:
    config = config_of(architecture=family)
    tokens = some_tokens(config)
    narrow, wide = scrambled(config, compute_dtype=torch.bfloat16), scrambled(config)
    next_token_loss(narrow(tokens[:, :-1]), tokens[:, 1:]).backward()
    next_token_loss(wide(tokens[:, :-1]), tokens[:, 1:]).backward()
    assert narrow(tokens).dtype == torch.bfloat16
    whole = torch.cat([parameter.grad.flatten() for parameter in wide.parameters()]).norm()
    for (name, few), many in zip(narrow.named_parameters(), wide.parameters(), strict=True):
        assert few.dtype == few.grad.dtype == torch.float32
        # 0.4 per cent a rounding, about twenty of them through two blocks: some per cent of each tensor. (A key's bias has no gradient
        # but rounding: it moves all scores of a query alike.)
        assert (few.grad - many.grad).norm() <= 0.1 * many.grad.norm() + 1e-3 * whole, name


# Birth


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_census_is_the_models_own(variant: str) -> None:
    config = config_of(**VARIANTS[variant])
    planned = {tensor.name: tensor.shape for tensor in inventory(config)}
    assert planned == {name: tuple(parameter.shape) for name, parameter in Decoder(config).named_parameters()}


def test_gpt2_124m_has_124439808_parameters() -> None:
    config = resolve(PRESETS["gpt2-124m"], Facts(vocab_size=50_257, train_tokens=1)).model
    with torch.device("meta"):
        model = Decoder(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


@pytest.mark.parametrize("family", FAMILIES)
def test_each_tensor_is_born_as_the_census_says(family: str) -> None:
    config = config_of(architecture=family, d_model=64, d_ff=96, vocab_size=100)
    initial = dict(initialise(config, seed=7).named_parameters())
    for tensor in inventory(config):
        numbers = initial[tensor.name].detach()
        if tensor.initialisation == "normal":
            count = numbers.numel()
            # Mean and standard deviation of `count` numbers stray by std / sqrt(count) and std / sqrt(2 count); five of that.
            assert abs(float(numbers.mean())) < 5 * tensor.std / count**0.5, tensor.name
            assert abs(float(numbers.std()) - tensor.std) < 5 * tensor.std / (2 * count) ** 0.5, tensor.name
        else:
            assert (numbers == {"zeros": 0, "ones": 1}[tensor.initialisation]).all(), tensor.name


@pytest.mark.parametrize(
    ("family", "name", "std"),
    [
        ("gpt2", "embedding.weight", 0.02),
        ("gpt2", "positions.weight", 0.02),
        ("gpt2", "blocks.1.attention.query.weight", 0.02),
        ("gpt2", "blocks.1.mlp.expand.weight", 0.02),
        ("gpt2", "blocks.1.attention.output.weight", 0.02 / 2),  # two layers: sqrt(2 * 2)
        ("gpt2", "blocks.1.mlp.shrink.weight", 0.02 / 2),
        ("llama", "embedding.weight", 1.0),
        ("llama", "blocks.1.attention.value.weight", 1 / 8),  # sqrt(64)
        ("llama", "blocks.1.mlp.gate.weight", 1 / 8),
        ("llama", "blocks.1.attention.output.weight", 0.0),
        ("llama", "blocks.1.mlp.shrink.weight", 0.0),
        ("llama", "head.weight", 0.001),
        ("qwen3", "blocks.0.attention.key.weight", 1 / 8),
        ("qwen2", "blocks.0.mlp.shrink.weight", 0.0),
        ("olmo2", "blocks.0.mlp.shrink.weight", 1 / 8),
    ],
)
def test_matrices_are_born_with_the_documented_spread(family: str, name: str, std: float) -> None:
    model = {tensor.name: tensor for tensor in inventory(config_of(architecture=family, d_model=64))}
    assert model[name].std == pytest.approx(std)


def test_a_tied_embedding_is_born_small() -> None:
    tied = inventory(config_of(architecture="llama", tie_embeddings=True))
    assert tied[0].std == 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_init_scale_multiplies_every_spread(family: str) -> None:
    config, halved = config_of(architecture=family), config_of(architecture=family, init_scale=0.5)
    once, half = initialise(config, seed=3), initialise(halved, seed=3)
    for (name, a), b in zip(once.named_parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(b, a if name.endswith("gain") else a / 2, msg=name)


def test_the_same_seed_gives_the_same_bits() -> None:
    config = config_of()
    for a, b in zip(initialise(config, seed=5).parameters(), initialise(config, seed=5).parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_seed_gives_other_bits_in_every_random_tensor() -> None:
    config = config_of(architecture="gpt2")
    ones, twos = (
        dict(initialise(config, seed=1).named_parameters()),
        dict(initialise(config, seed=2).named_parameters()),
    )
    random = [tensor.name for tensor in inventory(config) if tensor.initialisation == "normal"]
    assert all((ones[name] != twos[name]).float().mean() > 0.99 for name in random)


def test_no_two_tensors_are_initialised_alike() -> None:
    initial = dict(initialise(config_of(), seed=1).named_parameters())
    query, key = initial["blocks.0.attention.query.weight"], initial["blocks.0.attention.key.weight"]
    assert (query != key).float().mean() > 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_at_birth_is_that_of_pure_guessing(family: str) -> None:
    config = config_of(architecture=family, d_model=64, vocab_size=97)
    tokens = some_tokens(config, batch=8)
    with torch.no_grad():
        loss = next_token_loss(initialise(config, seed=1)(tokens[:, :-1]), tokens[:, 1:])
    # Initial logits have a standard deviation of at most 0.16 (0.02 * sqrt(64)), which costs about half its square.
    assert float(loss) == pytest.approx(math.log(97), abs=0.05)


# Dropout


def keys(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_scales_up_the_rest(rate: float) -> None:
    dropped = dropout(torch.ones(4, 50, 100), rate, keys(1, 2, 3, 4), place=0)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - round(rate * 2**16) / 2**16)))
    # 20,000 draws: the share strays by sqrt(rate (1 - rate) / 20000) < 0.0036; four of that.
    assert float((dropped == 0).float().mean()) == pytest.approx(rate, abs=0.015)


def test_a_rows_mask_does_not_depend_on_the_rest_of_the_batch() -> None:
    x = torch.ones(3, 5, 8)
    together = dropout(x, 0.5, keys(11, 12, 13), place=3)
    alone = dropout(x[:1], 0.5, keys(12), place=3)
    assert torch.equal(together[1:2], alone)


def test_rows_and_places_have_masks_of_their_own() -> None:
    x = torch.ones(2, 16, 16)
    here, there = dropout(x, 0.5, keys(1, 2), place=1), dropout(x, 0.5, keys(1, 2), place=2)
    agreements = [(here[0] == here[1]), (here[0] == there[0]), (here[1] == there[1])]
    # Two fair masks of 256 agree on half; its spread is 1 / 32.
    assert all(float(same.float().mean()) == pytest.approx(0.5, abs=0.13) for same in agreements)


def test_without_draws_nothing_is_dropped() -> None:
    config = config_of(dropout=0.5)
    model, tokens = scrambled(config), some_tokens(config)
    without = scrambled(config_of(dropout=0.0))
    with torch.no_grad():
        assert torch.equal(model(tokens), without(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_dropout_is_keyed_by_row(family: str) -> None:
    config = config_of(architecture=family, dropout=0.3)
    model, tokens = scrambled(config), some_tokens(config)
    with torch.no_grad():
        whole = model(tokens, keys(5, 6, 7))
        row = model(tokens[2:], keys(7))
        other = model(tokens[2:], keys(8))
    # The same mask; matrix products of another batch size may round otherwise.
    assert (whole[2:] - row).abs().max() < 1e-4
    assert (other - row).abs().max() > 0.1


def test_dropout_acts_on_the_embedding_and_on_both_branches_of_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def spy(x: Tensor, rate: float, dropout_keys: Tensor | None, place: int) -> Tensor:
        places.append(place)
        return x

    monkeypatch.setattr(model_module, "dropout", spy)
    config = config_of(dropout=0.5, n_layers=3)
    scrambled(config)(some_tokens(config), keys(1, 2, 3))
    assert places == [0, 1, 2, 3, 4, 5, 6]


def test_random_bits_are_uniform() -> None:
    bits = random_bits(keys(1, -7), place=2, count=32_768)
    counts = torch.bincount((bits.flatten().long() + 2**31) >> 24, minlength=256).double()
    chi_square = float(((counts - 256) ** 2 / 256).sum())
    assert 150 < chi_square < 380  # 255 degrees of freedom: mean 255, spread 22.6


def test_every_bit_of_random_bits_is_fair() -> None:
    bits = random_bits(keys(9), place=0, count=65_536)[0]
    shares = [float(((bits >> bit) & 1).float().mean()) for bit in range(32)]
    assert shares == pytest.approx([0.5] * 32, abs=0.01)  # spread 0.002


def test_neighbouring_random_bits_do_not_correlate() -> None:
    x = random_bits(keys(3), place=1, count=65_536)[0].double()
    for lag in (1, 2, 64):
        assert abs(float(torch.corrcoef(torch.stack([x[:-lag], x[lag:]]))[0, 1])) < 0.02  # spread 0.004


def test_random_bits_differ_by_key_and_by_place() -> None:
    streams = [random_bits(keys(key), place, 1000)[0] for key in (0, 1, 2, -1) for place in (0, 1, 2, 9)]
    for i, a in enumerate(streams):
        for b in streams[:i]:
            assert (a == b).sum() == 0  # 1000 chances in 2^32


@pytest.mark.parametrize(("key", "place"), [(1, 1), (-5, 0), (2**31 - 1, 24)])
def test_random_bits_are_the_published_mixer_over_a_counter(key: int, place: int) -> None:
    """Bits once published stay: another rule would change the masks of every recorded run."""

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x21F0AAAD % 2**32
        x = (x ^ x >> 15) * 0x735A2D97 % 2**32
        return x ^ x >> 15

    start = mix((key ^ (place * 0x3C6EF372 & 0x7FFFFFFF)) % 2**32)
    by_hand = [mix((start + index * 0x9E3779B9) % 2**32) for index in range(50)]  # the golden ratio, times 2^32
    assert [bits % 2**32 for bits in random_bits(keys(key), place, 50)[0].tolist()] == by_hand
