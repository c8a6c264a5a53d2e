"""One flat buffer, and names that are views into it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitrine.families.registry import FAMILIES
from vitrine.model.decoder import Decoder, initialise
from vitrine.model.entries import ALIGNMENT
from vitrine.model.flat import FlatParameters, digest
from vitrine.model.inventory import is_hidden_matrix
from vitrine.model.loss import next_token_loss
from vitrine.presets import Facts, resolve


def tiny(architecture: str = "llama", **model: Any) -> Decoder:
    size = {"architecture": architecture, "n_layers": 3, "n_heads": 2, "d_model": 12, "d_ff": 13, "context": 6}
    return initialise(resolve({"model": size | model}, Facts(vocab_size=11, train_tokens=1)).model, seed=1)


def gaps(flat: FlatParameters) -> Tensor:
    """Where the buffer holds no parameter: True."""
    gap = torch.ones(len(flat.values), dtype=torch.bool)
    for entry in flat.entries:
        gap[entry.start : entry.stop] = False
    return gap


def some_loss(model: Decoder) -> Tensor:
    tokens = torch.arange(12).view(2, 6) % 11
    return next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_moving_the_parameters_changes_none(family: str) -> None:
    model = tiny(family)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    flat = FlatParameters(model)
    named = flat.entries.named(flat.values)
    assert named.keys() == before.keys()
    assert all(torch.equal(named[name], before[name]) for name in before)


def test_a_change_in_the_buffer_is_a_change_in_the_model() -> None:
    model = tiny()
    flat = FlatParameters(model)
    flat.values.fill_(2.5)
    assert all((parameter == 2.5).all() for parameter in model.parameters())


def test_a_change_in_the_model_is_a_change_in_the_buffer() -> None:
    model = tiny()
    flat = FlatParameters(model)
    with torch.no_grad():
        model.blocks[1].mlp.gate.weight[2, 3] = 77.0
    assert flat.entries.by_name["blocks.1.mlp.gate.weight"].view(flat.values)[2, 3] == 77.0
    assert (flat.values == 77.0).sum() == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_backward_adds_up_in_the_gradient_buffer(family: str) -> None:
    model, plain = tiny(family), tiny(family)
    flat = FlatParameters(model)
    some_loss(plain).backward()
    some_loss(model).backward()
    some_loss(model).backward()
    named = flat.entries.named(flat.gradients)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(named[name], 2 * parameter.grad, msg=name)


def test_backward_keeps_the_gradients_in_the_buffer() -> None:
    model = tiny()
    flat = FlatParameters(model)
    some_loss(model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.data_ptr() == flat.entries.by_name[name].view(flat.gradients).data_ptr()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_starts_on_a_cache_line_and_none_overlap(family: str) -> None:
    flat = FlatParameters(tiny(family))
    assert all(entry.start % ALIGNMENT == 0 for entry in flat.entries)
    assert all(a.stop <= b.start for a, b in zip(flat.entries, list(flat.entries)[1:], strict=False))
    assert flat.values.data_ptr() % 64 == 0


def test_the_gaps_are_zero_and_stay_so_through_a_backward_pass() -> None:
    model = tiny()
    flat = FlatParameters(model)
    some_loss(model).backward()
    gap = gaps(flat)
    assert gap.any()
    assert not flat.values[gap].any()
    assert not flat.gradients[gap].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_count_leaves_the_gaps_out(family: str) -> None:
    model = tiny(family)
    assert FlatParameters(model).entries.count == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_matrices_come_first_then_other_matrices_then_vectors(family: str) -> None:
    flat = FlatParameters(tiny(family))
    kinds = [0 if is_hidden_matrix(e.name, e.shape) else 1 if len(e.shape) == 2 else 2 for e in flat.entries]
    assert kinds == sorted(kinds)
    assert set(kinds) == {0, 1, 2}
    assert [entry.kind for entry in flat.entries] == kinds


@pytest.mark.parametrize(
    ("name", "shape", "hidden"),
    [
        ("blocks.0.mlp.gate.weight", (3, 4), True),
        ("blocks.0.mlp.gate.bias", (3,), False),
        ("embedding.weight", (3, 4), False),
        ("head.weight", (3, 4), False),
    ],
)
def test_a_hidden_matrix_is_a_matrix_in_a_block(name: str, shape: tuple[int, ...], hidden: bool) -> None:
    assert is_hidden_matrix(name, shape) is hidden


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_the_stacks_hold_every_hidden_matrix_once(family: str, n_kv_heads: int) -> None:
    flat = FlatParameters(tiny(family, n_kv_heads=2 if family == "gpt2" else n_kv_heads))
    hidden = flat.entries.parts(lambda entry: entry.hidden)[0]
    for stack in hidden.stacks(hidden.within(flat.values)):
        stack.add_(1000.0)
    moved = {name for name, tensor in flat.entries.named(flat.values).items() if (tensor > 500).all()}
    assert moved == {entry.name for entry in flat.entries if is_hidden_matrix(entry.name, entry.shape)}
    assert (flat.values < 1500).all()  # none twice
    assert not flat.values[gaps(flat)].any()


def test_a_stack_has_matrices_of_one_shape_in_buffer_order() -> None:
    flat = FlatParameters(tiny("llama"))
    hidden = flat.entries.parts(lambda entry: entry.hidden)[0]
    stacks = {tuple(stack.shape[1:]): stack for stack in hidden.stacks(hidden.within(flat.values))}
    assert {shape: len(stack) for shape, stack in stacks.items()} == {(12, 12): 12, (13, 12): 6, (12, 13): 3}
    named = flat.entries.named(flat.values)
    members = [entry.name for entry in flat.entries if entry.shape == (13, 12)]
    assert all(torch.equal(stacks[13, 12][index], named[name]) for index, name in enumerate(members))


# Digests


def test_a_digest_does_not_depend_on_the_order() -> None:
    named = dict(tiny().named_parameters())
    assert digest(named) == digest(list(reversed(named.items())))


def test_a_digest_changes_with_one_bit() -> None:
    named = {name: parameter.detach().clone() for name, parameter in tiny().named_parameters()}
    before = digest(named)
    named["blocks.2.mlp.shrink.weight"].view(torch.int32)[11, 12] ^= 1
    assert digest(named) != before


def test_a_digest_tells_minus_zero_from_zero() -> None:
    assert digest({"a": torch.tensor([0.0])}) != digest({"a": torch.tensor([-0.0])})


def test_a_digest_changes_with_name_and_shape() -> None:
    numbers = torch.arange(6.0)
    found = {digest({name: numbers.view(shape)}) for name in ("a", "b") for shape in ((2, 3), (3, 2), (6,))}
    assert len(found) == 6


def test_a_digest_of_a_view_is_that_of_its_numbers() -> None:
    wide = torch.arange(12.0).view(3, 4)
    assert digest({"a": wide[:, :2]}) == digest({"a": wide[:, :2].clone()})


def test_a_digest_is_that_of_the_bytes() -> None:
    import hashlib

    expected = hashlib.sha256(b"a <f4 (2,)\n\x00\x00\x80\x3f\x00\x00\x00\xc0").hexdigest()  # 1 and -2
    assert digest({"a": torch.tensor([1.0, -2.0])}) == expected
