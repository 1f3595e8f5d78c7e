"""Megatron-LM's training log, and GPT-NeoX's, which is alike without the samples.

seq_length ................ 2048                       (a dump of the arguments, above)
rampup_batch_size ......... ['128', '128', '2_000_000']
iteration      100/  500000 | consumed samples:  25600 | ... | learning rate: 1.5E-05 | lm loss: 6.1E+00 | ...
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis.logs.encoded import stem_of
from emergence_train.analysis.logs.fields import numbers_in
from emergence_train.analysis.logs.lines import lines_in
from emergence_train.analysis.logs.log import Format, Log, finished_apart, frame_of
from emergence_train.analysis.logs.names import plain
from emergence_train.analysis.logs.text import NUMBER, is_text, whole
from emergence_train.errors import InputError

ITERATION = re.compile(r"\biteration\s+(\d+)/\s*(\d+)\s*\|")
FIELD = re.compile(rf"\|\s*([A-Za-z][\w \-]*?)\s*:\s*{NUMBER}\s*(?=\||$)")
WANTED = ("consumed_samples", "consumed_tokens", "learning_rate")  # and losses
ARGUMENT = re.compile(r"\b(seq_length|(?:global|train|rampup)_batch_size|train_samples)\s*\.*\s+(.+)")
DIGITS = re.compile(r"\d[\d_]*")
SAME = 0.01  # of the samples: so far a dump may be off the rows that it is of


@dataclass(frozen=True)
class Arguments:
    """Of a dump: tokens a sample, samples a step, and how these grow and end; 0 and () where it does not say them."""

    length: int = 0
    batch: int = 0
    ramp: tuple[int, ...] = ()  # the first batch, what it grows by, and the samples until it has grown
    samples: int = 0

    def course(self, end: int) -> np.ndarray:
        """(K, 2) iterations and samples from 0 to iteration `end`, straight between them."""
        first, by, until = self.ramp
        levels = max((self.batch - first) // by, 1)
        rows = [(0.0, 0.0)]
        for level in range(levels):
            step, samples = rows[-1]
            batch = first + level * by
            steps = max(-(-(until * (level + 1) // levels - samples) // batch), 0.0)
            rows.append((step + steps, samples + steps * batch))
        step, samples = rows[-1]
        known = np.array([*rows, (step + end, samples + end * self.batch)])
        return np.r_[known[known[:, 0] < end], [[end, np.interp(end, *known.T)]]]


def read_megatron(path: Path) -> list[Log]:
    """Lines of an iteration; tokens from the samples, else the batch size, and the seq_length of the arguments."""
    rows, places, dumped, ends = [], [], dict[str, str](), list[int]()
    arguments: list[Arguments | None] = []  # of the dump above a row
    text, known = lines_in(path), None
    for number, line in enumerate(text.lines, 1):
        iteration = ITERATION.search(line)
        if iteration is None:
            if match := ARGUMENT.search(line):
                dumped[match[1]], known = match[2], None
            continue
        fields = {name.strip().replace("_", " "): value for name, value in FIELD.findall(line[iteration.end() - 1 :])}
        rows.append({"iteration": iteration[1]} | {name: value for name, value in fields.items() if _is_wanted(name)})
        places.append(number)
        ends.append(int(iteration[2]))
        known = known or (_arguments(dumped) if dumped else None)
        arguments.append(known)
    if not rows:
        raise InputError(f"{path}: no line of an iteration, as 'iteration 100/ 5000 | ...'; give another --format")
    log = Log(
        stem_of(path), path, frame_of(rows, places), notes=text.notes, others=lambda: numbers_in(text.lines, places)
    )
    runs, begun = [], 0
    for run in finished_apart(log, pd.DataFrame({"end_step": ends}, places)):
        end = begun + len(run.rows)
        # Of a run without a dump above it the next one, as where the log lacks its beginning
        own = next((dump for dump in (arguments[end - 1], *arguments[end:]) if dump), _arguments(dumped))
        runs.append(_with_tokens(run, rows[begun:end], own))
        begun = end
    return runs


def _with_tokens(run: Log, rows: list[dict[str, str]], arguments: Arguments) -> Log:
    """A run, whose rows these are, with the tokens that the dump of its arguments gives."""
    _count_tokens(rows, arguments.length)
    counted = any("consumed tokens" in row or "consumed samples" in row for row in rows)
    per_step = None if counted else arguments.length * arguments.batch or None
    ahead, notes = _ahead(rows, arguments, run.end_step or 0)
    frame = frame_of(rows, [*run.rows.index])
    return replace(run, rows=frame, tokens_per_step=per_step, notes=(*run.notes, *notes), course=ahead)


def _is_wanted(name: str) -> bool:
    return plain(name) in WANTED or plain(name).endswith("loss")


def _arguments(dumped: dict[str, str]) -> Arguments:
    numbers = {name: [int(digits.replace("_", "")) for digits in DIGITS.findall(text)] for name, text in dumped.items()}
    first = {name: listed[0] for name, listed in numbers.items() if listed}
    ramp = tuple(numbers.get("rampup_batch_size", ()))
    return Arguments(
        first.get("seq_length", 0),
        first.get("global_batch_size") or first.get("train_batch_size", 0),
        ramp if len(ramp) == 3 and min(ramp) > 0 else (),
        first.get("train_samples", 0),
    )


def _count_tokens(rows: list[dict[str, str]], length: int) -> None:
    """Tokens of the rows that name their samples alone."""
    for row in rows:
        if length and "consumed tokens" not in row and "consumed samples" in row:
            row["consumed tokens"] = str(whole(row["consumed samples"]) * length)


def _ahead(rows: list[dict[str, str]], arguments: Arguments, end: int) -> tuple[np.ndarray | None, list[str]]:
    """-> ((K, 2) iterations and tokens beyond the last row by a dump that its samples agree with; what to say of it)."""
    known = [row for row in rows if "consumed samples" in row and "consumed tokens" in row]
    if not (known and arguments.ramp and arguments.batch and arguments.length):
        return None, []
    last = known[-1]
    step, samples, tokens = (whole(last[name]) for name in ("iteration", "consumed samples", "consumed tokens"))
    first, _, until = arguments.ramp
    if step >= end:
        return None, []
    ramp = f"rampup_batch_size ({first} to {arguments.batch} samples a step over {until:,} samples)"
    course = arguments.course(end)
    off = abs(np.interp(step, *course.T) - samples) > SAME * samples
    if off or arguments.samples and abs(course[-1, 1] - arguments.samples) > SAME * arguments.samples:
        note = f"the samples are not those of the {ramp}: the last batch is taken to stay; give --to-tokens"
        return None, [note] * (samples < until)
    later = course[course[:, 0] > step]
    ahead = np.c_[later[:, 0], tokens + (later[:, 1] - samples) * arguments.length]
    note = f"tokens beyond the last row by the {ramp}: {ahead[-1, 1]:,.0f} at step {end:,}"
    return ahead, [note] * (samples < until)


def _is_megatron(path: Path, head: str) -> bool:
    return is_text(path) and bool(ITERATION.search(head)) and "reduced_train_loss" not in head  # which is NeMo's


MEGATRON = Format("megatron", "Megatron-LM's text log", _is_megatron, read_megatron)
