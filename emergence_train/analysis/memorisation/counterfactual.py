"""Counterfactual memorisation: how much better models predict a text that they were trained on than models that were not.

After Zhang et al. (arXiv 2112.12938): the expected performance on a text of models whose training data, drawn at random, contain
it, less that of models whose data do not. Theirs is the accuracy of the next token; here it is the log-likelihood, so a value is
a difference of losses in nats a token, and the share of texts that are produced exactly. Common text, which every model
predicts well, has a value of 0, however low its loss.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from emergence_train.analysis.intervals import jackknife_error, reach95
from emergence_train.analysis.memorisation.items import OF_ANY_LENGTH, checked
from emergence_train.analysis.memorisation.result import CounterfactualMemorisation
from emergence_train.analysis.results import Interval

LEAST_MODELS = 3  # for an interval


@dataclass(frozen=True)
class Matrix:
    """Models by items: which model was trained on which, the loss, and whether it was produced exactly; all (models, items)."""

    trained: np.ndarray
    loss: np.ndarray
    extracted: np.ndarray


def counterfactual(items: pd.DataFrame) -> tuple[CounterfactualMemorisation, ...]:
    """Compare models with and without each text, by size and by how often those that saw it did.

    Args:
        items: as `analyze` takes them, with `item`, equal where the text is. Models are runs of as many parameters at the same
            step.

    Returns:
        For each size and step: over all texts, then by the times seen. Nothing where no text was seen by some models and not by
        others.

    Raises:
        InputError: the rows are not as items.py has them.
    """
    items, rows = checked(items, OF_ANY_LENGTH), []
    for (params, step), group in items.groupby(["params", "step"]):
        if group["run"].nunique() < 2:
            continue
        tables = {name: group.pivot_table(index="run", columns="item", values=name) for name in ("seen", "loss")}
        got = group.assign(extracted=group["extracted"].astype(float)).pivot_table("extracted", "run", "item")
        asked = tables["seen"].notna().all()
        seen = tables["seen"].loc[:, asked].to_numpy()
        whole = Matrix(seen > 0, tables["loss"].loc[:, asked].to_numpy(), got.loc[:, asked].to_numpy())
        both = whole.trained.any(0) & ~whole.trained.all(0)
        if not both.any():
            continue
        times = np.divide(seen.sum(0), whole.trained.sum(0), out=np.zeros(seen.shape[1]), where=whole.trained.any(0))
        chosen = [("all", both)] + [(name, both & inside) for name, inside in _levels(times)]
        rows += [_row(int(params), int(step), name, whole, part, times) for name, part in chosen if part.any()]
    return tuple(rows)


def _levels(times: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Doublings of the mean times seen: "1", "2", "4", ... for those from 2^k / sqrt 2 to 2^k sqrt 2."""
    with np.errstate(divide="ignore"):
        power = np.rint(np.log2(times))
    return [(f"{2.0**k:g}", power == k) for k in sorted(set(power[np.isfinite(power)]))]


def _row(
    params: int, step: int, seen: str, whole: Matrix, part: np.ndarray, times: np.ndarray
) -> CounterfactualMemorisation:
    trained, loss, extracted = (values[:, part] for values in (whole.trained, whole.loss, whole.extracted))
    return CounterfactualMemorisation(
        params=params,
        step=step,
        seen=seen,
        times=float(times[part].mean()),
        models=len(trained),
        items=int(part.sum()),
        nats=over_models(trained, -loss),
        extracted=over_models(trained, extracted, most=1.0),
    )


def over_models(trained: np.ndarray, value: np.ndarray, most: float = np.inf) -> Interval:
    """Mean over items of (mean of models with - mean of models without), with a jackknife's interval over models.

    Args:
        trained: (models, items) bool; every item has models of both kinds. value: (models, items) performance. most: the
            greatest difference that there can be, of either sign.

    Models are the draws: items of one model share its luck. Student's t with models - 1 degrees of freedom; no interval for
    fewer than 3 models, where leaving a model out leaves no item with both kinds, or where it changes nothing.
    """
    whole = _difference(trained, value)
    models = len(trained)
    if models < LEAST_MODELS:
        return Interval(whole, None, None)
    left = np.array([_difference(np.delete(trained, k, 0), np.delete(value, k, 0)) for k in range(models)])
    if np.isnan(left).any():
        return Interval(whole, None, None)
    error = jackknife_error(left, left.mean())
    if error < 1e-12:
        return Interval(whole, None, None)
    reach = reach95(error, models - 1)
    return Interval(whole, float(max(whole - reach, -most)), float(min(whole + reach, most)))


def _difference(trained: np.ndarray, value: np.ndarray) -> float:
    """Mean over the items that have models of both kinds; NaN where none has."""
    both = trained.any(0) & ~trained.all(0)
    if not both.any():
        return float("nan")
    trained, value = trained[:, both], value[:, both]
    inside = (value * trained).sum(0) / trained.sum(0)
    outside = (value * ~trained).sum(0) / (~trained).sum(0)
    return float((inside - outside).mean())
