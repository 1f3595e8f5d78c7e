"""The process group: one process, torchrun, the deepspeed launcher and srun alike; gloo on CPUs, NCCL on GPUs.

Import this module before deepspeed: it sets the accelerator that DeepSpeed uses.
"""

import contextlib
import ctypes
import datetime
import gc
import importlib
import logging
import os
import secrets
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.utils.deterministic

from emergence_train.cluster import launcher
from emergence_train.errors import InputError, PeerLost, Stopped, attempt, describe, exit_code, repeat, tell
from emergence_train.garbage_collection import no_collection
from emergence_train.parallel.mesh import Group, Mesh, data_parallel
from emergence_train.parallel.rendezvous import find_store

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=30)  # for a collective; the watchdog is faster
JOIN_SECONDS = 600.0  # seconds for the rendezvous of all processes


def start(threads: int | None) -> Mesh:
    """Join (or create) the process group."""
    launch = launcher.find()
    rank, world, local_rank = launch.rank, launch.world, launch.local_rank
    chosen, failed = attempt(lambda: _device(launch))
    device = chosen or torch.device("cpu")
    index = local_rank if device.index is None else device.index
    # DeepSpeed asks for these three whatever the launcher, and takes the last for the number of the device.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(index))
    if threads:
        torch.set_num_threads(threads)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with _limited(JOIN_SECONDS):
            store = _store(launch)
            arguments: dict[str, Any] = {"store": store, "rank": rank, "world_size": world} if store else {}
            dist.init_process_group(backend, timeout=TIMEOUT, **arguments)
            on_every_rank(lambda: _raise(failed))  # a rank without a GPU has joined, so that the others hear of it
            barrier()
    _raise(failed)
    launch_id, secret = broadcast_from_rank0(lambda: (uuid.uuid4().hex, secrets.token_bytes(32)))
    return data_parallel(rank, world, local_rank, device, launch_id, launch.note, secret)


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _device(launch: launcher.LaunchInfo) -> torch.device:
    """This process's own device, made ready."""
    if torch.cuda.is_available():
        device = torch.device("cuda", device_index(launch, torch.cuda.device_count()))
        torch.cuda.set_device(device)
        return device
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_flush_denormal(True)  # Adam's second moments fade into denormals, 10 to 100 times slower on a CPU
    keep_freed_memory()
    return torch.device("cpu")


def device_index(launch: launcher.LaunchInfo, visible: int) -> int:
    """Index of this process' GPU among the `visible` ones.

    Slurm may make only its own GPU visible to each task (--gpus-per-task, --gpu-bind); its index is then 0.
    """
    if launch.local_rank < visible:
        return launch.local_rank
    if visible and launch.task and launch.task.gpus_on_node > visible:
        return launch.local_rank % visible
    raise InputError(
        f"local rank {launch.local_rank} has no GPU of its own ({visible} here); start as many processes as there "
        f"are GPUs"
    )


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step: returning it and faulting it in again, page by page, took 3 to 5 of
    the 25 ms of a small model's step. Other C libraries have no mallopt."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 << 20)  # its upper bound
        mallopt(trim_threshold, 1 << 30)


def _store(launch: launcher.LaunchInfo) -> dist.Store | None:
    """The store for the rendezvous; None leaves it to torch."""
    rank, world = launch.rank, launch.world
    if world == 1:  # a single process needs neither address nor port
        return dist.HashStore()
    if launch.task:
        return find_store(launch.task, TIMEOUT)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, False, timeout=TIMEOUT)
        return dist.PrefixStore(this_start(store, rank, world), store)
    return None


def this_start(store: dist.Store, rank: int, world: int) -> str:
    """A unique name of this start, the same on all its processes.

    torchrun keeps its store when it restarts the workers, and a worker would read the address of one that no longer exists
    ("connection refused", or no answer at all); and torchrun's count of restarts differs between machines. So rank 0 generates
    a name. The others may read that of an earlier start: each answers under the name it read with a random number, and accepts
    the name once rank 0 has echoed that number.
    """
    own, key = uuid.uuid4().hex, "emergence-train/start"
    if rank == 0:
        store.set(key, own)
        answers = [store.get(f"{own}/{other}").decode() for other in range(1, world)]
        store.set(f"{own}/all", " ".join(answers))
        return own
    while True:
        name = store.get(key).decode()
        store.set(f"{name}/{rank}", own)
        if store.check([f"{name}/all"]) and store.get(f"{name}/all").decode().split()[rank - 1] == own:
            return name
        time.sleep(0.05 + 0.001 * world)  # rank 0's machine must answer all of them


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End the process where the block takes longer than `seconds`; the watchdog is not running yet."""

    def give_up() -> None:
        tell(
            f"the processes have not found each other within {seconds:.0f} s (rank {os.environ['RANK']} of "
            f"{os.environ['WORLD_SIZE']} is here); the same command tries again"
        )
        os._exit(PeerLost.code)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def rendezvous() -> Iterator[None]:
    """Re-raise communication errors during rendezvous as PeerLost; the watchdog is not running yet."""
    try:
        yield
    except Exception as error:
        if not is_communication_error(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise PeerLost(
            f"a process was lost, or could not be reached, during the rendezvous ({reason}); the same "
            f"command tries again"
        ) from error


def is_communication_error(error: BaseException) -> bool:
    """Whether an error may be the echo of a peer's end: torch names the backend in it, not always the class."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "nccl", "peer", "connection", "socket", "timed out", "store", "broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def barrier() -> None:
    if dist.get_world_size() > 1:
        dist.barrier()


def stop() -> None:
    """Undo start() in a single process, which may continue; one of several exits by leave()."""
    if dist.is_initialized() and dist.get_world_size() == 1:
        dist.destroy_process_group()
        groups = sys.modules.get("deepspeed.utils.groups")
        if groups is not None:
            # its copy of the group that is gone, which the next engine would use
            groups.__dict__["_WORLD_GROUP"] = None
        torch.set_flush_denormal(False)


def leave(code: int) -> None:
    """End this process. One of several exits without Python's clean-up: joining gloo's threads aborts now and then
    ("terminate called without an active exception") after all work is done. So does a process that received a signal to stop:
    Python would wait for a compiler in a worker process."""
    lost = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            lost = True  # a full disk or a closed pipe; Python would exit with another code
    if lost or code == Stopped.code or dist.is_initialized() and dist.get_world_size() > 1:
        os._exit(code)
    sys.exit(code)


def order_sums(deterministic: bool) -> None:
    """Set whether every sum on a GPU has a fixed order from here on: PyTorch, cuBLAS and our kernels follow this switch."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports Inductor: 3 s of a start
        torch.use_deterministic_algorithms(deterministic)
    # A search for reads before writes, at the price of those writes.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@no_collection()
def import_deepspeed() -> Any:
    """Import DeepSpeed with less logging and without its compiled ops: none is used, the shared-memory op takes a minute to
    compile on a CPU, and to ask which of them could be compiled runs compilers."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.utils import logger
    logger.setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch 2.13 deprecates; the user cannot act on the warnings.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    _import_muon_uncompiled()
    return deepspeed


def _import_muon_uncompiled() -> None:
    """DeepSpeed's ZeRO imports its Muon to ask whether an optimizer is one, and that module hands functions to torch.compile,
    which imports Inductor: a fifth of the start of a run. They are left as they are; training.optimizer has no such kind."""
    from deepspeed.runtime import compiler

    compile, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        with contextlib.suppress(ImportError):  # a version without it
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile


def leave_compiler_out(wanted: bool) -> None:
    """Functions that torch and DeepSpeed keep from the compiler import it when they are first called, only to be kept from it: a
    quarter of the start of a run. Where nothing is compiled (`wanted`) they are told to call what they wrap; else that is undone.
    """
    kept = torch._disable_dynamo(lambda: None).__code__
    gc.unfreeze()
    referrers = gc.get_referrers(kept)
    gc.freeze()
    for function in referrers:
        if type(function) is FunctionType and function.__code__ is kept:
            plain: Any = function.__dict__["__wrapped__"]
            known = getattr(plain, "__dynamo_disable", None)
            if wanted and known is None:
                plain.__dynamo_disable = plain
            elif not wanted and known is not None and known is plain:
                del plain.__dynamo_disable


def all_reduce_sum(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """`tensor` summed over the processes of `group`, in place."""
    if group.size > 1:
        dist.all_reduce(tensor, group=group.handle)
    return tensor


def broadcast_from_rank0(make: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """`make()` on rank 0 of the world, its result on every rank; an exception of rank 0 is raised on every rank."""
    value, error = attempt(make) if dist.get_rank() == 0 else (None, None)
    outcome: list[Any] = [value, error and (exit_code(error), describe(error))]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(outcome, src=0, group=group)
    if error is not None:
        raise _reported_here(error)
    if outcome[1] is not None:
        raise repeat(*outcome[1])
    return outcome[0]


def on_every_rank(make: Callable[[], T]) -> T:
    """`make()` on each rank of the world, its own result on each; where it fails on some, on every rank the error of the first.

    There must be no collective in it: a rank that fails before one would leave the others waiting in it.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    value, error = attempt(make)
    first = torch.tensor(world if error is None else rank)
    if world > 1:
        dist.all_reduce(first, dist.ReduceOp.MIN)
    if first == world:
        return value  # type: ignore[return-value]
    outcome: list[Any] = [error and (exit_code(error), describe(error))]
    if world > 1:
        dist.broadcast_object_list(outcome, src=int(first))
    if error is not None and first == rank:
        raise _reported_here(error)
    raise repeat(*outcome[0])


def _reported_here(error: Exception) -> Exception:
    """One line on the screen is enough: this rank's, unless it is there already."""
    with contextlib.suppress(AttributeError):
        error.already_reported = bool(getattr(error, "already_reported", None))  # type: ignore[attr-defined]
    return error


def all_gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Gather each rank's `value`, in the order of ranks, on every rank of the world; `group`: another group of all ranks."""
    values = [value] * dist.get_world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value, group=group)
    return values


def gather_on_rank0(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Gather each rank's `value`, in the order of ranks, on rank 0 of the world; elsewhere an empty list. `group` as above."""
    if dist.get_world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values, dst=0, group=group)
    return values or []
