"""What waits or runs in Slurm, by squeue."""

import subprocess

from emergence_train.errors import RunError

WAITS, NEVER = "Dependency", "DependencyNeverSatisfied"  # Slurm's reasons why a job waits for another
HELD = "held"  # until somebody releases it
# Slurm's states of a job that has no machine yet; in any other that squeue lists it has
QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
QUEUED |= {WAITS, NEVER, HELD}


def queued_of(notes: dict[str, dict]) -> dict[str, str]:
    """queued() where a job is noted: Slurm is not asked for runs that it has never seen."""
    return queued() if any("job" in note for note in notes.values()) else {}


def queued() -> dict[str, str]:
    """The state of each of the user's jobs by its number, NUMBER_INDEX in an array; WAITS or NEVER of one that waits for
    another, HELD of one that is held. None where there is no Slurm.

    Raises:
        RunError: Slurm does not answer, so what is queued is unknown.
    """
    try:
        listed = answer(
            ["squeue", "--me", "--noheader", "--array", "--format", "%i %T %r"], "what is queued is unknown"
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
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        reason = ended.stderr.strip() or f"exit code {ended.returncode}"
        raise RunError(f"{command[0]}: {reason}: {otherwise}; run the same command again when Slurm answers")
    return ended.stdout
