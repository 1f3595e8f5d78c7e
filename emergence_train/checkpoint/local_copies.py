"""Copies of the newest state on the nodes themselves, in memory (/dev/shm) or on a disk of each, for a quick restart.

The checkpoint in the run directory stays what counts: a copy is taken only where its size and SHA-256 are those of the manifest
there. A rank copies its own shard once the checkpoint is complete, and that of the rank with its place on the node before, so
that each shard is on two nodes. After a restart a rank whose node has its shard reads it there; one whose node was replaced, or
has another place now, gets it from a node that has it; what no node has is read from the run directory.

    PATH/<run>-<digest of its directory>/step-0000000040.shard-00000-of-00002.safetensors
"""

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist

from emergence_train import files
from emergence_train.checkpoint.format import shard_name
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.nodes import node_name
from emergence_train.parallel.ranks import all_gather_objects

CHUNK = 1 << 26  # bytes sent at a time
TEMPORARY = ".tmp"


def replicas_of(nodes: list[str]) -> list[int | None]:
    """For each rank, by the name of its node, the rank whose shard it keeps beside its own: that of the same place on the node
    before; None where there is none."""
    names = list(dict.fromkeys(nodes))
    ranks = {name: [rank for rank, node in enumerate(nodes) if node == name] for name in names}
    kept: list[int | None] = []
    for rank, name in enumerate(nodes):
        before = ranks[names[names.index(name) - 1]]
        place = ranks[name].index(rank)
        kept.append(before[place] if len(names) > 1 and place < len(before) else None)
    return kept


class LocalCopies:
    """This rank's copies. The constructor and `collect` are collective."""

    def __init__(self, path: Path, run: Path, mesh: Mesh) -> None:
        """`path`: the configured directory, of each node its own; `run`: the run directory."""
        digest = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12]
        self.folder, self.rank, self.size = path / f"{run.name}-{digest}", mesh.world.rank, mesh.world.size
        self.nodes = all_gather_objects(node_name())
        self.names = [shard_name(rank, self.size) for rank in range(self.size)]
        own = self.nodes[self.rank]
        kept = [[rank] + ([] if other is None else [other]) for rank, other in enumerate(replicas_of(self.nodes))]
        self.kept = [self.names[rank] for rank in kept[self.rank]]
        self.of_node = {self.names[k] for rank, node in enumerate(self.nodes) if node == own for k in kept[rank]}
        self.cleans = self.nodes.index(own) == self.rank

    def keep(self, checkpoint: Path) -> str | None:
        """Copy this rank's shards of a complete checkpoint, in the place of those of other steps; what went wrong, or None."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for old in list(self.folder.iterdir()):  # first, so that two states never need their room at once
                name = old.name.removesuffix(TEMPORARY).partition(".")[2]
                if name in self.kept or self.cleans and name not in self.of_node:
                    old.unlink(missing_ok=True)
            for name in self.kept:
                temporary = self._temporary(checkpoint, name)
                shutil.copyfile(checkpoint / name, temporary)
                temporary.rename(self._place(checkpoint, name))
        except OSError as error:
            with contextlib.suppress(OSError):
                for name in self.kept:
                    self._temporary(checkpoint, name).unlink(missing_ok=True)
            return f"{self.folder}: no copy of {checkpoint.name} is kept ({error.strerror or error})"
        return None

    def collect(self, checkpoint: Path, entries: list[dict]) -> Path | None:
        """This rank's own shard of `checkpoint`, verified against its entry of the manifest: on this node, or fetched from
        another; None where the run directory's is to be read."""
        own, by_name = self.names[self.rank], {entry["file"]: entry for entry in entries}
        sizes = self._sizes(checkpoint)
        here = {name for name in self.names if name in by_name and sizes.get(name) == by_name[name]["bytes"]}
        place = self._place(checkpoint, own)
        verified = own in here and _sha256(place) == by_name[own]["sha256"]
        every = all_gather_objects((here, verified))
        for rank, name in enumerate(self.names):  # in one order on every rank: none waits for two
            others = [r for r, (there, _) in enumerate(every) if name in there and self.nodes[r] != self.nodes[rank]]
            if every[rank][1] or not others:
                continue
            holder = others[rank % len(others)]
            if self.rank == holder:
                self._send(self._place(checkpoint, name), by_name[name]["bytes"], rank)
            elif self.rank == rank:
                verified = self._receive(place, by_name[name], holder)
        return place if verified else None

    def forget(self) -> None:
        """Remove all that this node holds of the run: it is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, checkpoint: Path, name: str) -> Path:
        return self.folder / f"{checkpoint.name}.{name}"

    def _temporary(self, checkpoint: Path, name: str) -> Path:
        return self.folder / f"{checkpoint.name}.{name}{TEMPORARY}"

    def _sizes(self, checkpoint: Path) -> dict[str, int]:
        """Bytes of each shard of `checkpoint` that this node holds, by its name."""
        with contextlib.suppress(OSError):
            files_here = [(path.name.partition("."), path.stat().st_size) for path in self.folder.iterdir()]
            return {name: size for (step, _, name), size in files_here if step == checkpoint.name}
        return {}

    def _send(self, place: Path, size: int, rank: int) -> None:
        """What cannot be read is sent as zeros: the receiver compares checksums."""
        with contextlib.ExitStack() as stack:
            file: IO[bytes] | None = None
            with contextlib.suppress(OSError):
                file = stack.enter_context(open(place, "rb"))
            for begin in range(0, size, CHUNK):
                chunk, data = torch.zeros(min(CHUNK, size - begin), dtype=torch.uint8), b""
                with contextlib.suppress(OSError):
                    data = file.read(len(chunk)) if file else b""
                if data:
                    chunk[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                dist.send(chunk, rank)

    def _receive(self, place: Path, entry: dict, holder: int) -> bool:
        """Whether the shard has come whole and is at `place`. All that is sent is received, also where it cannot be written."""
        digest, temporary = hashlib.sha256(), place.with_name(f"{place.name}{TEMPORARY}")
        with contextlib.ExitStack() as stack:
            file: IO[bytes] | None = None
            with contextlib.suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                file = stack.enter_context(open(temporary, "wb"))
            for begin in range(0, entry["bytes"], CHUNK):
                chunk = torch.empty(min(CHUNK, entry["bytes"] - begin), dtype=torch.uint8)
                dist.recv(chunk, holder)
                digest.update(chunk.numpy().data)
                try:
                    if file:
                        file.write(chunk.numpy().data)
                except OSError:
                    file = None
            written = file is not None
        try:
            if written and digest.hexdigest() == entry["sha256"]:
                temporary.rename(place)
                return place.stat().st_size == entry["bytes"]
            temporary.unlink(missing_ok=True)
        except OSError:
            pass
        return False


def _sha256(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return files.sha256(path)
    return None
