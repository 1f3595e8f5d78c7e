"""What Slurm's variables say of this process: whether srun started it, as which of how many tasks, and where they meet.

srun sets SLURM_STEP_NUM_TASKS in its tasks, but a process that finds it need not be one of them: the variable is inherited
by a job that was submitted from within a task, and by what is typed in the shell of `srun --pty bash`. And SLURM_PROCID=0
is set in every batch script, however many tasks its job asked for. Nothing here asks Slurm; the functions are pure but for
`ancestry`. What the variables look like was seen with Slurm 22.05.
"""

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from emergence_train.errors import InputError

SPECIAL_STEPS = (
    0xFFFFFFF0  # ids from here on are no srun's: batch script, interactive shell, processes taken in from ssh
)
# Below the ports that Linux gives to outgoing connections (32768 on), above those of most services.
FIRST_PORT, PORTS = 15_000, 17_000
CANDIDATES, APART = 8, 2_129  # ports that a step may meet at, and how far they are from each other


@dataclass(frozen=True)
class Task:
    """One task of an srun step."""

    rank: int
    world: int
    local_rank: int  # on its node
    node: str  # where rank 0 is, as far as Slurm says; "" where it does not
    ports: tuple[int, ...]  # those of rank 0 to try, in this order
    name: str  # of the job, the step and this start of it: no other processes have the same
    gpus_on_node: int  # of the step; a task that sees fewer sees its own alone


@dataclass(frozen=True)
class Ancestry:
    """What the machine says of this process besides its variables."""

    task_itself: bool = True  # not a command in a script or a shell that is the task
    terminal: bool = False  # a person may be sitting before it
    step: str = ""  # what slurmstepd calls the step that it runs in, "5.0" or "5.batch"; "" where that cannot be seen


def ancestry(environment: Mapping[str, str]) -> Ancestry:
    """Of this process."""
    task = environment.get("SLURM_TASK_PID", "")
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))  # what srun starts without --pty has none
        terminal = True
    except OSError:
        terminal = False
    return Ancestry(task == str(os.getpid()), terminal, _step_of(task))


def _step_of(pid: str) -> str:
    """Every task's parent is a slurmstepd, whose title names the step."""
    try:
        parent = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[1]
        title = Path(f"/proc/{parent}/cmdline").read_text()
    except (OSError, ValueError, IndexError):  # not Linux, or a container with process numbers of its own
        return ""
    match = re.match(r"slurmstepd: \[(\S+)\]", title)
    return match[1] if match else ""


def task(environment: Mapping[str, str], seen: Ancestry | None = None) -> Task | None:
    """This process as a task of an srun step; None where it is not one. `seen`: by default what `ancestry` finds.

    Raises InputError where Slurm's variables cannot be what Slurm sets.
    """
    if "SLURM_STEP_NUM_TASKS" not in environment:
        return None  # a batch script, salloc's shell, or no Slurm at all
    seen = seen or ancestry(environment)
    job, step = (_number(environment, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    if step >= SPECIAL_STEPS or seen.step and not seen.step.rpartition(".")[2].isdigit():
        return None
    if seen.terminal and not seen.task_itself:
        return None  # typed in the shell that `srun --pty` has opened
    world, rank = _number(environment, "SLURM_STEP_NUM_TASKS"), _number(environment, "SLURM_PROCID")
    if rank >= world:
        raise InputError(
            f"SLURM_PROCID {rank} is no task of SLURM_STEP_NUM_TASKS {world}; start with srun, or unset both"
        )
    start = _number(environment, "SLURM_RESTART_COUNT", 0)
    given = environment.get("MASTER_PORT")
    return Task(
        rank,
        world,
        _number(environment, "SLURM_LOCALID", 0),
        node=environment.get("MASTER_ADDR") or _first_node(environment),
        ports=(_number(environment, "MASTER_PORT"),) if given else ports(job, step),
        name=f"{job}.{step}.{start}",
        gpus_on_node=_number(environment, "SLURM_GPUS_ON_NODE", 0),
    )


def alone_in_a_job(environment: Mapping[str, str]) -> str | None:
    """What a process that srun has not started should say, where its job asked for several."""
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
    """Where the processes of a step may meet. Jobs whose ids differ by less than 2,125, and up to 8 steps of each that run
    at once, have different first ports; whoever finds one in use tries the next (parallel/rendezvous.py)."""
    first = (8 * job + step) % PORTS
    return tuple(FIRST_PORT + (first + number * APART) % PORTS for number in range(CANDIDATES))


def job(environment: Mapping[str, str]) -> dict[str, str]:
    """Where and as which of Slurm's jobs this start runs, for a run's own record; empty without Slurm."""
    names = {
        "job": "SLURM_JOB_ID",
        "array": "SLURM_ARRAY_JOB_ID",
        "array_task": "SLURM_ARRAY_TASK_ID",
        "restarts": "SLURM_RESTART_COUNT",
        "nodes": "SLURM_JOB_NODELIST",
    }
    return {key: environment[name] for key, name in names.items() if name in environment}


def _first_node(environment: Mapping[str, str]) -> str:
    if _number(environment, "SLURM_STEP_NUM_NODES", 1) == 1:
        return "127.0.0.1"  # whatever the node is called
    if environment.get("SLURM_DISTRIBUTION") == "arbitrary" or _number(environment, "SLURM_HET_SIZE", 1) > 1:
        return ""  # the list is sorted, and rank 0 where the user wants it
    return next(nodes(environment.get("SLURM_STEP_NODELIST", "")))


def nodes(compact: str) -> Iterator[str]:
    """The names in a node list as Slurm writes it: gpu[01-03,7],login1 or rack[1-2]node[01-04]; the last bracket varies
    fastest, and numbers have as many digits as the first of their range. Raises InputError."""
    for name in re.split(r",(?![^\[]*\])", compact):
        parts = re.split(r"\[([^\[\]]*)\]", name)
        choices = [_numbers(part) if number % 2 else [part] for number, part in enumerate(parts)]
        if not all(choices) or not name or re.search(r"[\[\]\s]", "".join(parts[::2])):
            raise InputError(
                f"SLURM_STEP_NODELIST: {compact[:200]!r} is no list of nodes; export MASTER_ADDR, the name of rank "
                f"0's node, before srun"
            )
        yield from map("".join, itertools.product(*choices))


def _numbers(ranges: str) -> list[str]:
    """What a bracket stands for; nothing where it is none of Slurm's."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", ranges, re.ASCII):
        return []
    bounds = [(part.partition("-")[0], part.rpartition("-")[2]) for part in ranges.split(",")]
    return [f"{number:0{len(first)}d}" for first, last in bounds for number in range(int(first), int(last) + 1)]


def _number(environment: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = environment.get(name, "")
    if not text and otherwise is not None:
        return otherwise
    if not text.isascii() or not text.isdigit():
        raise InputError(f"{name}: {text!r} is no number; start with srun, torchrun or deepspeed, or unset it")
    return int(text)
