"""Logs that are text: what nanoGPT and llm.c print, and Megatron-LM's training log.

nanoGPT   iter 100: loss 6.1234, time 251.13ms, mfu 17.25%           ("tokens per iteration will be: 491,520" above)
llm.c     step  100/19560 | loss 6.123456 (+1.2z)| norm 0.31 (-)| lr 8.57e-05 | ...    ("| total batch size | 524288 |" above)
          step  100/19560 | train loss 6.123456 | norm 0.3100 | lr 8.57e-05 | ...       (its train_gpt2.py)
          s:99 trl:6.1234 lr:0.000086 norm:0.31    (its main.log; a validation is "s:250 tel:5.9")
Megatron  iteration      100/  500000 | consumed samples:  25600 | ... | learning rate: 1.5E-05 | lm loss: 6.1E+00 | ...
          (arguments above: "seq_length ................ 2048"; GPT-NeoX's log is alike, without the samples)
"""

import re
from pathlib import Path

from emergence_train.analysis.logs.encoded import stem_of, suffix_of, text_of
from emergence_train.analysis.logs.fields import TABLES, fields_of
from emergence_train.analysis.logs.lines import TOKENS_BEFORE, Lines, epoch_of, lines_of
from emergence_train.analysis.logs.log import Format, Log, finished_apart, frame_of
from emergence_train.analysis.logs.names import NAMES, plain
from emergence_train.analysis.logs.numbers import in_full
from emergence_train.analysis.logs.validation import SPLIT, TRAINING, split_of, without_validation
from emergence_train.errors import InputError

NUMBER = r"([-+]?(?:\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"
DIGITS = r"\d++(?:,\d{3}(?!\d))*+"
WHOLE = rf"({DIGITS}(?:(?:\.\d+)?[kKM]\b)|{DIGITS})"  # 1200, 1,200 or 1.2k
STEP = re.compile(rf"(?<!per )\b(?:iter|step)\s*:?\s*{WHOLE}(?:\.0+)?+(?!\.?\d)(?:\s*/\s*{WHOLE})?\b", re.IGNORECASE)
TOKENS = re.compile(r"(?<![/\w])tokens(?: seen| so far)?\s*:?\s+(\d[\d,]*(?:\.\d+)?[KMBT]?)\b(?!\s*/)")
LOSS = re.compile(rf"\bloss:?\s+{NUMBER}", re.IGNORECASE)
# nanoGPT's estimate of both, beside the losses of its steps
EVALUATION = re.compile(r"\btrain loss .*\bval loss", re.IGNORECASE)
TRAIN_LOSS = re.compile(r"train(?:ing)?[_/]loss", re.IGNORECASE)
RATE = re.compile(rf"\b(?:lr|learning rate):?\s+{NUMBER}", re.IGNORECASE)
MAIN_LOG = re.compile(rf"^s:(\d+) (trl|tel):{NUMBER}(?: lr:{NUMBER})?")
PER_STEP = re.compile(r"(?:tokens per iteration will be:|\|\s*total batch size\s*\||^Total batch size)\s*([\d,]+)")

MEGATRON = re.compile(r"\biteration\s+(\d+)/\s*(\d+)\s*\|")
FIELD = re.compile(rf"([A-Za-z][A-Za-z_ \-]*?)\s*:\s*{NUMBER}\s*(?:\||$)")
LENGTH = re.compile(r"\bseq_length\s*\.*\s+(\d+)\b")
BATCH = re.compile(r"^\s*(?:global|train)_batch_size\s*\.*\s+(\d+)\b")
WANTED = ("consumed samples", "consumed tokens", "learning rate", "lm loss")


def _lines(path: Path) -> Lines:
    return lines_of(text_of(path, errors="replace"))


def _whole(text: str) -> int:
    return round(in_full(text.replace(",", "")))


def read_nanogpt(path: Path) -> list[Log]:
    """Lines of a step with its loss. The evaluation's lines ("step 0: train loss 10.9, val loss 10.9") are none."""
    rows, places, per_step, end = [], [], None, None
    text = _lines(path)
    for number, line in enumerate(text.lines, 1):
        if not line:
            continue
        if match := PER_STEP.search(line):
            per_step = _whole(match[1])
        if match := MAIN_LOG.search(line):
            rows.append({"step": match[1], "loss" if match[2] == "trl" else "val_loss": match[3]})
            if match[4]:
                rows[-1]["lr"] = match[4]
            places.append(number)
            continue
        step, loss, rate = STEP.search(line), _loss(line), RATE.search(line)
        if step and loss and step.start() < loss.start() and not EVALUATION.search(line):
            tokens = "tok" in line.lower() and (TOKENS.search(line) or TOKENS_BEFORE.search(line))
            more = {"lr": rate, "tokens": tokens}
            rows.append({"step": step[1].replace(",", ""), "loss": loss[1], SPLIT: split_of(line)} | epoch_of(line))
            rows[-1] |= {name: match[1] for name, match in more.items() if match}
            places.append(number)
            end = _whole(step[2]) if step[2] else end
    if not rows:
        raise InputError(f"{path}: no line has a step and its loss, as 'iter 100: loss 6.1'; give --format or a table")
    return finished_apart(Log(stem_of(path), path, frame_of(rows, places), per_step, end, text.notes))


def read_megatron(path: Path) -> list[Log]:
    """Lines of an iteration; tokens from the samples, else the batch size, and the seq_length of the arguments."""
    rows, places, length, batch, end = [], [], None, None, None
    for number, line in enumerate(_lines(path).lines, 1):
        if (match := LENGTH.search(line)) and "iteration" not in line:
            length = int(match[1])
        if match := BATCH.search(line):
            batch = int(match[1])
        if not (iteration := MEGATRON.search(line)):
            continue
        fields = {name.strip().replace("_", " "): value for name, value in FIELD.findall(line)}
        row = {"iteration": iteration[1]} | {name: fields[name] for name in WANTED if name in fields}
        if length and "consumed tokens" not in row and "consumed samples" in row:
            row["consumed tokens"] = _whole(row["consumed samples"]) * length
        rows.append(row)
        places.append(number)
        end = int(iteration[2])
    if not rows:
        raise InputError(f"{path}: no line of an iteration, as 'iteration 100/ 5000 | ...'; give another --format")
    counted = any("consumed tokens" in row or "consumed samples" in row for row in rows)
    per_step = None if counted or not length or not batch else length * batch
    return finished_apart(Log(stem_of(path), path, frame_of(rows, places), per_step, end))


def _loss(line: str) -> re.Match[str] | None:
    """The loss of a line's step, which is not what the line names as a validation's."""
    return LOSS.search(without_validation(line))


def _has_loss(line: str) -> bool:
    return bool(STEP.search(line) and _loss(line) and not EVALUATION.search(line) or MAIN_LOG.search(line))


def _is_text(path: Path) -> bool:
    return path.is_file() and suffix_of(path) not in TABLES


def _is_megatron(path: Path, head: str) -> bool:
    return _is_text(path) and bool(MEGATRON.search(head)) and "reduced_train_loss" not in head  # which is NeMo's


def _is_nanogpt(path: Path, head: str) -> bool:
    """A step and its loss a line, unless most lines name both as "step: 10 loss: 5.9": those may have tokens too.

    Nor where such lines are a validation's, and the training calls its loss otherwise.
    """
    lines = [line for line in lines_of(head).lines if _has_loss(line)]
    if TRAIN_LOSS.search(head) and not any(split_of(line) == TRAINING for line in lines):
        return False
    named = sum(_names_both(line) for line in lines)
    return _is_text(path) and bool(lines) and (bool(PER_STEP.search(head)) or 2 * named < len(lines))


def _names_both(line: str) -> bool:
    names = {plain(name) for name in fields_of(line)}
    return "loss" in names and bool(names & {*NAMES["step"].split(), *NAMES["tokens"].split()})


MEGATRON_FORMAT = Format("megatron", "Megatron-LM's text log", _is_megatron, read_megatron)
NANOGPT = Format(
    "nanogpt",
    "text lines with a step and its loss: nanoGPT, llm.c",
    _is_nanogpt,
    read_nanogpt,
)
