"""Outcome and times of one run from its curve."""

import numpy as np
import pandas as pd

from emergence_train.analysis.grokking.result import APART, Outcome, RunResult


def first_at(updates: np.ndarray, accuracy: np.ndarray, level: float) -> int | None:
    """The first of `updates` (n,) whose `accuracy` (n,) reaches the level."""
    reached = accuracy >= level
    return int(updates[np.argmax(reached)]) if reached.any() else None


def outcome(train_90: int | None, heldout_90: int | None, finite: bool = True) -> Outcome:
    """Comprehension, grokking, memorisation or confusion; diverged where the loss did not stay `finite` and the run had not
    generalised before."""
    if not finite and heldout_90 is None:
        return "diverged"
    if train_90 is None:
        return "confusion"
    if heldout_90 is None:
        return "memorisation"
    return "grokking" if heldout_90 - train_90 >= APART else "comprehension"


def run_result(curve: pd.DataFrame, budget: int) -> RunResult:
    """The result of one run. `curve`: its rows by update; `budget`: updates that it could have had."""
    updates, last = curve["update"].to_numpy(), curve.iloc[-1]
    finite = bool(np.isfinite([last["train_loss"], last["heldout_loss"], last["norm"]]).all())
    times = {
        f"{side}_{percent}": first_at(updates, curve[f"{side}_accuracy"].to_numpy(), percent / 100)
        for side in ("train", "heldout")
        for percent in (90, 99)
    }
    before = None if times["heldout_90"] is None else max((*updates[updates < times["heldout_90"]], 0))
    known = times["train_90"] is not None and times["heldout_90"] is not None
    return RunResult(
        run=str(last["run"]),
        model=str(last["model"]),
        params=int(last["params"]),
        fraction=float(last["fraction"]),
        weight_decay=float(last["weight_decay"]),
        seed=int(last["seed"]),
        outcome=outcome(times["train_90"], times["heldout_90"], finite),
        censored=finite and times["heldout_90"] is None and int(last["update"]) >= budget,
        before_heldout_90=None if before is None else int(before),
        delay=times["heldout_90"] - times["train_90"] if known else None,  # type: ignore[operator]
        updates=int(last["update"]),
        train_accuracy=float(last["train_accuracy"]),
        heldout_accuracy=float(last["heldout_accuracy"]),
        norm=float(last["norm"]),
        **times,
    )
