"""Read this process' place in an srun step from Slurm's variables: rank, number of tasks, ports for the rendezvous.

srun sets SLURM_STEP_NUM_TASKS in its tasks, but a process that has the variable need not be one of them: it is inherited by a
job submitted from within a task, and by commands typed in the shell of `srun --pty bash`. And SLURM_PROCID=0 is set in every
batch script, whatever the number of tasks of its job. Nothing here calls Slurm; the functions are pure except `ancestry`. The
format of the variables is that of Slurm 22.05.
"""

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from emergence_train.errors import InputError

SPECIAL_STEPS = (
    0xFFFFFFF0  # larger step ids are not srun's: batch script, interactive shell, processes adopted from ssh
)
# Below Linux' ephemeral ports (from 32768), above those of most services.
FIRST_PORT, PORTS = 15_000, 17_000
CANDIDATES, APART = 8, 2_129  # number of ports that a step may use, and their distance


@dataclass(frozen=True)
class SlurmTask:
    """One task of an srun step."""

    rank: int
    world: int
    local_rank: int  # on its node
    node: str  # rank 0's node; "" where Slurm does not determine it
    ports: tuple[int, ...]  # ports of rank 0 to try, in this order
    name: str  # unique to the job, the step and this start of it
    gpus_on_node: int  # GPUs of the step on the node; a task that sees fewer sees its own only


@dataclass(frozen=True)
class Ancestry:
    """Facts about this process beside its environment."""

    task_itself: bool = True  # the task itself, not a command in its script or shell
    terminal: bool = False  # interactive
    step: str = ""  # the step in the title of its slurmstepd, "5.0" or "5.batch"; "" where unknown


def ancestry(environment: Mapping[str, str]) -> Ancestry:
    """Of this process."""
    task = environment.get("SLURM_TASK_PID", "")
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))  # tasks of srun without --pty have none
        terminal = True
    except OSError:
        terminal = False
    return Ancestry(task == str(os.getpid()), terminal, _step_of(task))


def _step_of(pid: str) -> str:
    """The step in the title of the parent slurmstepd, or ""."""
    try:
        parent = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[1]
        title = Path(f"/proc/{parent}/cmdline").read_text()
    except (OSError, ValueError, IndexError):  # not Linux, or a container with its own process ids
        return ""
    match = re.match(r"slurmstepd: \[(\S+)\]", title)
    return match[1] if match else ""


def task(environment: Mapping[str, str], seen: Ancestry | None = None) -> SlurmTask | None:
    """This process as a task of an srun step; None where it is not one. `seen`: by default `ancestry()`.

    Raises InputError where Slurm's variables cannot be what Slurm sets.
    """
    if "SLURM_STEP_NUM_TASKS" not in environment:
        return None  # a batch script, salloc's shell, or no Slurm at all
    seen = seen or ancestry(environment)
    job, step = (number(environment, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    if step >= SPECIAL_STEPS or seen.step and not seen.step.rpartition(".")[2].isdigit():
        return None
    if seen.terminal and not seen.task_itself:
        return None  # typed in the shell of `srun --pty`
    world, rank = number(environment, "SLURM_STEP_NUM_TASKS"), number(environment, "SLURM_PROCID")
    if rank >= world:
        raise InputError(
            f"SLURM_PROCID {rank} is not below SLURM_STEP_NUM_TASKS {world}; start with srun, or unset both"
        )
    start = number(environment, "SLURM_RESTART_COUNT", 0)
    given = environment.get("MASTER_PORT")
    return SlurmTask(
        rank,
        world,
        number(environment, "SLURM_LOCALID", 0),
        node=environment.get("MASTER_ADDR") or _first_node(environment),
        ports=(number(environment, "MASTER_PORT"),) if given else ports(job, step),
        name=f"{job}.{step}.{start}",
        gpus_on_node=number(environment, "SLURM_GPUS_ON_NODE", 0),
    )


def alone_in_a_job(environment: Mapping[str, str]) -> str | None:
    """A note for the log where srun did not start this process and its job has several tasks."""
    if "SLURM_JOB_ID" not in environment:
        return None
    asked = {"tasks": "SLURM_NTASKS", "nodes": "SLURM_JOB_NUM_NODES"}
    for what, name in asked.items():
        if environment.get(name, "1").isdigit() and int(environment.get(name, "1")) > 1:
            return (
                f"Slurm's job {environment['SLURM_JOB_ID']} has {environment[name]} {what}, and this is one process of its "
                f"own: `srun emergence-train ...` starts one in each task"
            )
    return None


def ports(job: int, step: int) -> tuple[int, ...]:
    """Ports for the rendezvous of a step. Jobs whose ids differ by less than 2,125, and up to 8 concurrent steps of each,
    have different first ports; a port in use is skipped (parallel/rendezvous.py)."""
    first = (8 * job + step) % PORTS
    return tuple(FIRST_PORT + (first + number * APART) % PORTS for number in range(CANDIDATES))


def job(environment: Mapping[str, str]) -> dict[str, str]:
    """Slurm's job, step and nodes of this start, for environment.json; empty without Slurm."""
    names = {
        "job": "SLURM_JOB_ID",
        "array": "SLURM_ARRAY_JOB_ID",
        "array_task": "SLURM_ARRAY_TASK_ID",
        "restarts": "SLURM_RESTART_COUNT",
        "nodes": "SLURM_JOB_NODELIST",
    }
    return {key: environment[name] for key, name in names.items() if name in environment}


def _first_node(environment: Mapping[str, str]) -> str:
    if number(environment, "SLURM_STEP_NUM_NODES", 1) == 1:
        return "127.0.0.1"  # under any name of the node
    if environment.get("SLURM_DISTRIBUTION") == "arbitrary" or number(environment, "SLURM_HET_SIZE", 1) > 1:
        return ""  # the list is sorted, and rank 0 where the user wants it
    return next(nodes(environment.get("SLURM_STEP_NODELIST", "")))


def nodes(compact: str) -> Iterator[str]:
    """Expand a node list of Slurm: gpu[01-03,7],login1 or rack[1-2]node[01-04]. The last bracket varies fastest, and
    numbers have as many digits as the first of their range. Raises InputError for a malformed list."""
    for name in re.split(r",(?![^\[]*\])", compact):
        parts = re.split(r"\[([^\[\]]*)\]", name)
        choices = [_numbers(part) if number % 2 else [part] for number, part in enumerate(parts)]
        if not all(choices) or not name or re.search(r"[\[\]\s]", "".join(parts[::2])):
            raise InputError(
                f"SLURM_STEP_NODELIST: {compact[:200]!r} is not a list of nodes; export MASTER_ADDR, the name of rank "
                f"0's node, before srun"
            )
        yield from map("".join, itertools.product(*choices))


def _numbers(ranges: str) -> list[str]:
    """The numbers of a bracket; none where it is malformed."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", ranges, re.ASCII):
        return []
    bounds = [(part.partition("-")[0], part.rpartition("-")[2]) for part in ranges.split(",")]
    return [f"{number:0{len(first)}d}" for first, last in bounds for number in range(int(first), int(last) + 1)]


def number(environment: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = environment.get(name, "")
    if not text and otherwise is not None:
        return otherwise
    if not text.isascii() or not text.isdigit():
        raise InputError(
            f"{name}: {text!r} is not a number; fix or unset it, or start with srun, torchrun or deepspeed"
        )
    return int(text)
