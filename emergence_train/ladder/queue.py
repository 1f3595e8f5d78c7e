"""What waits or runs in Slurm, by squeue."""

import os
import subprocess
import time
from collections.abc import Callable

from emergence_train.errors import RunError

WAITS, NEVER = "Dependency", "DependencyNeverSatisfied"  # Slurm's reasons why a job waits for another
HELD = "held"  # until somebody releases it
ENDING = "COMPLETING"  # its processes are, and it may be requeued then
ENDING_SECONDS = 30.0
# Variables of the user that would change what Slurm's commands print or which jobs they take; of sbatch those that change what a
# job of ours is, not where it runs or who pays (SBATCH_PARTITION, SBATCH_ACCOUNT). slurm.options may still give what these do.
FILTERS = ("SQUEUE_", "SCANCEL_")
SHOWN = ("SQUEUE_ALL", "SQUEUE_FEDERATION")  # show more jobs: without them some could be submitted twice
OF_A_JOB = ("ARRAY_INX", "ERROR", "NO_REQUEUE", "OPEN_MODE", "SIGNAL", "WAIT")
# Slurm's states of a job that has no machine yet; in any other that squeue lists it has
QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
QUEUED |= {WAITS, NEVER, HELD}


def queued_of(notes: dict[str, dict]) -> dict[str, str]:
    """queued() where a job is noted: Slurm is not asked for runs that it has never seen."""
    return queued() if any("job" in note for note in notes.values()) else {}


def settled(notes: dict[str, dict], log: Callable[[str], None]) -> dict[str, str]:
    """queued_of() once no noted job is ENDING, or ENDING_SECONDS have passed."""
    jobs, end = {note["job"] for note in notes.values() if "job" in note}, time.monotonic() + ENDING_SECONDS
    logged = False
    while True:
        queue = queued_of(notes)
        ending = sorted(job for job in jobs if queue.get(job) == ENDING)
        if not ending or time.monotonic() > end:
            return queue
        if not logged:
            log(f"job {', '.join(ending)} of Slurm is ending; waiting")
            logged = True
        time.sleep(1.0)


def queued() -> dict[str, str]:
    """The state of each of the user's jobs, in hidden partitions too, by its number, NUMBER_INDEX in an array; WAITS or NEVER of
    one that waits for another, HELD of one that is held. None where there is no Slurm.

    Raises:
        RunError: Slurm does not answer, so what is queued is unknown.
    """
    try:
        listed = answer(
            ["squeue", "--me", "--all", "--noheader", "--array", "--format", "%i %T %r"], "what is queued is unknown"
        )
    except FileNotFoundError:
        return {}
    jobs = (line.split() for line in listed.splitlines() if line.strip())
    return {job: _reason(" ".join(reason)) or state for job, state, *reason in jobs}


def _reason(text: str) -> str | None:
    """Of Slurm's reasons why a job waits, one that is a state of its own here."""
    if HELD in text.lower():  # JobHeldUser, JobHeldAdmin, "job requeued in held state"
        return HELD
    return text if text in (WAITS, NEVER) else None


def answer(command: list[str], otherwise: str) -> str:
    """What a command of Slurm prints; RunError where it fails."""
    ended = call(command)
    if ended.returncode:
        reason = ended.stderr.strip() or f"exit code {ended.returncode}"
        raise RunError(f"{command[0]}: {reason}: {otherwise}; run the same command again when Slurm answers")
    return ended.stdout


def call(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm, in a session of its own: an interrupt must not come between a job and its number. What a signal's
    handler raises ends it."""
    dropped = {f"SBATCH_{name}" for name in OF_A_JOB}
    dropped |= {name for name in os.environ if name.startswith(FILTERS) and name not in SHOWN}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
    )
