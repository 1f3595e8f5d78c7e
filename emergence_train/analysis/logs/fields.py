"""Text logs of NAME: NUMBER or NAME=NUMBER, a line a step, or a line of the step with the fields indented below it.

torchtitan      step: 10  loss:  7.1234  grad_norm:  0.9  memory: ...      (in colours)
modded-nanogpt  step:10/8000 train_loss:7.1234 train_time:5000ms ...
litgpt          Epoch 1 | iter 40 step 10 | loss train: 7.123, val: n/a | iter time: ...
NeMo            Training epoch 0, iteration 9/7999 | lr: 0.0001 | global_step: 9 | reduced_train_loss: 7.123 | ...
OLMo            [step=10/8000,epoch=0]
                    train/CrossEntropyLoss=7.123
                    throughput/total_tokens=41,943,040
Composer        [batch=10/8000]:
                    Train loss/train/total: 7.1234
                [metric][batch=10]: loss/train/total: 7.1234        (its FileLogger, a line a field)
fairseq         | epoch 001 | loss 14.220 | nll_loss 13.935 | ppl 15664.53 | ... | num_updates 67 | lr 1.68e-05 | ...
fms-fsdp        step: 10
                loss: 7.1234
EasyLM          {'loss': 7.1234,
                 'step': 10}
Levanter        ... :: {"tracker": "json_logger", "event": "log", "step": 10, "metrics": {"train/loss": 7.1234, ...}}
"""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pandas as pd

from emergence_train.analysis.logs.encoded import stem_of, suffix_of
from emergence_train.analysis.logs.lines import (
    TOKENS_BEFORE,
    epoch_of,
    lines_in,
    lines_of,
    of_commoner_form,
    with_loss_units,
)
from emergence_train.analysis.logs.log import SPLIT, Format, Log, finished_apart, frame_of
from emergence_train.analysis.logs.names import NAMES, known_names, plain
from emergence_train.analysis.logs.numbers import in_full
from emergence_train.analysis.logs.validation import split_of
from emergence_train.errors import InputError

# Whole or not at all: of 47.22GiB nothing is a number
NUMBER = r"([-+]?(?:\d[\d,]*(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+|nan|inf)[KMGBT]?)(?!\w|\.\w|,\d)"
# Words that begin with a letter, a single space between them; the unit behind a number begins none
# (possessive, as what a shorter name leaves is never a quote, a colon or an equals sign)
NAME = r"(?<![\w.])([A-Za-z_][\w./()-]*+(?: [A-Za-z0-9_(][\w./()-]*+)*+)"
# Also words that are no field's name, so that none of them is tried again as the beginning of one
FIELD = re.compile(rf"['\"]?{NAME}(?:['\"]?\s*[:=]\s*['\"]?[\[(]?{NUMBER})?")
# A step, with the planned last one: "step: 10/8000", "[step=10", "iter 40", "step 10"
# but no share ("Steps: 1%"), no part of one ("update: 0.1") and no time ("time/step: 100ms")
WHOLE = (
    r"((?>\d[\d,]*)(?:\.\d+)?[kKM]\b|(?>\d[\d,]*))(?:\.0+)?+(?![\d.]*%|\.?\d|m?s\b)"
    r"(?:\s*/\s*(\d[\d,]*(?:(?:\.\d+)?[kKM]\b)?))?"
)
# "1.2k/10k steps", before its name, but no rate
SHORT = r"(\d[\d,]*(?:\.\d+)?[kKM]?)"
STEPS_BEFORE = re.compile(
    rf"(?<![\w.,/=:]){SHORT}(?:\s*/\s*{SHORT})?\s+(?:steps?|iters|iterations)\b(?!\s*[/=:])", re.IGNORECASE
)
RATES = r"(?<!per )(?<!tokens/)(?<!tok/)(?<!samples/)(?<!time/)(?<!ms/)"  # "tokens per step: 524288"; "train/step: 100" is a step
OF_TRAINING = r"(?:train_(?!(?:step|iteration|iter|update)s))?"  # but "train_steps: 20000" is the planned number
STEP = re.compile(
    rf"(?:{RATES}\b{OF_TRAINING}(global_step|num_updates|step|iteration|iter|update)s?(?:/max_steps)?['\"]?\s*[:=]?\s*['\"]?"
    rf"|\[(batch|token|sample)=){WHOLE}",
    re.IGNORECASE,
)
# Between bars, without a sign, as fairseq writes an epoch: "| loss 14.220 | nll_loss 13.935 |"
BETWEEN_BARS = re.compile(rf"\s*([A-Za-z_][\w/]*(?: [A-Za-z_][\w/]*)?)\s+{NUMBER}\s*")
BEHIND_A_NUMBER = re.compile(r" \d")  # "iteration 100/3000 loss: 5.9"
PAIR = re.compile(rf"([A-Za-z_][\w./()-]*+) {NUMBER}")  # "loss 5.9 lr 3e-4", before a bar's colon
# tqdm's; one an epoch counts anew in each, unless it was counted through
BAR = re.compile(r"^(?!\s*epoch).*\|\s*(\d+)/(\d+)\s*\[[\d:?]+<", re.IGNORECASE)
OF_EPOCHS = re.compile(r"\d(?:epochs?/s|s/epoch)\b", re.IGNORECASE)  # the unit of a bar
LOSS = re.compile(r"loss", re.IGNORECASE)
TRAINER = re.compile(r"^\{'loss': ")  # what transformers' Trainer prints: no step in it
BELOW = re.compile(r"\s+[A-Za-z_][^:=]*\s*[:=]\s*\S*[^\s,]\s*")  # an indented line that is one field
# A line that is one field, as fms-fsdp writes its step and each other
ALONE = re.compile(r"[A-Za-z_][\w /()]*[:=]\s*\S+\s*")
# torchtitan's, of its settings: the sequences of a step, their length, and the planned end
PLAN = re.compile(r"global batch size (\d+), .*sequence length (\d+), total steps (\d+)")
ONCE = 5  # rows that a loss has where a field of one row is none: a line of source, or of the configuration
WITHIN = 12  # lines below a step that may hold its loss
LONGEST = 12  # words of a known name
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


def fields_of(line: str) -> dict[str, str]:
    """The numbers of a line by their names, as they are written."""
    fields: dict[str, str] = {}
    for match in FIELD.finditer(line):
        if match[2] is None:
            continue
        name = match[1].strip()
        if line[: match.start()].rstrip(" '\"").endswith((":", "=")) or BEHIND_A_NUMBER.search(name):
            name = _behind_a_value(name)
        pairs = PAIR.findall(name) if BEHIND_A_NUMBER.search(name) else []
        known = {word: number for word, number in pairs if plain(word) in known_names()}
        fields |= known or {name: match[2].rstrip(",")}
    if "tokens" not in fields and (before := TOKENS_BEFORE.search(line)):
        fields["tokens"] = before[1]
    return fields


def numbers_in(lines: list[str], places: list[int]) -> pd.DataFrame:
    """All numbers of the lines at these places by their names, whether behind a sign or a blank."""
    rows = [{name: number for name, number in PAIR.findall(lines[k - 1])} | fields_of(lines[k - 1]) for k in places]
    return frame_of(rows, places)


def _fields_with_loss(line: str) -> dict[str, str]:
    """As fields_of; also what stands between bars, in a line of which no field is a loss otherwise."""
    fields = fields_of(line)
    if "|" not in line or any(map(LOSS.search, fields)):
        return fields
    between = {match[1]: match[2] for part in line.split("|") if (match := BETWEEN_BARS.fullmatch(part))}
    return between | fields if any(map(LOSS.search, between)) else fields


def _behind_a_value(name: str) -> str:
    """A name without the words before it that are of another field: of "device: cuda lr: 3e-4" it is lr."""
    words = name.split(" ")
    ends = (" ".join(words[k:]) for k in range(max(0, len(words) - LONGEST), len(words)))
    return next((end for end in ends if plain(end) in known_names()), name)


def _steps(line: str) -> dict[str, tuple[str, str | None]]:
    """The steps of a line and the planned last ones, by the words that they are called."""
    steps: dict[str, tuple[str, str | None]] = {}
    # Its count may be of batches, or of a resumed run's own steps
    bar = None if OF_EPOCHS.search(line) else BAR.search(line)
    for match in STEP.finditer(line):
        name = match[1].lower() if match[1] else f"train_{match[2].lower()}"
        # fairseq's: updates as a part of an epoch
        if name == "update" and line[match.end(3) : match.end(3) + 1] == ".":
            continue
        step = match[3].replace(",", "")
        steps.setdefault(name, (step, match[4] or (bar[2] if bar and bar[1] == step else None)))
    before = None if steps or bar else STEPS_BEFORE.search(line)
    if before:
        steps["step"] = (before[1].replace(",", ""), before[2])
    return steps or ({"step": (bar[1], bar[2])} if bar else {})


def _has_tokens(line: str) -> bool:
    """Whether a line without a step has the tokens of one, beside its loss."""
    if not (LOSS.search(line) and "tok" in line.lower()):
        return False
    names = {plain(name) for name in fields_of(line)}
    return bool(names & {*NAMES["tokens"].split()})


def read_fields(path: Path) -> list[Log]:
    """A row for each line that has a step, with the fields of the indented lines right below it.

    Logs may begin with the source of the script that writes them (modded-nanogpt): what stands there once is no column.
    """
    rows: list[dict] = []
    places: list[int] = []
    ends: dict[int, int | None] = {}
    batches: dict[int, set[int]] = {}  # of a row's tokens, by the settings above it
    text = lines_in(path)
    lines, below, plans = text.lines, False, list[re.Match[str]]()
    for number, line in enumerate(lines, 1):
        if "total steps" in line and (plan := PLAN.search(line)):
            plans.append(plan)
        steps = _steps(line)
        if steps or _has_tokens(line):
            fields = _fields_with_loss(line)
            below = True
            row = epoch_of(line) | fields | {SPLIT: split_of(line)} | {name: step for name, (step, _) in steps.items()}
            if rows and _is_more_of(rows[-1], row, steps.keys()):
                rows[-1] |= row
                continue
            rows.append(row)
            places.append(number)
            planned = next((end for _, end in steps.values() if end), plans[-1][3] if plans else None)
            ends[number] = round(in_full(planned.replace(",", ""))) if planned else None
            batches[number] = _batches(plans[-1:])
        elif below and _is_below(line, lines[places[-1] - 1]):
            rows[-1] |= fields_of(line)
        else:
            below = False
    kept = _with_a_loss(rows)
    if not kept and any(map(TRAINER.match, lines)):
        raise InputError(
            f"{path}: what transformers' Trainer prints has no steps; name its output directory, whose trainer_state.json has "
            f"them"
        )
    if not kept:
        raise InputError(f"{path}: no line has a step and its loss, as 'step: 10 loss: 6.1'; give another --format")
    rows, places = [rows[k] for k in kept], [places[k] for k in kept]
    rows, places, notes = of_commoner_form(rows, places, lines)
    frame = _without_settings(with_loss_units(frame_of(rows, places), lines))
    if len(frame) > ONCE:
        frame = frame.loc[:, frame.notna().sum() > 1]
    log = Log(stem_of(path), path, frame, notes=(*text.notes, *notes))
    runs = finished_apart(log, pd.DataFrame({"end_step": ends}, dtype=float))
    owns = [set[int]().union(*(batches[k] for k in run.rows.index)) or _batches(plans) for run in runs]
    # None where the batch changed along the run
    return [replace(run, tokens_per_step=own.pop() if len(own) == 1 else None) for run, own in zip(runs, owns)]


def _without_settings(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame without the rows whose losses no other has: a command's --training.steps=10 --loss.num_chunks=6 is no step."""
    losses = [name for name in frame if LOSS.search(name) and frame[name].count() > 1]
    return frame[frame[losses].notna().any(axis=1)] if losses else frame


def _batches(plans: list[re.Match[str]]) -> set[int]:
    """The tokens of a step by torchtitan's settings."""
    return {int(plan[1]) * int(plan[2]) for plan in plans}


def _is_below(line: str, first: str) -> bool:
    """Whether a line is a field of the step in `first`: indented, or alone in its line as the step is."""
    return BELOW.fullmatch(line) is not None or bool(ALONE.fullmatch(first) and ALONE.fullmatch(line))


def _is_more_of(before: dict, row: dict, steps: Collection[str]) -> bool:
    """Whether a line has other fields of the step of the line before, as Composer's FileLogger and Levanter write them."""
    same = before.keys() & row.keys()
    return bool(same & {*steps}) and all(before[name] == row[name] for name in same)


def _with_a_loss(rows: list[dict]) -> list[int]:
    """The rows that have a loss; not one whose losses are found nowhere else, where others are found in many rows."""
    losses = [{name for name in row if LOSS.search(name)} for row in rows]
    counts = Counter(name for names in losses for name in names)
    few = 1 if max(counts.values(), default=0) > ONCE else 0
    return [k for k, names in enumerate(losses) if any(counts[name] > few for name in names)]


def _takes(path: Path, head: str) -> bool:
    if not path.is_file() or suffix_of(path) in TABLES:
        return False
    lines = lines_of(head).lines
    if any(map(TRAINER.match, lines)):
        return True
    with_step = [k for k, line in enumerate(lines) if _steps(line) or _has_tokens(line)]
    return any(_has_loss(lines, k) for k in with_step)


def _has_loss(lines: list[str], at: int) -> bool:
    """Whether the line, or an indented one soon below it, has a field of a loss."""
    block = lines[at : at + 1]
    for line in lines[at + 1 : at + 1 + WITHIN]:
        if not (line[:1].isspace() or _is_below(line, lines[at])):
            break
        block.append(line)
    return any(LOSS.search(name) for line in block for name in _fields_with_loss(line))


FIELDS = Format(
    "text", "text with fields: torchtitan, OLMo, NeMo, litgpt, Composer, modded-nanogpt", _takes, read_fields
)
