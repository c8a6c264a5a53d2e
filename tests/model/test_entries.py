"""Entries: whole tensors, or some of their rows. Two holders of half of the rows each have, together, the numbers of the whole."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vitrine.model.decoder import initialise
from vitrine.model.entries import ALIGNMENT, Entries, Entry
from vitrine.model.flat import FlatParameters
from vitrine.optimizers.optimizer import Optimizer
from vitrine.optimizers.registry import make_optimizer
from vitrine.presets import Facts, resolve
from vitrine.recording import statistics
from vitrine.runs.film import choose_picks

SHAPES = {
    "embedding.weight": (7, 5),
    "blocks.0.a.weight": (5, 5),
    "blocks.0.gain": (5,),
    "blocks.0.b.weight": (6, 5),
    "blocks.1.a.weight": (5, 5),
    "final.gain": (33,),
}


def test_entries_follow_from_names_and_shapes() -> None:
    entries = Entries.of(SHAPES)
    order = ["blocks.0.a.weight", "blocks.1.a.weight", "blocks.0.b.weight", "embedding.weight"]
    assert [entry.name for entry in entries] == [*order, "blocks.0.gain", "final.gain"]
    assert [entry.start for entry in entries] == [0, 32, 64, 96, 144, 160]
    assert (entries.size, entries.count) == (208, sum(map(math.prod, SHAPES.values())))
    assert entries.shapes == {entry.name: SHAPES[entry.name] for entry in entries}
    assert entries[3] == Entry("embedding.weight", 96, (7, 5), (7, 5))


def test_parts_lie_side_by_side_and_each_counts_from_its_own_start() -> None:
    entries, flat = Entries.of(SHAPES), torch.arange(208.0)
    parts = entries.parts(lambda entry: entry.kind)
    assert [(part.start, part.size, len(part)) for part in parts] == [(0, 96, 3), (96, 48, 1), (144, 64, 2)]
    assert torch.equal(torch.cat([part.within(flat) for part in parts]), flat)
    for part in parts:
        for name, view in part.named(part.within(flat)).items():
            assert torch.equal(view, entries.by_name[name].view(flat))
    nested = parts[2].parts(lambda entry: entry.name)
    assert [part.start for part in nested] == [144, 160]


def test_gathering_fills_places_and_leaves_the_gaps() -> None:
    entries = Entries.of(SHAPES)
    tensors: dict[str, Tensor | None] = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    flat = entries.gather(tensors | {"final.gain": None}, torch.full((208,), 9.0))
    assert {name: view.unique().tolist() for name, view in entries.named(flat).items()} == {
        name: [0.0 if name == "final.gain" else 1.0] for name in SHAPES
    }
    assert int((flat == 9).sum()) == 208 - entries.count


def test_the_place_of_a_number_counts_from_where_the_whole_tensor_would_start() -> None:
    entries = Entries.of({"table": (10, 4)}, {"table": range(6, 9)})
    entry = entries[0]
    assert (entry.shape, entry.whole, entry.first, entry.stop) == ((3, 4), (10, 4), 6, 12)
    assert entry.origin + 7 * 4 + 1 == entry.start + 5  # row 7 is the second one here


# A holder of rows


class Rows:
    """The first or second half of the rows of every tensor, as a process that shards them would hold them.

    peers: all holders of the model: where their norms are combined.
    """

    def __init__(self, whole: dict[str, Tensor], half: int, peers: "list[Rows]") -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in whole.items()}
        cuts = {name: (0, len(tensor) // 2, len(tensor)) for name, tensor in whole.items()}
        self.rows = {name: range(cut[half], cut[half + 1]) for name, cut in cuts.items()}
        self.entries = Entries.of(shapes, self.rows)
        self.device = torch.device("cpu")
        self.values, self.gradients = torch.zeros(2, self.entries.size)
        self.norm, self.peers = 0.0, peers
        peers.append(self)
        self.take(whole, self.values)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.entries.named(self.values)

    def take(self, whole: dict[str, Tensor], flat: Tensor) -> None:
        own = {name: tensor[self.rows[name].start : self.rows[name].stop] for name, tensor in whole.items()}
        self.entries.gather(own, flat)

    def parts(self, alike: Callable[[Entry], Any]) -> list[Entries]:
        return self.entries.parts(alike)

    def span(self, part: Entries) -> tuple[Tensor, Tensor]:
        return part.within(self.values), part.within(self.gradients)

    def gradient_norm(self) -> float:
        return math.hypot(*(peer.norm for peer in self.peers))

    def zero_grad(self) -> None:
        self.gradients.zero_()


def prepare(size: dict[str, Any], **optimizer: Any) -> tuple[FlatParameters, list[Rows], Callable[[Any], Optimizer]]:
    """The whole parameters, two holders of half of them, and the optimizer of any of the three."""
    settings = {
        "model": {"architecture": "gpt2", "n_layers": 2, "n_heads": 2} | size,
        "optimizer": {"name": "adamw"} | optimizer,
    }
    config = resolve(settings, Facts(vocab_size=64, train_tokens=1))
    torch.manual_seed(1)
    whole = FlatParameters(initialise(config.model, seed=1))
    for number, tensor in enumerate(whole.tensors.values()):
        tensor.normal_().mul_(10.0 ** (number % 5 - 3))
    halves = list[Rows]()
    for half in (0, 1):
        Rows(whole.tensors, half, halves)
    give_gradients(whole, halves, seed=0)
    return whole, halves, lambda p: make_optimizer(p, config.optimizer, config.schedule, 9, torch.float32)


def give_gradients(whole: FlatParameters, halves: list[Rows], seed: int) -> None:
    torch.manual_seed(seed)
    gradients = whole.entries.named(whole.gradients)
    for tensor in gradients.values():
        tensor.normal_()
    for half in halves:
        half.take(gradients, half.gradients)
        half.norm = float(torch.linalg.vector_norm(half.gradients))


def together(halves: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([half[name] for half in halves]) for name in halves[0]}


EVEN = {"d_model": 64, "context": 64}  # rows of half a tensor are whole vectors of every instruction set
ODD = {"d_model": 18, "d_ff": 33, "context": 7, "bias": True}


@pytest.mark.parametrize("clip", [0, 0.5])
@pytest.mark.parametrize(
    "settings",
    [{"name": "adamw"}, {"name": "lion"}, {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1}],
    ids=lambda s: s["name"],
)
def test_two_holders_of_half_of_the_rows_make_the_updates_of_the_whole(settings: dict[str, Any], clip: float) -> None:
    whole, halves, make = prepare(EVEN, **settings, clip=clip)
    optimizer, parts = make(whole), [make(half) for half in halves]
    for number in range(3):
        give_gradients(whole, halves, seed=number)
        for each in (optimizer, *parts):
            each.update(number)
        assert [each.gradient_norm for each in parts] == pytest.approx([optimizer.gradient_norm] * 2, rel=1e-6)
    for ours, theirs in (
        (whole.tensors, together([half.tensors for half in halves])),
        (optimizer.named_state(), together([each.named_state() for each in parts])),
    ):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            if clip:  # by norms that are summed in another order
                torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(theirs[name], tensor), name


@pytest.mark.parametrize("size", [EVEN, ODD], ids=["even", "odd"])
def test_norms_and_magnitudes_of_two_halves_are_those_of_the_whole(size: dict[str, Any]) -> None:
    whole, halves, _ = prepare(size)
    assert all([entry.name for entry in half.entries] == list(whole.entries.by_name) for half in halves)
    norms = torch.stack([statistics.norms(half.entries, half.values) for half in halves])
    torch.testing.assert_close(norms.norm(dim=0), statistics.norms(whole.entries, whole.values))
    magnitudes = torch.stack([statistics.magnitudes(half.entries, half.values) for half in halves])
    assert torch.equal(magnitudes.amax(0), statistics.magnitudes(whole.entries, whole.values))


@pytest.mark.parametrize("size", [EVEN, ODD], ids=["even", "odd"])
def test_each_sampled_parameter_and_pick_is_held_by_one_of_two_halves(size: dict[str, Any]) -> None:
    whole, halves, _ = prepare(size)
    layout = statistics.make_layout(whole.entries, every=1, seed=1)
    assert all(statistics.make_layout(half.entries, every=1, seed=1) == layout for half in halves)
    picks = choose_picks(whole.entries.shapes, 500, seed=1)
    names = {
        "sample": [tensor for tensor in layout.tensors for _ in layout.sample[tensor]],
        "picks": [tensor for tensor, grid in picks.indices.items() for _ in grid.flat],
    }

    def places(holder: Any, what: str) -> np.ndarray:
        if what == "picks":
            return picks.places(holder.entries.origins)
        return statistics.sample_places(holder, layout).numpy()

    for what, tensors in names.items():
        found = np.full(len(tensors), np.nan)
        for half in halves:
            for index, (tensor, place) in enumerate(zip(tensors, places(half, what), strict=True)):
                entry = half.entries.by_name[tensor]
                if entry.start <= place < entry.stop:
                    assert np.isnan(found[index])  # the other half does not have it
                    found[index] = half.values[place]
        assert np.array_equal(found, whole.values.numpy()[places(whole, what)])


def test_every_entry_of_a_half_starts_on_a_cache_line() -> None:
    _, halves, _ = prepare(ODD)
    assert all(entry.start % ALIGNMENT == 0 for half in halves for entry in half.entries)
