"""Whether a process trains a run of a ladder: on this machine its lock and its number tell, on another what it wrote lately.

The lock of a run directory does not reach other machines on every file system (Lustre mounted with localflock). Nor can a machine
that is gone, or a container that came back under another name, ever be asked.
"""

import time
from pathlib import Path

from emergence_train import files
from emergence_train.errors import InputError
from emergence_train.formatting import duration
from emergence_train.ladder.file import LOGS, Ladder
from emergence_train.recorder.log_file import LogFile
from emergence_train.recorder.sessions import FILE, alive, read_sessions
from emergence_train.watch.progress import quiet_seconds, read_end

STARTING = 600.0  # seconds without a word, before the first row of a start
HERE = "another process trains it"


def trainer(ladder: Ladder, run: str, note: dict) -> str | None:
    """Who trains the run, for people; None where nobody does. `note`: of its last start.

    Of a job of Slurm that is noted Slurm knows, and is asked before.
    """
    directory = ladder.directory(run)
    if files.is_locked(directory) or ("pid" in note and alive(note)):
        return HERE
    session = (read_sessions(directory) or [{}])[-1]
    if "job" in note and slurm_job(session) == note["job"]:
        return None
    began = [session] if all(session.get(key) == note.get(key) for key in ("host", "pid")) else [session, note]
    hosts = [start["host"] for start in began if "pid" in start and "ended" not in start and alive(start) is None]
    if not hosts:
        return None
    age = _age([directory / "metrics.jsonl", directory / FILE, ladder.out / LOGS / f"{run}.log"])
    if age > (quiet := _quiet_seconds(directory)):
        return None
    return (
        f"{hosts[0]} wrote to it {duration(max(0.0, age))} ago and may train it, until {duration(quiet)} without a word"
    )


def slurm_job(session: dict) -> str | None:
    """The number of the job that a start was part of, NUMBER_INDEX in an array."""
    slurm = session.get("slurm") or {}
    return f"{slurm['array']}_{slurm.get('array_task')}" if "array" in slurm else slurm.get("job")


def _age(paths: list[Path]) -> float:
    """Seconds since the last of them was written."""
    return time.time() - max((path.stat().st_mtime for path in paths if path.is_file()), default=0.0)


def _quiet_seconds(directory: Path) -> float:
    """How long a start that is alive may write nothing."""
    try:
        with LogFile(directory) as log:
            if log.modified > (directory / FILE).stat().st_mtime:
                return quiet_seconds(read_end(directory, log))
    except (InputError, OSError):
        pass
    return STARTING
