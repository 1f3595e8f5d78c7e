"""What lies ahead of a run: its planned end and learning rate, from a configuration or from the command line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from pydantic import ValidationError

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.errors import InputError
from emergence_train.input_files import read_text
from emergence_train.optim.schedule import Schedule, learning_rate

KEYS = {"lr": "lr", "warmup": "warmup_tokens", "final": "final_ratio", "decay": "decay_tokens", "shape": "decay_shape"}
EXAMPLE = "cosine,lr=3e-4,warmup=2e9,final=0.1"
POINTS = 2000  # at which a plan is computed
AT_PEAK = 0.999  # a rate of this share of the peak has not begun to fall
FLAT = 1e-9  # of a cosine over its rows: its end is too far ahead to be told from a line
FALL_ROWS = 5  # different rates of a fall, at least, that its course is read from
SAME = 0.003  # of the fall seen: a course that leaves no row by more is the one that the rows follow
ROUGH = 0.02  # likewise, where the rates are rounded
MULTIPLIER = 0.3  # a peak rate from here on is no rate that Adam or Muon trains with, but a factor of one
HIGH = 0.3  # of the logged peak: a rate that two schedules have in common says something from here on
OFF = 0.1  # of the logged peak: a rate further from the plan is another one; those of one digit are off by half of that


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


def rates_of(schedule: Schedule, total: float) -> np.ndarray:
    """(K, 2) tokens and learning rate of a whole run of `total` tokens."""
    # the corners belong to the grid, so that nothing is lost between its points
    corners = np.clip([schedule.warmup_tokens, total - schedule.decay_tokens], 0, total)
    tokens = np.unique(np.r_[np.linspace(0, total, POINTS), corners])
    return np.c_[tokens, [learning_rate(schedule, t, total) for t in tokens]]


def planned_schedule(path: Path) -> tuple[Schedule, float] | None:
    """(schedule, tokens) that a run directory's config.yaml plans; None if it plans none."""
    try:
        tree = yaml.safe_load(read_text(path))
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


def planned_rates(path: Path) -> np.ndarray | None:
    """(K, 2) tokens and learning rate that a run directory's config.yaml plans; None if it plans none."""
    planned = planned_schedule(path)
    return None if planned is None else rates_of(*planned)


@dataclass(frozen=True)
class OffPlan:
    """Rows whose logged rate is not the planned one, (n,) of rows at n steps."""

    rows: np.ndarray
    everywhere: bool  # of the rows with a high rate none is on the plan: near 0 every rate is near every other
    back: bool  # the last row that can be compared has a high rate and is on the plan


def off_plan(x: np.ndarray, plan: PlannedSchedule, logged: PlannedSchedule) -> OffPlan:
    """Compare the logged rates with the planned ones, of rows at steps `x` (n,).

    A rate within OFF of what is planned at its row or between the rows beside it is the planned one: a log may be a row late.
    """
    planned, rate = plan.peak * plan.share(np.r_[0.0, x, x[-1]]), logged.peak * logged.share(x)
    near = np.stack([planned[:-2], planned[1:-1], planned[2:]])
    off = np.maximum(rate - near.max(0), near.min(0) - rate) > OFF * logged.peak
    compared = (x > max(plan.warmup_end, logged.warmup_end)) & (x <= logged.rows[0][-1])
    high = compared & (np.maximum(planned[1:-1], rate) > HIGH * logged.peak)
    on = compared & ~off
    last = (on & high)[compared][-1:]
    return OffPlan(compared & off, not (on & (high if high.any() else compared)).any(), bool(last.any()))


def continued(plan: PlannedSchedule, end: float) -> tuple[PlannedSchedule, str] | None:
    """The plan up to step `end`, where its rows fall in a way that says how they go on, and that way in words.

    Courses: a cosine that ends at `end`; and from the last row at the peak a straight line, 1 - sqrt, or the inverse square
    root of the steps. One is taken where it meets every row of the fall within SAME of it, or their rounding. None: the
    rate has not begun to fall, or falls in another way.
    """
    x, e = plan.rows
    falls = np.flatnonzero(e >= AT_PEAK)[-1] + 1
    if len(np.unique(e[falls:])) < FALL_ROWS:
        return None
    ahead = np.linspace(x[-1], end, POINTS)[1:]
    fall = 1 - float(e[-1])
    enough = min(SAME * fall + _rounding(plan.peak * e[falls:]) / plan.peak, ROUGH * fall)
    best: tuple[float, np.ndarray, str] | None = None
    for name, miss, rates in _courses(x, e, falls, ahead, end):
        if miss <= enough and rates[-1] > -0.01 and (best is None or miss < best[0]):
            best = miss, np.maximum(rates, 0.0), name
    if best is None:
        return None
    whole = PlannedSchedule(np.r_[x, ahead], plan.peak * np.r_[e, best[1]], plan.tokens / plan.x[-1])
    return whole, best[2]


def _rounding(rate: np.ndarray) -> float:
    """By how much rates (n,) are off where all were written with two to four digits; 0 where they have more."""
    for digits in (2, 3, 4):
        if all(np.isclose(float(f"{value:.{digits}g}"), value, rtol=1e-9) for value in rate):
            return 0.5 * 10.0 ** (np.floor(np.log10(max(rate.max(), 1e-30))) - digits + 1)
    return 0.0


def _courses(
    x: np.ndarray, e: np.ndarray, falls: int, ahead: np.ndarray, end: float
) -> Iterator[tuple[str, float, np.ndarray]]:
    """(name, largest miss of a row of the fall, rates at `ahead`) of each course; each is a line in one variable."""
    for start in np.linspace(0, x[falls - 1], 41):  # rows seldom show where a warm-up ended
        at, later = (np.cos(np.pi * (steps - start) / (end - start)) for steps in (x[falls:], ahead))
        if np.ptp(at) < FLAT:
            continue
        slope, level = np.polyfit(at, e[falls:], 1)
        yield "a cosine", float(np.abs(level + slope * at - e[falls:]).max()), level + slope * later
    turned = {
        "a straight line": (lambda rate: rate, lambda line: line),
        "1 - sqrt": (lambda rate: (1 - rate) ** 2, lambda line: 1 - np.sqrt(np.maximum(line, 0))),
        "an inverse square root": (lambda rate: rate**-2.0, lambda line: np.maximum(line, 1e-9) ** -0.5),
    }
    for name, (turn, back) in turned.items():
        slope, level = np.polyfit(x[falls:], turn(np.maximum(e[falls:], 1e-6)), 1)
        yield name, float(np.abs(back(level + slope * x[falls:]) - e[falls:]).max()), back(level + slope * ahead)
