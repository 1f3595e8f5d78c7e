"""Submit a ladder to Slurm: a job for each run, which requeues itself until it is done (configs/slurm.sbatch)."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from emergence_train import files
from emergence_train.errors import InputError, RunError
from emergence_train.ladder.collect import write_index
from emergence_train.ladder.file import Ladder, Row
from emergence_train.ladder.local import BUSY, prepare, program
from emergence_train.ladder.progress import LOGS, done, read_notes, write_notes

NODE = 8  # GPUs


def submit(ladder: Ladder, log: Callable[[str], None]) -> None:
    """Submit every run that is neither done nor queued. A decay waits for the job of its stable run.

    Raises:
        InputError: there is no sbatch or no script; sbatch refuses the job, by its own message.
    """
    script = ladder.path.parent / ladder.file.slurm.script
    if not script.is_file():
        raise InputError(
            f"{ladder.path}: slurm.script: no file {script}; give one, for example a copy of configs/slurm.sbatch"
        )
    with files.lock(ladder.out, busy=BUSY, other="out"):
        write_index(ladder)
        files.make_directory(ladder.out / LOGS)
        notes = read_notes(ladder)
        prepare(ladder, program())
        queue = queued()
        for row in ladder.rows:
            note = notes.get(row.run, {})
            if done(ladder, row):
                continue
            if note.get("job") in queue:
                log(f"{row.run}: is job {note['job']} already")
                continue
            parent = notes.get(row.parent or "", {}).get("job")
            notes[row.run] = {"job": _sbatch(ladder, row, script, parent if parent in queue else None)}
            queue[notes[row.run]["job"]] = "PENDING"
            write_notes(ladder, notes)  # after each: what was submitted is known wherever this ends
            log(f"{row.run}: job {notes[row.run]['job']}")


def queued() -> dict[str, str]:
    """The state of each of the user's jobs by its number; none where there is no Slurm."""
    try:
        listed = subprocess.run(["squeue", "--me", "--noheader", "--format", "%A %T"], capture_output=True, text=True)
    except FileNotFoundError:
        return {}
    return dict(line.split()[:2] for line in listed.stdout.splitlines() if line.strip())


def _sbatch(ladder: Ladder, row: Row, script: Path, parent: str | None) -> str:
    """Submit a run; returns the job's number."""
    options = ["--job-name", row.run, "--output", str((ladder.out / LOGS / f"{row.run}.log").absolute())]
    if row.gpus:
        each = min(NODE, row.gpus)
        options += ["--nodes", str(-(-row.gpus // NODE)), "--ntasks-per-node", str(each), "--gpus-per-node", str(each)]
    if parent:
        options += ["--dependency", f"afterok:{parent}"]
    _, *arguments = ladder.arguments(row)  # the script says train itself
    command = ["sbatch", "--parsable", *options, *ladder.file.slurm.options, str(script), *arguments]
    try:
        submitted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise InputError(
            "sbatch: not installed here; run on a machine that submits jobs, or leave out --slurm"
        ) from None
    if submitted.returncode:
        raise RunError(f"{row.run}: sbatch: {submitted.stderr.strip()}")
    return submitted.stdout.strip().split(";")[0]
