"""Initial weights by slices: any cut gives the values of the whole, which are normal and independent between blocks."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from emergence_train.models import initial_values
from emergence_train.models.initial_values import BLOCK, WHOLE, Slice, draw_normal
from emergence_train.parallel.mesh import Group
from emergence_train.training.engine import _own_partitions


def drawn(shape: torch.Size, start: int, stop: int, key: str = "1/w", dtype=torch.float32) -> torch.Tensor:
    values = torch.full((stop - start,), math.nan, dtype=dtype)
    draw_normal(Slice(shape, start, values), 0.5, key)
    return values


@pytest.mark.parametrize("size", [40, 100, 101, 128, 129, 300])
def test_slices_are_those_of_the_whole(size, monkeypatch):
    """In blocks of 64 elements from 101 elements on; cut anywhere, also at the ends of blocks."""
    monkeypatch.setattr(initial_values, "WHOLE", 100)
    monkeypatch.setattr(initial_values, "BLOCK", 64)
    shape = torch.Size([size])
    whole = drawn(shape, 0, size)
    assert whole.isfinite().all()
    for start, stop in itertools.combinations({0, 1, 63, 64, 65, 100, 127, 128, size - 1, size}, 2):
        if start <= stop <= size:
            assert drawn(shape, start, stop).equal(whole[start:stop]), (start, stop)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_partitions_of_zero_3_make_up_the_whole(ranks):
    """At real sizes, in bf16, padded as DeepSpeed pads."""
    shape = torch.Size([1025, 4099])
    assert shape.numel() > WHOLE
    whole = drawn(shape, 0, shape.numel(), dtype=torch.bfloat16)
    count = -(-shape.numel() // ranks)
    parts = []
    for rank in range(ranks):
        parameter = SimpleNamespace(ds_tensor=torch.zeros(count).bfloat16(), ds_numel=shape.numel(), ds_shape=shape)
        part = _own_partitions(Group(rank, ranks))(parameter)
        draw_normal(part, 0.5, "1/w")
        assert part.start == rank * count
        parts.append(part.values)
    assert torch.cat(parts).equal(whole)


def test_a_rank_without_elements_draws_none():
    parameter = SimpleNamespace(ds_tensor=torch.zeros(3), ds_numel=5, ds_shape=torch.Size([5, 1]))
    part = _own_partitions(Group(2, 3))(parameter)
    draw_normal(part, 1.0, "1/w")
    assert not part.values.numel()


def test_blocks_are_normal_and_independent():
    size = WHOLE + BLOCK
    values = drawn(torch.Size([size]), 0, size).view(-1, BLOCK).double().numpy() / 0.5
    assert stats.kstest(values.ravel()[: 1 << 19], "norm").pvalue > 0.01
    assert abs(values.mean()) < 4 / size**0.5 and abs(values.var() - 1) < 4 * (2 / size) ** 0.5
    correlation = np.corrcoef(values)
    assert abs(correlation - np.eye(len(values))).max() < 5 / BLOCK**0.5
    other = drawn(torch.Size([size]), 0, BLOCK, key="2/w").double().numpy() / 0.5
    assert abs(np.corrcoef(other, values[0])[0, 1]) < 5 / BLOCK**0.5


def test_blocks_are_philox_with_the_block_in_its_counter():
    """Against Philox-4x64-10 of the paper in whole numbers: the ziggurat's first draw is nearly always one word."""
    import hashlib

    def philox(counter: list[int], key: list[int]) -> list[int]:
        mask = 2**64 - 1
        for _ in range(10):
            first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
            counter = [
                (second >> 64) ^ counter[1] ^ key[0], second & mask, (first >> 64) ^ counter[3] ^ key[1], first & mask,
            ]  # fmt: skip
            key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
        return counter

    number = int.from_bytes(hashlib.sha256(b"1/w").digest()[:16], "big")
    key = [number % 2**64, number >> 64]
    for block in (0, 3):
        words = np.random.Philox(key=number, counter=block << 128).random_raw(8).tolist()
        assert words == philox([1, 0, block, 0], key) + philox([2, 0, block, 0], key), "it counts before it draws"
