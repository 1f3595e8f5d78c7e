"""What lies ahead of a run: its planned end and learning rate, from a configuration or from the command line."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from pydantic import ValidationError

from emergence_train.errors import InputError
from emergence_train.optim.schedule import Schedule, learning_rate

KEYS = {"lr": "lr", "warmup": "warmup_tokens", "final": "final_ratio", "decay": "decay_tokens", "shape": "decay_shape"}
EXAMPLE = "cosine,lr=3e-4,warmup=2e9,final=0.1"
POINTS = 2000  # at which a plan is computed


@dataclass(frozen=True)
class Ahead:
    """What the user says of a run's rest: `to_tokens`, its end; `schedule`, the learning rate of the whole run."""

    to_tokens: int | None = None
    schedule: Schedule | None = None


def parse_schedule(text: str) -> Schedule:
    """KIND,lr=..,warmup=TOKENS,final=RATIO[,decay=TOKENS] as a schedule. Raises InputError."""
    kind, *rest = text.split(",")
    pairs = [part.partition("=") for part in rest]
    unknown = [key for key, equals, _ in pairs if key not in KEYS or not equals]
    if unknown:
        raise InputError(f"--schedule {text}: {unknown[0]!r} is none of {', '.join(KEYS)}; write it as {EXAMPLE}")
    given: dict[str, object] = {KEYS[key]: value for key, _, value in pairs}
    for name in ("warmup_tokens", "decay_tokens"):  # 2e9 is a whole number too
        if name in given:
            given[name] = _whole(str(given[name]))
    try:
        schedule = Schedule.model_validate({"kind": kind, **given})
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        where = next((key for key, key_name in KEYS.items() if key_name == name), "the kind")
        raise InputError(f"--schedule {text}: {where}: {problem['msg']}; write it as {EXAMPLE}") from None
    if (schedule.kind == "wsd") != (schedule.decay_tokens > 0):
        trouble = "needs decay=TOKENS, the length of its decay" if schedule.kind == "wsd" else "has no decay=TOKENS"
        raise InputError(f"--schedule {text}: {schedule.kind} {trouble}; write it as wsd,lr=3e-4,decay=2e9,final=0.1")
    return schedule


def _whole(text: str) -> int | str:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else text


def rates_of(schedule: Schedule, total: float, points: int = POINTS) -> np.ndarray:
    """(K, 2) tokens and learning rate of a whole run of `total` tokens."""
    # the corners belong to the grid, so that nothing is lost between its points
    corners = np.clip([schedule.warmup_tokens, total - schedule.decay_tokens], 0, total)
    tokens = np.unique(np.r_[np.linspace(0, total, points), corners])
    return np.c_[tokens, [learning_rate(schedule, t, total) for t in tokens]]


def planned_schedule(path: Path) -> tuple[Schedule, float] | None:
    """(schedule, tokens) that a run directory's config.yaml plans; None if it plans none."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if tree.get("imported"):
            return None
        training = tree["training"]
        planned, total = training["schedule"], float(training["tokens"])
    except (KeyError, TypeError, AttributeError):
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: cannot be read as a configuration ({' '.join(str(error).split())}); give --schedule"
        ) from error
    try:
        return Schedule.model_validate(planned), total
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(["training.schedule", *map(str, problem["loc"])])
        raise InputError(
            f"{path}: {where}: {problem['msg']} (got {problem['input']!r}); correct it, or give --schedule"
        ) from error


def planned_rates(path: Path, points: int = POINTS) -> np.ndarray | None:
    """(K, 2) tokens and learning rate that a run directory's config.yaml plans; None if it plans none."""
    planned = planned_schedule(path)
    return None if planned is None else rates_of(*planned, points)
