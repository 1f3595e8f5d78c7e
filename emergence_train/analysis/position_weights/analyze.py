"""Compare runs that weighted their loss by position: does suppressing head, body or tail change what is learned?

arXiv 2404.17785 multiplies the training loss of the head (first 10% of positions), the body (middle 80%) or the tail
(last 10%) by 0.5 and finds no clear gain. Here runs are compared on the unweighted validation loss, region by region,
each against the uniform run of the same seed: the same data in the same order, so that the difference is the weights'.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from emergence_train import run_differences
from emergence_train.analysis.intervals import mean_reach95
from emergence_train.analysis.position_weights.result import PositionWeightsResult, WeightsDifference
from emergence_train.errors import InputError
from emergence_train.input_files import read_text
from emergence_train.recorder import tables

UNIFORM = "uniform"


def regions(length: int) -> dict[str, tuple[int, int]]:
    """Positions (first, last; from 1, both inclusive) of head, body and tail of a sequence of `length` positions."""
    head, tail = max(round(0.1 * length), 1), length - max(round(0.1 * length), 1)
    return {"all": (1, length), "head": (1, head), "body": (head + 1, tail), "tail": (tail + 1, length)}


def compare_position_weights(runs: Iterable[str | Path]) -> PositionWeightsResult:
    """Compare the validation losses of runs with those of uniform weights, at the last common step, over seeds.

    Args:
        runs: run directories; each one's config.yaml has its weights and its seed.

    Returns:
        One row per variant, split and region; pairs share a seed, intervals are Student's t over seeds.

    Raises:
        InputError: no uniform run, none that shares a seed with another variant or that differs from it in more than the weights,
            no common step or split, or a run twice.
    """
    paths = _by_weights(runs)
    variants = sorted({variant for variant, _ in paths} - {UNIFORM})
    seeds = {v: [seed for name, seed in paths if name == v and (UNIFORM, seed) in paths] for v in variants}
    _check_seeds(paths, seeds)
    for variant, seed in paths:
        if seed in seeds.get(variant, ()):
            _check_pair(paths[variant, seed], paths[UNIFORM, seed])
    frames = {run: tables.read(tables.POSITIONS, path) for run, path in paths.items()}
    step = max(set.intersection(*(set(frame["step"]) for frame in frames.values())), default=None)
    if step is None:
        raise InputError("the runs have no step in common; train them with the same tokens and checkpoints")
    losses = {run: _losses(frame[frame["step"] == step]) for run, frame in frames.items()}
    rows = []
    for variant in variants:
        for split, region in dict.fromkeys(part for parts in losses.values() for part in parts):
            both = [(seed, losses[variant, seed], losses[UNIFORM, seed]) for seed in seeds[variant]]
            pairs = [seed for seed, ours, uniform in both if (split, region) in ours and (split, region) in uniform]
            if pairs:
                loss = np.array([losses[variant, seed][split, region] for seed in pairs])
                uniform = np.array([losses[UNIFORM, seed][split, region] for seed in pairs])
                rows.append(_difference(variant, split, region, int(step), loss, uniform))
    if not rows:
        raise InputError("no pair of runs has a split in common; train both on the same data")
    return PositionWeightsResult(rows=tuple(rows), notes=_missing_splits(paths, losses, int(step)))


def _missing_splits(paths: dict, losses: dict, step: int) -> tuple[str, ...]:
    """A note on each run that has not every split: its pair is left out there."""
    splits = {run: {split for split, _ in parts} for run, parts in losses.items()}
    missing = {run: sorted(set.union(*splits.values()) - own) for run, own in splits.items()}
    return tuple(
        f"{paths[run]}: has no losses of {', '.join(names)} at step {step}; left out there"
        for run, names in missing.items()
        if names
    )


def _by_weights(runs: Iterable[str | Path]) -> dict[tuple[str, int], Path]:
    """The run directory of each (variant, seed)."""
    paths: dict[tuple[str, int], Path] = {}
    for run in map(Path, runs):
        variant, seed = _variant(run)
        if (first := paths.setdefault((variant, seed), run)) is not run:
            others = ", ".join(run_differences.other_than(run, first, ())) or "nothing"
            raise InputError(
                f"{run}: a second run with weights {variant} and seed {seed} beside {first}, from which it differs in {others}; "
                "give one of them"
            )
    return paths


def _check_seeds(paths: dict[tuple[str, int], Path], shared: dict[str, list[int]]) -> None:
    """Raise InputError where no variant has `shared` seeds with uniform weights."""
    if any(shared.values()):
        return
    if not shared:
        raise InputError(
            "all runs have uniform weights; add one with training.position_weights and the seed of one of them"
        )
    seeds = {name: ", ".join(str(seed) for variant, seed in paths if variant == name) for name in (*shared, UNIFORM)}
    each = ", ".join(f"{name} of seed {numbers or 'none'}" for name, numbers in seeds.items())
    raise InputError(
        f"no run shares its seed with one of uniform weights ({each}); train that with the seed of another"
    )


def _check_pair(run: Path, uniform: Path) -> None:
    """Raise InputError where more than the weights differs, whose effect the difference would then show too."""
    if others := run_differences.other_than(run, uniform, ("training.position_weights",)):
        raise InputError(
            f"{run}: differs from {uniform} in {', '.join(others)} beside its weights; train the uniform run with the same"
        )


def _difference(
    variant: str, split: str, region: str, step: int, loss: np.ndarray, uniform: np.ndarray
) -> WeightsDifference:
    """The paired difference of losses (nats, one a seed) with its 95% interval."""
    gap = loss - uniform
    low = high = p = None
    if len(gap) > 1:
        reach = mean_reach95(gap)
        low, high = float(gap.mean() - reach), float(gap.mean() + reach)
        p = float(2 * stats.t.sf(abs(gap.mean()) / max(stats.sem(gap), 1e-300), len(gap) - 1))
    return WeightsDifference(
        variant=variant,
        split=split,
        region=region,
        step=step,
        seeds=len(gap),
        loss=float(loss.mean()),
        difference=float(gap.mean()),
        low95=low,
        high95=high,
        p=p,
    )


def _variant(run: Path) -> tuple[str, int]:
    """The weights, as text, and the seed of a run directory's configuration."""
    path = run / "config.yaml"
    try:
        config = yaml.safe_load(read_text(path))
        weights, seed = config["training"].get("position_weights") or {}, int(config["seed"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: has no position weights and seed; is this a run directory?") from error
    if weights.get("vector"):
        return "vector", seed
    changed = [f"{name} x{weights[name]:g}" for name in ("head", "body", "tail") if weights.get(name, 1.0) != 1.0]
    return ", ".join(changed) or UNIFORM, seed


def _losses(frame: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Mean loss per (split, region)."""
    losses = {}
    for split, rows in frame.groupby("split"):
        for region, (first, last) in regions(int(rows["position"].max())).items():
            part = rows[rows["position"].between(first, last)]
            if part["count"].sum():
                losses[str(split), region] = float(part["loss_sum"].sum() / part["count"].sum())
    return losses
