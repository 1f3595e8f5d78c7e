"""The state of a DeepSpeed engine as pieces that do not depend on ZeRO stage and world size.

Every optimizer of DeepSpeed keeps float32 weights and moments in flat tensors that hold a rank's share of each parameter.
A Part locates that share. Saving writes parts, and loading reads for each part the elements that it covers, so another
world size or stage needs no special case.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emergence_train.checkpoint.format import WEIGHTS
from emergence_train.checkpoint.shards import Shards
from emergence_train.checkpoint.swapped import forget_moments, in_memory, mapped, swapped
from emergence_train.errors import InputError
from emergence_train.parallel.mesh import Mesh

STEP = "step"  # an optimizer's count of updates, the one state that is no tensor of the parameter's shape
SET_EACH_STEP = ("params", "lr")  # of a parameter group, by DeepSpeed and training.step: no checkpoint needs them


def group_settings(optimizer: Any) -> list[dict[str, Any]]:
    """What the optimizer's parameter groups hold; to be kept as `engine.group_settings` from before DeepSpeed has them."""
    return [
        {key: copy.deepcopy(value) for key, value in group.items() if key not in SET_EACH_STEP}
        for group in optimizer.param_groups
    ]


@dataclass(frozen=True)
class Part:
    """Elements [start, start + count) of the flattened parameter `name`: elements [offset, ...) of `flat`."""

    name: str
    start: int
    count: int
    flat: Tensor  # the tensor that the torch optimizer updates, and its key in the optimizer's state
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """A view of this part of `flat`, or of a moment of the same shape."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.count]


class EngineState:
    """This rank's parts of an engine, and the torch optimizer inside DeepSpeed's."""

    def __init__(self, engine: Any, mesh: Mesh) -> None:
        self.engine, self.mesh = engine, mesh
        self.stage = engine.zero_optimization_stage()
        self.optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
        self.parts = list(
            self._zero3_parts() if self.stage == 3 else self._flat() if self.stage else self._replicated()
        )

    @property
    def shapes(self) -> dict[str, list[int]]:
        """The whole shape of every parameter."""
        return {n: list(getattr(p, "ds_shape", p.shape)) for n, p in self.engine.module.named_parameters()}

    @property
    def updates(self) -> float:
        """Number of optimizer updates: fewer than steps where steps were skipped."""
        steps = [float(state[STEP]) for state in self.optimizer.state.values() if STEP in state]
        return max(steps, default=0.0)

    def tensors(self) -> dict[str, Tensor]:
        """The pieces that this rank saves, as views, or as mapped files: {kind|start|name: piece}.

        Raises:
            InputError: they would not be all that the optimizer keeps.
        """
        self.check()
        pieces: dict[str, Tensor] = {}
        for flat, parts in self._by_flat():
            kinds = self._kinds(flat)
            for part in parts if self.stage else map(self._own_slice, parts):
                if part.count:
                    pieces |= {f"{kind}|{part.start}|{part.name}": part.of(tensor) for kind, tensor in kinds.items()}
        return pieces

    def check(self) -> None:
        """Raise InputError where the optimizer keeps what no checkpoint has, so that a resumed run would have other numbers."""
        if (unsaved := self._unsaved()) is not None:
            raise InputError(
                f"training.optimizer: {type(self.optimizer).__name__} keeps {unsaved}, which no checkpoint holds; let it keep "
                "`step` and tensors of the parameter's shape and type in its state alone (docs/how-to/extend.md)"
            )

    def _unsaved(self) -> str | None:
        flats = {id(flat): flat for flat, _ in self.updated()}
        for owner, state in self.optimizer.state.items():
            if id(owner) in flats:
                saved = {STEP, *self._kinds(flats[id(owner)])}
                odd = [key for key, value in state.items() if value is not None and key not in saved]
            else:  # of no parameter
                odd = (
                    [owner if isinstance(owner, str) else key for key in state] if isinstance(state, dict) else [owner]
                )
            if odd:
                return f"{odd[0]!r} in its state"
        for before, now in zip(self.engine.group_settings, group_settings(self.optimizer)):
            for key in before | now:
                if key not in before or key not in now or not _equal(before[key], now[key]):
                    return f"{key!r} in its param_groups, changed by training"
        return None

    def _kinds(self, flat: Tensor) -> dict[str, Tensor]:
        """`flat` and its moments by kind."""
        if swapped(self.engine.optimizer, flat) is None:
            return {WEIGHTS: flat, **self._moments(flat)}
        names = {id(tensor): kind for kind, tensor in self.optimizer.state.get(flat, {}).items()} | {id(flat): WEIGHTS}
        return {names[id(tensor)]: file for tensor, file in mapped(self.engine.optimizer, flat)}

    def _by_flat(self) -> Iterator[tuple[Tensor, list[Part]]]:
        """The tensors that the optimizer updates, each with its parts."""
        parts: dict[int, list[Part]] = {}
        for part in self.parts:
            parts.setdefault(id(part.flat), []).append(part)
        yield from ((held[0].flat, held) for held in parts.values())

    @torch.no_grad()
    def load(self, shards: Shards, updates: float) -> None:
        """Put back what `shards` hold of this rank's parts. No collective is in it: the weights that the model computes with
        follow in `refresh`, which all ranks call."""
        if self.stage == 3:
            self.engine.optimizer._partition_all_parameters()
        moments = [kind for kind in shards.kinds if kind != WEIGHTS]
        kinds_of = getattr(self.optimizer, "state_kinds", lambda flat: moments) if moments else lambda flat: ()
        for flat, parts in self._by_flat():
            with in_memory(self.engine.optimizer, flat, write=True):
                self._load_flat(flat, parts, shards, kinds_of(flat), updates)

    def _load_flat(self, flat: Tensor, parts: list[Part], shards: Shards, kinds: Iterable[str], updates: float) -> None:
        state, kinds = self.optimizer.state[flat], list(kinds)
        if not kinds:  # saved before the first update
            forget_moments(self.engine.optimizer, flat)
            state.clear()
        for kind in kinds:
            if kind not in state:
                state[kind] = torch.zeros_like(flat)
        if kinds or updates:
            state[STEP] = torch.tensor(float(updates), device=flat.device)  # a fused optimizer counts on the device
        for part in parts:
            for kind in [WEIGHTS, *kinds]:
                target = flat if kind == WEIGHTS else state[kind]
                part.of(target).copy_(shards.read(kind, part.name, part.start, part.count))

    def held_by(self, shards: Shards) -> bool:
        """Whether `load` can read all of this rank's parts."""
        return all(
            shards.holds(kind, part.name, part.start, part.count) for part in self.parts for kind in shards.kinds
        )

    def _moments(self, flat: Tensor) -> dict[str, Tensor]:
        state = self.optimizer.state.get(flat, {})
        like = {k: v for k, v in state.items() if k != STEP and torch.is_tensor(v) and v.shape == flat.shape}
        return {kind: tensor for kind, tensor in like.items() if tensor.dtype == flat.dtype}

    def updated(self) -> Iterator[tuple[Tensor, list[Any]]]:
        """The tensors that the torch optimizer updates, each with the parameters of which any rank has a piece there."""
        optimizer = self.engine.optimizer
        if self.stage == 0:
            yield from ((parameter, [parameter]) for parameter in self.engine.module.parameters())
        elif self.stage == 3:
            yield from zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups)
        else:
            yield from zip(self._flat_partitions(), getattr(optimizer, "bit16_groups", None) or optimizer.bf16_groups)

    def _flat_partitions(self) -> list[Tensor]:
        """Stages 1 and 2, and BF16_Optimizer: the rank's share of each group."""
        optimizer = self.engine.optimizer
        return getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition

    def _replicated(self) -> Iterator[Part]:
        for name, parameter in self.engine.module.named_parameters():
            yield Part(name, 0, parameter.numel(), parameter, 0)

    def _own_slice(self, part: Part) -> Part:
        """The slice that this rank saves of a tensor replicated on all ranks."""
        each = -(-part.count // self.mesh.gradients.size)
        start = min(self.mesh.gradients.rank * each, part.count)
        return Part(part.name, start, min(each, part.count - start), part.flat, start)

    def _flat(self) -> Iterator[Part]:
        """Stages 1 and 2, and BF16_Optimizer: by DeepSpeed's map from a parameter to its range in the flat partition."""
        flats = self._flat_partitions()
        for name, parameter in self.engine.module.named_parameters():
            place = parameter._hp_mapping
            if place is not None:
                here, there = place.lp_fragment_address, place.hp_fragment_address
                yield Part(name, here.start, here.numel, flats[place.param_group_index], there.start)

    def _zero3_parts(self) -> Iterator[Part]:
        """Stage 3: a parameter is split into equal partitions, one per rank, the last one padded."""
        optimizer = self.engine.optimizer
        for name, parameter in self.engine.module.named_parameters():
            group, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = min(self.mesh.gradients.rank * count, parameter.ds_numel)
            held = min(count, parameter.ds_numel - start)
            yield Part(name, start, held, optimizer.fp32_partitioned_groups_flat[group], offset)

    @torch.no_grad()
    def refresh(self) -> None:
        """The model's own weights (bf16, or fp32 beside the partitions) from the float32 ones."""
        optimizer = self.engine.optimizer
        if self.stage == 3:
            for group, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
                with in_memory(optimizer, flat):
                    optimizer._reassign_or_swap_out_partitioned_parameters(group)
            optimizer.checkpoint_event_epilogue()
        elif self.stage:
            optimizer.update_lp_params()


def _equal(before: Any, now: Any) -> bool:
    if torch.is_tensor(before) or torch.is_tensor(now):
        return torch.is_tensor(before) and torch.is_tensor(now) and torch.equal(before, now)
    return bool(before == now)
