"""One parameter: what it connects, its update term by term, and its history."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from safetensors import safe_open

from vitrine.errors import RunError, nearest
from vitrine.inspection.replayed_step import ReplayedStep
from vitrine.model.inventory import TensorSpec
from vitrine.optimizers.optimizer import Rule
from vitrine.runs.film import Film
from vitrine.runs.reader import FILM, KEYFRAMES, TOKENIZER, RunReader
from vitrine.runs.retention import keyframe_path, keyframe_steps
from vitrine.text.tokenizer import load_tokenizer, spell
from vitrine.training.checkpoint import load_initial

Point = tuple[int, float, bool]  # step, value, whether it is exact


@dataclass(frozen=True)
class Address:
    """What `inspect` was asked for: a tensor, one parameter of it, or one unit of a linear layer.

    index: of a parameter, as many numbers as the tensor has axes; empty: the whole tensor.
    unit: of a layer: an output; None: no unit is meant.
    """

    tensor: TensorSpec
    index: tuple[int, ...] = ()
    unit: int | None = None

    @property
    def place(self) -> int:
        """The parameter's place in the flattened tensor."""
        return int(np.ravel_multi_index(self.index, self.tensor.shape))

    @property
    def text(self) -> str:
        """As it was asked for."""
        return f"{self.tensor.name}[{','.join(map(str, self.index))}]" if self.index else self.tensor.name


@dataclass(frozen=True)
class ParameterReport:
    """One parameter in one step. All values are float32, held as float64; exact: whether the replay proved them."""

    address: Address
    kind: str
    connects: str
    step: int
    before: float
    gradient: float
    update: float
    after: float
    rule: Rule
    plain_sgd: float
    initial: float
    history: list[Point]
    exact: bool

    def to_json(self) -> dict[str, Any]:
        """What `inspect --json` prints; numbers of parameters in the shortest form that gives the float32 back."""
        return {
            "parameter": self.address.text,
            "kind": self.kind,
            "connects": self.connects,
            "step": self.step,
            "before": shortest(self.before),
            "gradient": shortest(self.gradient),
            "update": shortest(self.update),
            "after": shortest(self.after),
            "rule": vars(self.rule),
            "plain_sgd": self.plain_sgd,
            "birth": shortest(self.initial),
            "history": [[step, shortest(value) if exact else value, exact] for step, value, exact in self.history],
            "exact": self.exact,
        }


def find_address(reader: RunReader, text: str) -> Address:
    """Read NAME, NAME[i,j] or LAYER[unit]. Raises RunError, naming the nearest tensor or the bounds."""
    found = re.fullmatch(r"([\w.]+?)(?:\[\s*(\d+(?:\s*,\s*\d+)*)\s*\])?", text.strip())
    if not found:
        raise RunError(
            f"A parameter is named like blocks.0.attention.query.weight[3,7], a unit like blocks.0.mlp.expand[12]: "
            f"got {text!r}."
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    name, numbers = found[1], tuple(int(number) for number in (found[2] or "").split(",") if number)
    if name not in tensors and len(numbers) == 1 and len(tensors.get(f"{name}.weight", _NOTHING).shape) == 2:
        tensor = tensors[f"{name}.weight"]
        if numbers[0] >= tensor.shape[0]:
            raise RunError(f"{name} has {tensor.shape[0]} units: there is none with the number {numbers[0]}.")
        return Address(tensor, unit=numbers[0])
    if name not in tensors:
        raise RunError(f"There is no tensor {name}. {nearest(name, tensors)}")
    shape = tensors[name].shape
    if numbers and (len(numbers) != len(shape) or any(n >= size for n, size in zip(numbers, shape, strict=True))):
        bounds = ", ".join(f"0 to {size - 1}" for size in shape)
        raise RunError(f"{name} has shape {shape}: an index needs {len(shape)} numbers ({bounds}), got {text!r}.")
    return Address(tensors[name], numbers)


def report_parameter(replayed: ReplayedStep, address: Address) -> ParameterReport:
    """All about one parameter in a replayed step."""
    tensor, reader, index = replayed.tensor(address.tensor.name), replayed.reader, address.index
    entry = replayed.parameters.entries.by_name[address.tensor.name]
    points = [(step, float(entry.view(flat)[index]), True) for step, flat in replayed.passed.items()]
    points.append((replayed.step + 1, float(tensor.after[index]), True))
    return ParameterReport(
        address=address,
        kind=address.tensor.kind,
        connects=connects(reader, address),
        step=replayed.step,
        before=float(tensor.before[index]),
        gradient=float(tensor.gradient[index]),
        update=float(tensor.update[index]),
        after=float(tensor.after[index]),
        rule=explain_update(replayed, address),
        plain_sgd=0.0 - replayed.learning_rate * replayed.clip_factor * float(tensor.gradient[index]),
        initial=initial_value(reader, address),
        history=history_of(reader, address, points if replayed.exact else []),
        exact=replayed.exact,
    )


def explain_update(replayed: ReplayedStep, address: Address) -> Rule:
    """The update of one parameter, put together from the numbers that the optimizer used, in float64."""
    entry = replayed.parameters.entries.by_name[address.tensor.name]
    rule = replayed.optimizer.explain(replayed.step, entry, address.index, replayed.trace)
    gradient, clipped = (
        float(entry.view(flat)[address.index]) for flat in (replayed.trace.gradient, replayed.trace.clipped)
    )
    clipping = {"gradient": gradient, "clip_factor": replayed.clip_factor, "clipped_gradient": clipped}
    return replace(rule, terms=clipping | rule.terms)


def initial_value(reader: RunReader, address: Address) -> float:
    """The value at step 0."""
    try:
        return _value_in_keyframe(reader, 0, address)
    except RunError:  # it follows from the seed
        initial = load_initial(reader.path / KEYFRAMES, reader.config, reader.facts().get("birth", ""))
        return float(initial[address.tensor.name][address.index])


def history_of(reader: RunReader, address: Address, known: Sequence[Point] = ()) -> list[Point]:
    """All that is known of a parameter's value over the run, in order of the steps.

    Exact: from keyframes, from the recorded sample, and what is known from a replay. Not exact: from the film.
    """
    name, place = address.tensor.name, address.place
    points: dict[int, tuple[float, bool]] = {}
    if (reader.path / FILM).is_dir():
        points |= _from_film(reader, address)
    points[0] = initial_value(reader, address), True
    for step in keyframe_steps(reader.path / KEYFRAMES):
        try:
            points[step] = _value_in_keyframe(reader, step, address), True
        except RunError:
            if step and keyframe_path(reader.path / KEYFRAMES, step).is_dir():  # else it just made room for another
                raise
    layout = reader.layout()
    sampled = layout.sampled_at(name, place) if layout else None
    if sampled:
        steps, values = reader.series(sampled[0])
        points |= {int(step): (float(value), True) for step, value in zip(steps, values, strict=True)}
    points |= {step: (value, exact) for step, value, exact in known}
    return [(step, *points[step]) for step in sorted(points)]


def connects(reader: RunReader, address: Address) -> str:
    """What a parameter connects, in words."""
    model, tensor = reader.config.model, address.tensor
    first, last = address.index[0], address.index[-1]
    factor = "factor on" if tensor.kind == "gain" else "added to"
    where = "" if tensor.block is None else f" in block {tensor.block}"

    def token(number: int) -> str:
        return repr(spell(load_tokenizer(reader.path / TOKENIZER), number))

    def channel_of(what: str, number: int) -> str:
        return f"channel {number % model.head_dim} of head {number // model.head_dim}'s {what}"

    if tensor.part == "embedding":
        tied = any(other.owner == tensor.name for other in reader.every_tensor)
        also = " (and weighs that channel for the token's logit: the head is tied)" if tied else ""
        return f"channel {last} of the vector that stands for the token {token(first)}{also}"
    if tensor.part == "positions":
        return f"channel {last} of the vector that stands for position {first}"
    if tensor.part == "head":
        return f"from channel {last} of the residual stream to the logit of the token {token(first)}"
    if tensor.part == "final_norm":
        return f"{factor} channel {last} of the residual stream, before the head"
    if tensor.part in ("attention_norm", "mlp_norm"):
        return f"{factor} channel {last} of the residual stream, before the {tensor.part[:-5]}{where}"
    if tensor.part in ("post_attention_norm", "post_mlp_norm"):
        return f"{factor} channel {last} of what the {tensor.part[5:-5]}{where} adds to the residual stream"
    if tensor.part in ("attention.query_norm", "attention.key_norm"):
        what = tensor.part.removeprefix("attention.").removesuffix("_norm")
        heads = (
            channel_of(what, last)
            if model.family.query_key_norm == "heads"
            else f"channel {last} of each head's {what}"
        )
        return f"{factor} {heads}{where}"
    outputs = {
        "attention.query": channel_of("query", first),
        "attention.key": channel_of("key", first),
        "attention.value": channel_of("value", first),
        "attention.output": f"channel {first} of the residual stream",
        "mlp.expand": f"hidden unit {first} of the MLP",
        "mlp.gate": f"the gate of hidden unit {first} of the MLP",
        "mlp.shrink": f"channel {first} of the residual stream",
    }
    if tensor.kind == "bias":
        return f"added to {outputs[tensor.part]}{where}"
    stream = "residual stream" if model.family.norm_after else "normalised residual stream"
    inputs = {"attention.output": channel_of("mixed values", last), "mlp.shrink": f"hidden unit {last} of the MLP"}
    return f"from {inputs.get(tensor.part, f'channel {last} of the {stream}')} to {outputs[tensor.part]}{where}"


def shortest(value: float) -> float:
    """The same float32 with the fewest digits: 0.1, not 0.10000000149011612."""
    return float(str(np.float32(value)))


_NOTHING = TensorSpec("", (), "weight", "zeros")


def _value_in_keyframe(reader: RunReader, step: int, address: Address) -> float:
    file = keyframe_path(reader.path / KEYFRAMES, step) / "model.safetensors"
    try:
        with safe_open(file, "numpy") as tensors:
            part = tensors.get_slice(address.tensor.name)
            row = part[address.index[0] : address.index[0] + 1]
    except Exception as error:  # the library raises its own, and OSError
        raise RunError(f"{file} cannot be read: {error}. vitrine verify {reader.path} says more.") from None
    return float(row[(0, *address.index[1:])])


def _from_film(reader: RunReader, address: Address) -> dict[int, tuple[float, bool]]:
    """The film's values, if the parameter is one of its picks."""
    film = Film(reader.path / FILM)
    before = 0
    for name, grid in film.values.indices.items():
        if name == address.tensor.name:
            break
        before += grid.size
    found = np.flatnonzero(grid.ravel() == address.place)
    if not len(found):
        return {}
    initial = initial_value(reader, address)
    return {
        int(step): (initial + float(film.frame(number).learned[before + int(found[0])]), False)
        for number, step in enumerate(film.steps())
    }
