"""The update rules against torch and numbers worked by hand."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vitrine.optimizers.adamw as adamw_module
import vitrine.optimizers.muon as muon_module
from vitrine.config import Config
from vitrine.errors import DivergedError
from vitrine.model.decoder import Decoder, initialise
from vitrine.model.flat import FlatParameters
from vitrine.model.inventory import is_hidden_matrix
from vitrine.optimizers.adamw import adam_change
from vitrine.optimizers.muon import orthogonalise
from vitrine.optimizers.optimizer import Optimizer
from vitrine.optimizers.registry import OPTIMIZERS, make_optimizer
from vitrine.optimizers.schedule import learning_rate_scale
from vitrine.presets import Facts, resolve

CONSTANT = {"name": "constant", "warmup_steps": 0}


def tiny(**settings: Any) -> Config:
    size = {"architecture": "llama", "n_layers": 2, "n_heads": 2, "d_model": 12, "d_ff": 29, "context": 6}
    size["bias"] = True
    return resolve({"model": size, "schedule": CONSTANT} | settings, Facts(vocab_size=11, train_tokens=1))


def prepare(config: Config, dtype: torch.dtype = torch.float32) -> tuple[Decoder, FlatParameters, Optimizer]:
    model = initialise(config.model, seed=1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(9)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    flat = FlatParameters(model)
    steps = config.training.steps
    return model, flat, make_optimizer(flat, config.optimizer, config.schedule, steps, dtype)


def give_gradients(model: Decoder, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad.copy_(scale * torch.randn(parameter.shape, generator=generator))


def copies(model: Decoder) -> dict[str, Tensor]:
    """The parameters as leaves of their own, for another optimizer."""
    return {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}


def run_beside(
    settings: dict[str, Any], make_theirs: Callable[[dict[str, Tensor]], list[torch.optim.Optimizer]], steps: int = 20
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same gradients to our optimizer and to torch's: the parameters of both after some steps."""
    model, flat, optimizer = prepare(tiny(optimizer=settings))
    theirs = copies(model)
    others = make_theirs(theirs)
    for step in range(steps):
        give_gradients(model, seed=step)
        for name, parameter in model.named_parameters():
            theirs[name].grad = parameter.grad.clone()
        optimizer.update(step)
        for other in others:
            other.step()
    return flat.entries.named(flat.values), {name: tensor.detach() for name, tensor in theirs.items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Twenty float32 updates of numbers near one: rounding adds up to a few 1e-6."""
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# SGD


def one_step(optimizer: dict[str, Any], gradients: list[float]) -> tuple[list[float], list[float]]:
    """A matrix entry and a gain that start at 2 and follow these gradients."""
    model, flat, rule = prepare(tiny(optimizer={"clip": 0} | optimizer))
    matrix = flat.entries.by_name["blocks.0.mlp.gate.weight"].view(flat.values)[3, 4:5]
    gain = flat.entries.by_name["final_norm.gain"].view(flat.values)[5:6]
    matrix.fill_(2.0)
    gain.fill_(2.0)
    trail: tuple[list[float], list[float]] = [], []
    for step, gradient in enumerate(gradients):
        for parameter in model.parameters():
            parameter.grad.fill_(gradient)
        rule.update(step)
        trail[0].append(float(matrix))
        trail[1].append(float(gain))
    return trail


def test_sgd_steps_against_the_gradient() -> None:
    _, gain = one_step({"name": "sgd", "learning_rate": 0.1}, [1.0, -3.0])
    assert gain == pytest.approx([1.9, 2.2])


def test_sgd_with_momentum_steps_against_a_running_sum() -> None:
    _, gain = one_step({"name": "sgd", "learning_rate": 0.1, "momentum": 0.5}, [1.0, 1.0, 0.0])
    assert gain == pytest.approx([1.9, 1.75, 1.675])  # sums 1, 1.5, 0.75


def test_sgds_weight_decay_is_apart_from_the_momentum_and_for_matrices_alone() -> None:
    """Decoupled, unlike torch.optim.SGD, which adds the decay to the gradient, and so to the momentum."""
    settings = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.2}
    matrix, gain = one_step(settings, [1.0, 0.0])
    assert matrix == pytest.approx([2 * 0.98 - 0.1, (2 * 0.98 - 0.1) * 0.98 - 0.05])
    assert gain == pytest.approx([1.9, 1.85])


def test_sgd_with_decay_rounds_the_step_of_a_vector_before_it_is_subtracted() -> None:
    """As it does for matrices, which decay: the bits of runs that were made so far."""
    model, flat, optimizer = prepare(
        tiny(optimizer={"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.2, "clip": 0})
    )
    give_gradients(model, seed=3)
    vectors = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim == 1}
    expected = {name: p.detach().numpy() - p.grad.numpy() * np.float32(0.1) for name, p in vectors.items()}
    optimizer.update(0)
    assert all(np.array_equal(flat.tensors[name].numpy(), expected[name]) for name in vectors)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_without_decay_is_torchs(momentum: float) -> None:
    settings = {"name": "sgd", "learning_rate": 0.05, "momentum": momentum, "clip": 0}
    ours, theirs = run_beside(settings, lambda p: [torch.optim.SGD(p.values(), lr=0.05, momentum=momentum)])
    assert_same(ours, theirs)


@pytest.mark.parametrize(("momentum", "memories"), [(0.0, set()), (0.9, {"momentum"})])
def test_sgd_remembers_only_with_momentum(momentum: float, memories: set[str]) -> None:
    optimizer = prepare(tiny(optimizer={"name": "sgd", "momentum": momentum}))[2]
    assert {name for state in optimizer.state for name in state} == memories


# AdamW


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.8, 0.99)])
def test_adamw_is_torchs_with_decay_on_matrices_alone(betas: tuple[float, float]) -> None:
    def theirs(parameters: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
        groups = [
            {"params": [p for p in parameters.values() if p.ndim == 2], "weight_decay": 0.3},
            {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0},
        ]
        return [torch.optim.AdamW(groups, lr=0.01, betas=betas, eps=1e-6)]

    settings = {"name": "adamw", "learning_rate": 0.01, "betas": betas, "weight_decay": 0.3, "epsilon": 1e-6, "clip": 0}
    assert_same(*run_beside(settings, theirs))


def test_adamw_gives_the_same_bits_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (2**18, 1001):  # all at once; and parts that end within tensors, and within the matrices
        monkeypatch.setattr(adamw_module, "IN_CACHE", size)
        model, parameters, optimizer = prepare(tiny(optimizer={"name": "adamw", "weight_decay": 0.3}))
        assert 1001 < optimizer.decaying[0] < len(parameters.values)
        for step in range(3):
            give_gradients(model, seed=step)
            optimizer.update(step)
        found.append(parameters.values)
    assert torch.equal(*found)


def test_adamws_first_step_is_the_learning_rate_whatever_the_gradients_size() -> None:
    for gradient in (1e-3, 1.0, 1e3):
        _, gain = one_step({"name": "adamw", "learning_rate": 0.01}, [gradient])
        assert gain == pytest.approx([1.99], abs=1e-6)


def test_adams_second_step_is_worked_by_hand() -> None:
    value, first, second = 1.0, torch.zeros(1), torch.zeros(1)
    config = tiny(optimizer={"name": "adamw", "betas": (0.5, 0.75), "epsilon": 1e-30}).optimizer
    for step, gradient in enumerate([2.0, -1.0]):
        value -= float(adam_change(torch.tensor([gradient]), first, second, step, 0.1, config))
    # m: 1, then 0.5 * 1 - 0.5 = 0; v: 1, then 0.75 + 0.25 = 1. The first step is 0.1 * 2 / 2; the second 0.
    assert (value, float(first), float(second)) == pytest.approx((0.9, 0.0, 1.0))


# Lion


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_lion_is_an_independent_loop_in_float64(decay: float) -> None:
    """Algorithm 2 of arXiv:2302.06675, number by number; what has no matrix does not decay."""
    rate, beta1, beta2 = 0.01, 0.9, 0.99
    settings = {"name": "lion", "learning_rate": rate, "betas": (beta1, beta2), "weight_decay": decay, "clip": 0}
    model, flat, optimizer = prepare(tiny(optimizer=settings))
    values = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    means = {name: torch.zeros_like(value) for name, value in values.items()}
    for step in range(20):
        give_gradients(model, seed=step)
        for name, parameter in model.named_parameters():
            gradient, mean = parameter.grad.double(), means[name]
            sign = (beta1 * mean + (1 - beta1) * gradient).sign()
            values[name] -= rate * (sign + (decay if gradient.ndim == 2 else 0.0) * values[name])
            means[name] = beta2 * mean + (1 - beta2) * gradient
        optimizer.update(step)
    for name, value in flat.entries.named(flat.values).items():
        torch.testing.assert_close(value.double(), values[name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            optimizer.named_state()[f"{name}.momentum"].double(), means[name], atol=1e-6, rtol=1e-5
        )


def test_every_number_moves_equally_far_by_lion() -> None:
    for gradient in (1e-3, -1.0, 1e3):
        _, gain = one_step({"name": "lion", "learning_rate": 0.01}, [gradient])
        assert gain == pytest.approx([2 - math.copysign(0.01, gradient)], abs=1e-6)


# Muon


def by_muon(parameters: dict[str, Tensor], **settings: Any) -> list[torch.optim.Optimizer]:
    hidden = [p for name, p in parameters.items() if is_hidden_matrix(name, tuple(p.shape))]
    others = [p for name, p in parameters.items() if not is_hidden_matrix(name, tuple(p.shape))]
    return [
        torch.optim.Muon(hidden, lr=0.02, momentum=0.95, nesterov=True, eps=1e-7, **settings),
        torch.optim.AdamW(others, lr=0.003, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0),
    ]


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_muon_is_torchs_muon_and_adamw_for_what_is_not_a_hidden_matrix(decay: float) -> None:
    settings = {"name": "muon", "learning_rate": 0.02, "adamw_learning_rate": 0.003, "weight_decay": decay, "clip": 0}
    ours, theirs = run_beside(settings, lambda p: by_muon(p, weight_decay=decay))
    rest = [name for name in ours if not is_hidden_matrix(name, tuple(ours[name].shape))]
    assert_same({name: ours[name] for name in rest}, theirs)
    born = dict(prepare(tiny())[0].named_parameters())
    for name in ours.keys() - set(rest):
        # torch orthogonalises in bfloat16: an error of some per cent of each step.
        assert (ours[name] - theirs[name]).norm() < 0.05 * (ours[name] - born[name]).norm(), name


def random_stack(rows: int, columns: int, count: int = 3) -> Tensor:
    return torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(rows + columns))


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (40, 16), (16, 40), (1, 9), (9, 1), (384, 128)])
def test_orthogonalise_brings_singular_values_near_one_and_keeps_the_directions(rows: int, columns: int) -> None:
    stack = random_stack(rows, columns)
    result = orthogonalise(stack, torch.float32)
    assert result.shape == stack.shape
    u, before, vh = torch.linalg.svd(stack, full_matrices=False)
    turned = u.transpose(1, 2) @ result @ vh.transpose(1, 2)  # diagonal: how long each direction is now
    along = turned.diagonal(dim1=1, dim2=2)
    across = turned - torch.diag_embed(along)
    # Five rounds multiply small singular values by 3.44 each: what starts below 1/500 of the norm does not arrive.
    arrived = before > 0.005 * before.norm(dim=-1, keepdim=True)
    assert arrived.float().mean() > 0.9
    assert ((along > 0.6) & (along < 1.3))[arrived].all()
    assert across.abs().max() < 1e-3


def test_orthogonalise_works_in_bfloat16_too() -> None:
    stack = random_stack(24, 32)
    narrow = orthogonalise(stack, torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    u, _, vh = torch.linalg.svd(stack, full_matrices=False)
    # Eight bits through five rounds; the ideal itself is off by up to 0.3 in a direction.
    aligned = (narrow.float() * (u @ vh)).sum((1, 2)) / (narrow.float().norm(dim=(1, 2)) * (u @ vh).norm(dim=(1, 2)))
    assert (aligned > 0.95).all()


def test_orthogonalise_treats_each_matrix_of_a_stack_by_itself() -> None:
    stack = random_stack(12, 20, count=4) * torch.tensor([1e-6, 1.0, 1e6, 3.0]).view(4, 1, 1)
    one_by_one = torch.cat([orthogonalise(matrix[None], torch.float32) for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack, torch.float32), one_by_one, atol=1e-5, rtol=1e-5)


def test_orthogonalise_leaves_a_zero_matrix_zero() -> None:
    assert not orthogonalise(torch.zeros(2, 5, 7), torch.float32).any()


def test_muons_step_has_the_size_of_the_learning_rate_times_the_root_of_rows_over_columns() -> None:
    model, flat, optimizer = prepare(tiny(optimizer={"name": "muon", "learning_rate": 0.02}))
    before = {name: tensor.clone() for name, tensor in flat.entries.named(flat.values).items()}
    give_gradients(model, seed=1)
    optimizer.update(0)
    for name, tensor in flat.entries.named(flat.values).items():
        if is_hidden_matrix(name, tuple(tensor.shape)):
            rows, columns = tensor.shape
            largest = float(torch.linalg.matrix_norm(tensor - before[name], ord=2))
            assert 0.6 < largest / (0.02 * max(1, rows / columns) ** 0.5) < 1.3, name


def test_muon_explains_a_number_by_its_own_stack_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, flat, optimizer = prepare(tiny(optimizer={"name": "muon", "clip": 0}))
    before = flat.values.clone()
    give_gradients(model, seed=1)
    memory_before = {name: memory.clone() for name, memory in optimizer.named_state().items()}
    optimizer.update(0)
    trace = SimpleNamespace(
        values=before, clipped=flat.gradients, memory_before=memory_before, memory_after=optimizer.named_state()
    )
    seen = []
    monkeypatch.setattr(
        muon_module, "orthogonalise", lambda stack, dtype: seen.append(stack.shape) or orthogonalise(stack, dtype)
    )
    for name in ("blocks.1.mlp.gate.weight", "blocks.0.attention.key.weight"):
        entry = flat.entries.by_name[name]
        rule = optimizer.explain(0, entry, (3, 4), trace)
        moved = float((entry.view(flat.values) - entry.view(before))[3, 4])
        assert rule.total == pytest.approx(moved, abs=1e-7)
    assert seen == [(4, 29, 12), (8, 12, 12)]  # expand and gate of two blocks; query, key, value and output of two


def test_muon_computes_in_the_number_format_of_training() -> None:
    assert prepare(tiny(optimizer={"name": "muon"}), torch.bfloat16)[2].dtype == torch.bfloat16  # type: ignore[attr-defined]


# Memory


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_named_state_has_every_memory_of_every_parameter_it_is_for(name: str) -> None:
    model, flat, optimizer = prepare(tiny(optimizer={"name": name, "momentum": 0.9}))
    give_gradients(model, seed=1)
    optimizer.update(0)
    hidden = {entry.name for entry in flat.entries if is_hidden_matrix(entry.name, entry.shape)}
    everything = {entry.name for entry in flat.entries}
    moments = {"adamw": everything, "muon": everything - hidden}.get(name, set())
    sums = {"sgd": everything, "lion": everything, "muon": hidden}.get(name, set())
    named = optimizer.named_state()
    assert named.keys() == {f"{n}.{memory}" for n in moments for memory in ("first_moment", "second_moment")} | {
        f"{n}.momentum" for n in sums
    }
    assert all(memory.any() for memory in named.values())


def test_the_named_state_is_in_the_parameters_own_shape_and_place() -> None:
    model, _, optimizer = prepare(tiny(optimizer={"name": "adamw", "betas": [0.5, 0.5], "clip": 0}))
    give_gradients(model, seed=1)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    optimizer.update(0)
    named = optimizer.named_state()
    for name, gradient in gradients.items():
        torch.testing.assert_close(named[f"{name}.first_moment"], gradient / 2)
        torch.testing.assert_close(named[f"{name}.second_moment"], gradient.square() / 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gaps_of_the_buffer_stay_zero(name: str) -> None:
    model, flat, optimizer = prepare(tiny(optimizer={"name": name, "momentum": 0.9, "weight_decay": 0.1}))
    gap = torch.ones(len(flat.values), dtype=torch.bool)
    for entry in flat.entries:
        gap[entry.start : entry.stop] = False
    for step in range(3):
        give_gradients(model, seed=step)
        optimizer.update(step)
    assert gap.any()
    assert not flat.values[gap].any()


# Clipping


def test_the_norm_is_that_of_the_whole_gradient_before_clipping() -> None:
    model, flat, optimizer = prepare(tiny(optimizer={"name": "sgd", "clip": 0.5}))
    give_gradients(model, seed=1)
    norm = float(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double().norm())
    optimizer.update(0)
    assert optimizer.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert float(flat.gradients.norm()) == pytest.approx(0.5, rel=1e-5)


def test_a_clipped_gradient_is_torchs() -> None:
    settings = {"name": "sgd", "learning_rate": 0.1, "clip": 0.5}
    model, flat, optimizer = prepare(tiny(optimizer=settings))
    theirs = copies(model)
    give_gradients(model, seed=1)
    for name, parameter in model.named_parameters():
        theirs[name].grad = parameter.grad.clone()
    torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
    optimizer.update(0)
    for name, parameter in theirs.items():
        # torch divides by norm + 1e-6.
        torch.testing.assert_close(
            flat.entries.by_name[name].view(flat.gradients), parameter.grad, atol=1e-7, rtol=1e-5
        )


@pytest.mark.parametrize("clip", [0.0, 1e9])
def test_a_gradient_below_the_limit_or_without_one_is_left_as_it_is(clip: float) -> None:
    model, flat, optimizer = prepare(tiny(optimizer={"name": "sgd", "clip": clip}))
    give_gradients(model, seed=1)
    before = flat.gradients.clone()
    optimizer.update(0)
    assert torch.equal(flat.gradients, before)


# Divergence


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_refused_by_step_and_tensor(name: str, bad: float) -> None:
    model, _, optimizer = prepare(tiny(optimizer={"name": name}))
    give_gradients(model, seed=1)
    model.blocks[1].mlp.gate.weight.grad[3, 4:6] = bad
    with pytest.raises(DivergedError) as caught:
        optimizer.update(17)
    assert str(caught.value) == (
        "Step 17: 2 of 348 gradients of blocks.1.mlp.gate.weight are not finite. The update was not made. "
        "Try a lower optimizer.learning_rate, more schedule.warmup_steps, or training.precision = float32."
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_a_refused_update_parameters_and_memory_are_the_same_to_the_bit(name: str) -> None:
    model, flat, optimizer = prepare(tiny(optimizer={"name": name, "momentum": 0.9, "weight_decay": 0.1}))
    give_gradients(model, seed=1)
    optimizer.update(0)
    before = [flat.values.clone(), *(memory.clone() for memory in optimizer.named_state().values())]
    give_gradients(model, seed=2)
    model.final_norm.gain.grad[0] = math.nan
    with pytest.raises(DivergedError):
        optimizer.update(1)
    after = [flat.values, *optimizer.named_state().values()]
    assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(before, after, strict=True))


def test_finite_gradients_with_too_large_a_norm_are_refused_in_other_words() -> None:
    model, _, optimizer = prepare(tiny(optimizer={"name": "adamw"}))
    give_gradients(model, seed=1, scale=1e30)
    with pytest.raises(DivergedError, match=r"^Step 4: the norm of the gradient is too large for float32\."):
        optimizer.update(4)


# The schedule


def test_the_schedule_moves_both_learning_rates_of_muon() -> None:
    schedule = {"name": "linear", "warmup_steps": 0, "final_fraction": 0.0}
    config = tiny(optimizer={"name": "muon"}, schedule=schedule, training={"steps": 4})
    moves = []
    for step in (0, 2):
        model, flat, optimizer = prepare(config)
        before = flat.values.clone()
        give_gradients(model, seed=1)
        # Adam's first step does not depend on the step's number when its moments are corrected for it.
        for span in optimizer.spans():
            optimizer.rule(span, 0, learning_rate_scale(config.schedule, step, 4))
        moves.append(flat.values - before)
    torch.testing.assert_close(moves[1], moves[0] / 2, atol=1e-6, rtol=1e-3)


def test_the_learning_rate_of_the_step_is_written_down() -> None:
    schedule = {"name": "linear", "warmup_steps": 0, "final_fraction": 0.0}
    config = tiny(optimizer={"name": "sgd", "learning_rate": 0.4}, schedule=schedule, training={"steps": 4})
    model, _, optimizer = prepare(config)
    give_gradients(model, seed=1)
    optimizer.update(3)
    assert optimizer.learning_rate == pytest.approx(0.1)
