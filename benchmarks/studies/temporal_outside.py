"""Do forecasts hold on curves whose form is not among the analysis' own laws?

    python benchmarks/studies/temporal_outside.py [--cases 12] [--label shipped|laboratories]

temporal_coverage.py simulates the law that the analysis fits, with constants from its own prior: it checks the arithmetic.
Here the noiseless loss is of other forms, and of power laws whose exponent is not the prior's:

power       E + A (1 + w / k)^-a in the summed rate w, a given (0.15 to 0.8)
tokens      1.69 + 406.4 / N^0.34 + 410.7 / D^0.28, N parameters, D tokens (the fit of arXiv 2203.15556)
two powers  a quick and a slow power law
modes       modes of a power-law spectrum that decay exponentially, until the slowest of them has
stretched   E + A exp(-(w / k)^b), which levels off in the end
log         E + A / log(e + w / k)^1.5

The rate's own part is a floor that relaxes towards peak * drop * (rate / peak)^q within some steps at the peak rate. Cases
differ in length, rows, noise, peak, batch and drop. Scored is the noiseless end against the 95% interval without a row's noise.
Nothing is fitted here. Writes its label of benchmarks/results/temporal_outside.json: "laboratories" is without the allowance for
exponents that no laboratory of the prior has (priors.OTHERS), to show its effect.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from commands import origin

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal import priors
from emergence_train.analysis.temporal.forecast import forecast
from emergence_train.analysis.temporal.mean_law import CLASSICAL
from emergence_train.files import write_json

FRACTIONS = (0.1, 0.2, 0.4, 0.7)
SCHEDULES = ("constant", "cosine", "linear", "wsd")
EXPONENTS = (0.15, 0.25, 0.35, 0.5, 0.65, 0.8)
FORMS = (*(f"power {a:g}" for a in EXPONENTS), "tokens", "two powers", "modes", "stretched", "log")
TARGET = Path(__file__).parents[1] / "results" / "temporal_outside.json"


@dataclass(frozen=True)
class Case:
    """A run: rows (n,) of step, noiseless `truth` and logged `loss` in nats, and its plan."""

    step: np.ndarray
    truth: np.ndarray
    loss: np.ndarray
    plan: PlannedSchedule


def rates(schedule: str, progress: np.ndarray, warm: float) -> np.ndarray:
    """Rate over peak at shares of the run."""
    later = np.clip((progress - warm) / (1 - warm), 0, 1)
    falls = {
        "constant": np.ones_like(later),
        "cosine": 0.55 + 0.45 * np.cos(np.pi * later),
        "linear": 1 - 0.95 * later,
        "wsd": np.clip((1 - later) / 0.15, 0.0, 1),
    }
    return np.minimum(progress / warm, 1) * falls[schedule]


def base(form: str, rng: np.random.Generator, work: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Loss without the rate's own part at summed rates `work` (steps at the peak) and `tokens`, both (n,)."""
    least, size = rng.uniform(1.7, 2.8), float(np.exp(rng.normal(0, 0.25)))
    kind, _, exponent = form.partition(" ")
    if kind == "power":
        return least + 2.2 * size * (1 + work / rng.uniform(20, 120)) ** -float(exponent)
    if form == "tokens":
        return 1.69 + 406.4 / float(np.exp(rng.uniform(np.log(3e7), np.log(3e9)))) ** 0.34 + 410.7 / tokens**0.28
    if form == "two powers":
        quick, slow = (1 + work / rng.uniform(100, 300)) ** -rng.uniform(0.8, 1.1), (1 + work / 40) ** -0.22
        return least + size * (1.5 * quick + 1.2 * slow)
    if form == "modes":
        times = np.geomspace(20, 2 * work[-1], 30)
        share = times ** -rng.uniform(0.2, 0.45)
        return least + 4.5 * size * np.exp(-work[:, None] / times) @ (share / share.sum())
    if form == "stretched":
        return least + 5 * size * np.exp(-((work / rng.uniform(60, 250)) ** rng.uniform(0.18, 0.3)))
    return least + 3 * size / np.log(np.e + work / rng.uniform(10, 60)) ** 1.5


def floor(rate: np.ndarray, drop: float, power: float, steps: float) -> np.ndarray:
    """(n,) nats that the rate keeps the loss up by, step for step: it relaxes within so many steps at the peak rate."""
    level, levels = 0.0, np.empty(len(rate))
    for k, share in enumerate(rate):
        level += min(share / steps, 1.0) * (drop * share**power - level)
        levels[k] = level
    return levels


def draw(form: str, schedule: str, seed: int) -> Case:
    """A run of a form and schedule with constants of its own."""
    rng = np.random.default_rng([seed, FORMS.index(form), SCHEDULES.index(schedule)])
    steps = int(np.exp(rng.uniform(np.log(4000), np.log(40000))))
    at = np.arange(1, steps + 1)
    rate = rates(schedule, at / steps, rng.uniform(0.005, 0.02))
    peak = float(np.exp(rng.uniform(np.log(2e-4), np.log(2e-3))))
    batch = int(2 ** rng.integers(17, 22))
    drop = 0.16 * float(np.exp(rng.normal(0, 0.3)))
    truth = base(form, rng, np.cumsum(rate), at * float(batch))
    truth = truth + floor(rate, drop, rng.uniform(0.6, 1.0), rng.uniform(40, 250))
    rows = np.unique(np.linspace(steps / 200, steps, int(rng.choice([60, 200, 600]))).astype(int)) - 1
    noise = float(np.exp(rng.uniform(np.log(0.002), np.log(0.015))))
    loss = truth[rows] + noise * rng.normal(size=len(rows))
    plan = PlannedSchedule(at.astype(float), peak * rate, float(batch))
    return Case(at[rows].astype(float), truth[rows], loss, plan)


def scores(case: Case, fractions: tuple[float, ...] = FRACTIONS) -> Iterator[dict]:
    """One row a fraction: whether the end was held, its error, the half-width, and the errors over the held-out part."""
    for fraction in fractions:
        seen = case.step <= fraction * case.step[-1]
        ahead = forecast(case.step[seen], case.loss[seen], case.step[~seen], case.plan)
        low, high = ahead.interval(95, noisy=False)
        ours, classical = (
            min(float(np.mean((guess - case.truth[~seen]) ** 2)) for guess in guesses)
            for guesses in ([ahead.mean], [ahead.fits[name].predict(ahead.x)[0] for name in CLASSICAL])
        )
        yield {
            "fraction": fraction,
            "held": bool(low[-1] <= case.truth[-1] <= high[-1]),
            "error": float(ahead.mean[-1] - case.truth[-1]),
            "half-width": float(high[-1] - low[-1]) / 2,
            "fall": float(case.truth[seen][-1] - case.truth[-1]),
            "quotient": ours / classical,
        }


def summary(rows: pd.DataFrame) -> dict:
    return {
        "forecasts": len(rows),
        "ends held": round(float(rows["held"].mean()), 3),
        "median error": round(float(rows["error"].median()), 4),
        "median half-width": round(float(rows["half-width"].median()), 4),
        "median squared error over the best classical law's": round(float(rows["quotient"].median()), 3),
    }


def by(rows: pd.DataFrame, *names: str) -> dict:
    """Nested summaries, the fraction innermost."""
    if not names:
        return summary(rows)
    return {str(value): by(part, *names[1:]) for value, part in rows.groupby(names[0], sort=False)}


def study(cases: int, first: int = 0, log: Callable[[str], None] = print) -> pd.DataFrame:
    """All rows: so many cases of every form and schedule."""
    rows = []
    for form in FORMS:
        for schedule in SCHEDULES:
            for seed in range(first, first + cases):
                each = scores(draw(form, schedule, seed))
                rows += [{"form": form, "schedule": schedule, "seed": seed} | row for row in each]
        log(f"{form}: {by(pd.DataFrame(rows).query('form == @form'), 'fraction')}")
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--label", choices=("shipped", "laboratories"), default="shipped")
    arguments, begin = parser.parse_args(), time.time()
    if arguments.label == "laboratories":
        priors.OTHERS = 0.0
    rows = study(arguments.cases)
    command = f"python benchmarks/studies/temporal_outside.py --cases {arguments.cases} --label {arguments.label}"
    result = origin(command) | {
        "cases of a form and schedule": arguments.cases,
        "all": by(rows, "fraction"),
        "schedules": by(rows, "schedule", "fraction"),
        "forms": by(rows, "form", "schedule", "fraction"),
        "seconds": round(time.time() - begin, 1),
    }
    both = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.is_file() else {}
    write_json(TARGET, both | {arguments.label: result})


if __name__ == "__main__":
    main()
