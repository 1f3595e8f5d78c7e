"""Text logs of NAME: NUMBER or NAME=NUMBER, a line a step, or a line of the step with the fields indented below it.

torchtitan      step: 10  loss:  7.1234  grad_norm:  0.9  memory: ...      (in colours)
modded-nanogpt  step:10/8000 train_loss:7.1234 train_time:5000ms ...
litgpt          Epoch 1 | iter 40 step 10 | loss train: 7.123, val: n/a | iter time: ...
NeMo            Training epoch 0, iteration 9/7999 | lr: 0.0001 | global_step: 9 | reduced_train_loss: 7.123 | ...
OLMo            [step=10/8000,epoch=0]
                    train/CrossEntropyLoss=7.123
                    throughput/total_tokens=41,943,040
"""

import re
from pathlib import Path

from emergence_train.analysis.logs.encoded import stem_of, suffix_of, text_of
from emergence_train.analysis.logs.log import Format, Log, frame_of
from emergence_train.errors import InputError

COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Whole or not at all: of 47.22GiB nothing is a number
NUMBER = r"([-+]?(?:\d[\d,]*(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+|nan|inf)[KMGBT]?)(?!\w|\.\w|,\d)"
# Words that begin with a letter, a single space between them; the unit behind a number begins none
NAME = r"(?<![\w.])([A-Za-z_][\w./()-]*(?: [A-Za-z0-9_(][\w./()-]*)*)"
FIELD = re.compile(rf"['\"]?{NAME}['\"]?\s*[:=]\s*['\"]?{NUMBER}")
# A step, with the planned last one: "step: 10/8000", "[step=10", "iter 40", "step 10"
STEP = re.compile(r"\b(global_step|step|iteration|iter|update)s?\s*[:=]?\s*(\d[\d,]*)(?:\s*/\s*(\d+))?", re.IGNORECASE)
LOSS = re.compile(r"loss", re.IGNORECASE)
TRAINER = re.compile(r"^\{'loss': ")  # what transformers' Trainer prints: no step in it
WITHIN = 12  # lines below a step that may hold its loss
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


def fields_of(line: str) -> dict[str, str]:
    """The numbers of a line by their names, as they are written."""
    return {name.strip(): value.rstrip(",") for name, value in FIELD.findall(line)}


def _steps(line: str) -> dict[str, re.Match]:
    """By the word that each step of a line is called."""
    return {match[1].lower(): match for match in STEP.finditer(line)}


def _lines(text: str) -> list[str]:
    return COLOUR.sub("", text).splitlines()


def read_fields(path: Path) -> list[Log]:
    """A row for each line that has a step, with the fields of the indented lines below it."""
    rows: list[dict] = []
    places: list[int] = []
    end = None
    lines = _lines(text_of(path, errors="replace"))
    for number, line in enumerate(lines, 1):
        steps = _steps(line)
        if steps:
            rows.append(fields_of(line) | {word: match[2].replace(",", "") for word, match in steps.items()})
            places.append(number)
            planned = next((match[3] for match in steps.values() if match[3]), None)
            end = int(planned) if planned else end
        elif rows and line[:1].isspace():
            rows[-1] |= fields_of(line)
    kept = [(row, place) for row, place in zip(rows, places) if any(LOSS.search(name) for name in row)]
    if not kept and any(map(TRAINER.match, lines)):
        raise InputError(
            f"{path}: what transformers' Trainer prints has no steps; name its output directory, whose trainer_state.json has "
            f"them"
        )
    if not kept:
        raise InputError(f"{path}: no line has a step and its loss, as 'step: 10 loss: 6.1'; give another --format")
    return [Log(stem_of(path), path, frame_of([row for row, _ in kept], [place for _, place in kept]), end_step=end)]


def _takes(path: Path, head: str) -> bool:
    if not path.is_file() or suffix_of(path) in TABLES:
        return False
    lines = _lines(head)
    if any(map(TRAINER.match, lines)):
        return True
    with_step = [k for k, line in enumerate(lines) if STEP.search(line)]
    return any(_has_loss(lines, k) for k in with_step)


def _has_loss(lines: list[str], at: int) -> bool:
    """Whether the line, or an indented one soon below it, has a field of a loss."""
    block = lines[at : at + 1]
    for line in lines[at + 1 : at + 1 + WITHIN]:
        if not line[:1].isspace():
            break
        block.append(line)
    return any(LOSS.search(name) for line in block for name in fields_of(line))


FIELDS = Format("text", "text with fields: torchtitan, OLMo, NeMo, litgpt, modded-nanogpt", _takes, read_fields)
