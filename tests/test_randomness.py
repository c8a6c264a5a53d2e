"""Randomness as a pure function of a key."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vitrine.randomness import keyed_generator, keyed_hash, permute


@given(st.integers(1, 500), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(place, size, key) for place in range(size)) == list(range(size))


def test_permute_mixes_well_enough_that_neighbours_part():
    order = np.array([permute(place, 10_000, 5) for place in range(10_000)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_permute_takes_any_size():
    assert 0 <= permute(123_456_789_012, 10**12, 1) < 10**12


def test_another_key_draws_otherwise():
    assert keyed_hash(1, "a") != keyed_hash(1, "b")
    assert keyed_generator(1).random() != keyed_generator(2).random()
    assert keyed_generator(1).random() == keyed_generator(1).random()
