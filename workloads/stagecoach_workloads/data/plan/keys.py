"""Randomness that needs no state: hashes of (seed, names, numbers)."""

import hashlib

import numpy as np

_GAMMA, _MUL1, _MUL2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def key_of(*parts: object) -> int:
    """64 bits that depend on all parts."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "little")


def mix(key: int, numbers: np.ndarray) -> np.ndarray:
    """uint64 per number: SplitMix64 (Steele et al., OOPSLA 2014), started at `key`."""
    with np.errstate(over="ignore"):
        z = numbers.astype(np.uint64) * _GAMMA + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * _MUL1
        z = (z ^ (z >> np.uint64(27))) * _MUL2
        return z ^ (z >> np.uint64(31))


def permutation(key: int, count: int) -> np.ndarray:
    """A permutation of range(count) that depends on the key alone."""
    numbers = np.arange(count, dtype=np.uint64)
    low = np.uint64((1 << max(1, count - 1).bit_length()) - 1)
    packed = mix(key, numbers) & ~low | numbers  # no ties, and sorting values takes a seventh of the time of sorting their places
    packed.sort()
    return (packed & low).astype(np.int64)


def fractions(key: int, numbers: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), as float64 with 53 bits."""
    return (mix(key, numbers) >> np.uint64(11)).astype(np.float64) / 2.0**53
