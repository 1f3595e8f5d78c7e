"""Reading the shards of a verified checkpoint by parameter."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emergence_train.checkpoint.format import WEIGHTS, entries, read_state, refuse_removed
from emergence_train.checkpoint.pieces import INDEX, Held, Index, Span
from emergence_train.errors import InputError


class Shards:
    """The pieces of a verified checkpoint by parameter, for any layout they were written in.

    Files are opened when they are read: by the index those that hold what is asked for, without one all of them at once.
    """

    def __init__(self, path: Path, only: Path | None = None) -> None:
        """`only`: a file that holds all that will be read, in the place of every shard."""
        self.path, self.only = path, only
        self.opened: dict[str, Any] = {}
        names = [entry["file"] for entry in entries(path)]
        shards = sorted(name for name in names if name.endswith(".safetensors"))
        if only is None and INDEX in names:
            try:
                self.index = Index.read(path / INDEX, shards)
            except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
                refuse_removed(path)
                raise InputError(f"{path / INDEX}: cannot be read ({error})") from None
        else:
            self.index = Index.of({name: self._held(name) for name in ([only.name] if only else shards)})

    def _open(self, name: str) -> Any:
        """The file `name`, opened once."""
        if name not in self.opened:
            place = self.only or self.path / name
            try:
                self.opened[name] = safe_open(place, "pt")
            except (OSError, SafetensorError) as error:
                refuse_removed(self.path)
                raise InputError(f"{place}: cannot be read ({error})") from None
        return self.opened[name]

    def _held(self, name: str) -> Held:
        """What a file holds, by its header."""
        file, held = self._open(name), []
        for key in file.keys():  # noqa: SIM118 - not a dict
            part, shape = file.get_slice(key), file.get_slice(key).get_shape()
            start, _, parameter = key.partition("|")[2].partition("|")
            if parameter and not (start.isdecimal() and len(shape) == 1 and part.get_dtype().startswith(("F", "BF"))):
                place = self.only or self.path / name
                raise InputError(f"{place}: cannot be read ({key!r} is no piece of a parameter)")
            held.append((key, math.prod(shape)))
        return held

    @property
    def kinds(self) -> list[str]:
        return self.index.kinds

    def read(self, kind: str, parameter: str, start: int, count: int) -> Tensor:
        """Elements [start, start + count) of a flattened parameter's `kind`, float32 on the CPU.

        Nothing is allocated before the pieces are known to hold them all.
        """
        covering = self._covering(kind, parameter, start, count)
        if (held := sum(end - begin for _, begin, end in covering)) != count:
            raise InputError(
                f"{self.path}: holds {held} of {count} elements of {kind} of {parameter}; it was saved by another model"
            )
        out = torch.empty(count)
        for span, a, b in covering:
            try:
                part = self._open(span.file).get_slice(f"{kind}|{span.begin}|{parameter}")
                if part.get_shape() != [span.end - span.begin]:
                    raise ValueError(f"{part.get_shape()} elements")
                out[a - start : b - start] = part[a - span.begin : b - span.begin]
            except (SafetensorError, ValueError) as error:
                raise InputError(
                    f"{self.path / span.file}: does not hold what {INDEX} says of {kind} of {parameter} ({error})"
                ) from None
        return out

    def holds(self, kind: str, parameter: str, start: int, count: int) -> bool:
        """Whether `read` can give these elements."""
        return sum(end - begin for _, begin, end in self._covering(kind, parameter, start, count)) == count

    def _covering(self, kind: str, parameter: str, start: int, count: int) -> list[tuple[Span, int, int]]:
        """Pieces, and the elements [begin, end) that each gives of [start, start + count): from `start` on, without a gap."""
        covering, done = [], start
        for span in self.index.spans(kind, parameter, start, start + count):
            end = min(start + count, span.end)
            if span.begin <= done < end:
                covering.append((span, done, end))
                done = end
        return covering

    def each(self, key: str, of: str | None = None) -> list[Tensor]:
        """The tensor `key` of every file that has one, in the order of ranks; or of the file `of` alone."""
        return [self._open(name).get_tensor(key) for name in self.index.others.get(key, ()) if of in (None, name)]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read all fp32 weights of a verified checkpoint, by the model's names, for evaluation and export."""
    shards, shapes = Shards(path), read_state(path)["parameters"]
    return {name: shards.read(WEIGHTS, name, 0, math.prod(shape)).view(shape) for name, shape in shapes.items()}
