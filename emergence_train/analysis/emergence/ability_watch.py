"""Ability forecasts of a run in progress: thresholds of an earlier `analyze emergence` against its loss forecast.

Training calls this at every checkpoint; the computation is that of forecast.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis.emergence.forecast import DRAWS, crossing, draw_losses
from emergence_train.analysis.emergence.result import Crossing
from emergence_train.errors import InputError
from emergence_train.input_files import read_text

Z = 1.959964  # standard deviations to the end of a 95% interval


@dataclass(frozen=True)
class Threshold:
    """The loss, nats per token, at which a task's metric leaves its plateau, with its 95% interval."""

    task: str
    metric: str
    value: float
    low95: float
    high95: float

    def draws(self, rng: np.random.Generator) -> np.ndarray:
        """(DRAWS,) losses: a normal distribution for each half of the interval, since result.json has no posterior."""
        z = rng.standard_normal(DRAWS)
        return self.value + z / Z * np.where(z < 0, self.value - self.low95, self.high95 - self.value)


def read_thresholds(path: Path, vocabulary: str) -> list[Threshold]:
    """The thresholds in a result.json, of runs whose losses compare with those under `vocabulary` (a fingerprint).

    Empty where no task has one. Raises InputError where the file is not such a result, or only of other vocabularies.
    """
    try:
        tasks = json.loads(read_text(path))["tasks"]
        families = {task["family"] for task in tasks}
        thresholds = [
            Threshold(task["task"], task["metric"], *(float(task["eta"][key]) for key in ("value", "low95", "high95")))
            for task in tasks
            if task["eta"] and task["family"] in ("", vocabulary)
        ]
    except FileNotFoundError:
        raise InputError(f"abilities: {path}: no such file; name the result.json of `analyze emergence`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"abilities: {path}: is not a result.json of `analyze emergence` ({' '.join(repr(error).split())[:120]})"
        ) from None
    if families and not families & {"", vocabulary}:
        raise InputError(
            f"abilities: {path}: its losses are of {', '.join(sorted(families)[:3])}, this run's of {vocabulary}: "
            f"they do not compare; analyse runs of the same prepared data"
        )
    return thresholds


def abilities_ahead(
    thresholds: list[Threshold], losses: dict[int, float], step_tokens: int, directory: Path
) -> dict[str, Crossing]:
    """Forecast when a run gains each ability, by "task/metric".

    `losses` are iid losses by step, nats; `directory` holds the config.yaml with the planned learning rates. Abilities
    without a forecast yet, for too few checkpoints, are omitted. Deterministic in the losses.
    """
    rows = pd.DataFrame(sorted(losses.items()), columns=["step", "loss"])
    rows = rows[np.isfinite(rows["loss"])].assign(params=0)
    rows["tokens"] = rows["step"] * step_tokens
    rng = np.random.default_rng(len(rows))
    ahead = draw_losses(directory.name, rows, directory, rng)
    abilities = {f"{task.task}/{task.metric}": crossing(ahead, task.draws(rng), rng) for task in thresholds}
    unknown = not len(ahead.future) and bool(ahead.note)
    return {name: ability for name, ability in abilities.items() if ability.status == "reached" or not unknown}


def format_abilities(abilities: dict[str, Crossing]) -> str:
    """The forecasts as one line for the console."""
    parts = []
    for name, ability in abilities.items():
        low, middle, high = ability.tokens.low95, ability.tokens.value, ability.tokens.high95
        when = f"not before its end (probability {ability.probability:.2f})"
        if middle is not None:
            when = f"at {middle:.3g} tokens [{low:.3g}, {'beyond its end' if high is None else format(high, '.3g')}]"
        parts.append(f"{name} {when}")
    return "  ".join(parts)
