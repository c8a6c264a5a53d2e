"""Parameters that stay in a model's own modules, and the same model's in one flat buffer: the same numbers of everything."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vitrine.config import Config
from vitrine.inspection.replayed_step import StepTrace
from vitrine.model.decoder import Decoder, initialise
from vitrine.model.entries import Parameters
from vitrine.model.flat import FlatParameters, digest
from vitrine.model.inventory import is_hidden_matrix
from vitrine.model.modules import ModuleParameters
from vitrine.optimizers.optimizer import Optimizer
from vitrine.optimizers.registry import OPTIMIZERS, make_optimizer
from vitrine.presets import Facts, resolve
from vitrine.recording import statistics
from vitrine.recording.history import History
from vitrine.recording.recorder import Recorder, to_numpy
from vitrine.runs.film import Film
from vitrine.runs.layout import HISTOGRAM_KINDS
from vitrine.runs.reader import FILM, HISTORY
from vitrine.runs.records import StepRecord
from vitrine.runs.store import Store
from vitrine.step import MicroBatch, State, step
from vitrine.training.checkpoint import restore, save_keyframe, take_snapshot

HOLDERS = (FlatParameters, ModuleParameters)
EVEN = {"d_model": 64, "d_ff": 96, "context": 32}  # multiples of 32 numbers: whole vectors of every instruction set
ODD = {"d_model": 12, "d_ff": 29, "context": 6, "bias": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "weight_decay": 0.2},
    "muon": {"weight_decay": 0.2},
}


def tiny(size: dict[str, Any] = EVEN, **settings: Any) -> Config:
    model = {"architecture": "llama", "n_layers": 2, "n_heads": 2} | size
    settings = {"schedule": {"name": "constant", "warmup_steps": 0}} | settings
    return resolve({"model": model} | settings, Facts(vocab_size=32, train_tokens=1_000))


def prepare(config: Config, holder: type[Parameters]) -> tuple[Decoder, State]:
    model = initialise(config.model, seed=1)
    fill(
        (parameter.data for parameter in model.parameters()), seed=9
    )  # zeros at birth would hide what lies behind them
    parameters = holder(model)
    optimizer = make_optimizer(parameters, config.optimizer, config.schedule, config.training.steps, torch.float32)
    return model, State(model, parameters, optimizer)


def fill(tensors: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


def make_step(model: Decoder, state: State, observer: Any = None) -> None:
    """A step whose gradients are random numbers, as an owner of the model sets them: new tensors each time."""
    state.parameters.zero_grad()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
    fill((parameter.grad for parameter in model.parameters()), seed=state.step)
    if observer:
        observer.gradients(state)
    state.optimizer.update(state.step)
    if observer:
        observer.update(state)
    state.step += 1


def values(state: State) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.parameters.tensors.items()}


def optimizer_of(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "clip": 0} | SETTINGS.get(name, {}) | settings


# Updates


@pytest.mark.parametrize("size", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - {"muon"}))
def test_an_update_is_the_same_in_both_holders(name: str, size: dict[str, Any]) -> None:
    found = []
    for holder in HOLDERS:
        model, state = prepare(tiny(size, optimizer=optimizer_of(name)), holder)
        for _ in range(3):
            make_step(model, state)
        found.append(values(state) | state.optimizer.named_state())
    assert found[0].keys() == found[1].keys()
    for key, tensor in found[0].items():
        if size is EVEN:
            assert torch.equal(tensor, found[1][key]), key
        else:
            # The numbers beyond the last whole vector of a tensor may be rounded once instead of twice (fused multiply-add).
            torch.testing.assert_close(tensor, found[1][key], rtol=3 * 2**-23, atol=1e-8)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Newton and Schulz's iteration, of one matrix in float64."""
    x = matrix.double()
    if x.shape[0] > x.shape[1]:
        return orthogonalised(matrix.T).T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("size", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_muon_is_a_loop_in_float64_whoever_holds_the_parameters(holder: type[Parameters], size: dict[str, Any]) -> None:
    config = tiny(size, optimizer=optimizer_of("muon", learning_rate=0.02))
    model, state = prepare(config, holder)
    ours = {name: value.double() for name, value in values(state).items()}
    born, means = dict(ours), {name: torch.zeros_like(value) for name, value in ours.items()}
    for _ in range(3):
        make_step(model, state)
        for name, parameter in model.named_parameters():
            if is_hidden_matrix(name, tuple(parameter.shape)):
                gradient = parameter.grad.double()
                means[name] = 0.95 * means[name] + 0.05 * gradient
                direction = orthogonalised(0.05 * gradient + 0.95 * means[name])
                factor = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                ours[name] = ours[name] - 0.02 * (factor * direction + 0.2 * ours[name])
    for name, value in values(state).items():
        if is_hidden_matrix(name, tuple(value.shape)):
            # Five rounds multiply the rounding errors of float32 by 3.44 each: 500 times 6e-8.
            assert (value - ours[name]).norm() < 3e-5 * (ours[name] - born[name]).norm(), name


def test_a_parameter_without_gradient_is_updated_as_one_with_zeros() -> None:
    found = []
    for holder in HOLDERS:
        model, state = prepare(tiny(optimizer=optimizer_of("adamw", weight_decay=0.3)), holder)
        make_step(model, state)
        state.parameters.zero_grad()
        fill([parameter.grad for parameter in model.parameters() if parameter.grad is not None], seed=5)
        model.zero_grad(set_to_none=holder is ModuleParameters)
        state.optimizer.update(1)
        found.append(values(state))
        assert not state.parameters.gradients.any()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_a_step_of_the_trainer_learns_in_modules_too() -> None:
    tokens = torch.arange(4 * 33).view(4, 33) % 31
    losses: list[list[float]] = []
    for holder in HOLDERS:
        _, state = prepare(tiny(optimizer={"name": "adamw", "learning_rate": 0.02}), holder)
        trace, seen = StepTrace(), []
        for _ in range(12):
            step(state, [MicroBatch(tokens[:, :-1], tokens[:, 1:], None, 1.0, True)], trace)
            seen.append(trace.loss)
        losses.append(seen)
    assert losses[1][-1] < 0.6 * losses[1][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # clipped by norms that are summed in another order


# What is seen of a training


def record(folder: Path, config: Config, holder: type[Parameters]) -> tuple[Path, State]:
    """Six steps with everything recorded; then a keyframe."""
    (folder / holder.__name__).mkdir()
    path, (model, state) = folder / holder.__name__, prepare(config, holder)
    history = History(path / HISTORY, True)
    recorder = Recorder(path, config, state.parameters, state.parameters.values.clone(), history, 0)
    for number in range(6):
        make_step(model, state, recorder)
        row = recorder.take_statistics()
        history.record(StepRecord(number, 1.0, state.optimizer.gradient_norm, 1.0, 1, 1.0, 1), row, print)
    recorder.end(state)
    history.store.close()
    save_keyframe(path, take_snapshot(state))
    return path, state


RECORDED = {"steps": 6}
RECORDING = {"statistics_every": 2, "statistics_cost": 0, "film_frames": 6, "histograms": 2}


def test_statistics_picks_histograms_frames_and_keyframes_are_the_same_in_both_holders(tmp_path: Path) -> None:
    config = tiny(optimizer=optimizer_of("adamw"), training=RECORDED, recording=RECORDING)
    (flat, ours), (plain, theirs) = (record(tmp_path, config, holder) for holder in HOLDERS)
    assert digest(ours.parameters.tensors) == digest(theirs.parameters.tensors)
    with Store(flat / HISTORY) as one, Store(plain / HISTORY) as other:
        assert one.fact("statistics") == other.fact("statistics") != ""
        for number in range(6):
            rows = [store.statistics_row(number) for store in (one, other)]
            assert (rows[0] is None, rows[1] is None) == (number % 2 > 0,) * 2
            assert np.array_equal(*rows) or rows == [None, None]
        tables = [table(store) for store in (one, other)]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2 * len(HISTOGRAM_KINDS) * len(ours.parameters.entries)
    assert Film(plain / FILM).steps().tolist() == [0, 1, 2, 3, 5, 6]
    files = [file for file in flat.rglob("*") if file.is_file() and not file.name.startswith(HISTORY)]
    assert {file.name for file in files} >= {"picks.bin", "frames.bin", "model.safetensors", "optimizer.safetensors"}
    for file in (file.relative_to(flat) for file in files):
        assert (flat / file).read_bytes() == (plain / file).read_bytes(), file


def table(store: Store) -> list[Any]:
    return store.connection.execute("SELECT * FROM histograms ORDER BY step, tensor, kind").fetchall()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_trace_has_the_same_bits_and_explains_the_same_updates(name: str) -> None:
    traces, rules = [], []
    for holder in HOLDERS:
        model, state = prepare(tiny(optimizer=optimizer_of(name)), holder)
        make_step(model, state)
        trace = StepTrace(whole=True)
        trace.losses = [torch.zeros(())]
        make_step(model, state, trace)
        traces.append(trace)
        for tensor in ("blocks.1.mlp.gate.weight", "embedding.weight", "final_norm.gain"):
            entry = state.parameters.entries.by_name[tensor]
            rule = state.optimizer.explain(1, entry, (3,) * len(entry.shape), trace)
            # A parameter is rounded once: half a unit of numbers below 1, for the parameter before and after.
            assert rule.total == pytest.approx(float(entry.view(trace.change)[(3,) * len(entry.shape)]), abs=2**-24)
            rules.append(rule)
    one, other = traces
    if name != "muon":  # whose stacks are orthogonalised together, or matrix by matrix
        assert torch.equal(one.after, other.after)
        assert rules[:3] == rules[3:]
    assert torch.equal(one.gradient, other.gradient)
    assert torch.equal(one.clipped, other.clipped)
    assert one.memory_after.keys() == other.memory_after.keys()
    assert all(torch.equal(memory, other.memory_after[key]) for key, memory in one.memory_after.items())


def test_a_keyframe_of_one_holder_is_restored_in_the_other() -> None:
    for there, here in itertools.permutations(HOLDERS):
        config = tiny(optimizer=optimizer_of("adamw"))
        model, one = prepare(config, there)
        make_step(model, one)
        snapshot = take_snapshot(one)
        model, other = prepare(config, here)
        restore(other, snapshot)
        make_step(model, other)
        make_step(one.model, one)
        assert digest(values(other)) == digest(values(one))
        assert digest(dict(model.named_parameters())) == digest(values(one)) != snapshot.digest


# Whose the tensors are


class Counted(ModuleParameters):
    """Counts how often it gathers."""

    gathered = 0

    @property
    def values(self) -> Tensor:
        self.gathered += 1
        return super().values

    @property
    def gradients(self) -> Tensor:
        self.gathered += 1
        return super().gradients


def test_parameters_are_gathered_only_when_something_is_due(tmp_path: Path) -> None:
    config = tiny(training=RECORDED, recording=RECORDING | {"statistics_every": 4, "film_frames": 2, "histograms": 0})
    model, state = prepare(config, Counted)
    assert state.parameters.gathered == 0
    initial = torch.zeros(state.parameters.entries.size)
    recorder = Recorder(tmp_path, config, state.parameters, initial, History(tmp_path / HISTORY, True), 0)
    assert state.parameters.gathered == 0
    seen = []
    for _ in range(6):
        before = state.parameters.gathered
        make_step(model, state, recorder)
        seen.append(state.parameters.gathered - before)
    assert recorder.frame_steps == {0, 5}
    assert seen == [3, 0, 0, 0, 3, 3]  # values and gradients, and then values


def test_nothing_of_the_owner_is_kept_or_moved() -> None:
    config = tiny(optimizer=optimizer_of("adamw"))
    model = initialise(config.model, seed=1)
    home = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    parameters = ModuleParameters(model)
    state = State(model, parameters, make_optimizer(parameters, config.optimizer, config.schedule, 9, torch.float32))
    for number in range(2):
        model.zero_grad(set_to_none=True)
        make_step(model, state)
        for flat in (parameters.values, parameters.gradients):
            own = range(flat.data_ptr(), flat.data_ptr() + flat.nbytes)
            assert all(p.data_ptr() not in own and p.grad.data_ptr() not in own for p in model.parameters())
        assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == home, number
        before = digest(parameters.tensors)
        parameters.values.fill_(7)
        parameters.gradients.fill_(7)
        assert digest(parameters.tensors) == before
        assert not (model.head.weight.grad == 7).any()


def test_tensors_that_their_owner_replaces_are_followed() -> None:
    model, state = prepare(tiny(optimizer=optimizer_of("sgd", momentum=0, weight_decay=0)), ModuleParameters)
    make_step(model, state)
    gain, entry = model.final_norm.gain, state.parameters.entries.by_name["final_norm.gain"]
    gain.data = torch.full_like(gain.data, 2.0)
    gain.grad = torch.full_like(gain.data, 3.0)
    assert entry.view(state.parameters.values).tolist() == [2.0] * 64
    assert entry.view(state.parameters.gradients).tolist() == [3.0] * 64
    state.optimizer.update(1)
    assert gain.tolist() == pytest.approx([1.7] * 64)
    gain.grad = None
    assert entry.view(state.parameters.gradients).tolist() == [0.0] * 64
    model.final_norm.gain = torch.nn.Parameter(torch.full((64,), 5.0))
    assert entry.view(state.parameters.values).tolist() == [5.0] * 64


def test_the_norm_of_the_gradient_is_that_of_torch_and_it_is_clipped_in_place() -> None:
    model, state = prepare(tiny(optimizer={"name": "sgd", "clip": 0.5}), ModuleParameters)
    fill((p.grad for p in give(model)), seed=0)
    state.optimizer.update(0)
    clipped = torch.cat([p.grad.flatten() for p in model.parameters()])
    fill((p.grad for p in give(model)), seed=0)
    assert state.optimizer.gradient_norm == float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)) > 1
    # torch divides by norm + 1e-6.
    torch.testing.assert_close(clipped, torch.cat([p.grad.flatten() for p in model.parameters()]), atol=1e-7, rtol=1e-5)


def give(model: Decoder) -> list[torch.nn.Parameter]:
    """The parameters, each with a gradient of its own."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return list(model.parameters())


def test_numbers_of_any_format_are_gathered_as_float32_exactly() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(3, 5).bfloat16())
            self.scale = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float16))

    model = Odd()
    parameters = ModuleParameters(model)
    named = parameters.entries.named(parameters.values)
    assert [(entry.name, entry.shape) for entry in parameters.entries] == [("table", (3, 5)), ("scale", ())]
    assert named["table"].equal(model.table.float())
    assert named["scale"].equal(model.scale.float())
    norms = to_numpy(statistics.norms(parameters.entries, parameters.values))
    assert norms == pytest.approx([float(model.table.detach().float().norm()), 0.5])


def test_an_optimizer_takes_either_holder() -> None:
    """The flat buffer is updated in few spans, modules one by one."""
    spans = {holder: [len(span.entries) for span in prepare(tiny(), holder)[1].optimizer.spans()] for holder in HOLDERS}
    assert len(spans[FlatParameters]) == 2  # hidden matrices, and the rest by AdamW
    assert set(spans[ModuleParameters]) == {1}
    assert sum(spans[FlatParameters]) == len(spans[ModuleParameters])
    assert isinstance(prepare(tiny(), ModuleParameters)[1].optimizer, Optimizer)
