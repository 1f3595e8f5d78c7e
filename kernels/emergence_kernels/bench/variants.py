"""Candidates of the tile tables that "auto" does not choose, run in the place of the table's entry."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends.dispatch import HAS_TRITON
from .candidate import Candidate

Where = tuple[dict, object]  # a table, and a key of it


def of_losses(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[Where, object]]:
    """name -> (where, entry): of logits kept in fewer bits, of the kernel over their rows, of the tiles of an evaluation."""
    if device.type != "cuda" or not HAS_TRITON:
        return {}
    from ..backends import triton_configs as configs

    arch = configs.architecture(device)
    key = arch, dtype.itemsize, False
    narrow = configs.LOGITS_DTYPE_VARIANTS if dtype == torch.bfloat16 else {}
    tables = (
        (configs.LOGITS_DTYPE, arch, narrow),
        (configs.LOSS_ROWS, arch, configs.LOSS_ROWS_VARIANTS),
        (configs.LOGITS, key, configs.LOGITS_VARIANTS.get(key, {})),
    )
    return {name: ((table, where), entry) for table, where, named in tables for name, entry in named.items()}


def of_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> dict[str, tuple[Where, object]]:
    if device.type != "cuda" or not HAS_TRITON:
        return {}
    from ..backends import triton_configs as configs

    key = configs.architecture(device), dtype.itemsize, head_dim
    entries = configs.ATTENTION_VARIANTS.get(key, {})
    return {name: ((configs.ATTENTION[key], "forward"), entry) for name, entry in entries.items()}


@contextmanager
def using(where: Where, entry: object) -> Iterator[None]:
    """The entry in its place in the table, for as long as the context lasts."""
    table, key = where
    usual = table[key]
    table[key] = entry
    try:
        yield
    finally:
        table[key] = usual


@dataclass
class _Variant(Candidate):
    where: Where = ({}, None)
    entry: object = None

    def both(self, upstream: Tensor | None) -> tuple[Tensor, ...]:
        with using(self.where, self.entry):  # backward may look into the table too
            return super().both(upstream)


def in_place(candidate: Candidate, name: str, where: Where, entry: object) -> Candidate:
    def forward() -> Tensor | tuple[Tensor, ...]:
        with using(where, entry):
            return candidate.forward()

    return _Variant(f"{candidate.name}, {name}", forward, candidate.leaves, where=where, entry=entry)
