"""Initial weights by slices: any part of a parameter is drawn without the rest, so that no process need hold a model whole.

Values depend on (seed, name) alone: the same at any world size and ZeRO stage. A parameter of at most WHOLE elements has a
generator of its own, of which a part is cut. A larger one is drawn in blocks by a counter-based generator, Philox (Salmon et al.
2011, Parallel random numbers: as easy as 1, 2, 3): (seed, name) is its key and the block's number the upper half of its counter.
A part costs at most two blocks more than it has.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

WHOLE = 1 << 22  # elements: models whose matrices are smaller have the values they had before there were blocks
BLOCK = 1 << 20  # elements
DRAWN_AT_ONCE = 8  # parameters; a draw is serial, 1.2B numbers in 10 s


class Slice(NamedTuple):
    """Elements [start, start + len(values)) of a flattened parameter: what this process holds of it."""

    shape: torch.Size  # of the whole parameter
    start: int
    values: Tensor  # 1-dimensional, of any dtype and device; to be written to


Slices = Callable[[nn.Parameter], Slice]


def whole(parameter: nn.Parameter) -> Slice:
    """All of a parameter."""
    return Slice(parameter.shape, 0, parameter.detach().view(-1))


def draw_weights(
    model: nn.Module,
    std: Callable[[str], float],
    seed: int,
    own: Slices = whole,
    constant: Callable[[str], float] = lambda name: 1.0,
) -> None:
    """Set what this process holds of matrices to Normal(0, std(name)) and of vectors to constant(name), 1 being for norms."""

    @torch.no_grad()
    def draw(name: str, parameter: nn.Parameter) -> None:
        part = own(parameter)
        if len(part.shape) < 2:
            part.values.fill_(constant(name))
        else:
            draw_normal(part, std(name), f"{seed}/{name}")

    with ThreadPoolExecutor(DRAWN_AT_ONCE) as pool:
        for _ in pool.map(draw, *zip(*model.named_parameters(), strict=True)):
            pass


def draw_normal(part: Slice, std: float, key: str) -> None:
    """Set the values of `part` to those of Normal(0, std) that `key` has there."""
    size, start, end = part.shape.numel(), part.start, part.start + part.values.numel()
    digest = hashlib.sha256(key.encode()).digest()
    if size <= WHOLE:
        if start < end:
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            part.values.copy_(torch.empty(size).normal_(std=std, generator=generator)[start:end])
        return
    for block in range(start // BLOCK, -(-end // BLOCK)):
        first = block * BLOCK
        begin, stop = max(start, first), min(end, first + BLOCK)
        philox = np.random.Philox(key=int.from_bytes(digest[:16], "big"), counter=block << 128)
        drawn = np.random.Generator(philox).standard_normal(stop - first, dtype=np.float32) * np.float32(std)
        part.values[begin - start : stop - start].copy_(torch.from_numpy(drawn[begin - first :]))
