"""The steps of a planted line scored by themselves: is every value of the line that must be read back right, and all of them?

A part of critical_instances.py: a line of the skill `latest` asks for a value STEPS times or more. Each is scored with the true
line before it, so a step does not depend on earlier answers; the whole is right where all are.
`explained` is how much of the whole's curve over checkpoints the product of its steps is, with an interval over lines.
"""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from emergence_train.analysis.composition_share import share_by_product
from emergence_train.analysis.results import as_json
from emergence_train.config import load_run
from emergence_train.data.planted import Exercise
from emergence_train.evaluation.saved_model import load_model

STEPS = 6
BOOTSTRAPS = 1000


def places(exercise: Exercise) -> list[int]:
    """The last STEPS places that ask for a value that more than one digit before could be."""
    return sorted(exercise.asked)[-STEPS:]


@torch.no_grad()
def steps_right(run: Path, exercises: list[Exercise]) -> np.ndarray:
    """(checkpoints, exercises, STEPS) whether the likeliest next token at an asked place is the right one."""
    config, tokenizer = load_run(run), Tokenizer.from_file(str(run / "tokenizer.json"))
    chosen = [exercise for exercise in exercises if len(exercise.asked) >= STEPS]
    rows = [tokenizer.encode(exercise.text(), add_special_tokens=False).ids for exercise in chosen]
    if any(len(row) != len(exercise.symbols) for row, exercise in zip(rows, chosen)):
        raise ValueError("a symbol is not one token; a larger vocabulary makes it one")
    right = []
    for folder in sorted((run / "checkpoints").glob("step-*")):
        model = load_model(config.model, folder).eval()
        of_checkpoint = []
        for row, exercise in zip(rows, chosen):
            at = places(exercise)
            logits = model(torch.tensor([row]))
            likeliest = logits[0].argmax(-1)  # of the next token
            of_checkpoint.append([int(likeliest[place - 1]) == row[place] for place in at])
        right.append(of_checkpoint)
    return np.array(right)


def composition(run: Path, exercises: list[Exercise]) -> dict:
    """Of a run: the mean step and the whole at each checkpoint, and what the product of steps explains."""
    right = steps_right(run, exercises)
    out = {
        "lines": right.shape[1],
        "steps": STEPS,
        "step": [round(float(x), 4) for x in right.mean((1, 2))],
        "whole": [round(float(x), 4) for x in right.all(2).mean(1)],
    }
    if len(right) < 3 or np.ptp(right.all(2).mean(1)) == 0:
        return out
    return out | explained(right)


def explained(right: np.ndarray) -> dict:
    """Of (checkpoints, lines, steps) right steps; sampling is that of lines drawn again."""
    checkpoints, lines, steps = right.shape
    draws = np.random.default_rng(0).multinomial(lines, np.full(lines, 1 / lines), BOOTSTRAPS)
    weights = np.vstack([np.ones(lines), draws]) / lines  # the lines themselves, then lines drawn again
    whole = weights @ right.all(2).T
    single = weights @ right.transpose(1, 0, 2).reshape(lines, -1)
    apart = whole - single.reshape(-1, checkpoints, steps).prod(2)
    return {
        "explained": as_json(share_by_product(apart[0], whole[0], apart[1:] - apart[0], whole[1:] - whole[0])),
        "correlated": float(apart[0].mean()),
        "sharpest_step": sharpest(right.mean((1, 2))),
        "sharpest_whole": sharpest(whole[0]),
    }


def sharpest(values: np.ndarray) -> float:
    """The largest gain between two checkpoints, of the whole gain."""
    gain = values.max() - values.min()
    return float(np.diff(values).max() / gain) if gain > 0 else 0.0
