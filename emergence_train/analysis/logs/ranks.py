"""Which of several ranks that write one log counts: the lowest whose loss is one, and no placeholder of a pipeline's stage.

[rank1]: step 100 loss 5.5      [default1]:step 100 loss 5.5      of torchrun
1: step 100 loss 5.5            [1,1]<stdout>:step 100 loss 5.5   of srun --label and mpirun --tag-output
rank,step,loss                  {"dp_rank": 1, "step": 100, "loss": 5.5}

Other words that tell lines of one step apart, as a process' id, number no rank.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from emergence_train.analysis.logs.log import Log
from emergence_train.analysis.logs.names import plain
from emergence_train.analysis.logs.numbers import numbers_of

LOSS = re.compile(r"loss", re.IGNORECASE)
NAMED = re.compile(r"^.{0,40}?\b(?:rank|default)\s?[=:]?\s?(\d+)\b", re.IGNORECASE)  # default0: torchrun's prefix
LABEL = re.compile(
    r"\s*(?:\[\d+,(\d+)\]<std\w+>:|(\d+):\s|\W{0,2}(?:gpu|cuda|worker|node|host|proc(?:ess)?)[\s:=_-]?(\d+)\b\W)",
    re.IGNORECASE,
)
TAG = re.compile(r"[(\[]?[^\s/]*\d[^\s/]*?[:,)\]>]+")  # "pid=1000,", "cn017:"; but no part of a whole, "1/4:"
TAGS = 3  # words of a line that may be one
WRITTEN = 0.9  # the share of all steps that each of several ranks writes
GLUED = re.compile(
    r"^([ \t]*\[(?:rank|default)\s?\d+\].*?\S)(?=\[(?:rank|default)\s?\d+\])", re.IGNORECASE | re.MULTILINE
)
STEP = re.compile(r"(?:step|iter|iteration|update|batch)s?\W{0,12}(\d[\d,]*)", re.IGNORECASE)
NUMBER = re.compile(r"loss[^\d|;\n]{0,12}?([-+]?\d[\d.]*(?:e[-+]?\d+)?|nan)", re.IGNORECASE)
# Columns of a rank
RANKS = (
    "rank global_rank dp_rank data_parallel_rank worker_rank process_rank node_rank local_rank worker worker_id process "
    "process_index process_id gpu gpu_id device_id node"
)


@dataclass(frozen=True)
class Rank:
    """The rank that counts, and what numbers those of lines."""

    tag: re.Pattern[str]
    lowest: int

    def of(self, line: str) -> int | None:
        return _number(self.tag.match(line))


def unglued(text: str) -> str:
    """Text with what two ranks wrote on one line on two."""
    return GLUED.sub(r"\1\n", text)


def rank_of_lines(lines: Iterable[str]) -> Rank | str | None:
    """The rank that counts where several log a loss, or a tag that numbers none; None where no more than one writer does."""
    logged = [line for line in lines if LOSS.search(line)]
    for pattern in (NAMED, LABEL):
        writers: dict[int, list[str]] = defaultdict(list)
        for line in logged:
            if (rank := _number(pattern.match(line))) is not None:
                writers[rank].append(line)
        if len(writers) > 1 and (pattern is NAMED or _side_by_side(map(_step, own) for own in writers.values())):
            losses = {rank: [float(x) for x in NUMBER.findall("\n".join(own))] for rank, own in writers.items()}
            return Rank(pattern, lowest(losses))
    for at in range(TAGS):
        tagged = [(tag, line) for line in logged if (tag := _tag(line, at)) is not None]
        tags = [tag for tag, _ in tagged]
        if len({*tags}) == 1 or len({re.sub(r"\d+", "0", tag) for tag in tags}) != 1:
            continue
        # Lines of an epoch follow each other
        in_turn = 2 * sum(a != b for a, b in itertools.pairwise(tags)) > len(tags)
        if in_turn and _side_by_side([_step(line) for tag, line in tagged if tag == own] for own in {*tags}):
            return min(tags)
    return None


def lowest(losses: Mapping[int, list[float]]) -> int:
    """The lowest rank with a loss: positive numbers that change, in half as many rows as any rank has."""
    most = max(map(len, losses.values()))
    busy = {rank: own for rank, own in losses.items() if 2 * len(own) >= most}
    known = {rank: {x for x in own if x > 0 and math.isfinite(x)} for rank, own in busy.items()}
    return min((rank for rank, own in known.items() if len(own) > min(1, most - 1)), default=min(busy))


def rows_of_lowest(log: Log, columns: Mapping[str, str]) -> Log:
    """A log without the rows of other ranks, where a column numbers those that write rows of the same steps."""
    along = columns.get("step") or columns.get("tokens")
    if along is None or "loss" not in columns:
        return log
    for column in log.rows.columns:
        if column in columns.values() or plain(column) not in RANKS.split():
            continue
        rows = log.rows[log.rows[columns["loss"]].notna()]
        ids = rows[column].map(lambda cell: _number(re.search(r"(\d+)(?:\.0+)?\D*$", str(cell))))
        if ids.isna().any() or ids.nunique() < 2:
            continue
        if not _side_by_side(numbers_of(own[along], "count") for _, own in rows.groupby(ids)):
            continue
        first = lowest({int(r): numbers_of(own[columns["loss"]], "small").tolist() for r, own in rows.groupby(ids)})
        note = f"rows of several ranks: those of {column!r} {first} count; --column run={column} makes each a run"
        log = replace(log, rows=log.rows.drop(index=ids[ids != first].index), notes=(*log.notes, note))
    return log


def _number(match: re.Match[str] | None) -> int | None:
    return int(next(filter(None, match.groups()))) if match else None


def _tag(line: str, at: int) -> str | None:
    words = line.split(maxsplit=at + 1)
    if len(words) <= at or TAG.fullmatch(words[at]) is None or STEP.search(" ".join(words[:at])):
        return None  # what follows the step is of a part of the model
    return words[at]


def _step(line: str) -> float:
    match = STEP.search(line)
    return float(match[1].replace(",", "")) if match else math.nan


def _side_by_side(steps: Iterable[Iterable[float]]) -> bool:
    """Whether several writers each have nearly all steps, and the last or the one before it; the others may lack some.

    A run that crashed and began anew elsewhere, or parts of a resumed one, end before the last of them does.
    """
    own = [{step for step in of_writer if math.isfinite(step)} for of_writer in steps]
    every = sorted(set().union(*own))
    if len(every) < 2:
        return False
    return sum(len(steps) >= WRITTEN * len(every) and max(steps) >= every[-2] for steps in own) > 1
