"""Logs that are text: what nanoGPT and llm.c print.

nanoGPT   iter 100: loss 6.1234, time 251.13ms, mfu 17.25%           ("tokens per iteration will be: 491,520" above)
llm.c     step  100/19560 | loss 6.123456 (+1.2z)| norm 0.31 (-)| lr 8.57e-05 | ...    ("| total batch size | 524288 |" above)
          step  100/19560 | train loss 6.123456 | norm 0.3100 | lr 8.57e-05 | ...       (its train_gpt2.py)
          s:99 trl:6.1234 lr:0.000086 norm:0.31    (its main.log; a validation is "s:250 tel:5.9")
"""

import re
from itertools import pairwise
from pathlib import Path

import pandas as pd

from emergence_train.analysis.logs.encoded import stem_of, suffix_of
from emergence_train.analysis.logs.fields import TABLES, fields_of, numbers_in
from emergence_train.analysis.logs.lines import (
    TOKENS_BEFORE,
    epoch_of,
    lines_in,
    lines_of,
    of_commoner_form,
    with_loss_units,
)
from emergence_train.analysis.logs.log import SPLIT, TRAINING, Format, Log, finished_apart, frame_of
from emergence_train.analysis.logs.names import NAMES, increases, is_loss, plain
from emergence_train.analysis.logs.numbers import in_full
from emergence_train.analysis.logs.validation import split_of, without_validation
from emergence_train.errors import InputError

NUMBER = r"([-+]?(?:\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"
DIGITS = r"\d++(?:,\d{3}(?!\d))*+"
WHOLE = rf"({DIGITS}(?:(?:\.\d+)?[kKM]\b)|{DIGITS})"  # 1200, 1,200 or 1.2k
STEP = re.compile(
    rf"(?<!per )(?<!avg )\b(?:iter|step)\s*:?\s*{WHOLE}(?:\.0+)?+(?!\.?\d)(?:\s*/\s*{WHOLE})?\b", re.IGNORECASE
)
TIME = re.compile(r"\s*m?s\b")  # of a step: "iter 10: loss 5.9, step 251 ms"
MICRO = re.compile(r"micro[ _-]\Z", re.IGNORECASE)
PERPLEXITY = re.compile(
    rf"(?<![\w./-])(?:train(?:ing)?[ _/])?(?:ppl|perplexity)(?:\s*[:=]\s*|\s+){NUMBER}", re.IGNORECASE
)
TOKENS = re.compile(
    r"(?<![/\w])(?:(?:n|num|total|train|trained|seen|consumed)_)?tokens(?:[ _](?:seen|consumed|trained|so far))?"
    r"(?:\s*[:=]\s*|\s+)(\d[\d,]*(?:\.\d+)?[KMBT]?)\b(?!\s*/)",
    re.IGNORECASE,
)
# With all that is one word with it: "aux_loss 0.01", "test/loss 3.9"
LOSS = re.compile(rf"(?<![\w./-])([\w./-]*loss):?\s+{NUMBER}", re.IGNORECASE)
# A word of its name: "aux loss: 0.01", "EMA model loss 3.9"; not of "norm nan loss 3.9"
BEFORE_LOSS = re.compile(r"(?!(?:nan|inf|none|n/a)\Z)[a-z][\w./-]*", re.IGNORECASE)
# nanoGPT's estimate of both, beside the losses of its steps
EVALUATION = re.compile(r"(?>.*?\btrain loss ).*\bval loss", re.IGNORECASE)  # from the first on: a line may have many
ESTIMATE = re.compile(r"\bval(?:id\w*)?[ _]loss", re.IGNORECASE)
TRAINING_LOSS = ("train loss", "training loss")
TRAIN_LOSS = re.compile(r"train(?:ing)?[_/]loss", re.IGNORECASE)
RATE = re.compile(rf"\b(?:lr|learning[ _]rate)(?:\s*[:=]\s*|\s+)[\[(]?{NUMBER}", re.IGNORECASE)
MULTIPLIER = re.compile(rf"\blrm:\s*{NUMBER}")  # nanochat's, of its optimizers' rates
MAIN_LOG = re.compile(rf"^s:(\d+) (trl|tel):{NUMBER}(?: lr:{NUMBER})?")
PER_STEP = re.compile(r"(?:tokens per iteration will be:|\|\s*total batch size\s*\||^Total batch size)\s*([\d,]+)")


def whole(text: str) -> int:
    return round(in_full(text.replace(",", "")))


def read_nanogpt(path: Path) -> list[Log]:
    """Lines of a step with its loss. The evaluation's lines ("step 0: train loss 10.9, val loss 10.9") are none."""
    rows, places, per_step = [], [], None
    ends: dict[int, dict[str, int]] = {}  # the planned ones of a line, by their counter
    batches: dict[int, int | None] = {}
    text = lines_in(path)
    for number, line in enumerate(text.lines, 1):
        if not line:
            continue
        if match := PER_STEP.search(line):
            per_step = whole(match[1])
        if match := MAIN_LOG.search(line):
            rows.append({"step": match[1], "loss" if match[2] == "trl" else "val_loss": match[3]})
            if match[4]:
                rows[-1]["lr"] = match[4]
            places.append(number)
            batches[number] = per_step
            continue
        step, losses = _step_and_losses(line)
        if step and losses:
            own = _counters(line)
            counts = {name: match[1].replace(",", "") for name, match in own.items()}
            rows.append({**counts, **losses, SPLIT: split_of(line)} | epoch_of(line) | _beside(line))
            places.append(number)
            batches[number] = per_step
            ends[number] = {name: whole(match[2]) for name, match in own.items() if match[2]}
    if not rows:
        raise InputError(f"{path}: no line has a step and its loss, as 'iter 100: loss 6.1'; give --format or a table")
    counters = _take_steps(rows)
    _name_alike(rows, [text.lines[place - 1] for place in places])
    rows, places, notes = of_commoner_form(rows, places, text.lines)
    frame = with_loss_units(frame_of(rows, places), text.lines)
    if "tokens" in frame and len(frame) > 1 and not increases(frame["tokens"]):
        frame = frame.drop(columns="tokens")  # of a batch
    planned = {place: next((own[name] for name in counters if name in own), None) for place, own in ends.items()}
    notes = (*text.notes, *notes)
    log = Log(stem_of(path), path, frame, per_step, notes=notes, others=lambda: numbers_in(text.lines, places))
    return finished_apart(log, pd.DataFrame({"end_step": planned, "tokens_per_step": batches}, dtype=float))


def _beside(line: str) -> dict[str, str]:
    """The rate and the tokens of a line, whether behind a sign or a blank."""
    tokens = "tok" in line.lower() and (TOKENS.search(line) or TOKENS_BEFORE.search(line))
    perplexity = "p" in line.lower() and PERPLEXITY.search(without_validation(line))
    multiplier = "lrm" in line and MULTIPLIER.search(line)
    matches = {"lr": RATE.search(line), "lrm": multiplier, "tokens": tokens, "ppl": perplexity}
    return {name: match[1] for name, match in matches.items() if match}


def _counters(line: str) -> dict[str, re.Match[str]]:
    """The counters of a line by their kind, step or iter; a second one may be a time."""
    counters: dict[str, re.Match[str]] = {}
    for match in STEP.finditer(line):
        name = (
            "iter"
            if match[0][:4].lower() == "iter" or MICRO.search(line[max(0, match.start() - 6) : match.start()])
            else "step"
        )
        if not counters or not TIME.match(line, match.end()):
            counters.setdefault(name, match)
    return counters


def _take_steps(rows: list[dict]) -> tuple[str, ...]:
    """Leave each row its step: the iteration where not every row of the training has a step that rises with it.

    Returns:
        The counters that it is of: litgpt's "iter 1760 | step 220: loss 1.5" has the micro-batches before the optimizer's steps.
    """
    training = [row for row in rows if row.get(SPLIT) == TRAINING] or rows
    both = [(whole(row["iter"]), whole(row["step"])) for row in training if {"iter", "step"} <= row.keys()]
    rises = all(later[1] >= first[1] for first, later in pairwise(both) if later[0] > first[0])
    if both and rises and (len(both) == 1 or both[-1][1] > both[0][1]) and all("step" in row for row in training):
        return ("step",)
    for row in rows:
        row["step"] = row.pop("iter", row.get("step"))
    return ("iter", "step")


def _step_and_losses(line: str) -> tuple[re.Match[str] | None, dict[str, str]]:
    """The step of a line, and the losses behind it by their whole names, but those that the line names as a validation's."""
    step, losses = STEP.search(line), dict[str, str]()
    if step and not EVALUATION.match(line):
        rest, behind = without_validation(line), 0  # a loss' own words are behind the number of the one before
        for match in LOSS.finditer(rest):
            if step.start() < match.start():
                losses.setdefault(_name(rest[behind : match.start()], match[1]), match[2])
            behind = match.end()
    return step, losses


def _name_alike(rows: list[dict], lines: list[str]) -> None:
    """Call a training loss loss, so that lines of either name are one column's; but not an estimate beside a validation's.

    So are all losses called of which each step has one, whatever word of the line stands before them.
    """
    others = any("loss" in row for row in rows)
    for row, line in zip(rows, lines):
        train = next((name for name in TRAINING_LOSS if name in row), None)
        if train and "loss" not in row and not (others and ESTIMATE.search(line)):
            row["loss"] = row.pop(train)
    names = [[name for name in row if name.endswith("loss")] for row in rows]
    each = len({(row.get("step"), row.get("iter")) for row in rows}) == len(rows) and all(
        len(own) == 1 for own in names
    )
    if each and all(is_loss(own[0]) and own != ["loss"] for own in names):
        for row, (name,) in zip(rows, names):
            row["loss"] = row.pop(name)


def _name(before: str, word: str) -> str:
    """A loss' name with the words right before it, in small letters."""
    *words, end = before.split(" ")
    name = [word]
    while words and not end and BEFORE_LOSS.fullmatch(words[-1]):
        name.insert(0, words.pop())
    return " ".join(name).lower()


def _has_loss(line: str) -> bool:
    return bool(_step_and_losses(line)[1] or MAIN_LOG.search(line))


def is_text(path: Path) -> bool:
    return path.is_file() and suffix_of(path) not in TABLES


def _is_nanogpt(path: Path, head: str) -> bool:
    """A step and its loss a line, unless most lines name both as "step: 10 loss: 5.9": those may have tokens too.

    Nor where such lines are a validation's, and the training calls its loss otherwise.
    """
    lines = [line for line in lines_of(head).lines if _has_loss(line)]
    if TRAIN_LOSS.search(head) and not any(split_of(line) == TRAINING for line in lines):
        return False
    named = sum(_names_both(line) for line in lines)
    return is_text(path) and bool(lines) and (bool(PER_STEP.search(head)) or 2 * named < len(lines))


def _names_both(line: str) -> bool:
    names = {plain(name) for name in fields_of(line)}
    counted = names & {*NAMES["step"].split(), *NAMES["tokens"].split()}
    return bool(counted) and any(name.endswith("loss") for name in names)


NANOGPT = Format(
    "nanogpt",
    "text lines with a step and its loss: nanoGPT, llm.c",
    _is_nanogpt,
    read_nanogpt,
)
