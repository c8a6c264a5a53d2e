"""What is recorded of every tensor: where it stands, and that it is right. The reference is NumPy, in float64."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrine.model.decoder import initialise
from vitrine.model.flat import FlatParameters
from vitrine.presets import Facts, resolve
from vitrine.recording import statistics
from vitrine.runs.layout import HISTOGRAM_BINS, STATISTICS, Layout, bin_edges, choose_sample, spaced

# The example of docs/run-format.md.
EXAMPLE = Layout(2, ("a", "b"), {"a": (3, 8), "b": (0, 1, 4)})


@pytest.fixture(scope="module")
def parameters() -> FlatParameters:
    """Of a small model, with random numbers for gradients: each tensor on a scale of its own."""
    settings = {"model": {"architecture": "gpt2", "n_layers": 2, "d_model": 32, "n_heads": 2, "context": 16}}
    torch.manual_seed(1)
    flat = FlatParameters(initialise(resolve(settings, Facts(vocab_size=50, train_tokens=10_000)).model, seed=1))
    for number, tensor in enumerate(flat.entries.named(flat.gradients).values()):
        tensor.normal_().mul_(10.0 ** (number % 9 - 4))
    return flat


@pytest.fixture
def arrays(parameters: FlatParameters) -> list[np.ndarray]:
    """The gradients of each tensor in float64, in buffer order."""
    return [t.numpy().astype(np.float64) for t in parameters.entries.named(parameters.gradients).values()]


def test_a_row_has_statistics_by_tensor_then_sampled_values_then_their_gradients():
    assert EXAMPLE.width == 6 * 2 + 2 * 5
    assert EXAMPLE.statistic("b", "gradient_norm") == 8
    assert EXAMPLE.sampled_at("b", 4) == (16, 21)


def test_every_place_of_a_row_is_taken_once():
    places = [EXAMPLE.statistic(tensor, name) for tensor in EXAMPLE.tensors for name in STATISTICS]
    for tensor, sample in EXAMPLE.sample.items():
        for place in sample:
            places.extend(EXAMPLE.sampled_at(tensor, place) or ())
    assert sorted(places) == list(range(EXAMPLE.width))


def test_a_parameter_that_is_not_sampled_has_no_place():
    assert EXAMPLE.sampled_at("a", 4) is None


def test_the_facts_of_a_layout_come_back_through_json():
    assert Layout.of(json.loads(json.dumps(EXAMPLE.facts()))) == EXAMPLE


def test_the_sample_holds_eight_different_parameters_or_all_of_a_smaller_tensor():
    sample = choose_sample({"large": 1_000, "small": 5}, seed=1)
    assert len(set(sample["large"])) == 8
    assert max(sample["large"]) < 1_000
    assert sample["small"] == (0, 1, 2, 3, 4)


def test_another_seed_samples_others():
    assert choose_sample({"a": 1_000}, seed=1) != choose_sample({"a": 1_000}, seed=2)


@given(st.integers(1, 5_000), st.integers(2, 300))
def test_spaced_steps_are_of_the_run_have_its_ends_and_are_not_too_many(steps, count):
    chosen = spaced(steps, count)
    assert {0, steps - 1} <= chosen <= set(range(steps))
    assert len(chosen) <= count


def test_spaced_steps_are_dense_at_the_start_and_sparse_later():
    gaps = np.diff(sorted(spaced(10_000, 100)))
    assert gaps[0] == 1
    assert all(np.diff(gaps) >= -1)  # rounding aside, they only grow
    assert gaps[-1] > 150


def test_no_steps_are_spaced_if_none_are_wanted():
    assert spaced(100, 0) == frozenset()


def test_every_finite_float_lies_within_the_edges_of_its_bin():
    bits = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint32)
    corners = np.array([0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, 1.1754944e-38, 1.0, -1.0, 3.4028235e38], np.float32)
    bits = np.concatenate([bits, corners.view(np.uint32)])
    x = bits.view(np.float32)
    bits, x = bits[np.isfinite(x)], x[np.isfinite(x)].astype(np.float64)
    lower, upper = bin_edges(bits >> 21)
    negative = np.signbit(x)
    assert np.all(np.where(negative, lower < x, lower <= x))
    assert np.all(np.where(negative, x <= upper, x < upper))


def test_bins_touch_and_cover_all_that_is_finite():
    lower, upper = bin_edges(np.arange(1020))
    assert lower[0] == 0
    assert np.array_equal(lower[1:], upper[:-1])
    assert upper[-1] == 2.0**128


def test_bins_of_negative_numbers_mirror_the_others():
    lower, upper = bin_edges(np.arange(1020))
    mirrored = bin_edges(np.arange(1024, 2044))
    assert np.array_equal(mirrored, (-upper, -lower))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        *[(0.0, 0), (-0.0, 1024), (1e-45, 0), (1.0, 508), (1.75, 511), (-2.0, 1536), (3.4e38, 1019)],
        *[(np.inf, 1020), (-np.inf, 2044), (np.nan, 1022)],
    ],
)
def test_the_bin_of_a_number_worked_by_hand(number, expected):
    bins, counts = statistics.histogram(torch.tensor([number]))
    assert (bins.tolist(), counts.tolist()) == ([expected], [1])


def test_a_histogram_counts_as_numpy_does():
    x = np.random.default_rng(2).standard_normal((50, 70)).astype(np.float32)
    x[0], x[1], x[2, :9] = 0, x[1] * np.float32(1e-38), [np.inf, -np.inf, np.inf, -0.0, 1, -1, 2, 3e38, -1e-45]
    bins, counts = statistics.histogram(torch.from_numpy(x))
    expected = dict(zip(*np.unique(_bin(x), return_counts=True), strict=True))
    assert dict(zip(bins.tolist(), counts.tolist(), strict=True)) == expected


def test_a_histogram_leaves_out_empty_bins_and_loses_no_number():
    x = torch.randn(3, 1_000, generator=torch.Generator().manual_seed(1))
    bins, counts = statistics.histogram(x)
    assert (counts > 0).all()
    assert counts.sum() == x.numel()
    assert (np.diff(bins) > 0).all()
    assert bins.max() < HISTOGRAM_BINS


def test_the_norm_of_every_tensor_is_that_of_numpy(parameters, arrays):
    found = statistics.norms(parameters.entries, parameters.gradients).numpy()
    # Sums of at most 3,000 squares in float32: their rounding errors mostly cancel.
    np.testing.assert_allclose(found, [np.linalg.norm(array) for array in arrays], rtol=2e-6)


def test_the_largest_magnitude_of_every_tensor_is_that_of_numpy(parameters, arrays):
    found = statistics.magnitudes(parameters.entries, parameters.gradients).numpy()
    assert found.tolist() == [np.abs(array).max() for array in arrays]


@pytest.mark.parametrize("measure", [statistics.norms, statistics.magnitudes])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_one_odd_number_shows_in_its_tensor_and_in_no_other(measure, odd, parameters):
    flat = parameters.gradients.clone()
    clean = measure(parameters.entries, flat).numpy()
    place = parameters.entries[5]
    flat[place.stop - 1] = odd
    found = measure(parameters.entries, flat).numpy()
    assert np.isnan(found[5]) if np.isnan(odd) else found[5] == np.inf
    assert np.delete(found, 5).tolist() == np.delete(clean, 5).tolist()


def test_each_statistic_and_sampled_number_is_joined_at_its_place(parameters):
    layout = statistics.make_layout(parameters.entries, every=1, seed=1)
    sampled = statistics.sample_places(parameters, layout)
    values, gradients = parameters.values, parameters.gradients
    columns = [torch.arange(len(layout.tensors)) + 0.01 * i for i in range(len(STATISTICS))]
    row = statistics.join(columns, values[sampled], gradients[sampled]).detach().numpy()
    assert len(row) == layout.width
    for number, (tensor, view) in enumerate(parameters.entries.named(values).items()):
        for i, name in enumerate(STATISTICS):
            assert row[layout.statistic(tensor, name)] == np.float32(number + 0.01 * i)
        for place in layout.sample[tensor]:
            value, gradient = layout.sampled_at(tensor, place) or (-1, -1)
            assert row[value] == view.detach().flatten()[place]
            assert row[gradient] == parameters.entries.named(gradients)[tensor].flatten()[place]


def _bin(x: np.ndarray) -> np.ndarray:
    """The bin of each number by its fraction and exponent: not by its bits."""
    magnitude = np.abs(x.astype(np.float64))
    with np.errstate(invalid="ignore"):
        fraction, power = np.frexp(magnitude)  # magnitude = fraction * 2^power, 1/2 <= fraction < 1
        normal = 4 * (power + 126) + np.floor(8 * fraction - 4)
        denormal = np.floor(magnitude * 2.0**128)
    bins = np.where(magnitude < 2.0**-126, denormal, normal)
    return (np.where(np.isinf(x), 1020, bins) + np.where(np.signbit(x), 1024, 0)).astype(int)
