"""Next-token cross-entropy, by hand, by torch, and its gradient by finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.apple import NAME, Gpu
from vitrine.families.registry import FAMILIES
from vitrine.model import loss as losses
from vitrine.model.decoder import initialise
from vitrine.model.loss import next_token_loss
from vitrine.presets import Facts, resolve


def random_case(seed: int = 1, batch: int = 2, seq: int = 3, vocab_size: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, seq, vocab_size, generator=generator, dtype=torch.float64)
    return logits, torch.randint(vocab_size, (batch, seq), generator=generator)


def test_the_loss_is_worked_by_hand() -> None:
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, math.log(9.0)]]])  # probabilities 3/4, 1/4; 1/10, 9/10
    loss = next_token_loss(logits, torch.tensor([[0, 0]]))
    assert float(loss) == pytest.approx((math.log(4 / 3) + math.log(10)) / 2, rel=1e-6)


def test_equal_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    loss = next_token_loss(torch.full((2, 5, 65), 3.0), torch.zeros(2, 5, dtype=torch.int64))
    assert float(loss) == pytest.approx(math.log(65), rel=1e-6)


def test_the_loss_is_minus_the_mean_log_probability() -> None:
    logits, targets = random_case()
    chosen = torch.log_softmax(logits, dim=-1).gather(-1, targets[..., None])
    torch.testing.assert_close(next_token_loss(logits, targets), -chosen.mean())


def test_the_loss_is_torchs() -> None:
    logits, targets = random_case(seed=2)
    by_torch = F.cross_entropy(logits.transpose(1, 2), targets)  # torch wants the classes second
    torch.testing.assert_close(next_token_loss(logits, targets), by_torch)


def test_adding_a_constant_to_all_logits_changes_nothing() -> None:
    logits, targets = random_case(seed=3)
    torch.testing.assert_close(next_token_loss(logits + 5, targets), next_token_loss(logits, targets))


def test_huge_logits_give_a_finite_loss() -> None:
    logits = torch.tensor([[[1e30, 0.0]]])
    assert float(next_token_loss(logits, torch.tensor([[0]]))) == 0.0


def test_the_gradient_is_probability_minus_one_for_the_target_over_the_count() -> None:
    logits, targets = random_case(seed=4)
    logits.requires_grad_()
    next_token_loss(logits, targets).backward()
    by_hand = (torch.softmax(logits, -1) - F.one_hot(targets, logits.shape[-1])) / targets.numel()
    torch.testing.assert_close(logits.grad, by_hand.detach())


def test_the_gradient_agrees_with_finite_differences() -> None:
    logits, targets = random_case(seed=5)
    assert torch.autograd.gradcheck(lambda x: next_token_loss(x, targets), logits.requires_grad_())


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_gradient_of_every_tensor_of_a_model_agrees_with_finite_differences(architecture: str) -> None:
    """Along the gradient of one tensor, of length one, the loss must rise by the gradient's norm."""
    size = {"architecture": architecture, "n_layers": 2, "n_heads": 2, "d_model": 8, "d_ff": 12, "context": 8}
    config = resolve({"model": size}, Facts(vocab_size=11, train_tokens=1)).model
    model = initialise(config, seed=1)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    tokens = torch.randint(11, (4, 9), generator=generator)

    def loss() -> Tensor:
        return next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])

    loss().backward()
    for name, parameter in model.named_parameters():
        norm = float(parameter.grad.norm())
        if name.endswith("key.bias") and FAMILIES[architecture].positions == "learned":
            assert norm < 1e-6  # it moves all scores of a query alike
            continue
        direction, width = parameter.grad / norm, 1e-2
        with torch.no_grad():
            losses = []
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * width)
                losses.append(float(loss().double()))
                parameter.sub_(direction, alpha=sign * width)
        # The model is float32: its loss (near 3) is rounded to 2e-7, which is 2e-5 after the division by 0.02.
        # The third derivative adds about width squared, 1e-4 of the slope's size.
        assert (losses[0] - losses[1]) / (2 * width) == pytest.approx(norm, rel=5e-3, abs=1e-4), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_by_parts_the_loss_and_its_gradient_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (5 * torch.randn(3, 7, 50, generator=generator)).to(dtype)
    targets = torch.randint(50, (3, 7), generator=generator)
    expected = logits.double().requires_grad_()
    whole = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    (whole * 0.25).backward()
    monkeypatch.setattr(losses, "AT_ONCE", 200)  # four rows at a time, and one left over
    given = logits.clone().requires_grad_()
    by_parts = losses.next_token_loss(given, targets)
    (by_parts * 0.25).backward()
    assert by_parts.dtype == torch.float32
    assert by_parts.item() == pytest.approx(whole.item(), rel=1e-6)
    assert torch.equal(given.detach(), logits), "the logits are looked at afterwards, and must stay"
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-20
    torch.testing.assert_close(given.grad.double(), expected.grad, rtol=rounding, atol=1e-9)


def test_where_the_device_has_no_float64_the_loss_by_parts_is_added_up_on_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "AT_ONCE", 200)
    logits = torch.randn(3, 7, 50, generator=torch.Generator().manual_seed(3))
    targets = torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(4))
    here = logits.clone().requires_grad_()
    expected = losses.next_token_loss(here, targets)
    expected.backward()
    with Gpu():
        there = logits.to(NAME).requires_grad_()
        with pytest.raises(TypeError, match="no float64"):
            losses.next_token_loss(there, targets.to(NAME))
        monkeypatch.setattr(losses, "WITHOUT_FLOAT64", (NAME,))
        found = losses.next_token_loss(there, targets.to(NAME))
        found.backward()
    assert torch.equal(found.detach().held, expected.detach())
    assert torch.equal(there.grad.held, here.grad)


def test_by_parts_or_at_once_are_chosen_by_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("not here")

    monkeypatch.setattr(losses.CrossEntropyByParts, "apply", refuse)
    small = torch.zeros(1, 2, 8, requires_grad=True)
    assert losses.next_token_loss(small, torch.zeros(1, 2, dtype=torch.int64)).item() == pytest.approx(2.0794415)
    monkeypatch.setattr(losses, "AT_ONCE", 15)
    with pytest.raises(AssertionError, match="not here"):
        losses.next_token_loss(small, torch.zeros(1, 2, dtype=torch.int64))
