"""Composition: a task of several steps that are all needed. Where each succeeds with chance p, the whole does with p^steps."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from emergence_train.analysis.composition_share import share_by_product
from emergence_train.analysis.results import Interval, Share
from emergence_train.errors import InputError

BOOTSTRAPS = 1000


def composed(step_success: np.ndarray, steps: int) -> np.ndarray:
    """(n,) success of the whole, p^steps, of independent steps with success `step_success` (n,)."""
    return np.asarray(step_success, float) ** steps


@dataclass(frozen=True, kw_only=True)
class Composition:
    """How much of a whole's rise its steps explain. 1: a jump of the whole is what smooth steps make of it."""

    explained: Annotated[
        Interval, "share of the whole's variation over checkpoints that the product of its steps' successes explains"
    ]
    correlated: Annotated[float, "whole - product of steps, mean; above 0: steps succeed together"]
    sharpest_step: Annotated[Share, "largest gain of the mean step between two checkpoints, of its whole gain"]
    sharpest_whole: Annotated[Share, "the same of the whole"]


def explained_by_composition(steps_right: np.ndarray) -> Composition:
    """Compare the whole of a task with the product of its steps' success, checkpoint by checkpoint.

    Args:
        steps_right: (checkpoints, items, steps) bool: whether a step was right, each scored by itself.

    Returns:
        1 - mean squared (whole - product) / variance of the whole, of endless items: what sampling of items adds to both is taken
        out, and the interval is of items drawn again. Null where the whole changes no more than sampling may make it.

    Raises:
        InputError: a step is neither true nor false.
        ValueError: fewer than 3 checkpoints, or a whole that does not change.
    """
    given = np.asarray(steps_right)
    steps_right = given == 1
    if (neither := np.argwhere(~steps_right & (given != 0))).size:
        where = ", ".join(f"{name} {at}" for name, at in zip(("checkpoint", "item", "step"), neither[0].tolist()))
        raise InputError(
            f"steps_right: {where}: {given[tuple(neither[0])]} is neither true nor false; give scores of each step"
        )
    if steps_right.ndim != 3 or len(steps_right) < 3:
        raise ValueError("steps_right is (checkpoints, items, steps) with 3 checkpoints at least")
    checkpoints, items, steps = steps_right.shape
    every = steps_right.all(2)
    if np.ptp(every.mean(1)) == 0:
        raise ValueError("the whole does not change: there is nothing to explain")
    draws = np.random.default_rng(0).multinomial(items, np.full(items, 1 / items), BOOTSTRAPS)
    weights = np.vstack([np.ones(items), draws]) / items  # the items themselves, then items drawn again
    whole = weights @ every.T
    single = weights @ steps_right.transpose(1, 0, 2).reshape(items, -1)
    product = single.reshape(-1, checkpoints, steps).prod(2)
    apart = whole - product
    return Composition(
        explained=share_by_product(apart[0], whole[0], apart[1:] - apart[0], whole[1:] - whole[0]),
        correlated=float((whole[0] - product[0]).mean()),
        sharpest_step=_sharpest(steps_right.mean((1, 2))),
        sharpest_whole=_sharpest(whole[0]),
    )


def _sharpest(values: np.ndarray) -> float:
    gain = values.max() - values.min()
    return float(np.diff(values).max() / gain) if gain > 0 else 0.0
