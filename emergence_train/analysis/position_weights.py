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

from emergence_train import files
from emergence_train.analysis.drawing import save
from emergence_train.analysis.figures import OBSERVED, Figure, Trace, interval
from emergence_train.errors import InputError
from emergence_train.recorder import tables

UNIFORM = "uniform"


def regions(length: int) -> dict[str, tuple[int, int]]:
    """Positions (first, last; from 1, both inclusive) of head, body and tail of a sequence of `length` positions."""
    head, tail = max(round(0.1 * length), 1), length - max(round(0.1 * length), 1)
    return {"all": (1, length), "head": (1, head), "body": (head + 1, tail), "tail": (tail + 1, length)}


def as_json(table: pd.DataFrame) -> dict:
    """The rows of compare_position_weights as {"rows": [...]}, null where there is no number."""
    rows = [{key: None if pd.isna(value) else value for key, value in row.items()} for row in table.to_dict("records")]
    return {"rows": rows}


def write(out: Path, table: pd.DataFrame) -> dict:
    """Write result.json, CSV and figures into the directory `out`; returns the result with the figures' names."""
    out.mkdir(parents=True, exist_ok=True)
    files.write_csv(out / "position_weights.csv", table)
    panels = figures(table)
    result = as_json(table) | {"figures": save(panels, out, "position_weights", columns=len(panels))}
    files.write_json(out / "result.json", result)
    return result


def format_weights(result: dict) -> str:
    """The short table that `analyze weights` prints: differences from uniform weights on iid and ood."""
    lines = [f"{'weights':<14}{'split':<8}{'region':<8}{'loss':>9}{'difference':>12}   95% interval over seeds"]
    for row in result["rows"]:
        if row["split"] in ("iid", "ood"):
            interval = "one seed" if row["low95"] is None else f"{row['low95']:+.4f} to {row['high95']:+.4f}"
            lines.append(
                f"{row['variant']:<14}{row['split']:<8}{row['region']:<8}{row['loss']:>9.4f}"
                f"{row['difference']:>+12.4f}   {interval} ({row['seeds']} seeds)"
            )
    return "\n".join(lines)


def figures(table: pd.DataFrame) -> tuple[Figure, ...]:
    """Difference from uniform weights by region with its 95% interval over seeds, one panel a split."""
    splits = [split for split in ("iid", "ood") if split in set(table["split"])] or sorted(set(table["split"]))[:2]
    return tuple(_panel(table[table["split"] == split], split) for split in splits)


def _panel(rows: pd.DataFrame, split: str) -> Figure:
    names, traces = [], []
    for number, (variant, part) in enumerate(rows.groupby("variant")):
        for row in part.set_index("region").reindex(list(regions(10))).dropna(subset=["difference"]).itertuples():
            known = np.isfinite(row.low95)
            low, high = (row.low95, row.high95) if known else (row.difference, row.difference)
            traces += interval(low, row.difference, high, len(names), colour=number)
            names.append(f"{variant}, {row.Index}")
    zero = Trace(np.zeros(2), np.array([-0.5, len(names) - 0.5]), "", OBSERVED)
    label = "loss - loss with uniform weights (nats)"
    return Figure(split, label, "", (zero, *traces), y_names=tuple(names))


def compare_position_weights(runs: Iterable[str | Path]) -> pd.DataFrame:
    """Differences from uniform weights at the last common step, over seeds.

    `runs` are run directories; each one's config.yaml says its weights and its seed. One row per variant, split and
    region: variant ("head x0.5", ...), split, region, step, seeds (pairs with the uniform run of the same seed), loss
    (mean over seeds, nats per token), difference (from uniform, nats; negative is better), low95, high95 (Student's t
    over seeds; null with fewer than two), p (two-sided, of no difference). Raises InputError if there is no uniform run
    or none shares a seed with another variant.
    """
    found: dict[tuple[str, int], pd.DataFrame] = {}
    for run in map(Path, runs):
        variant, seed = _variant(run)
        if (variant, seed) in found:
            raise InputError(f"{run}: a second run with weights {variant} and seed {seed}; name each once")
        found[variant, seed] = tables.read(tables.POSITIONS, run)
    variants = sorted({variant for variant, _ in found} - {UNIFORM})
    pairs = {v: [seed for name, seed in found if name == v and (UNIFORM, seed) in found] for v in variants}
    if not any(pairs.values()):
        raise InputError("no run shares its seed with a run of uniform weights; train the uniform one with that seed")
    step = max(set.intersection(*(set(frame["step"]) for frame in found.values())), default=None)
    if step is None:
        raise InputError("the runs have no step in common; train them with the same tokens and checkpoints")
    losses = {key: _losses(frame[frame["step"] == step]) for key, frame in found.items()}
    rows = []
    for variant in variants:
        for split, region in next(iter(losses.values())):
            seeds = [seed for seed in pairs[variant] if (split, region) in losses[variant, seed]]
            if not seeds:
                continue
            loss = np.array([losses[variant, seed][split, region] for seed in seeds])
            gap = loss - [losses[UNIFORM, seed][split, region] for seed in seeds]
            low = high = p = np.nan
            if len(gap) > 1:
                stderr = gap.std(ddof=1) / np.sqrt(len(gap))
                reach = stats.t.ppf(0.975, len(gap) - 1) * stderr
                low, high = gap.mean() - reach, gap.mean() + reach
                p = 2 * stats.t.sf(abs(gap.mean()) / max(stderr, 1e-300), len(gap) - 1)
            rows.append((variant, split, region, step, len(seeds), loss.mean(), gap.mean(), low, high, p))
    columns = ["variant", "split", "region", "step", "seeds", "loss", "difference", "low95", "high95", "p"]
    return pd.DataFrame(rows, columns=columns)


def _variant(run: Path) -> tuple[str, int]:
    """What a run directory's configuration says: the weights in words, and the seed."""
    path = run / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        weights, seed = config["training"].get("position_weights") or {}, int(config["seed"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: does not say the position weights and the seed; is this a run directory?") from error
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
