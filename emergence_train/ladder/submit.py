"""Submit a ladder to Slurm: jobs that requeue themselves until they are done (configs/slurm.sbatch).

Runs that ask for the same resources and wait for the same run are one job array: one request to Slurm, and each its own job
there, stopped, requeued and resumed by itself. An array's runs differ in a file of arguments each, named by the number in the
array.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from emergence_train import files
from emergence_train.errors import InputError, RunError, Stopped
from emergence_train.faults.signals import handled
from emergence_train.ladder.collect import write_index
from emergence_train.ladder.file import LOGS, Ladder, Row
from emergence_train.ladder.local import BUSY, prepare, program
from emergence_train.ladder.progress import blocked_reason, done, read_notes, ready, write_notes
from emergence_train.ladder.queue import NEVER, WAITS, answer, call, settled
from emergence_train.ladder.trainer import trainer

NODE = 8  # GPUs
OWN_SIGNS = "%\\"  # %a and its like are replaced in the paths of logs, unless a backslash is in them
LARGEST = 1000  # numbers of an array: Slurm's default MaxArraySize is 1001


def submit(ladder: Ladder, log: Callable[[str], None]) -> None:
    """Submit every run that is neither done nor queued. A decay waits for the job of its stable run.

    Raises:
        InputError: there is no sbatch or no script, or Slurm cannot write logs to `out`. RunError: sbatch refuses the job, by its
            own message; squeue does not answer; a run cannot begin, after all others were submitted. Stopped: on a signal; what
            was submitted until then is noted, but what sbatch was submitting where a second signal ends it.
    """
    script = ladder.path.parent / ladder.file.slurm.script
    if not script.is_file():
        raise InputError(
            f"{ladder.path}: slurm.script: no file {script}; give one, for example a copy of configs/slurm.sbatch"
        )
    if not shutil.which("sbatch"):  # before the data are prepared, which may take hours
        raise InputError("sbatch: not installed here; run on a machine that submits jobs, or leave out --slurm")
    if any(sign in str(ladder.out.absolute()) for sign in OWN_SIGNS):
        raise InputError(
            f"{ladder.out.absolute()}: % and \\ in a directory mean something else to Slurm; choose another out"
        )
    signals: list[int] = []
    stopped = Stopped(f"{ladder.path}: stopped; run the same command to submit the other runs")

    def stop(number: int, frame: FrameType | None) -> None:
        raise stopped

    with files.lock(ladder.out, busy=BUSY, other="out"), handled(lambda number, frame: signals.append(number)):
        write_index(ladder)
        files.make_directory(ladder.out / LOGS)
        notes = read_notes(ladder)
        prepare(ladder, program(), lambda: bool(signals))
        if signals:
            raise stopped
        with handled(stop):  # nothing is submitted yet, and a command of Slurm may hang
            queue = settled(notes, log)
            left, never = _left(ladder, notes, queue, log)
        for rows in groups(left, ladder.file.slurm.arrays):
            if signals:
                raise stopped
            parent = notes.get(rows[0].parent or "", {}).get("job")
            jobs, place = _submit_rows(ladder, rows, script, parent if parent in queue else None, signals)
            for row, job in zip(rows, jobs, strict=True):
                notes[row.run] = {"job": job}
                queue[job] = "PENDING"
            write_notes(ladder, notes)  # after each: what was submitted is known wherever this ends
            if place is not None:
                _link_logs(rows, place)
            for row, job in zip(rows, jobs, strict=True):
                log(f"{row.run}: job {job}")
    if never:
        raise RunError(f"{len(never)} of {len(ladder.rows)} runs cannot begin, {never[0]}")


def _left(
    ladder: Ladder, notes: dict[str, dict], queue: dict[str, str], log: Callable[[str], None]
) -> tuple[list[Row], list[str]]:
    """The runs to submit, and those that can never begin, each with the reason."""
    left: list[Row] = []
    never: list[str] = []
    trained: set[str] = set()  # by a process that is no job of ours
    for row in ladder.rows:
        if done(ladder, row):
            continue
        if reason := blocked_reason(ladder, row):
            never.append(f"{row.run} {reason}")
            continue
        job, parent = (notes.get(run or "", {}).get("job", "") for run in (row.run, row.parent))
        state = queue.get(job)
        if row.parent and (state == NEVER or state == WAITS and parent not in queue):
            answer(["scancel", job], "a job that can never start is still queued")
            log(f"{row.run}: job {job} waited for a job that is gone: cancelled")
        elif state is not None:
            log(f"{row.run}: is job {job} already")
            continue
        if held_by := trainer(ladder, row.run, notes.get(row.run, {})):
            trained.add(row.run)
            log(f"{row.run}: {held_by}; not submitted, run the same command again when that has ended")
        elif row.parent in trained and not ready(ladder, row):
            log(f"{row.run}: waits for {row.parent}; not submitted, run the same command again when that has ended")
        else:
            left.append(row)
    return left, never


def groups(rows: list[Row], arrays: bool) -> list[list[Row]]:
    """The rows that are submitted together, a parent's before its children's: of one size, with one request for GPUs, waiting for
    the same run."""
    by_request: dict[tuple, list[Row]] = {}
    for number, row in enumerate(rows):
        by_request.setdefault((row.size, row.gpus, row.parent) if arrays else (number,), []).append(row)
    ordered = sorted(by_request.values(), key=lambda group: group[0].parent is not None)
    return [group[begin : begin + LARGEST] for group in ordered for begin in range(0, len(group), LARGEST)]


def _submit_rows(
    ladder: Ladder, rows: list[Row], script: Path, parent: str | None, signals: list[int]
) -> tuple[list[str], Path | None]:
    """Submit a run, or several as an array; returns each one's number in Slurm, and the array's directory."""
    logs = ladder.out / LOGS
    if len(rows) == 1:
        return [_submit_row(ladder, rows[0], script, parent, signals)], None
    place = _next_place(logs)
    most = f"%{ladder.file.slurm.at_once}" if ladder.file.slurm.at_once else ""
    options = ["--job-name", f"{ladder.file.name}-{rows[0].size}", "--output", str(place.absolute() / "%a.log")]
    options += ["--array", f"1-{len(rows)}{most}"]
    try:
        for index, row in enumerate(rows, 1):
            _, *arguments = ladder.arguments(row)
            files.write_bytes(place / f"{index}.args", "".join(f"{word}\n" for word in arguments).encode())
        job = _sbatch(ladder, rows[0], options, script, [f"@{place.absolute()}/%a.args"], parent, signals)
    except (OSError, InputError, RunError):  # not where interrupted: the array may be submitted, and reads it
        shutil.rmtree(place, ignore_errors=True)
        raise
    return [f"{job}_{index}" for index in range(1, len(rows) + 1)], place


def _submit_row(ladder: Ladder, row: Row, script: Path, parent: str | None, signals: list[int]) -> str:
    """Submit a run as a job of its own, its log a file: through the link of an earlier array it would write into that."""
    path = ladder.out / LOGS / f"{row.run}.log"
    earlier = _keep_log(path)
    options = ["--job-name", row.run, "--output", str(path.absolute())]
    _, *arguments = ladder.arguments(row)  # the script says train itself
    try:
        return _sbatch(ladder, row, options, script, arguments, parent, signals)
    except (OSError, InputError, RunError):
        if earlier:
            os.replace(earlier, path)
        raise


def _keep_log(path: Path) -> Path | None:
    """Rename the log of a run's last start: RUN.log is that of its newest job, which --status takes as a sign that it began."""
    if not os.path.lexists(path):
        return None
    earlier = path.with_suffix(".earlier.log")
    os.replace(path, earlier)
    return earlier


def _next_place(logs: Path) -> Path:
    """A new directory for an array: jobs of an earlier one may still wait, and read theirs when they start."""
    names = (re.fullmatch(r"array-([0-9]+)", path.name) for path in logs.iterdir())  # a run may be called array-1m
    number = 1 + max((int(name[1]) for name in names if name), default=0)
    place = logs / f"array-{number}"
    files.make_directory(place)
    return place


def _link_logs(rows: list[Row], place: Path) -> None:
    """RUN.log is a link into the array's directory."""
    for index, row in enumerate(rows, 1):
        path = place.parent / f"{row.run}.log"
        _keep_log(path)
        path.symlink_to(f"{place.name}/{index}.log")


def _sbatch(
    ladder: Ladder,
    row: Row,
    options: list[str],
    script: Path,
    arguments: list[str],
    parent: str | None,
    signals: list[int],
) -> str:
    """Submit a job with what `row` asks for; returns its number. The second of the `signals` ends an sbatch that hangs."""
    if row.gpus:
        each = min(NODE, row.gpus)
        options += ["--nodes", str(-(-row.gpus // NODE)), "--ntasks-per-node", str(each), "--gpus-per-node", str(each)]
    if parent:
        options += ["--dependency", f"afterok:{parent}"]
    command = ["sbatch", "--parsable", *options, *ladder.file.slurm.options, str(script), *arguments]

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise Stopped(
                f"{row.run}: stopped while sbatch works; see squeue --me before you run the same command again"
            )

    with handled(stop):
        submitted = call(command)
    if submitted.returncode:
        raise RunError(f"{row.run}: sbatch: {submitted.stderr.strip()}")
    return submitted.stdout.strip().split(";")[0]
