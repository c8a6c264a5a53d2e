"""The windows of a step are a pure function of (seed, step)."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrine.text.batches import MIXTURE_CYCLE, Batches


def batches(*sizes: int, context: int = 8, batch_size: int = 4, seed: int = 1, **options) -> Batches:
    """Sources whose tokens say where they are."""
    ends = np.cumsum([0, *sizes])
    sources = [np.arange(start, stop, dtype=np.uint32) for start, stop in itertools.pairwise(ends)]
    options = {"weights": [], "accumulation": 1, **options}
    return Batches(sources, context=context, batch_size=batch_size, seed=seed, **options)


def test_the_same_step_gives_the_same_windows_in_any_order_of_asking():
    first, second = batches(1000), batches(1000)
    second.micro_batch(7, 0)
    assert np.array_equal(first.micro_batch(3, 0).tokens, second.micro_batch(3, 0).tokens)
    assert np.array_equal(first.micro_batch(3, 0).keys, second.micro_batch(3, 0).keys)


def test_a_window_is_consecutive_tokens_one_more_than_the_context():
    tokens = batches(1000).micro_batch(0, 0).tokens
    assert tokens.shape == (4, 9)
    assert np.all(np.diff(tokens, axis=1) == 1)


@given(st.integers(9, 400), st.integers(1, 5))
def test_an_epoch_reads_every_window_once_and_none_twice(size, seed):
    one = batches(size, batch_size=1, seed=seed)
    starts = [int(one.micro_batch(step, 0).tokens[0, 0]) for step in range(one.windows[0])]
    assert len({start // 1 for start in starts}) == len(starts)
    assert np.all(np.diff(sorted(starts)) == 8)
    assert min(starts) >= 0
    assert max(starts) + 9 <= size


def test_each_epoch_has_an_order_and_an_offset_of_its_own():
    one = batches(1000, batch_size=1)
    count = one.windows[0]
    epochs = [[int(one.micro_batch(e * count + i, 0).tokens[0, 0]) for i in range(count)] for e in range(6)]
    assert len({tuple(np.argsort(epoch)) for epoch in epochs}) == 6
    assert len({min(epoch) for epoch in epochs}) > 2


def test_accumulation_and_batch_size_read_the_same_windows_in_the_same_order():
    wide, narrow = batches(1000, batch_size=8), batches(1000, batch_size=2, accumulation=4)
    parts = [narrow.micro_batch(5, index).tokens for index in range(4)]
    assert np.array_equal(wide.micro_batch(5, 0).tokens, np.concatenate(parts))


def test_another_seed_gives_other_windows():
    assert not np.array_equal(batches(1000).micro_batch(0, 0).tokens, batches(1000, seed=2).micro_batch(0, 0).tokens)


@pytest.mark.parametrize(("weights", "share"), [([3.0, 1.0], 0.75), ([0.5, 0.5], 0.5), ([], 1 / 3)])
def test_a_mixture_draws_each_source_as_often_as_its_weight_says(weights, share):
    mixed = batches(1000, 2000, weights=weights, batch_size=MIXTURE_CYCLE)
    tokens = mixed.micro_batch(0, 0).tokens[:, 0]
    assert np.mean(tokens < 1000) == pytest.approx(share, abs=2 / MIXTURE_CYCLE)


def test_a_mixture_without_weights_reads_every_source_once_in_an_epoch():
    mixed = batches(1000, 3000, batch_size=1)
    counts = np.bincount(mixed.pattern)
    assert counts[1] / counts[0] == pytest.approx(mixed.windows[1] / mixed.windows[0], rel=0.02)


@pytest.mark.parametrize("sizes", [(1000,), (500, 500)])
def test_max_tokens_bounds_the_text_that_is_used(sizes):
    few = batches(*sizes, max_tokens=200, batch_size=50)
    seen = np.unique([few.micro_batch(step, 0).tokens for step in range(10)])
    assert len(seen) <= 200
    assert sum(len(source) for source in few.sources) == 200


def test_every_row_of_every_step_has_a_dropout_key_of_its_own():
    some = batches(1000)
    keys = np.concatenate([some.micro_batch(step, 0).keys for step in range(100)])
    assert len(np.unique(keys)) == 400
    assert not np.array_equal(some.micro_batch(0, 0).keys, batches(1000, seed=2).micro_batch(0, 0).keys)
