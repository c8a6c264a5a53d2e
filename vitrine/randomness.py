"""Random numbers as a pure function of a key, so no generator state has to be saved."""

import hashlib

import numpy as np


def keyed_hash(*key: object) -> int:
    """64 random bits that depend only on the key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def keyed_generator(*key: object) -> np.random.Generator:
    """A counter-based generator (Philox), keyed by the arguments."""
    return np.random.Generator(np.random.Philox(key=keyed_hash(*key)))


def permute(position: int, size: int, key: int) -> int:
    """The place of `position` in a pseudorandom permutation of range(size), for any size and without a table.

    A four-round Feistel network over the next even number of bits, repeated until the result is below size.
    """
    half = max(1, (max(1, size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for turn in range(4):
            mixed = (right + 1) * 0x9E3779B97F4A7C15 + (key >> 8 * turn) * 0xD1B54A32D192ED03
            mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 2**64 - 1
            left, right = right, left ^ (mixed >> 32) & mask
        position = left << half | right
        if position < size:
            return position
