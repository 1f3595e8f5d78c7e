"""The lines of a text log as those of one process that counts its steps through: of several ranks one's, of epochs their sum.

[rank0]: step 100 loss 5.5        [rank1]: step 100 loss 5.6        the lowest rank that logs a loss
Epoch [2/3], Step [100/2000], Loss: 5.5                             step 2100/6000
"""

import re
from dataclasses import dataclass

from emergence_train.analysis.logs.numbers import with_units

RANK = re.compile(r"^.{0,40}?\b(?:rank|default)\s?[=:]?\s?(\d+)\b", re.IGNORECASE)  # default0: torchrun's prefix
LOSS = re.compile(r"loss", re.IGNORECASE)
IN_EPOCH = re.compile(
    r"\bepoch(?:\(train\))?\W{0,4}(\d+)(?:\s*/\s*(\d+))?\W{1,8}"  # the epoch, then what counts in it
    r"(?:(?:step|batch|iter(?:ation)?)s?\W{0,3}|\[\s*|(?=\d+\s*/\s*\d+\s+(?:batches|steps)\b))"
    r"(\d+)\s*/\s*(\d+)(?:\s+(?:batches|steps))?\W?",
    re.IGNORECASE,
)
EPOCH = re.compile(r"\b(?:epoch|ep)\b\W{0,4}(\d+(?:\.\d+)?)(?![\d.]*%)", re.IGNORECASE)
ITER = re.compile(r"\bIter\(train\)\s*\[\s*(\d+)/(\d+)\]")  # mmengine's
# "12.3B tokens", but no rate
TOKENS_BEFORE = re.compile(r"(?<![\w.,/=:])(\d[\d,]*(?:\.\d+)?[KMBT])\s+(?:tokens|toks?)\b(?!\s*[/=:]|\s+per\b)")


@dataclass(frozen=True)
class Lines:
    """The text's lines, empty where they do not count; `notes` say why."""

    lines: list[str]
    notes: tuple[str, ...] = ()


def lines_of(text: str) -> Lines:
    notes: list[str] = []
    lines = [with_units(line) for line in ITER.sub(r"iter: \1/\2 ", text).splitlines()]
    if (rank := _rank(lines)) is not None:
        lines = ["" if LOSS.search(line) and _rank_of(line) not in (None, rank) else line for line in lines]
        notes.append(f"lines of several ranks: those of rank {rank} count")
    if (through := _counted_through(lines)) is not None:
        lines = through
        notes.append("steps are counted in each epoch: they are counted through")
    return Lines(lines, tuple(notes))


def epoch_of(line: str) -> dict[str, str]:
    """The epoch that a line names before its step, as a field; nothing where it names none."""
    match = EPOCH.search(line)
    return {"epoch": match[1]} if match else {}


def _rank_of(line: str) -> int | None:
    match = RANK.match(line)
    return int(match[1]) if match else None


def _rank(lines: list[str]) -> int | None:
    """The lowest rank that logs a loss, where several do."""
    ranks = {rank for line in lines if LOSS.search(line) and (rank := _rank_of(line)) is not None}
    return min(ranks) if len(ranks) > 1 else None


def _counted_through(lines: list[str]) -> list[str] | None:
    """Lines of a step in an epoch with the step of the run; None where steps are not counted anew in each epoch of one length."""
    places = [(k, match) for k, line in enumerate(lines) if LOSS.search(line) and (match := IN_EPOCH.search(line))]
    places = [(k, match) for k, match in places if "global_step" not in lines[k]]
    if not places or len({match[4] for _, match in places}) > 1:
        return None
    epochs = [int(match[1]) for _, match in places]
    steps = [int(match[3]) for _, match in places]
    base, length = min(1, min(epochs)), int(places[0][1][4])
    later = [k for k in range(1, len(epochs)) if epochs[k] > epochs[k - 1]]
    if any(steps[k] > steps[k - 1] for k in later) or max(steps) > length or not later and epochs[0] != base:
        return None
    through = list(lines)
    for (k, match), epoch, step in zip(places, epochs, steps):
        end = f"/{int(match[2]) * length}" if match[2] else ""
        count = (epoch - base) * length + step
        through[k] = f"{lines[k][: match.start()]}step {count}{end} {lines[k][match.end() :]}"
    return through
