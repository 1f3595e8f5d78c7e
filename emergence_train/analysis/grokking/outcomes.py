"""Outcome and times of one run from its curve."""

import numpy as np
import pandas as pd
from scipy import stats

from emergence_train.analysis.grokking.result import APART, LUCK, Outcome, RunResult
from emergence_train.errors import InputError

ROUNDING = 1e-6  # of accuracies in float32


def told_from_luck(questions: int, chance: float) -> float:
    """The least accuracy that so many questions are answered with by luck, each right with `chance`, in one of a thousand
    measurements at most; above 1 where there is none."""
    if questions < 1:
        return np.inf
    right = np.arange(questions + 2)
    return float(right[np.argmax(stats.binom.sf(right - 1, questions, chance) <= LUCK)] / questions)


def first_at(updates: np.ndarray, accuracy: np.ndarray, level: float) -> int | None:
    """The first of `updates` (n,) whose `accuracy` (n,) reaches the level; not 0, before which nothing was learnt."""
    reached = (accuracy >= level - ROUNDING) & (updates > 0)
    return int(updates[np.argmax(reached)]) if reached.any() else None


def outcome(train_90: int | None, heldout_90: int | None, finite: bool = True, telling: bool = True) -> Outcome:
    """Comprehension, grokking, memorisation or confusion; unclear where no held-out accuracy would be `telling`; diverged where
    the loss did not stay `finite` and the run had not generalised before."""
    if not telling:
        return "unclear"
    if not finite and heldout_90 is None:
        return "diverged"
    if train_90 is None:
        return "confusion"
    if heldout_90 is None:
        return "memorisation"
    return "grokking" if heldout_90 - train_90 >= APART else "comprehension"


def within(curve: pd.DataFrame, budget: int) -> tuple[pd.DataFrame, bool]:
    """The rows of a run up to the budget, and whether it came to its end: its next measurement would have been after it.

    Raises:
        InputError: there are no such rows.
    """
    updates = curve["update"].to_numpy()
    if updates[0] > budget:
        raise InputError(
            f"curves: run {curve['run'].iloc[0]} begins at update {updates[0]}; give a larger budget than {budget}"
        )
    gap = updates[-1] - updates[-2] if len(updates) > 1 else 0
    return curve[updates <= budget], bool(updates[-1] >= budget or updates[-1] + gap > budget)


def _finite(curve: pd.DataFrame, ended: bool) -> bool:
    """Whether the training loss stayed finite; and, of a run that `grok` ended for it, the held-out loss and the norm. Those
    are NaN too where they were not recorded, and then nothing ended for it."""
    last = curve.iloc[-1]
    recorded = {"heldout_loss": np.isfinite(last["heldout_accuracy"]), "norm": True}
    lost = [name for name, here in recorded.items() if here and np.isnan(last[name]) and curve[name].notna().any()]
    return bool(np.isfinite(last["train_loss"])) and (ended or not lost)


def run_result(curve: pd.DataFrame, budget: int) -> RunResult:
    """The result of one run. `curve`: its rows by update; `budget`: updates that it could have had."""
    curve, ended = within(curve, budget)
    updates, last = curve["update"].to_numpy(), curve.iloc[-1]
    finite = _finite(curve, ended)
    questions, chance = last.get("heldout_questions", np.nan), last.get("chance", np.nan)
    given = np.isfinite(questions) and np.isfinite(chance)
    least = {"train": 0.0, "heldout": told_from_luck(int(questions), chance) if given else 0.0}
    times = {
        f"{side}_{percent}": first_at(updates, curve[f"{side}_accuracy"].to_numpy(), max(percent / 100, least[side]))
        for side in least
        for percent in (90, 99)
    }
    before = None if times["heldout_90"] is None else max((*updates[updates < times["heldout_90"]], 0))
    telling = least["heldout"] <= 1
    censored = finite and telling and times["heldout_90"] is None
    known = times["train_90"] is not None and times["heldout_90"] is not None
    return RunResult(
        run=str(last["run"]),
        model=str(last["model"]),
        params=int(last["params"]),
        fraction=float(last["fraction"]),
        weight_decay=float(last["weight_decay"]),
        seed=int(last["seed"]),
        outcome=outcome(times["train_90"], times["heldout_90"], finite, telling),
        censored=censored,
        stopped=censored and not ended,
        chance=float(chance) if given else None,
        before_heldout_90=None if before is None else int(before),
        delay=times["heldout_90"] - times["train_90"] if known else None,  # type: ignore[operator]
        updates=int(last["update"]),
        train_accuracy=float(last["train_accuracy"]),
        heldout_accuracy=float(last["heldout_accuracy"]),
        norm=float(last["norm"]),
        **times,
    )
