"""Whether a process trains a run of a ladder: on this machine its lock and its number tell, on another what it wrote lately.

The lock of a run directory does not reach other machines on every file system (Lustre mounted with localflock). Nor can a machine
that is gone, or a container that came back under another name, ever be asked.
"""

import math
import shutil
import time
from pathlib import Path

from emergence_train import files
from emergence_train.errors import InputError
from emergence_train.formatting import duration
from emergence_train.ladder.file import LOGS, Ladder
from emergence_train.recorder.log_file import LogFile
from emergence_train.recorder.sessions import FILE, alive, read_sessions
from emergence_train.watch.progress import quiet_seconds, read_end

STARTING = 600.0  # seconds without a word, before the first row of a start or the first measurement
HERE = "another process trains it"


def trainer(ladder: Ladder, run: str, note: dict) -> str | None:
    """Who trains the run, for people; None where nobody does. `note`: of its last start.

    Of a job of Slurm that is noted Slurm knows, and is asked before, where it can be.
    """
    directory = ladder.directory(run)
    if files.is_locked(directory) or ("pid" in note and alive(note)):
        return HERE
    session = (read_sessions(directory) or [{}])[-1]
    of_job = "job" in note and slurm_job(session) == note["job"]
    if of_job and shutil.which("squeue"):
        return None
    # A start that is noted and has not come to its session yet
    is_new = "pid" in note and any(session.get(key) != note[key] for key in ("host", "pid"))
    begun = [session, note] if is_new else [session]
    foreign = [start for start in begun if "pid" in start and "ended" not in start and alive(start) is None]
    if not foreign:
        return None
    words = [directory / "metrics.jsonl", directory / FILE]
    if of_job or "pid" in note and alive(note) is None:  # else what is printed is of a start on this machine
        words.append(ladder.out / LOGS / f"{run}.log")
    quiet = _quiet_seconds(directory, None if is_new else session)
    if (age := _age(words)) > quiet:
        return None
    host = foreign[0].get("host", "another machine")
    return f"{host} wrote to it {duration(age)} ago and may train it, until {duration(quiet)} without a word"


def slurm_job(session: dict) -> str | None:
    """The number of the job that a start was part of, NUMBER_INDEX in an array."""
    slurm = session.get("slurm") or {}
    return f"{slurm['array']}_{slurm.get('array_task')}" if "array" in slurm else slurm.get("job")


def _age(paths: list[Path]) -> float:
    """Seconds since the last of them was written. One that is far in the future, by a wrong clock, is no word of these days."""
    return min((abs(time.time() - path.stat().st_mtime) for path in paths if path.is_file()), default=math.inf)


def _quiet_seconds(directory: Path, session: dict | None) -> float:
    """How long a start that is alive may write nothing: longer before its first row (None: it has no session yet), since it
    compiles, and before the first measurement, of which nobody knows how long it takes."""
    try:
        with LogFile(directory) as log:
            end = read_end(directory, log)
    except (InputError, OSError):
        return STARTING
    step = end.train[-1].get("step", 0) if end.train else 0
    has_row = session is not None and step > (session.get("resumed_from_step") or 0)
    quiet = quiet_seconds(end)
    return quiet if has_row and end.tables else max(STARTING, quiet)
