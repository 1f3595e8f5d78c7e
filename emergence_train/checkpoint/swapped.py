"""Optimizer state that DeepSpeed keeps in files on NVMe (ZeRO-3, offload_optimizer: nvme), as tensors while read or written.

Between updates a swapped group has empty tensors in the place of its weights and moments; their files are under
`nvme_path/zero_stage_3/optimizer/rank<N>`. Groups of less than 1 MB a rank stay in memory. DeepSpeed's names:
runtime/zero/stage3.py, runtime/swap_tensor/partitioned_optimizer_swapper.py (0.19).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def swapped(optimizer: Any, flat: Tensor) -> int | None:
    """The number of the group that `flat` is, where its state is in files; else None."""
    if not getattr(optimizer, "swap_optimizer", False):
        return None
    groups = optimizer.fp32_partitioned_groups_flat
    number = next((k for k, group in enumerate(groups) if group is flat), None)
    return number if number is not None and optimizer._swappable_optimizer_subgroup(number) else None


def mapped(optimizer: Any, flat: Any) -> list[tuple[Tensor, Tensor]]:
    """Weights and moments of a swapped group: each tensor, empty at present, and its file mapped into memory, to be read only.

    A file is as long as a multiple of DeepSpeed's alignment; of that the group's elements come first.
    """
    info = optimizer.optimizer_swapper.swap_params_info[flat.ds_id]
    return [
        (held.compute_tensor, torch.from_file(held.swap_path, shared=False, size=info.numel(), dtype=flat.dtype))
        for held in info.tensors
    ]


@contextlib.contextmanager
def in_memory(optimizer: Any, flat: Tensor, *, write: bool = False) -> Iterator[None]:
    """Read the state of `flat` from its files for the length of a block; with `write`, write it back at the end."""
    number = swapped(optimizer, flat)
    if number is None:
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(number)
    yield
    if write:
        optimizer._optimizer_states_and_gradient_swap_out(number)
    else:
        optimizer._release_swap_buffers(number)


def forget_moments(optimizer: Any, flat: Any) -> None:
    """Take the files of moments for none, before the optimizer's state of `flat` is emptied."""
    if swapped(optimizer, flat) is not None:
        info = optimizer.optimizer_swapper.swap_params_info[flat.ds_id]
        info.tensors, info.has_state_tensors = info.tensors[:1], False
