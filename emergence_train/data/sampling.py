"""The tokens of sample number i: a pure function of (seed, i).

No iterator, no state to save: any world size, micro-batch size or restart sees the same sequence of samples.

Domains. Samples come in blocks of BLOCK. Each block holds a fixed number of samples of each domain (its quota, the
weights rounded to whole samples by largest remainder), in an order shuffled by (seed, block). So the mixture is exact in
every block, not only on average, and which sample of its domain a sample is, k, follows from its own block alone.

Windows. A domain's token stream is cut into windows; the k-th sample takes window k mod n of epoch k div n, in an order
shuffled anew every epoch, with the cuts shifted by a random offset every epoch. No window repeats within an epoch.

Shuffling is a pseudo-random permutation of range(n) by a Feistel network with cycle walking (Black and Rogaway 2002):
constant memory for any n.
"""

import functools
from dataclasses import dataclass

import numpy as np

from emergence_train.errors import InputError

BLOCK = 8192
ROUNDS = 6
MASK = 2**64 - 1


def mix(*parts: int) -> int:
    """A well-mixed 64-bit hash of integers (the finaliser of SplitMix64, Steele et al. 2014, folded over the parts)."""
    return functools.reduce(_folded, parts, 0x243F6A8885A308D3)


def _folded(value: int, part: int) -> int:
    """The hash of parts, one more than those whose hash is `value`."""
    value = (value ^ (part & MASK)) + 0x9E3779B97F4A7C15 & MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


@functools.lru_cache(256)  # a domain's in an epoch: as long as samples of it come
def _rounds(key: int) -> tuple[int, ...]:
    """The hashes of the key and each round."""
    return tuple(mix(key, turn) for turn in range(ROUNDS))


def permute(index: int, n: int, key: int) -> int:
    """The image of `index` under the pseudo-random permutation of range(n) with key `key`."""
    half = max((n - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:  # walk the cycle until it comes back into range(n): fewer than 4 turns on average
        left, right = index >> half, index & mask
        for value in _rounds(key):
            left, right = right, left ^ (_folded(value, right) & mask)
        index = left << half | right
        if index < n:
            return index


def quotas(weights: list[float], total: int = BLOCK) -> list[int]:
    """`weights` as whole shares of `total`, by largest remainder; raises InputError where a positive weight would get 0."""
    scale = total / sum(weights)
    exact = [weight * scale for weight in weights]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    for weight, share in zip(weights, shares):
        if weight > 0 and share == 0:
            raise InputError(
                f"a source's weight is {weight / sum(weights):.2g} of the mixture, too small to be sampled "
                f"(the least is 1/{total}); raise it or set it to 0"
            )
    return shares


def _order(seed: int, block: int) -> np.ndarray:
    """A block's places in the order of mix(seed, 1, block, place): the same arithmetic on all of them at once, modulo 2^64. At
    thousands of ranks each micro-batch lies in another block."""
    value = np.uint64(mix(seed, 1, block)) ^ np.arange(BLOCK, dtype=np.uint64)
    value += np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(value ^ (value >> np.uint64(31)), kind="stable")


@dataclass(frozen=True)
class Window:
    """A sample: `length` tokens from `start` in the stream of domain number `domain`."""

    domain: int
    start: int
    epoch: int


class Sampler:
    """Maps a global sample number to a window.

    Args:
        tokens: length of each domain's stream. weights: shares of the mixture. sequence: tokens a sample trains on; a
        window is one longer, for the last target.
    """

    def __init__(self, tokens: list[int], weights: list[float], sequence: int, seed: int) -> None:
        self.tokens, self.sequence, self.seed = tokens, sequence, seed
        self.quotas = quotas(weights)
        self._last: tuple = (None,)  # the last block, cached: neighbouring samples need the same one
        # The offset of an epoch is below `sequence`, so a stream must hold one window more than it counts.
        self.windows = [max((length - 1) // sequence - 1, 1) for length in tokens]
        for length, quota in zip(tokens, self.quotas):
            if quota and length < sequence + 1:
                raise InputError(
                    f"a source has {length} tokens, fewer than one sequence ({sequence + 1}); "
                    f"add text or shorten data.sequence"
                )

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place in a block its domain, and the number of earlier samples of that domain in the block."""
        if self._last[0] != block:
            domains = np.repeat(np.arange(len(self.quotas)), self.quotas)[_order(self.seed, block)]
            before = np.empty(BLOCK, dtype=np.int64)
            for domain, quota in enumerate(self.quotas):
                before[domains == domain] = np.arange(quota)
            self._last = (block, domains, before)
        return self._last[1:]

    def __getitem__(self, index: int) -> Window:
        block, place = divmod(index, BLOCK)
        domains, before = self._block(block)
        domain = int(domains[place])
        ordinal = block * self.quotas[domain] + int(before[place])
        epoch, turn = divmod(ordinal, self.windows[domain])
        window = permute(turn, self.windows[domain], mix(self.seed, 2, domain, epoch))
        return Window(domain, window * self.sequence + self.span(domain, epoch)[0], epoch)

    def span(self, domain: int, epoch: int) -> tuple[int, int]:
        """(begin, end) of the tokens of a domain's stream that an epoch's windows hold."""
        length = self.windows[domain] * self.sequence
        room = self.tokens[domain] - 1 - length
        offset = mix(self.seed, 3, domain, epoch) % (min(room, self.sequence - 1) + 1)
        return offset, offset + length + 1

    def epochs(self, samples: int) -> list[float]:
        """Epochs of each domain after `samples` samples."""
        return [samples / BLOCK * quota / windows for quota, windows in zip(self.quotas, self.windows)]
