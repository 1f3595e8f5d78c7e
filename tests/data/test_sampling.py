"""Samples as a pure function of (seed, index): permutations, exact mixtures, no repeats within an epoch."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emergence_train.data.sampling import BLOCK, Sampler, _order, mix, permute, quotas
from emergence_train.errors import InputError


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(n, key):
    assert sorted(permute(i, n, key) for i in range(n)) == list(range(n))


def test_permute_looks_random():
    """Where each of 8 elements goes over many keys: chi-squared of the 8 x 8 table, 49 degrees of freedom."""
    counts = np.zeros((8, 8))
    for key in range(4000):
        for i in range(8):
            counts[i, permute(i, 8, key)] += 1
    chi2 = ((counts - 500) ** 2 / 500).sum()
    assert chi2 < 85.4  # the 99.9% point


@pytest.mark.parametrize(("seed", "block"), [(0, 0), (3, 7), (2**63 - 1, 10**12)])
def test_a_block_is_in_the_order_of_its_hashes(seed, block):
    """All places at once as each by itself, in Python's whole numbers."""
    keys = [mix(seed, 1, block, place) for place in range(BLOCK)]
    assert _order(seed, block).tolist() == sorted(range(BLOCK), key=keys.__getitem__)


@given(st.lists(st.floats(1, 100), min_size=1, max_size=9))
def test_quotas_are_whole_and_within_one_of_exact(weights):
    shares = quotas(weights)
    assert sum(shares) == BLOCK
    assert all(abs(share - BLOCK * w / sum(weights)) < 1 for share, w in zip(shares, weights))


def test_a_weight_too_small_is_refused():
    with pytest.raises(InputError, match="too small"):
        quotas([1.0, 1e-6])


@settings(deadline=None, max_examples=25)
@given(
    tokens=st.lists(st.integers(40, 3000), min_size=1, max_size=4),
    sequence=st.integers(2, 39),
    seed=st.integers(0, 2**63),
    start=st.integers(0, 10**12),
)
def test_windows_lie_in_their_stream_in_any_order_of_access(tokens, sequence, seed, start):
    weights = [1.0 + i for i in range(len(tokens))]
    sampler = Sampler(tokens, weights, sequence, seed)
    there = [sampler[i] for i in range(start, start + 50)]
    again = Sampler(tokens, weights, sequence, seed)
    assert there == [again[i] for i in reversed(range(start, start + 50))][::-1]
    for window in there:
        assert window.start >= 0 and window.start + sequence + 1 <= tokens[window.domain]


def test_every_block_holds_the_mixture_exactly():
    sampler = Sampler([10_000, 5_000, 700], [5, 2, 1], 16, seed=4)
    for block in (0, 7):
        domains = [sampler[block * BLOCK + i].domain for i in range(BLOCK)]
        assert np.bincount(domains).tolist() == sampler.quotas == [5120, 2048, 1024]


def test_epoch_uses_each_window_once_with_its_own_offset():
    sampler = Sampler([16 * 501 + 5], [1], 16, seed=9)
    n = sampler.windows[0]
    epochs = [[sampler[e * n + i] for i in range(n)] for e in (0, 1)]
    for number, epoch in enumerate(epochs):
        starts = sorted(window.start for window in epoch)
        assert {window.epoch for window in epoch} == {number}
        assert np.all(np.diff(starts) == 16), "windows tile the stream: none twice, none overlapping"
    assert [w.start for w in epochs[0]] != [w.start for w in epochs[1]]
    assert sampler.epochs(n) == [1.0]


def test_a_source_shorter_than_a_sequence_is_refused():
    with pytest.raises(InputError, match="fewer than one sequence"):
        Sampler([16], [1], 16, seed=0)
    assert Sampler([17], [1], 16, seed=0)[123].start == 0


@settings(deadline=None, max_examples=12)
@given(
    tokens=st.lists(st.integers(40, 900), min_size=1, max_size=3),
    weights=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    sequence=st.integers(2, 39),
    seed=st.integers(0, 2**63),
)
def test_each_epoch_trains_on_each_token_at_most_once(tokens, weights, sequence, seed):
    """Over more than a block, by marking the trained positions of each stream; what an epoch leaves out lies at the ends."""
    sampler = Sampler(tokens, weights[: len(tokens)], sequence, seed)
    windows = [sampler[index] for index in range(BLOCK + 500)]
    for domain, length in enumerate(tokens):
        of_domain = [window for window in windows if window.domain == domain]
        assert [window.epoch for window in of_domain] == sorted(window.epoch for window in of_domain)
        epochs = {epoch: list(group) for epoch, group in groupby(of_domain, key=lambda window: window.epoch)}
        assert list(epochs) == list(range(of_domain[-1].epoch + 1))
        for epoch, of_epoch in epochs.items():
            trained = np.zeros(length, int)
            for window in of_epoch:
                trained[window.start + 1 : window.start + sequence + 1] += 1  # its targets
            assert trained.max() == 1
            if epoch < of_domain[-1].epoch:
                (used,) = np.nonzero(trained)
                assert used[-1] - used[0] + 1 == len(used) >= length - 2 * sequence
