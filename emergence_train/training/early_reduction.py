"""Gradients that are reduced over the ranks while the backward pass goes on (main gradients alone: training/main_gradients.py).

The matrices are divided into parameter groups of consecutive blocks (`split`); DeepSpeed keeps the gradients of each in one
tensor, of which every rank owns an equal part. A backward pass records an event where a group's gradients are complete: of
blocks when it has the gradient of the first one's input, of a parameter of its own (embedding, head) when its gradient is
added. After the last micro-batch is launched, a second stream waits for one event after another and reduces that group, while
the GPU still computes the gradients of earlier blocks. In a CUDA graph events are recorded as well ("external" ones), so
collectives stay outside of it.

That each group is complete at its event is tested in tests/training/test_early_reduction.py, which compares it with its final
value.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from emergence_train.models.reduced_parts import LEAST_REDUCED, REDUCED_PARTS

SMALL = -1  # in the place of a block's number


def split(
    groups: Iterable[dict],
    model: nn.Module,
    blocks: Iterable[nn.Module],
    parts: int = REDUCED_PARTS,
    least: int = LEAST_REDUCED,
) -> list[dict]:
    """Parameter groups for the optimizer, each divided at the beginnings of blocks, in the order of the forward pass.

    A parameter that is used outside of the blocks is a group of its own, or one with its neighbours if it has less than `least`
    elements. Groups below 2 * least elements (norms) stay whole.
    """
    number = _numbers(model, blocks)
    return [
        {**group, "params": held} for group in groups for held in _divided(list(group["params"]), number, parts, least)
    ]


def _numbers(model: nn.Module, blocks: Iterable[nn.Module]) -> dict[Tensor, int]:
    """The first block that has a parameter, which a backward pass reaches last; none for what is used outside of them too."""
    number: dict[Tensor, int] = {}
    inside: set[nn.Module] = set()
    for index, block in enumerate(blocks):
        inside.update(block.modules())
        for parameter in block.parameters():
            number.setdefault(parameter, index)
    for module in model.modules():
        if module not in inside:
            for parameter in module.parameters(recurse=False):
                number.pop(parameter, None)
    return number


def _divided(parameters: list[Tensor], number: dict[Tensor, int], parts: int, least: int) -> list[list[Tensor]]:
    total = sum(parameter.numel() for parameter in parameters)
    if total < 2 * least:
        return [parameters]
    enough = max(least, total // parts)
    divided: list[list[Tensor]] = []
    size, last = 0, None  # of the group that is being filled: its elements, and its last block; None: it is full
    for parameter in parameters:
        block = number.get(parameter, SMALL if parameter.numel() < least else None)
        follows = last is not None and block is not None and SMALL not in (last, block) and size < enough
        if last is None or not (block == last or follows):
            divided.append([])
            size = 0
        divided[-1].append(parameter)
        size, last = size + parameter.numel(), block
    return divided


class Reduction:
    """Reduce each group's gradients, the first complete ones first.

    Args:
        groups: the parameters of each group, in the optimizer's order.
        model: whose they are. blocks: of it, called with their input first; none where they are compiled, which leaves hooks out.
        new_event: what is recorded, by a method `record`; None: the ranks reduce after the backward pass, as on a CPU.

    A group whose event was ever recorded is waited for by it: every pass must record it again.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Tensor]],
        model: nn.Module,
        blocks: Sequence[nn.Module],
        new_event: Callable[[], Any] | None,
    ) -> None:
        self.events: dict[int, Any] = {}  # recorded ones, by group
        self.stream: torch.cuda.Stream | None = None
        number = _numbers(model, blocks)
        for index, parameters in enumerate(groups):
            held = [number.get(parameter, -1) for parameter in parameters]
            if new_event is None or (min(held) < 0 and len(held) > 1):
                continue  # complete at the end
            record = self._recorder(index, new_event())
            if min(held) >= 0:
                blocks[min(held)].register_forward_pre_hook(_at_input(record))
            else:  # after DeepSpeed's hook, which adds its gradient to the float32 one
                parameters[0].register_post_accumulate_grad_hook(record)

    def _recorder(self, index: int, event: Any) -> Callable[[Tensor], None]:
        def record(_: Tensor) -> None:
            event.record()
            self.events[index] = event

        return record

    def __call__(self, gradients: Sequence[Tensor], own: Sequence[Tensor], group: Any, world: int) -> None:
        """Make `own`, the rank's part of each of `gradients`, the mean over the `world` ranks of `group`; the rest of `gradients`
        is spent."""
        # the last blocks' first, and what has no event at the end
        order = sorted(range(len(gradients)), key=lambda index: (index not in self.events, -index))
        if not gradients[0].is_cuda:
            for index in order:
                _reduce(gradients[index], own[index], group, world)
            return
        main = torch.cuda.current_stream()
        if self.stream is None:
            self.stream = torch.cuda.Stream(gradients[0].device, priority=-1)
        with torch.cuda.stream(self.stream):
            for index in order:
                if index in self.events:
                    self.stream.wait_event(self.events[index])
                else:
                    self.stream.wait_stream(main)
                _reduce(gradients[index], own[index], group, world)
        main.wait_stream(self.stream)


def _at_input(record: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple], None]:
    """A hook before a block's forward pass: record when the gradient of its input is there, all others of the block before."""

    def hook(_: nn.Module, inputs: tuple) -> None:
        again = torch._C._current_graph_task_id() != -1  # a backward pass that computes a checkpointed block anew
        if not again and inputs and inputs[0].requires_grad:
            inputs[0].register_hook(record)

    return hook


def _reduce(gradients: Tensor, own: Tensor, group: Any, world: int) -> None:
    dist.reduce_scatter_tensor(own, gradients, group=group)  # half of what an all-reduce sends
    own.mul_(1 / world)
