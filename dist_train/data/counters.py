"""Counter-based randomness: pure functions of integers, the same with every numpy and on every machine."""

import numpy as np
from numpy.typing import NDArray

_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FEISTEL_ROUNDS = 8

UInts = NDArray[np.uint64]
Ints = NDArray[np.int64]


def philox(seed: int, counter: tuple[UInts | np.uint64 | int, ...]) -> UInts:
    """Philox4x32-10: four random 32-bit words per counter.

    Args:
        seed: the 64-bit key.
        counter: four 32-bit words, low word first; arrays are broadcast together to shape [...].

    Returns:
        [..., 4], values below 2**32.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
    """
    x0, x1, x2, x3 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) & _MASK for word in counter))
    key0, key1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    multiplier0, multiplier1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    for _ in range(10):
        product0, product1 = multiplier0 * x0, multiplier1 * x2
        x0, x1, x2, x3 = (
            (product1 >> _HALF) ^ x1 ^ np.uint64(key0),
            product1 & _MASK,
            (product0 >> _HALF) ^ x3 ^ np.uint64(key1),
            product0 & _MASK,
        )
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], axis=-1)


def uniforms(seed: int, stream: int, epochs: Ints, indices: Ints, count: int, series: int = 0) -> NDArray[np.float64]:
    """`count` uniform numbers in [0, 1) for each (epoch, index), others in each `series`: [n] and [n] -> [n, count]."""
    low = indices.astype(np.uint64)[:, None]  # [n, 1]
    high = epochs.astype(np.uint64)[:, None]
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)[None, :]  # [1, blocks]
    # 48 bits of index, 32 of epoch, 16 of stream and block: 128 in all.
    tail = ((low >> _HALF) << np.uint64(16)) | (np.uint64(stream) << np.uint64(8)) | blocks
    words = philox(seed, (low, high, tail, np.uint64(series)))  # [n, blocks, 4]
    return words.reshape(len(indices), -1)[:, :count].astype(np.float64) * 2.0**-32


def permute(indices: Ints, size: int, seed: int, *tweak: int) -> Ints:
    """Images of `indices` under a pseudo-random permutation of 0 .. size - 1, computed one by one.

    No table: any part of the permutation of a hundred million samples costs only itself.

    Args:
        indices: [n], each in 0 .. size - 1.
        size: length of the permutation.
        seed: the key.
        tweak: up to two integers that, with the seed, choose the permutation.
    """
    first, second = [*tweak, 0, 0][:2]
    return permute_each(indices, np.asarray(size), seed, np.asarray(first), np.asarray(second))


def permute_each(indices: Ints, sizes: Ints, seed: int, first: Ints, second: Ints) -> Ints:
    """`permute` with a permutation of its own for every index.

    A Feistel network over pairs of digits in base ceil(sqrt(size)), walked until it lands inside the range.

    Args:
        indices: [n], each in 0 .. its size - 1.
        sizes: lengths of the permutations; like the tweaks, broadcast to [n].
        seed: the key.
        first: tweaks that, with the seed, choose the permutations.
        second: more of them.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002), sections 3 and 5.
    """
    values = indices.astype(np.uint64)
    root = np.sqrt(sizes.astype(np.float64)).astype(np.uint64)
    bases = root + (root * root < sizes.astype(np.uint64))
    keys = _round_keys(seed, first.astype(np.uint64), second.astype(np.uint64))  # [..., rounds]
    outside = np.ones(len(values), dtype=bool)
    # Permutations are mostly shared: numbers stay numbers then, which divide faster than arrays.
    while outside.any():
        base = bases[outside] if bases.ndim else bases
        round_keys = keys[outside] if keys.ndim > 1 else keys
        left, right = values[outside] // base, values[outside] % base
        for number in range(_FEISTEL_ROUNDS):
            left, right = right, (left + _mix(right ^ round_keys[..., number]) % base) % base
        values[outside] = left * base + right
        outside = values >= sizes.astype(np.uint64)
    return values.astype(np.int64)


def _round_keys(seed: int, first: UInts, second: UInts) -> UInts:
    rounds = np.arange(_FEISTEL_ROUNDS, dtype=np.uint64)
    first, second = first[..., None], second[..., None]
    # 48 bits of each tweak and the round fit into the counter.
    top = (first >> _HALF) << np.uint64(16) | (second >> _HALF) & np.uint64(0xFFFF)
    words = philox(seed, (first, second, top, rounds | np.uint64(1 << 31)))  # [..., rounds, 4]
    return (words[..., 0] << _HALF) | words[..., 1]


def _mix(values: UInts) -> UInts:
    """The finaliser of SplitMix64: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
