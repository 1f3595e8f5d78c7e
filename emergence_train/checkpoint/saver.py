"""Save and load an engine's state over all ranks, so that a checkpoint is complete or absent.

Each rank writes and fsyncs its shard into a temporary directory and sends its size and SHA-256 to rank 0, which then writes the
manifest, renames the directory and points `latest` at it. A save that fails anywhere leaves the older checkpoints untouched, and
training continues.

Optionally a thread writes: ranks copy their pieces to memory and continue training, and the threads communicate over a process
group of their own. The guarantees are the same, since it is the same code.
"""

import contextlib
import functools
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint import retention
from emergence_train.checkpoint.engine_state import EngineState
from emergence_train.checkpoint.format import POINTER, STATE, complete, step_name, step_of
from emergence_train.checkpoint.local_copies import LocalCopies
from emergence_train.checkpoint.pieces import Held
from emergence_train.checkpoint.shards import Shards
from emergence_train.config import Checkpoints
from emergence_train.errors import InputError, RunError
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import all_gather_objects, broadcast_from_rank0, gather_on_rank0, on_every_rank

POSITIONS = "positions"  # loss sums since the last table, of each rank
SPARE = 1 << 20  # bytes that must stay free on the disk

T = TypeVar("T")


class Saver:
    """Saves checkpoints of a run. `save` and `wait` are collective; `wait` joins an asynchronous save.

    After either, `durable` is the step of the newest complete checkpoint, and a failure has been logged.
    """

    def __init__(
        self, run: Path, settings: Checkpoints, regular: set[int], mesh: Mesh, log: Callable[[str], None]
    ) -> None:
        """Collective, as `save` and `wait` are."""
        self.folder, self.settings, self.regular = run / "checkpoints", settings, regular
        self.mesh, self.log = mesh, log
        self.durable = 0
        self.best: int | None = None  # step of the lowest iid loss, on rank 0
        self.step = 0  # step of the last save
        self.problem: str | None = None  # its failure, if any
        self.thread: threading.Thread | None = None
        self.on_written: Callable[[int], None] = lambda step: None  # this rank's shard is on its disk
        self.copies = LocalCopies(Path(settings.local_path), run, mesh) if settings.local_path else None
        self.uncopied: str | None = None  # what went wrong with the nodes' copies, logged once
        self.undeletable: set[Path] = set()  # logged once each
        self.group = None
        if self.settings.asynchronous and mesh.world.size > 1:
            self.group = dist.new_group(backend="gloo")

    def save(self, engine: Any, step: int, loop: dict, sums: torch.Tensor) -> None:
        """Save checkpoints/step-XXXXXXXXXX with the state of the training loop and this rank's position sums.

        Raises:
            InputError: the optimizer keeps what no checkpoint holds.
        """
        self.wait()
        self.step = step
        state = EngineState(engine, self.mesh)
        tensors = on_every_rank(state.tensors) | {POSITIONS: sums}
        content = {
            "format": checkpoints.FORMAT,
            "step": step,
            "world_size": self.mesh.world.size,
            "zero_stage": state.stage,
            "updates": state.updates,
            "parameters": state.shapes,
            "loop": loop,
        }
        if not self.settings.asynchronous:
            self._write(step, tensors, content)
            return
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self.thread = threading.Thread(target=self._write, args=(step, copies, content), name="save", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Wait for an asynchronous save."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def _write(self, step: int, tensors: dict, content: dict) -> None:
        final, began = self.folder / step_name(step), time.monotonic()
        try:
            needed = sum(all_gather_objects(sum(t.nbytes for t in tensors.values()), self.group))
            prepare = partial(self._prepare, step, needed)
            problem, temporary = broadcast_from_rank0(lambda: _attempt(prepare), self.group)
            if temporary is not None:
                name = checkpoints.shard_name(self.mesh.world.rank, self.mesh.world.size)
                problem, entry = _attempt(lambda: checkpoints.write_tensors(temporary / name, tensors))
                self.on_written(step)
                outcomes = all_gather_objects((problem, entry), self.group)
                problem = next((reported for reported, _ in outcomes if reported), None)
                entries = [entry for _, entry in outcomes if entry is not None]
            if problem is None and temporary is not None:
                held = gather_on_rank0([(name, tensor.numel()) for name, tensor in tensors.items()], self.group)
                by_file = {entry["file"]: keys for entry, keys in zip(entries, held)}
                write = partial(commit, temporary, final, step, entries, content, by_file)
                problem, _ = broadcast_from_rank0(lambda: _attempt(write), self.group)
            if problem is None:
                self.durable = step
                self._copy(final)
        except Exception as error:  # a peer is lost: the watchdog names it
            self.problem = f"the ranks could not communicate ({' '.join(str(error).split())[:200]})"
            return
        self.problem = problem
        if self.mesh.is_rank0:
            self._conclude(step, temporary, problem, time.monotonic() - began)

    def _copy(self, checkpoint: Path) -> None:
        """Copy the shards onto the nodes, where configured; collective."""
        if self.copies:
            failed = next(filter(None, all_gather_objects(self.copies.keep(checkpoint), self.group)), None)
            if failed and not self.uncopied:
                self.log(f"{failed}; training continues, the checkpoint itself is whole")
            self.uncopied = failed

    def _prepare(self, step: int, needed: int) -> Path:
        """Make an empty temporary directory; raises where the disk has no room for the shards."""
        if not self.folder.is_dir():
            self.folder.mkdir()  # not those above it: a moved or deleted run directory must not begin again as a part of one
            files.fsync_directory(self.folder.parent)
        for rest in [*self.folder.glob(".step-*.tmp"), *self.folder.glob(".step-*.gone")]:  # of a killed process
            self._delete(rest)
        free = shutil.disk_usage(self.folder).free
        if free < needed + SPARE:
            raise OSError(None, f"needs {(needed + SPARE) / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free")
        return begin(self.folder, step)

    def _delete(self, path: Path) -> None:
        """Delete what is no checkpoint any more. What cannot be deleted, as another user's, is logged once and stops no save."""
        try:
            shutil.rmtree(path)
        except OSError as error:
            if path.exists() and path not in self.undeletable:
                self.undeletable.add(path)
                self.log(f"{path}: cannot be deleted ({error.strerror}), its owner can; training continues")

    def _conclude(self, step: int, temporary: Path | None, problem: str | None, seconds: float) -> None:
        if problem is not None:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            self.log(f"checkpoint of step {step} not saved: {problem}; training continues, older ones are untouched")
            return
        with contextlib.suppress(OSError, RunError):
            self._forget()

    def _forget(self) -> None:
        """Delete what retention does not keep; renamed first, so that no partial checkpoint has a checkpoint's name."""
        there = complete(self.folder)
        steps = [step_of(path) for path in there]
        keep = retention.kept(steps, self.settings, self.regular, self.best, retention.pinned(there))
        gone = []
        for step, path in zip(steps, there):
            if step not in keep:
                with contextlib.suppress(OSError):  # what cannot be renamed keeps no other
                    gone.append(_hide(path))
        if gone:
            files.fsync_directory(self.folder)
        for path in gone:
            self._delete(path)


def _hide(path: Path) -> Path:
    """Rename a checkpoint to what no one takes for one; a save begins by deleting what is left of such."""
    return path.rename(_unused(path.parent, f".{path.name}", ".gone"))


def _unused(folder: Path, name: str, end: str = "") -> Path:
    """`folder`/NAME.END, or the first of NAME-1.END, NAME-2.END, ... where that exists."""
    names = (name + (f"-{number}" if number else "") + end for number in itertools.count())
    return next(folder / each for each in names if not os.path.lexists(folder / each))


def begin(folder: Path, step: int) -> Path:
    """Make an empty directory for the files that `commit` is to make the checkpoint `step` of `folder`."""
    name, end = f".{step_name(step)}", ".tmp"
    shutil.rmtree(folder / f"{name}{end}", ignore_errors=True)  # of a killed process
    temporary = _unused(folder, name, end)
    temporary.mkdir()
    return temporary


def commit(
    temporary: Path, final: Path, step: int, entries: list[dict], content: dict, held: dict[str, Held] | None = None
) -> None:
    """Make `temporary`, with the shards `entries` and the state `content`, the checkpoint `final`.

    An index says what the shards hold, where `held` does: the keys and sizes of each by its file.
    The manifest, with which all names beside it are on the disk, then the directory's own name, then the pointer.
    """
    index = [checkpoints.write_index(temporary, held)] if held else []
    files.write_json(temporary / STATE, content)
    checkpoints.write_manifest(temporary, step, [*entries, *index, files.describe(temporary, temporary / STATE)])
    replaced = [_hide(final)] if final.exists() else []
    temporary.rename(final)
    try:
        files.fsync_directory(final.parent)
    except OSError:
        _hide(final)  # a rewind must not take for saved what is not known to be
        raise
    for gone in replaced:
        shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(RunError):  # complete all the same: loading reads manifests
        files.write_bytes(final.parent / POINTER, f"{final.name}\n".encode())


def _attempt(work: Callable[[], T]) -> tuple[str | None, T | None]:
    """Call and return (None, result), or (the error as one line, None)."""
    try:
        return None, work()
    except Exception as error:  # no error of a save may end the training
        path = f"{error.filename}: " if isinstance(error, OSError) and error.filename is not None else ""
        reason = path + (getattr(error, "strerror", None) or str(error))
        return " ".join(f"{reason} ({type(error).__name__})".split()), None


# ----------------------------------------------------------------------------------------------------------- loading


def load_newest(
    engine: Any, run: Path, mesh: Mesh, log: Callable[[str], None], copies: LocalCopies | None = None
) -> tuple[dict, torch.Tensor | None] | None:
    """Load the newest checkpoint that matches its manifest, and log the time taken; None where there is none.

    A rank that saved what it now needs opens its own shard alone, its node's copy where that is as the manifest says.
    Returns state.json's content and the position sums that this rank has to add: its own, or on rank 0 those of all where
    the number of ranks has changed. Damaged checkpoints are logged and set aside.
    """
    state = EngineState(engine, mesh)
    while True:
        chosen = broadcast_from_rank0(lambda: next(reversed(complete(run / "checkpoints")), None))
        if chosen is None:
            return None
        began = time.monotonic()
        entries = broadcast_from_rank0(functools.partial(_entries, chosen, state))
        own = chosen / checkpoints.shard_name(mesh.world.rank, mesh.world.size) if entries else None
        copy = copies.collect(chosen, entries) if copies and entries else None
        wrong = _wrong(chosen, mesh, own.name if copy and own else None)
        held = own is None or on_every_rank(partial(_held, chosen, copy or own, state))
        if not wrong and not all(all_gather_objects(held)):  # another DeepSpeed cut the parameters elsewhere
            own = copy = None
            wrong = _wrong(chosen, mesh, None)
        if not wrong:
            break
        log(f"checkpoint set aside: {wrong[0]}")
        broadcast_from_rank0(functools.partial(set_aside, chosen))
    verified = time.monotonic()
    content, sums = on_every_rank(lambda: _restore(chosen, copy or own, state))
    state.refresh()
    engine.global_steps = content["step"]
    taken = (
        f" ({sum(all_gather_objects(copy is not None))} of {mesh.world.size} shards from the nodes)" if copies else ""
    )
    log(
        f"checkpoint of step {content['step']}: {checkpoints.size(chosen) / 1e6:,.1f} MB{taken}, verified in "
        f"{verified - began:.2f} s, loaded in {time.monotonic() - verified:.2f} s"
    )
    return content, sums


def _wrong(path: Path, mesh: Mesh, without: str | None) -> list[str]:
    """What is wrong with a checkpoint. The ranks verify together, each its own shard first of all, or `without` it."""
    share = slice(mesh.world.rank, None, mesh.world.size)
    here = on_every_rank(partial(checkpoints.problems, path, share, without))
    return [line for lines in all_gather_objects(here) for line in lines]


def _held(path: Path, own: Path, state: EngineState) -> bool:
    """Whether the shard `own` has all that this rank needs; one that cannot be read has not."""
    try:
        return state.held_by(Shards(path, own))
    except InputError:
        return False


def _entries(path: Path, state: EngineState) -> list[dict]:
    """The manifest where each rank's own shard should hold all that it needs: saved at this number of ranks and ZeRO stage.
    Else, or where the files are not as they should be, nothing: what is wrong with them is then named by whoever verifies."""
    with contextlib.suppress(ValueError, InputError, RunError):
        content, world = checkpoints.read_state(path), state.mesh.world.size
        if (
            content.get("world_size") == world
            and content.get("zero_stage") == state.stage
            and (state.stage or world == 1)
        ):
            return checkpoints.manifest(path)
    return []


def _restore(path: Path, own: Path | None, state: EngineState) -> tuple[dict, torch.Tensor | None]:
    """This rank's parts from the verified checkpoint at `path`, or from the shard `own` alone.

    Returns state.json's content and the position sums that this rank has to add.
    """
    content, world = checkpoints.read_state(path), state.mesh.world
    if content["parameters"] != state.shapes:
        raise InputError(f"{path}: holds a model of another shape; choose another name for this run")
    shards = Shards(path, own)
    state.load(shards, content["updates"])
    if own is None and content["world_size"] == world.size:
        sums = shards.each(POSITIONS, checkpoints.shard_name(world.rank, world.size))
    elif own is None and world.rank != 0:
        sums = []  # redistributed: only their sum matters
    else:
        sums = shards.each(POSITIONS)
    return content, torch.stack(sums).sum(0) if sums else None


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that it is not loaded and nothing of it is lost."""
    try:
        path.rename(_unused(path.parent, f"damaged-{path.name}"))
    except OSError as error:
        raise RunError(f"{path}: is damaged and cannot be set aside ({error.strerror}); move it away") from None
