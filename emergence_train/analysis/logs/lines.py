"""The lines of a text log as those of one process that counts its steps through: of several ranks one's, of epochs their sum.

[rank0]: step 100 loss 5.5        [rank1]: step 100 loss 5.6        the lowest rank that logs a loss
Epoch [2/3], Step [100/2000], Loss: 5.5                             step 2100/6000
Epoch 2/3:   5%|# | 100/2000 [00:10<03:10, loss=5.5]                step 2100/6000
Train Epoch: 2 [640/60000 (1%)] Loss: 5.5                           [sample=60640]
100 train 5.5 (build-nanogpt)                                       step 100 train loss 5.5
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emergence_train.analysis.logs.encoded import text_of, without_cut_line
from emergence_train.analysis.logs.log import SPLIT, TRAINING
from emergence_train.analysis.logs.names import NAMES, plain
from emergence_train.analysis.logs.numbers import ambiguous_step, with_commas, with_units
from emergence_train.analysis.logs.ranks import LOSS, rank_of_lines, unglued
from emergence_train.analysis.logs.validation import OWN, split_of
from emergence_train.errors import InputError

WORDS = re.compile(r"[A-Za-z]+")
STEPS = NAMES["step"].split()
# The epoch, then what counts in it, by its name, in brackets or in tqdm's bar; all padded
IN_EPOCH = re.compile(
    r"\bepoch(?:\(train\))?\W{0,4}\s*(?P<epoch>\d+)(?:\s*/\s*(?P<epochs>\d+))?(?:\W{1,8}\s*"
    r"(?:(?:step|batch(?:es)?|iter(?:ation)?)s?\W{0,3}\s*|(?P<bracket>\[|\((?=\s*\d+\s*/\s*\d+\s*[()]))\s*"
    r"|(?=\d+\s*/\s*\d+\s+(?:batches|steps)\b))"
    r"|(?P<said>[^|%]{0,80}?\s)\d+%\|[^|]*\|\s*)"
    r"(?P<step>\d+)\s*/\s*(?P<steps>\d+)(?:\s+(?:batches|steps))?(?P<share>\s*\(\s*[\d.]+\s*%\))?\W?",
    re.IGNORECASE,
)
EPOCH = re.compile(r"\b(?:epoch|ep)\b\W{0,4}\s*(\d+(?:\.\d+)?)(?![\d.]*%)", re.IGNORECASE)
ITER = re.compile(r"\bIter\(train\)\s*\[\s*(\d+)/(\d+)\]")  # mmengine's
# A step, its split and a number, and nothing else: a loss
OF_SPLIT = re.compile(
    r"^[ \t]*(\d+)[ \t]+(train(?:ing)?|val(?:id(?:ation)?)?|eval|dev|test)[ \t]+([-+]?\d+\.\d+(?:e[-+]?\d+)?|nan|inf)[ \t\r]*$",
    re.IGNORECASE | re.MULTILINE,
)
# The same beside other fields: "step 100 | train 5.5 | val 5.6 | lr 3e-4"
BARE = re.compile(
    r"(?<![\w./-])(?:(train(?:ing)?)|val(?:id(?:ation)?)?|dev|test)[ \t]*[:=]?[ \t]+(\d+\.\d+)"
    r"(?=\s*(?:$|[|,;(])|\s+(?:val|dev|test))",
    re.IGNORECASE,
)
# A step by its name, in whatever way
STEPPED = re.compile(
    r"(?<!/)(?<!per )(?<![a-z])(?:step|iter(?:ation)?|(?:num_)?update)s?\b\W*(?:\d[\d.]*[kM]\b|\d+(?![\d.]*%|\.?\d|\s*m?s\b))"
    r"|\[(?:batch|token|sample)=\d|\d[kM]?\s+(?:steps?|iters|iterations)\b(?!\s*[/=:]|\s+per\b)",
    re.IGNORECASE,
)
NAMED = re.compile(r"loss|\bnll\b|\bppl\b|perplex|\bbp[bctw]\b|\bx?ce\b|entropy", re.IGNORECASE)  # a loss
OTHERWISE = re.compile(r"acc|%|time|\bdata\b", re.IGNORECASE)  # what else a number of a split may be
# A bar that counts neither batches nor steps: "160samples/s"
OTHER_BAR = re.compile(
    r"\[[\d:?]+<[\d:?]+,\s*[\d.?]+\s*(?!k?(?:it|batch(?:es)?|steps?)/s|s/(?:it|batch|step))[^\s\d,\]]+/", re.IGNORECASE
)
# What pprint makes of a dictionary that is too long for a line
PRINTED = re.compile(r"^\{'[^{}\n]*,\n(?: '[^{}\n]*,\n)* '[^{}\n]*\}[ \t\r]*$", re.MULTILINE)
# litgpt's, on the iteration that makes the update: its loss is the mean of the step's micro-batches, those beside it are parts
UPDATES = re.compile(r"\(step\)(?:\s|$)")
# A loss with its unit behind it, "loss 6.0 BPC": the field ends there, or a quantity and its number follow, or it is other text,
# as in "loss 3.2 ppl 24.5" and "loss 3.2 (perplexity of 24.5)"
_QUANTITY = r"(?:lr|learning[ _]rate|steps?|iter|epoch|tok(?:en)?s?|(?:grad[ _]?|g)?norm|time|dt|mfu|\w*loss)"
_NEXT = rf"{_QUANTITY}\b['\"]?\s*[:=]?\s*[-+]?\.?\d"
_END = rf"\s*(?:[.'\"}}\])]*\s*$|[;|]|,(?![-+.\d])|[)\]](?!\s*[-+.:=\d]))|\t(?!\s*[-+.:=\d])|[)\]]?\s+(?:-\s+)?{_NEXT}"
UNIT = re.compile(
    r"([\w./-]*loss)['\"]?\s*[:=]?\s*[-+]?\d(?:[\d.,]*\d)?(?:e[-+]?\d+)?\s*[\[(]?\s*\b(bp[bctw]|nats?|ppl|perplexity"
    rf"|bits?(?:\s*(?:/|per)\s*(?:byte|char(?:acter)?|word|tok(?:en)?|dim(?:ension)?))?)\b(?={_END})",
    re.IGNORECASE,
)
# "12.3B tokens", but no rate
TOKENS_BEFORE = re.compile(
    r"(?<![\w.,/=:])(\d[\d,]*(?:\.\d+)?[KMBT])(?:\s*/\s*\d[\d,]*(?:\.\d+)?[KMBT])?\s+(?:tokens|toks?)\b(?!\s*[/=:]|\s+per\b)"
)


@dataclass(frozen=True)
class Lines:
    """The text's lines, empty where they do not count; `notes` say why. `problem`: why none of them can be read."""

    lines: list[str]
    notes: tuple[str, ...] = ()
    problem: str = ""


def lines_in(path: Path) -> Lines:
    """`lines_of` a file. Raises InputError for lines of several writers, and steps that may be others."""
    text = lines_of(text_of(path, errors="replace"))
    if text.problem:
        raise InputError(f"{path}: {text.problem}")
    return text


def lines_of(text: str) -> Lines:
    text, cut = without_cut_line(text)
    notes = [*cut]
    if first := OF_SPLIT.search(text):
        notes.append(f"lines as {first[0].strip()!r} are a step, its split and the loss")
        text = OF_SPLIT.sub(r"step \1 \2 loss \3", text)
    text = PRINTED.sub(lambda match: match[0].replace("\n", "") + "\n" * match[0].count("\n"), text)
    text, named = _with_losses(text)
    notes += named
    text = with_commas(unglued(ITER.sub(r"iter: \1/\2 ", text)))
    if (step := ambiguous_step(text)) is not None:
        problem = f"its steps as {step!r} may be whole or thousands; write them without points"
        return Lines(text.splitlines(), problem=problem)
    lines = [with_units(line) for line in text.splitlines()]
    rank = rank_of_lines(lines)
    if isinstance(rank, str):
        problem = f"its lines are of several writers, as {rank!r}, and number no ranks; keep the lines of one writer"
        return Lines(lines, problem=problem)
    if rank is not None:
        lines = ["" if LOSS.search(line) and rank.of(line) not in (None, rank.lowest) else line for line in lines]
        notes.append(f"lines of several ranks: those of rank {rank.lowest} count")
    if (through := _counted_through(lines)) is not None:
        lines = through
        notes.append("steps are counted in each epoch: they are counted through")
    return Lines(lines, tuple(notes))


def _with_losses(text: str) -> tuple[str, list[str]]:
    """-> (text whose bare numbers of a training are called losses; what to say of it).

    So they are where nothing else is one by name, and most stand beside a validation's: times do not.
    """
    if NAMED.search(text):
        return text, []
    lines = text.splitlines()
    stepped = [k for k, line in enumerate(lines) if STEPPED.search(line)]
    numbers = {k: [*BARE.finditer(lines[k])] for k in stepped}
    bare = [match for matches in numbers.values() for match in matches if match[1]]
    both = sum(any(match[1] for match in own) and not all(match[1] for match in own) for own in numbers.values())
    if 2 * both <= len(bare) or any(OTHERWISE.search(lines[k]) for k in stepped):
        return text, []
    for k in stepped:
        lines[k] = BARE.sub(lambda match: f"{'' if match[1] else 'val_'}loss {match[2]}", lines[k])
    return "\n".join(lines), [f"{bare[0][0]!r}, a number of the training without a name, is taken for its loss"]


def epoch_of(line: str) -> dict[str, str]:
    """The epoch that a line names before its step, as a field; nothing where it names none."""
    match = EPOCH.search(line)
    return {"epoch": match[1]} if match else {}


def of_commoner_form(
    rows: list[dict], places: list[int], lines: list[str]
) -> tuple[list[dict], list[int], tuple[str, ...]]:
    """-> (rows but those beside one of the same step whose line has the words of more lines; their places; what to say of it).

    "New best! step 100, loss 4.2" is of a validation or a mean, whatever it calls its loss. Lines of a resumed run lie beside
    none of the same step.
    """
    rows, places = _of_updates(rows, places, lines)
    forms = [tuple(WORDS.findall(LOSS.split(lines[place - 1])[0])) for place in places]
    count = Counter(forms)
    names = [{name for name in row if LOSS.search(name) or name == SPLIT} for row in rows]
    steps = [{name: row[name] for name in row if plain(name) in STEPS} for row in rows]

    def is_rarer(k: int, other: int) -> bool:
        of_one = 0 <= other < len(rows) and steps[k] == steps[other] and rows[k].get(SPLIT) == rows[other].get(SPLIT)
        return of_one and bool(names[k] & names[other] - {SPLIT}) and count[forms[k]] < count[forms[other]]

    left = [k for k in range(len(rows)) if is_rarer(k, k - 1) or is_rarer(k, k + 1)]
    if not left:
        return rows, places, ()
    note = f"left out: {len(left)} lines in other words beside those of their steps (row {places[left[0]]})"
    kept = sorted({*range(len(rows))} - {*left})
    return [rows[k] for k in kept], [places[k] for k in kept], (note,)


def _of_updates(rows: list[dict], places: list[int], lines: list[str]) -> tuple[list[dict], list[int]]:
    """Rows and their places without the micro-batches of a step that has a line marked as its update."""
    marked = [UPDATES.search(lines[place - 1]) is not None for place in places]
    updates = {(row.get("step"), row.get(SPLIT)) for row, mark in zip(rows, marked) if mark}
    kept = [k for k, row in enumerate(rows) if marked[k] or (row.get("step"), row.get(SPLIT)) not in updates]
    return [rows[k] for k in kept], [places[k] for k in kept]


def with_loss_units(frame: pd.DataFrame, lines: list[str]) -> pd.DataFrame:
    """A frame whose losses are called by the unit that stands behind their numbers in most of their lines: "loss (bpc)"."""
    of = {place: lines[place - 1] for place in frame.index}
    units = {place: UNIT.findall(OWN.sub(_of_no_loss, line)) if UNIT.search(line) else [] for place, line in of.items()}
    names = {}
    for column in (name for name in frame if plain(name).endswith("loss")) if any(units.values()) else ():
        word = plain(column)
        own = ([unit for name, unit in units[k] if _are_alike(plain(name), word)] for k in frame[column].dropna().index)
        unit = Counter(behind[0] if behind else "" for behind in own).most_common(1)[0][0].lower()
        if unit:
            unit = re.sub(r"^(bit|nat)\b", r"\1s", re.sub(r"\s*(?:/|\bper\b)\s*", " per ", unit))
            names[column] = f"{column} ({unit})"
    return frame.rename(columns=names)


def _of_no_loss(field: re.Match[str]) -> str:
    """A validation's field, which may be what stands behind the unit; the end of the field before it where it is a loss."""
    return "|" if LOSS.search(field[0]) else field[0]


def _are_alike(name: str, word: str) -> bool:
    return name.endswith(word) or word.endswith(name)


def _counted_through(lines: list[str]) -> list[str] | None:
    """Lines of a step in an epoch with the step of the run; None where steps are not counted anew in each epoch of one length.

    A share of the epoch in the same brackets stands behind its samples: PyTorch's examples write "[640/60000 (1%)]".
    """
    places = [(k, match) for k, line in enumerate(lines) if LOSS.search(line) and (match := IN_EPOCH.search(line))]
    places = [(k, match) for k, match in places if not _has_its_own(lines[k], match)]
    training = [(k, match) for k, match in places if split_of(lines[k]) == TRAINING] or places
    if not training or len({match["steps"] for _, match in training}) > 1:
        return None
    epochs = [int(match["epoch"]) for _, match in training]
    steps = [int(match["step"]) for _, match in training]
    base, length = min(1, min(epochs)), int(training[0][1]["steps"])
    later = [k for k in range(1, len(epochs)) if epochs[k] > epochs[k - 1]]
    if any(steps[k] > steps[k - 1] for k in later) or max(steps) > length or not later and epochs[0] != base:
        return None
    through = list(lines)
    for k, match in ((k, match) for k, match in places if int(match["steps"]) == length):
        end = f"/{int(match['epochs']) * length}" if match["epochs"] else ""
        count = f"{(int(match['epoch']) - base) * length + int(match['step'])}{end}"
        count = f"[sample={count}]" if match["bracket"] and match["share"] else f"step {count}"
        through[k] = f"{lines[k][: match.start()]}{count} {match['said'] or ''}{lines[k][match.end() :]}"
    return through


def _has_its_own(line: str, match: re.Match[str]) -> bool:
    """Whether a line has another step than what counts in its epoch, which then may be shards, or batches of an update."""
    if "global_step" in line:
        return True
    around = f"{line[: match.start()]} {match['said'] or ''} {line[match.end() :]}"
    is_bar = match["said"] is not None
    return bool((is_bar or match["bracket"] == "(") and STEPPED.search(around) or is_bar and OTHER_BAR.search(line))
