"""A private Slurm on this machine: munged, slurmctld and slurmd as children of this process, all files in one directory.

Several "nodes" are several slurmd with addresses and ports of their own, where Slurm was built for that
(--enable-multiple-slurmd; Debian's is). They are called 127.0.0.1, 127.0.0.2 and so on, so that their names need no DNS.

    python tests/cluster/slurm_here.py DIRECTORY     keeps it running until interrupted, and prints its variables
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "salloc", "scontrol", "scancel", "squeue", "sinfo")
CONF = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that is requeued waits until its old credential has expired, by default two minutes.
AuthInfo=socket={place}/munge/socket,cred_expire=5
# A container seldom lets us have cgroups.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
ReturnToService=2
SlurmdTimeout={slurmd_timeout}
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """The reason why Slurm cannot run here, or None."""
    absent = [name for name in COMMANDS if not _where(name)]
    if absent:
        return f"{', '.join(absent)} not installed"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


def _where(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


@dataclass
class Slurm:
    """A running Slurm; `environment` has the variables by which srun and the others find it."""

    place: Path
    environment: dict[str, str]
    nodes: list[subprocess.Popen]  # their slurmd

    def __call__(self, *command: str, timeout: float = 120, **more: str) -> subprocess.CompletedProcess:
        """Run a command of Slurm's."""
        return subprocess.run(
            command,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def start_node(self, number: int) -> None:
        with open(self.place / "daemons.log", "ab") as log:
            self.nodes[number : number + 1] = [
                _daemon("slurmd", "-D", "-N", f"127.0.0.{number + 1}", log=log, environment=self.environment)
            ]


@contextlib.contextmanager
def slurm(place: Path, nodes: int = 2, cpus: int = 4, slurmd_timeout: int = 300) -> Iterator[Slurm]:
    """Start Slurm and wait for its nodes; on exit its daemons and jobs are ended."""
    (place / "munge").mkdir(parents=True)
    (place / "state").mkdir()
    place.chmod(0o755)  # munged checks the permissions, also of the parents
    (place / "munge").chmod(0o755)
    key = place / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host, ports = socket.gethostname(), _free_ports(nodes + 1)
    lines = [
        f"NodeName=127.0.0.{i + 1} NodeHostname={host} NodeAddr=127.0.0.{i + 1} Port={ports[i]} CPUs={cpus}"
        for i in range(nodes)
    ]
    text = CONF.format(host=host, port=ports[-1], place=place, slurmd_timeout=slurmd_timeout, nodes="\n".join(lines))
    (place / "slurm.conf").write_text(text)
    own = ("SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SRUN_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    environment["SLURM_CONF"] = str(place / "slurm.conf")
    here, daemons = Slurm(place, environment, []), []
    try:
        with open(place / "daemons.log", "ab") as log:
            files = [f"--{name}={place}/munge/{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
            daemons.append(
                _daemon(
                    "munged", "--foreground", "--force", f"--key-file={key}", *files, log=log, environment=environment
                )
            )
            _until(lambda: (place / "munge" / "socket").exists(), "munged did not start", place)
            daemons.append(_daemon("slurmctld", "-D", log=log, environment=environment))
        for number in range(nodes):
            here.start_node(number)
        _until(
            lambda: here("sinfo", "-h", "-o", "%t %D").stdout.split() == ["idle", str(nodes)], "no node came up", place
        )
        yield here
    finally:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            here(
                "scancel", "--signal=KILL", "--full", "--user=root", timeout=20
            )  # at once, without the usual grace period
            here("scancel", "--user=root", timeout=20)
            _until(lambda: not here("squeue", "-h").stdout.strip(), "jobs are left", place, 15.0)
        for daemon in [*here.nodes, *reversed(daemons)]:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _daemon(name: str, *arguments: str, log, environment: dict[str, str]) -> subprocess.Popen:
    """Detach from the terminal, which tasks would inherit."""
    return subprocess.Popen(
        [_where(name), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _until(there, otherwise: str, place: Path, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise OSError(f"{otherwise}: " + (place / "daemons.log").read_text(errors="replace")[-2000:])
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


if __name__ == "__main__":

    def leave(*_) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    with slurm(Path(sys.argv[1]).resolve()) as variables:
        print(f"export SLURM_CONF={variables.place / 'slurm.conf'}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
