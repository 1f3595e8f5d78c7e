"""Detection of tasks from Slurm's variables, as Slurm 22.05 sets them (docs/how-to/faults.md)."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from hypothesis import given
from hypothesis import strategies as st

import forkserver
from emergence_train import cli, doctor
from emergence_train.cluster import launcher, slurm
from emergence_train.cluster.slurm import Ancestry
from emergence_train.errors import InputError
from emergence_train.parallel import ranks as distributed
from support import command, metrics, small_config

ITSELF, COMMAND = Ancestry(step="7.0"), Ancestry(task_itself=False, step="7.0")
BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NODELIST": "gpu[1-2]",
    "SLURM_JOB_NODELIST": "gpu[1-2]",
    "SLURM_TASK_PID": "4711",
}
STEP = BATCH | {
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "6",
    "SLURM_STEP_NODELIST": "gpu[1-2]",
    "SLURM_LOCALID": "2",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9",
}


def test_a_task_of_srun_knows_its_place():
    launch = launcher.find(STEP, ITSELF)
    assert (launch.rank, launch.world, launch.local_rank, launch.is_rank0, launch.note) == (6, 8, 2, False, None)
    assert launch.task.node == "gpu1" and launch.task.name == "7.3.0" and "task 6 of 8" in launch.launcher
    assert launcher.find(STEP, COMMAND).task == launch.task  # srun bash -c '...; emergence-train ...'


def test_one_node_needs_no_name_and_variables_of_the_user_win():
    assert slurm.task(STEP | {"SLURM_STEP_NUM_NODES": "1"}, ITSELF).node == "127.0.0.1"
    given = slurm.task(STEP | {"MASTER_ADDR": "gpu1-ib0", "MASTER_PORT": "29400"}, ITSELF)
    assert (given.node, given.ports) == ("gpu1-ib0", (29400,))


@pytest.mark.parametrize("change", [{"SLURM_DISTRIBUTION": "arbitrary"}, {"SLURM_HET_SIZE": "2"}])
def test_where_rank_0_may_be_anywhere_its_node_is_not_guessed(change):
    assert slurm.task(STEP | change, ITSELF).node == ""


@pytest.mark.parametrize(
    ("environment", "seen"),
    [
        (BATCH, Ancestry(task_itself=False, step="7.batch")),
        (BATCH | {"SLURM_JOB_NUM_NODES": "1"}, Ancestry()),
        # Submitted from within a task of another job, whose variables it has inherited.
        (STEP | {"SLURM_PROCID": "0"}, Ancestry(task_itself=False, step="8.batch")),
        # srun -n 8 --pty bash, and a command typed there.
        (STEP | {"SLURM_PROCID": "0"}, Ancestry(task_itself=False, terminal=True, step="7.0")),
        # salloc where LaunchParameters has use_interactive_step.
        (STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, COMMAND),
    ],
)
def test_process_not_started_by_srun_is_alone_with_a_note(environment, seen):
    launch = launcher.find(environment, seen)
    assert (launch.rank, launch.world, launch.task) == (0, 1, None)
    assert "job 7 has 8 tasks" in launch.note and "srun" in launch.note


@pytest.mark.parametrize(
    "environment",
    [{}, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}, STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}],
)
def test_a_job_of_one_process_has_no_note(environment):
    launch = launcher.find(environment, ITSELF)
    assert (launch.rank, launch.world, launch.note) == (0, 1, None)


def test_a_terminal_of_the_task_itself_changes_nothing():  # srun -n 8 --pty emergence-train ...
    assert slurm.task(STEP, Ancestry(terminal=True, step="7.0")).rank == 6


def test_torchrun_counts_before_srun():
    launch = launcher.find(
        STEP | {"RANK": "1", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, COMMAND
    )
    assert (launch.launcher, launch.rank, launch.world, launch.local_rank, launch.task) == ("torchrun", 1, 16, 1, None)


def test_mpirun_is_distinguished_from_srun():
    assert launcher.find(STEP | {"PMI_SIZE": "8"}, ITSELF).world == 8  # srun --mpi=pmi2
    for environment in (
        {"OMPI_COMM_WORLD_SIZE": "4"},
        STEP | {"OMPI_COMM_WORLD_SIZE": "16"},
        BATCH | {"PMI_SIZE": "2"},
    ):
        with pytest.raises(InputError, match="mpirun is not supported"):
            launcher.find(environment, COMMAND)


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_PROCID": "8"},
        {"SLURM_PROCID": "one"},
        {"SLURM_PROCID": ""},
        {"SLURM_STEP_NUM_TASKS": "-1"},
        {"SLURM_STEP_NODELIST": ""},
        {"SLURM_STEP_NODELIST": "gpu[1-"},
        {"SLURM_STEP_NODELIST": "gpu[2-1]"},
        {"MASTER_PORT": "http"},
        {"RANK": "x"},
        {"RANK": "4", "WORLD_SIZE": "4"},
    ],
)
def test_nonsense_is_one_clear_error(change):
    with pytest.raises(InputError) as raised:
        launcher.find(STEP | change, ITSELF)
    assert next(iter(change)) in str(raised.value)


# ------------------------------------------------------------------------------------------------------ node lists

NAME = st.from_regex(r"[a-z][a-z-]{0,3}", fullmatch=True)
RANGE = st.tuples(st.integers(0, 12), st.integers(0, 3), st.integers(1, 4))  # first, how many more, digits


@st.composite
def node_lists(draw) -> tuple[str, list[str]]:
    """A list as Slurm writes it, and its names, generated independently."""
    texts, names = [], []
    for _ in range(draw(st.integers(1, 3))):
        text, here = "", [""]
        for _ in range(draw(st.integers(1, 3))):
            literal = draw(NAME)
            text, here = text + literal, [name + literal for name in here]
            if not draw(st.booleans()):
                continue
            inside, numbers = [], []
            for first, more, digits in draw(st.lists(RANGE, min_size=1, max_size=3)):
                low = str(first).rjust(digits, "0")
                inside.append(low if more == 0 else f"{low}-{str(first + more).rjust(digits, '0')}")
                for number in range(more + 1):
                    numbers.append(str(first + number).rjust(len(low), "0"))
            text += "[" + ",".join(inside) + "]"
            longer = []
            for name in here:
                for number in numbers:
                    longer.append(name + number)
            here = longer
        texts.append(text)
        names += here
    return ",".join(texts), names


@given(node_lists())
def test_a_node_list_expands_to_its_names(case):
    compact, names = case
    assert list(slurm.nodes(compact)) == names


@given(st.text("ab019[]-, \n", max_size=12))
def test_any_text_is_a_node_list_or_one_error(text):
    with contextlib.suppress(InputError):
        assert all(name and not set(name) & set("[], \n") for name in slurm.nodes(text))


@pytest.mark.parametrize(
    ("compact", "names"),
    [
        ("gpu[01-03,7],login1", "gpu01 gpu02 gpu03 gpu7 login1"),
        ("rack[1-2]node[09-10]", "rack1node09 rack1node10 rack2node09 rack2node10"),
        ("n[8-11]", "n8 n9 n10 n11"),
        ("10.0.0.[1-2]", "10.0.0.1 10.0.0.2"),
    ],
)
def test_node_lists_of_clusters(compact, names):
    assert list(slurm.nodes(compact)) == names.split()


@pytest.mark.skipif(
    not shutil.which("scontrol") or not os.environ.get("SLURM_CONF"), reason="no Slurm to ask (SLURM_CONF)"
)
@pytest.mark.parametrize("compact", ["gpu[01-03,7],login1", "rack[1-2]node[01-04]", "n[8-10]", "n[098-102],m"])
def test_scontrol_expands_alike(compact):
    expanded = subprocess.run(["scontrol", "show", "hostnames", compact], capture_output=True, text=True, check=True)
    assert list(slurm.nodes(compact)) == expanded.stdout.split()


# ----------------------------------------------------------------------------------------------------------- ports


@given(st.integers(0, 2**26), st.integers(0, 2**31))
def test_ports_are_several_and_in_range(job, step):
    ports = slurm.ports(job, step)
    assert len(set(ports)) == slurm.CANDIDATES and all(15_000 <= port < 32_000 for port in ports)


@given(st.integers(0, 2**26), st.integers(0, 7), st.integers(1, 2_124), st.integers(0, 7))
def test_concurrent_jobs_begin_at_different_ports(job, step, later, other):
    assert slurm.ports(job, step)[0] != slurm.ports(job + later, other)[0]


# --------------------------------------------------------------------------------------------------------- devices


def launch_of_task(local_rank: int, gpus_on_node: int) -> launcher.LaunchInfo:
    return launcher.find(STEP | {"SLURM_LOCALID": str(local_rank), "SLURM_GPUS_ON_NODE": str(gpus_on_node)}, ITSELF)


@pytest.mark.parametrize(
    ("local_rank", "visible", "on_node", "index"), [(3, 8, 8, 3), (3, 1, 8, 0), (5, 4, 8, 1), (3, 2, 8, 1)]
)
def test_the_device_of_a_task(local_rank, visible, on_node, index):
    """All eight in sight; one alone (--gpus-per-task); those of its socket (--gpu-bind=closest); two for each of four."""
    assert distributed.device_index(launch_of_task(local_rank, on_node), visible) == index


@pytest.mark.parametrize(
    "launch", [launch_of_task(1, 1), launch_of_task(1, 0), launcher.LaunchInfo("torchrun", 1, 2, 1)]
)
def test_more_processes_than_devices_is_an_error(launch):
    with pytest.raises(InputError, match="local rank 1 has no GPU of its own"):
        distributed.device_index(launch, 1)


def test_deepspeed_is_given_the_device_index(monkeypatch):
    """It uses cuda:LOCAL_RANK, regardless of other settings."""

    class Reached(Exception):
        pass

    def reached(*_, **__):
        raise Reached

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in (STEP | {"SLURM_GPUS_ON_NODE": "4"}).items():
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(launcher.slurm, "ancestry", lambda environment: ITSELF)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed, "_store", reached)
    with pytest.raises(Reached):
        distributed.start(None)
    assert chosen == [torch.device("cuda", 0)]
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["6", "8", "0"]


# ------------------------------------------------------------------------------------------------------ the command


def tasks(
    world: int, *arguments: str, job: int, each=lambda rank: (), **more: str
) -> list[subprocess.CompletedProcess]:
    """`emergence-train train` in `world` processes with Slurm's variables and no other launcher's."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        clean.pop(name, None)
    step = (
        STEP
        | {"SLURM_JOB_ID": str(job), "SLURM_STEP_NUM_TASKS": str(world), "SLURM_STEP_NODELIST": "127.0.0.[1-2]"}
        | more
    )
    ranks = [clean | step | {"OMP_NUM_THREADS": "1", "SLURM_PROCID": str(rank)} for rank in range(world)]
    return forkserver.run(
        [["-m", "emergence_train", "train", *arguments, *each(rank)] for rank in range(world)], ranks, 90
    )


def job_number() -> int:
    """A job number whose ports no other test process uses at the same time."""
    return secrets.randbelow(2**26)


def test_two_processes_with_slurms_variables_train_one_run(data_path, tmp_path, config_file):
    """Although another job's store is at the first port, and a server that never answers at the next."""
    job = job_number()
    first, second, *_ = slurm.ports(job, 3)
    strangers = dist.TCPStore("127.0.0.1", first, 3, True, wait_for_workers=False)
    strangers.set("emergence-train/6.0.0", "here")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", second))
        silent.listen()
        ended = tasks(2, str(config_file), "--json", job=job)
    assert [process.returncode for process in ended] == [0, 0], ended
    assert strangers.num_keys() == 1  # no key of this job is in it
    assert "2 x " in ended[0].stderr and ended[1].stdout == "" and "step 12/12" not in ended[1].stderr
    assert '"run"' in ended[0].stdout
    tree = small_config(data_path, tmp_path / "alone")
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(tree))
    alone = command("train", str(tmp_path / "alone.yaml"))
    assert alone.returncode == 0, alone.stderr
    losses = [[row["loss"] for row in metrics(Path(run))] for run in (tmp_path / "runs/run", tmp_path / "alone/run")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and len(losses[0]) == 12


def test_several_runs_in_one_step_are_an_error(config_file):
    ended = tasks(2, str(config_file), job=job_number(), each=lambda rank: (f"seed={rank}",))
    assert [process.returncode for process in ended] == [2, 2], ended
    assert "rank 1 was given seed = 1 and rank 0 0" in ended[0].stderr and not ended[1].stderr


def test_named_port_in_use_is_an_error(config_file):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = tasks(1, str(config_file), job=job_number(), MASTER_PORT=str(port), SLURM_STEP_NUM_TASKS="2")
    assert ended[0].returncode == 1 and f"port {port} of 127.0.0.1 is in use; export MASTER_PORT" in ended[0].stderr


def test_first_node_without_an_address_is_an_error(config_file, monkeypatch):
    ended = tasks(
        1, str(config_file), job=job_number(), SLURM_STEP_NODELIST="nowhere.invalid", SLURM_STEP_NUM_TASKS="2"
    )
    assert ended[0].returncode == 2 and "nowhere.invalid, the step's first node, has no address" in ended[0].stderr


def test_one_of_several_processes_prepares(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["prepare", str(tmp_path / "missing.yaml")]) == 0
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["prepare", str(tmp_path / "missing.yaml")]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "srun: task 6 of 8; meets the others at port 15059 of gpu1"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, "not recognised; OMPI_COMM_WORLD_SIZE=3"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "RANK and WORLD_SIZE of the env"),
    ],
)
def test_doctor_names_the_launcher(monkeypatch, change, message):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (STEP | change).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "ancestry", lambda environment: ITSELF)
    lines: list[str] = []
    report = doctor.doctor(lines.append)
    assert any(line.startswith("launcher ") and message in line for line in lines), lines
    assert report["launch"]["job"] == "7"
