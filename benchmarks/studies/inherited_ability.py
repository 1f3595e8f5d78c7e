"""Is a continuous metric called able where no run is, or where it knows nothing of the ability, and found where it does?

    python benchmarks/studies/inherited_ability.py [--simulations 60]

Ladders of 3 to 10 runs whose accuracy is counted from 200 items and whose log-likelihood scatters between runs in four forms
that the test (analysis/emergence/inherited.py) does not assume: Student's t with three degrees of freedom, skewed either way,
and drift of the checkpoints. "none": no run has the ability. "unrelated": one to three runs have it by the accuracy, and
the log-likelihood is that of the others. "both": it rises with it, by so many standard deviations of the runs, in curves that
the analysis does not contain. Called able is a log-likelihood that inherits the accuracy's runs.

Writes benchmarks/results/inherited_ability.json.
"""

import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import simulated_cells  # noqa: E402

from emergence_train.analysis.emergence.analyze import find  # noqa: E402
from emergence_train.analysis.emergence.inherited import with_able_runs  # noqa: E402
from emergence_train.analysis.emergence.table import task_metric  # noqa: E402

SCATTERS = ("student", "right", "left", "drift")
CASES = {"none": 0.0, "unrelated": 0.0, "both, 2": 2.0, "both, 4": 4.0, "both, 8": 8.0}
ITEMS, CHANCE, CHECKPOINTS = 200, 0.25, 16
LEVEL, DEVIATION = -14.0, 0.12  # nats: of the log-likelihood, and between runs
RESULT = HERE.parents[1] / "benchmarks" / "results" / "inherited_ability.json"


def scattered(form: str, rng: np.random.Generator) -> np.ndarray:
    """(CHECKPOINTS,) of one run's log-likelihood about its level, in standard deviations of the runs or about."""
    own = rng.normal(size=CHECKPOINTS) * 0.5
    if form == "student":
        return own + rng.standard_t(3) / np.sqrt(3)
    if form in ("right", "left"):
        skewed = (rng.lognormal(0, 0.8) - np.exp(0.32)) / 1.3
        return own + (skewed if form == "right" else -skewed)
    return own + np.cumsum(rng.normal(size=CHECKPOINTS)) * np.sqrt(2 / CHECKPOINTS)


def risen(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) in [0, 1]: late in the run, as Gompertz's curve, an arctangent, or a staircase."""
    begin, kind = rng.uniform(0.55, 0.75), rng.integers(3)
    if kind == 0:
        return np.exp(-4 * np.exp(-(x - begin) / 0.04))
    if kind == 1:
        return np.clip(0.5 + np.arctan((x - begin - 0.05) / 0.02) / 3, 0, 1)
    return np.clip(np.floor((x - begin) / 0.04) / 4, 0, 1)


def ladder(case: str, form: str, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Tables of the accuracy and the log-likelihood of a task."""
    runs = int(rng.choice([3, 4, 6, 10]))
    able = 0 if case == "none" else int(rng.integers(1, max(runs // 3, 1) + 1))
    rows = []
    for run in range(runs):
        x = np.linspace(0, 1, CHECKPOINTS) ** rng.uniform(0.7, 1.3)
        skill = risen(x, rng) if run < able else np.zeros(CHECKPOINTS)
        loglik = LEVEL + DEVIATION * (scattered(form, rng) + 0.5 * x + CASES[case] * skill)
        common = {"run": f"r{run}", "params": 10 ** int(rng.integers(5, 8)), "step": np.arange(1, CHECKPOINTS + 1)}
        loss = 5 - x + 0.02 * rng.normal()
        right = rng.binomial(ITEMS, CHANCE + 0.7 * skill) / ITEMS
        rows.append(pd.DataFrame(common | {"loss": loss, "acc": right, "loglik": loglik}))
    frame = pd.concat(rows, ignore_index=True).assign(task="t", items=ITEMS, higher_is_better=True)
    frame["tokens"] = frame["step"] * 10_000
    acc = frame.assign(metric="acc", value=frame["acc"], stderr=0.03, chance=CHANCE)
    loglik = frame.assign(metric="answer_loglik", value=frame["loglik"], stderr=0.2, chance=np.nan)
    return {"acc": acc, "answer_loglik": loglik}


def cell(case: str, form: str, count: int) -> dict:
    verdicts: Counter[str] = Counter()
    called = shown = at_chance = 0
    for number in range(count):
        rng = np.random.default_rng([number, list(CASES).index(case), SCATTERS.index(form), 3])
        findings = tuple(find(task_metric("", "t", name, frame)) for name, frame in ladder(case, form, rng).items())
        accuracy, loglik = with_able_runs(findings)
        called += loglik.verdict.able_runs > 0
        shown += accuracy.verdict.able_runs > 0
        at_chance += accuracy.verdict.able_runs > 0 and findings[1].verdict.name == "at-chance"
        verdicts[loglik.verdict.name] += 1
    return {
        "case": case,
        "scatter": form,
        "ladders": count,
        "accuracy_shows_able_runs": shown,
        "of_these_at_chance_alone": at_chance,
        "called_able": called,
        "verdicts": dict(verdicts),
    }


if __name__ == "__main__":
    simulated_cells.run(
        __doc__, 60, RESULT, lambda count: (cell(case, form, count) for case in CASES for form in SCATTERS)
    )
