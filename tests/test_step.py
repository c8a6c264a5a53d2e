"""One step: four phases, and who may look between them."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrine.config import Config
from vitrine.errors import DivergedError
from vitrine.families.registry import FAMILIES
from vitrine.model.decoder import Decoder, initialise
from vitrine.model.flat import FlatParameters
from vitrine.model.loss import next_token_loss
from vitrine.optimizers.registry import make_optimizer
from vitrine.presets import Facts, resolve
from vitrine.step import MicroBatch, Observer, State, step


def tiny(architecture: str = "qwen3", **settings: Any) -> Config:
    model = {"architecture": architecture, "n_layers": 2, "n_heads": 2, "d_model": 12, "d_ff": 16, "context": 6}
    model |= settings.pop("model", {})
    settings = {"schedule": {"name": "constant", "warmup_steps": 0}} | settings
    return resolve({"model": model} | settings, Facts(vocab_size=11, train_tokens=1))


def prepare(config: Config) -> tuple[Decoder, State]:
    model = initialise(config.model, seed=1)
    with torch.no_grad():  # zeros at birth would hide what lies behind them
        generator = torch.Generator().manual_seed(9)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    flat = FlatParameters(model)
    optimizer = make_optimizer(flat, config.optimizer, config.schedule, config.training.steps, torch.float32)
    return model, State(model, flat, optimizer)


def micro_batches(count: int = 1, rows: int = 8, seed: int = 1, draws: bool = False) -> list[MicroBatch]:
    """`rows` windows in all, in `count` micro-batches."""
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randint(11, (rows, 7), generator=generator)
    keys = torch.arange(rows, dtype=torch.int32)
    parts = zip(windows.chunk(count), keys.chunk(count), strict=True)
    return [
        MicroBatch(part[:, :-1], part[:, 1:], key if draws else None, 1 / count, last=number == count - 1)
        for number, (part, key) in enumerate(parts)
    ]


class Log(Observer):
    """Writes down when it looks."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def micro_batch(self, micro: MicroBatch, logits: Tensor, loss: Tensor) -> None:
        self.seen.append("look at the micro-batch")

    def gradients(self, state: State) -> None:
        self.seen.append("look at the gradients")

    def update(self, state: State) -> None:
        self.seen.append("look at the update")


def test_the_four_phases_follow_each_other_and_who_looks_looks_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, state = prepare(tiny())
    seen = list[str]()

    def forward(*inputs: Any) -> Tensor:
        seen.append("forward")
        return model(*inputs)

    def measure(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append("loss")
        loss = next_token_loss(logits, targets)
        loss.register_hook(lambda gradient: seen.append("backward"))
        return loss

    update = state.optimizer.update
    monkeypatch.setattr("vitrine.step.next_token_loss", measure)
    monkeypatch.setattr(state.optimizer, "update", lambda number: seen.append("update") or update(number))
    state.model = forward
    step(state, micro_batches(2), Log(seen))
    each = ["forward", "loss", "backward", "look at the micro-batch"]
    assert seen == [*each, *each, "look at the gradients", "update", "look at the update"]


def test_a_step_stands_on_one_screen() -> None:
    assert len(inspect.getsourcelines(step)[0]) < 25


def test_the_model_does_not_know_that_it_is_watched() -> None:
    watched, alone = prepare(tiny()), prepare(tiny())
    before = {name: set(vars(module)) for name, module in watched[0].named_modules()}
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

    class Looks(Log):
        def micro_batch(self, micro: MicroBatch, logits: Tensor, loss: Tensor) -> None:
            super().micro_batch(micro, logits, loss)
            for name, module in watched[0].named_modules():
                assert not any(getattr(module, kind) for kind in hooks)
                assert set(vars(module)) == before[name]

    seen = list[str]()
    step(watched[1], micro_batches(2), Looks(seen))
    step(alone[1], micro_batches(2))
    assert len(seen) == 4
    assert torch.equal(watched[1].parameters.values, alone[1].parameters.values)


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_one_step_changes_every_tensor(architecture: str, name: str) -> None:
    _, state = prepare(tiny(architecture, optimizer={"name": name}))
    before = state.parameters.values.clone()
    step(state, micro_batches())
    changes = state.parameters.entries.named(state.parameters.values - before)
    # A key's bias has no gradient: it moves all scores of a query alike.
    assert [n for n, change in changes.items() if not change.any() and not n.endswith("key.bias")] == []


def test_one_step_of_sgd_is_the_gradient_times_the_rate() -> None:
    model, state = prepare(tiny(optimizer={"name": "sgd", "learning_rate": 0.5, "clip": 0}))
    twin, _ = prepare(tiny())
    (batch,) = micro_batches()
    next_token_loss(twin(batch.inputs), batch.targets).backward()
    step(state, [batch])
    theirs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), (theirs[name] - 0.5 * theirs[name].grad).detach(), msg=name)


@pytest.mark.parametrize("draws", [False, True])
def test_four_micro_batches_give_the_gradient_of_one_four_times_as_large(draws: bool) -> None:
    gradients = []
    for count in (4, 1):
        _, state = prepare(tiny(model={"dropout": 0.2}, optimizer={"name": "sgd", "clip": 0}))
        step(state, micro_batches(count, draws=draws))
        gradients.append(state.parameters.gradients.clone())
    # The same terms in another order: float32 rounding of gradients of about 0.1.
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_draws_switch_dropout_on() -> None:
    gradients = []
    for draws in (False, True):
        _, state = prepare(tiny(model={"dropout": 0.2}, optimizer={"name": "sgd", "clip": 0}))
        step(state, micro_batches(draws=draws))
        gradients.append(state.parameters.gradients.clone())
    assert not torch.allclose(gradients[0], gradients[1], atol=1e-4)


def test_a_step_starts_from_no_gradient() -> None:
    _, state = prepare(tiny(optimizer={"name": "sgd", "clip": 0, "learning_rate": 1e-20}))
    step(state, micro_batches())
    once = state.parameters.gradients.clone()
    step(state, micro_batches())
    assert torch.equal(state.parameters.gradients, once)


def test_the_same_steps_give_the_same_bits() -> None:
    ends = []
    for _ in range(2):
        _, state = prepare(tiny(model={"dropout": 0.1}))
        for number in range(3):
            step(state, micro_batches(2, seed=number, draws=True))
        ends.append(state.parameters.values)
    assert torch.equal(*ends)


def test_a_step_counts_itself() -> None:
    _, state = prepare(tiny())
    step(state, micro_batches())
    step(state, micro_batches())
    assert state.step == 2


class Witness(Observer):
    """Writes down what it is shown."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.losses: list[Tensor] = []

    def micro_batch(self, micro: MicroBatch, logits: Tensor, loss: Tensor) -> None:
        self.calls.append("micro_batch")
        self.losses.append(loss)

    def gradients(self, state: State) -> None:
        self.calls.append("gradients")
        self.seen_gradients = state.parameters.gradients.clone()
        self.seen_values = state.parameters.values.clone()
        self.seen_step = state.step

    def update(self, state: State) -> None:
        self.calls.append("update")
        self.updated_values = state.parameters.values.clone()
        self.updated_step = state.step


def test_the_observer_is_called_between_the_phases() -> None:
    _, state = prepare(tiny())
    witness = Witness()
    step(state, micro_batches(3, rows=9), witness)
    assert witness.calls == ["micro_batch"] * 3 + ["gradients", "update"]


def test_the_observer_sees_the_gradients_before_clipping_and_the_parameters_before_the_update() -> None:
    _, state = prepare(tiny(optimizer={"name": "sgd", "clip": 1e-3}))
    before = state.parameters.values.clone()
    witness = Witness()
    step(state, micro_batches(), witness)
    assert float(witness.seen_gradients.norm()) == pytest.approx(state.optimizer.gradient_norm, rel=1e-6)
    assert float(witness.seen_gradients.norm()) > 0.01
    assert float(state.parameters.gradients.norm()) == pytest.approx(1e-3, rel=1e-4)
    assert torch.equal(witness.seen_values, before)


def test_the_observer_sees_the_update_while_the_step_still_has_its_number() -> None:
    _, state = prepare(tiny())
    state.step = 5
    witness = Witness()
    step(state, micro_batches(), witness)
    assert torch.equal(witness.updated_values, state.parameters.values)
    assert (witness.seen_step, witness.updated_step, state.step) == (5, 5, 6)


def test_the_observer_is_given_the_loss_of_each_micro_batch_whole() -> None:
    model, state = prepare(tiny())
    batches = micro_batches(4)
    with torch.no_grad():
        expected = [float(next_token_loss(model(batch.inputs), batch.targets)) for batch in batches]
    witness = Witness()
    step(state, batches, witness)
    assert [float(loss) for loss in witness.losses] == pytest.approx(expected, rel=1e-6)
    assert not any(loss.requires_grad for loss in witness.losses)


def test_watching_changes_no_bit() -> None:
    ends = []
    for observer in (Observer(), Witness()):
        _, state = prepare(tiny())
        step(state, micro_batches(2), observer)
        ends.append(state.parameters.values)
    assert torch.equal(*ends)


def test_a_diverged_step_is_not_made() -> None:
    model, state = prepare(tiny())
    with torch.no_grad():
        model.head.weight[0, 0] = float("inf")
    before = state.parameters.values.clone()
    with pytest.raises(DivergedError, match=r"^Step 0: "):
        step(state, micro_batches())
    assert torch.equal(state.parameters.values, before)
    assert state.step == 0


def test_repeated_steps_on_one_batch_learn_it() -> None:
    _, state = prepare(tiny(training={"steps": 60}, optimizer={"name": "muon"}))
    witness = Witness()
    for _ in range(60):
        step(state, micro_batches(rows=4), witness)
    assert float(witness.losses[0]) > 2
    assert float(witness.losses[-1]) < 0.3


def test_gradients_are_exchanged_after_the_last_micro_batch_alone() -> None:
    """A wrapped model (torch's DistributedDataParallel) is told to hold the gradients of the others."""
    model, state = prepare(tiny())
    held: list[str] = []

    class Wrapped:
        def __call__(self, *args: Any) -> Tensor:
            held.append("forward")
            return model(*args)

        def no_sync(self) -> "Wrapped":
            return self

        def __enter__(self) -> None:
            held.append("hold")

        def __exit__(self, *error: object) -> None:
            held.append("let go")

    state.model = Wrapped()
    step(state, micro_batches(3, rows=3))
    assert held == ["hold", "forward", "let go"] * 2 + ["forward"]


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_activations_that_are_computed_again_give_the_same_bits(architecture: str) -> None:
    kept: list[int] = []
    states = []
    for recompute in (False, True):
        model, state = prepare(tiny(architecture, model={"dropout": 0.2}))
        model.recompute = recompute
        calls = []
        model.blocks[0].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        step(state, micro_batches(count=2, draws=True))
        kept.append(len(calls))
        states.append(state.parameters.values)
    assert kept == [2, 4], "a block runs once a micro-batch, and once more where its activations are not kept"
    assert torch.equal(*states)
