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

from emergence_train import run_differences
from emergence_train.analysis.intervals import mean_p, mean_reach95
from emergence_train.analysis.position_weights.result import PositionWeightsResult, WeightsDifference
from emergence_train.errors import InputError
from emergence_train.input_files import read_text
from emergence_train.recorder import tables
from emergence_train.recorder.naming import display_names

UNIFORM = "uniform"
WEIGHTS = "training.position_weights"
PARTS = ("head", "body", "tail")
Weights = str | tuple[float, ...]  # UNIFORM, or relative weights
Run = tuple[Weights, int]  # with the seed


def regions(length: int) -> dict[str, tuple[int, int]]:
    """Positions (first, last; from 1, both inclusive) of head, body and tail of a sequence of `length` positions."""
    head, tail = max(round(0.1 * length), 1), length - max(round(0.1 * length), 1)
    return {"all": (1, length), "head": (1, head), "body": (head + 1, tail), "tail": (tail + 1, length)}


def compare_position_weights(runs: Iterable[str | Path]) -> PositionWeightsResult:
    """Compare the validation losses of runs with those of uniform weights, at the last common step, over seeds.

    Args:
        runs: run directories; each one's config.yaml has its weights and its seed.

    Returns:
        One row per variant, split and region; pairs share a seed, intervals are Student's t over seeds. Runs of one variant have
        the same weights and otherwise the same configuration but for seeds.

    Raises:
        InputError: no uniform run, none that shares a seed with another variant or that differs from it in more than the weights,
            no common step or split, or a run twice.
    """
    paths = _by_weights(runs)
    variants, notes = _variants(paths)
    frames = {run: tables.read(tables.POSITIONS, path) for run, path in paths.items()}
    step = max(set.intersection(*(set(frame["step"]) for frame in frames.values())), default=None)
    if step is None:
        raise InputError("the runs have no step in common; train them with the same tokens and checkpoints")
    losses = {run: _losses(frame[frame["step"] == step]) for run, frame in frames.items()}
    rows = []
    for variant, (weights, seeds) in variants.items():
        for split, region in dict.fromkeys(part for parts in losses.values() for part in parts):
            both = [(seed, losses[weights, seed], losses[UNIFORM, seed]) for seed in seeds]
            pairs = [seed for seed, ours, uniform in both if (split, region) in ours and (split, region) in uniform]
            if pairs:
                loss = np.array([losses[weights, seed][split, region] for seed in pairs])
                uniform = np.array([losses[UNIFORM, seed][split, region] for seed in pairs])
                rows.append(_difference(variant, split, region, int(step), loss, uniform))
    if not rows:
        raise InputError("no pair of runs has a split in common; train both on the same data")
    return PositionWeightsResult(rows=tuple(rows), notes=(*notes, *_missing_splits(paths, losses, int(step))))


def _missing_splits(paths: dict, losses: dict, step: int) -> tuple[str, ...]:
    """A note on each run that has not every split: its pair is left out there."""
    splits = {run: {split for split, _ in parts} for run, parts in losses.items()}
    missing = {run: sorted(set.union(*splits.values()) - own) for run, own in splits.items()}
    return tuple(
        f"{paths[run]}: has no losses of {', '.join(names)} at step {step}; left out there"
        for run, names in missing.items()
        if names
    )


def _by_weights(runs: Iterable[str | Path]) -> dict[Run, Path]:
    """The run directory of each (relative weights, seed)."""
    paths: dict[Run, Path] = {}
    for run in map(Path, runs):
        weights, seed = _weights(run)
        if (first := paths.setdefault((weights, seed), run)) is not run:
            others = ", ".join(run_differences.other_than(run, first, ())) or "nothing"
            raise InputError(
                f"{run}: a second run with weights {_label(run, weights)} and seed {seed} beside {first}, from which it differs "
                f"in {others}; give one of them"
            )
    return paths


def _variants(paths: dict[Run, Path]) -> tuple[dict[str, tuple[Weights, list[int]]], list[str]]:
    """(the weights and the seeds shared with uniform weights of each variant, by its name; notes on those that were parted).

    Runs are of one variant where nothing differs but seeds. Variants of one label are told apart by the name of a run.
    """
    members: list[tuple[Weights, list[int]]] = []
    notes = []
    for (weights, seed), run in paths.items():
        if weights == UNIFORM or (UNIFORM, seed) not in paths:
            continue
        _check_pair(run, paths[UNIFORM, seed])
        alike = [seeds for other, seeds in members if other == weights]
        apart = [run_differences.other_than(run, paths[weights, seeds[0]], (WEIGHTS,), seeds=False) for seeds in alike]
        if [] in apart:
            alike[apart.index([])].append(seed)
            continue
        members.append((weights, [seed]))
        if apart:
            first = paths[weights, alike[0][0]]
            notes.append(f"{run}: differs from {first} in {', '.join(apart[0])}, and is a variant of its own")
    if not members:
        raise InputError(_unpaired(paths))
    firsts = [paths[weights, seeds[0]] for weights, seeds in members]
    labels = [_label(run, weights) for run, (weights, _) in zip(firsts, members)]
    names = display_names([(run.name, run) for run in firsts])
    shown = [f"{label} of {name}" if labels.count(label) > 1 else label for label, name in zip(labels, names)]
    return dict(sorted(zip(shown, members))), notes


def _unpaired(paths: dict[Run, Path]) -> str:
    """Why no variant shares a seed with uniform weights."""
    seeds: dict[str, list[str]] = {}
    for (weights, seed), run in paths.items():
        seeds.setdefault(_label(run, weights), []).append(str(seed))
    uniform = seeds.pop(UNIFORM, ["none"])
    if not seeds:
        return "all runs have uniform weights; add one with training.position_weights and the seed of one of them"
    each = ", ".join(f"{name} of seed {', '.join(numbers)}" for name, numbers in {**seeds, UNIFORM: uniform}.items())
    return f"no run shares its seed with one of uniform weights ({each}); train that with the seed of another"


def _check_pair(run: Path, uniform: Path) -> None:
    """Raise InputError where more than the weights differs, whose effect the difference would then show too."""
    if others := run_differences.other_than(run, uniform, (WEIGHTS,)):
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
        p = mean_p(gap)
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


def _weights(run: Path) -> Run:
    """The relative weights and the seed of a run directory's configuration."""
    path = run / "config.yaml"
    try:
        config = yaml.safe_load(read_text(path))
        weights, seed = config["training"].get("position_weights") or {}, int(config["seed"])
        return _relative([float(weight) for weight in weights.get("vector") or _parts(weights)]), seed
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: has no position weights and seed; is this a run directory?") from error


def _relative(weights: list[float]) -> Weights:
    """Weights of head, body and tail, or of each position where these do not say all, over their largest: the loss is a weighted
    mean, which no factor of all of them changes."""
    if len(set(weights)) == 1:
        return UNIFORM
    if len(weights) > len(PARTS):
        edge = regions(len(weights))["head"][1]
        head, body, tail = parts = [weights[0], weights[edge], weights[-1]]
        if weights == [head] * edge + [body] * (len(weights) - 2 * edge) + [tail] * edge:
            weights = parts
    return tuple(round(weight / max(weights), 9) for weight in weights)


def _parts(weights: dict) -> list[float]:
    return [weights.get(name, 1.0) for name in PARTS]


def _label(run: Path, weights: Weights) -> str:
    """The weights as the run's configuration has them."""
    given = run_differences.read_config(run)["training"].get("position_weights") or {}
    if weights == UNIFORM or given.get("vector"):
        return UNIFORM if weights == UNIFORM else "vector"
    return ", ".join(f"{name} x{weight:.12g}" for name, weight in zip(PARTS, _parts(given)) if weight != 1.0)


def _losses(frame: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Mean loss per (split, region)."""
    losses = {}
    for split, rows in frame.groupby("split"):
        for region, (first, last) in regions(int(rows["position"].max())).items():
            part = rows[rows["position"].between(first, last)]
            if part["count"].sum():
                losses[str(split), region] = float(part["loss_sum"].sum() / part["count"].sum())
    return losses
