"""What the story's tables say of each claim; numbers in, dictionaries out. The tables are those that story.py writes.

losses: a row a checkpoint and split (iid, ood): run, size, variant, seed, schedule, params, step, tokens, split, loss
laws: the position law of some checkpoints, on more sequences: losses' keys, and a0, a1, a2 with errors and status
evaluations: the schema of that name, with size, variant, seed, schedule
"""

import numpy as np
import pandas as pd
from intervals import student
from scipy import stats

METRIC = "answer_loglik"  # the one that every task has
# They have their own iid text and continuations: the ood text and the other tasks compare
OTHER_DATA = ("small-vocabulary", "other-text")
ENOUGH = 5  # checkpoints at which a0 and a1 must be known to say whether they still change


def _rounded(value: float) -> float | None:
    return None if not np.isfinite(value) else round(float(value), 4)


def identified(laws: pd.DataFrame) -> list[dict]:
    """Of each size and split: at how many last checkpoints a0 and a1 are known apart, and what the law explains."""
    last = laws[laws["step"] == laws.groupby(["run", "split"])["step"].transform("max")]
    return [
        {
            "size": size,
            "split": split,
            "runs": len(rows),
            "identified": int((rows["status"] == "ok").sum()),
            "r2": _rounded(rows["r2"].median()),
            "a0": _rounded(rows["a0"].median()),
            "a1": _rounded(rows["a1"].median()),
            "largest_miss_of_a_bin": _rounded(rows["bin_max"].median()),
        }
        for (size, split), rows in last.groupby(["size", "split"], sort=False)
    ]


def converged(laws: pd.DataFrame) -> list[dict]:
    """Slopes of log a0 and log a1 in log tokens, nats of the logarithm an octave, in the first and the second half of the octaves
    at which they are known; of runs with ENOUGH such checkpoints. A slope's error is that of its line or that which the
    parameters' own errors make, whichever is greater."""
    rows = []
    for (run, split), known in laws[(laws["status"] == "ok") & (laws["a0"] > 0)].groupby(["run", "split"], sort=False):
        if len(known) < ENOUGH:
            continue
        octave = np.log2(known["tokens"].to_numpy(float))
        late = octave > (octave[0] + octave[-1]) / 2
        row = {"run": run, "split": split, "checkpoints": len(known)}
        for name in ("a0", "a1"):
            value, error = (known[column].to_numpy(float) for column in (name, f"{name}_se"))
            for half, part in (("first", ~late), ("second", late)):
                slope, se = (
                    _slope(octave[part], np.log(value[part]), (error / value)[part]) if part.sum() > 2 else (None, None)
                )
                row[f"{name} {half}"], row[f"{name} {half} se"] = slope, se
        rows.append(row)
    return rows


def _slope(x: np.ndarray, y: np.ndarray, error: np.ndarray) -> tuple[float | None, float | None]:
    line = stats.linregress(x, y)
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return _rounded(line.slope), _rounded(max(float(line.stderr), float(np.sqrt((weights**2 * error**2).sum()))))


def at_tokens(curve: pd.DataFrame, tokens: float) -> float:
    """Loss of a run's rows at `tokens`, linear in their logarithm between checkpoints."""
    curve = curve.sort_values("tokens")
    return float(np.interp(np.log(tokens), np.log(curve["tokens"]), curve["loss"]))


def decays(losses: pd.DataFrame) -> list[dict]:
    """Nats by which decayed runs end below their stable one at the same tokens, by split and budget, with seeds and sizes."""
    rows = []
    for (size, seed, split), of in losses.groupby(["size", "seed", "split"], sort=False):
        stable = of[of["schedule"] == "stable"]
        for _, branch in of[of["schedule"] == "decay"].groupby("run"):
            end = branch.sort_values("tokens").iloc[-1]
            if stable.empty or end["tokens"] > stable["tokens"].max():
                continue  # a decay may be finished before its stable run is
            gain = at_tokens(stable, end["tokens"]) - end["loss"]
            rows.append({"size": size, "seed": seed, "split": split, "tokens": int(end["tokens"]), "gain": gain})
    frame = pd.DataFrame(rows, columns=["size", "seed", "split", "tokens", "gain"])
    return [
        {"split": split, "tokens": int(tokens), "runs": len(of), "positive": int((of["gain"] > 0).sum())}
        | student(of["gain"])
        for (split, tokens), of in frame.groupby(["split", "tokens"])
    ]


def returns(losses: pd.DataFrame) -> dict:
    """Does each doubling of the parameters lower the last loss by less than the one before? Loss at equal tokens as a parabola in
    log2 N: nats by which the gain of a doubling changes with each doubling (negative: returns shrink), and the gains measured."""
    last = last_stable(losses)
    x, y = np.log2(last["params"].to_numpy(float)), last["loss"].to_numpy(float)
    means = last.groupby("params")["loss"].mean()
    gains = -np.diff(means) / np.diff(np.log2(means.index.to_numpy(float)))
    result = {"gains_a_doubling": [_rounded(gain) for gain in gains], "runs": len(last)}
    if len(last) < 4:
        return result
    design = np.column_stack([np.ones_like(x), x - x.mean(), (x - x.mean()) ** 2])
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(y) - 3
    variance = float(((y - design @ beta) ** 2).sum()) / freedom * np.linalg.inv(design.T @ design)[2, 2]
    change, reach = -2 * float(beta[2]), 2 * float(stats.t.ppf(0.975, freedom) * np.sqrt(variance))
    return result | {
        "change": {"value": _rounded(change)}
        | dict(zip(("low95", "high95"), map(_rounded, (change - reach, change + reach))))
    }


def last_stable(losses: pd.DataFrame) -> pd.DataFrame:
    """The rows of the main sizes' stable runs at the last tokens, on the iid text."""
    stable = losses[(losses["variant"] == "") & (losses["schedule"] == "stable") & (losses["split"] == "iid")]
    return stable[stable["tokens"] == stable["tokens"].max()]


def decay_of_law(laws: pd.DataFrame) -> dict:
    """Where does a decay change the law? At its end a2 (nats), log a0 and log a1 less the stable run's at the same tokens, linear
    in their logarithm between its checkpoints; a0 and a1 where both runs' are known. The decays of one stable run are one value,
    their mean: `stable_runs` of them make the interval."""
    changes: dict[str, list[float]] = {"a2": [], "a0": [], "a1": []}
    laws = laws.assign(known=(laws["status"] == "ok") & (laws["a0"] > 0))
    for _, of in laws.groupby(["size", "seed"], sort=False):
        stable, decays = of[of["schedule"] == "stable"].sort_values("tokens"), of[of["schedule"] == "decay"]
        ends = decays[decays["step"] == decays.groupby("run")["step"].transform("max")].to_dict("records")
        for name, values in changes.items():
            each = [change for end in ends if (change := _change(name, end, stable)) is not None]
            values += [float(np.mean(each))] if each else []
    return {
        name: {"stable_runs": len(values)} | (student(np.array(values)) if values else {})
        for name, values in changes.items()
    }


def _change(name: str, end: dict, stable: pd.DataFrame) -> float | None:
    """A decay's parameter less the stable run's at the same tokens; None where either is not known."""
    there = stable if name == "a2" else stable[stable["known"]]
    if not (name == "a2" or end["known"]) or not there["tokens"].min() <= end["tokens"] <= there["tokens"].max():
        return None
    scale = np.asarray if name == "a2" else np.log
    return float(scale(end[name]) - np.interp(np.log(end["tokens"]), np.log(there["tokens"]), scale(there[name])))


def size_law(losses: pd.DataFrame) -> dict:
    """Does the last loss of the sizes, at equal tokens, fall as a power of the parameters? Slope of log loss on log10 N, and a
    test of the curve that a line leaves: sizes' distances from it against those of seeds (lack of fit)."""
    last = last_stable(losses)
    x, y = np.log10(last["params"].to_numpy(float)), np.log(last["loss"].to_numpy(float))
    line = stats.linregress(x, y)
    sizes, seeds = last["params"].nunique(), len(last)
    left = y - line.intercept - line.slope * x
    within = pd.Series(y).groupby(last["params"].to_numpy()).transform(lambda of: of - of.mean()).to_numpy()
    lack, pure = float(left @ left - within @ within), float(within @ within)
    freedom = (sizes - 2, seeds - sizes)
    ratio = (lack / freedom[0]) / max(pure / freedom[1], 1e-300) if min(freedom) > 0 else np.nan
    reach = stats.t.ppf(0.975, max(seeds - 2, 1)) * line.stderr
    return {
        "sizes": sizes,
        "runs": seeds,
        "tokens": int(last["tokens"].max()),
        "exponent": {
            "value": _rounded(-line.slope / np.log(10)),
            "low95": _rounded((-line.slope - reach) / np.log(10)),
            "high95": _rounded((-line.slope + reach) / np.log(10)),
        },
        "largest_miss_nats": _rounded(float(np.abs(np.expm1(left) * last["loss"].to_numpy()).max())),
        "lack_of_fit_p": _rounded(float(stats.f.sf(ratio, *freedom))) if np.isfinite(ratio) else None,
        "ends": [{"params": int(params), "loss": _rounded(of["loss"].mean())} for params, of in last.groupby("params")],
    }


def variants(evaluations: pd.DataFrame) -> list[dict]:
    """Does performance of other shapes, optimizers, mixtures and tokenizers lie on the main sizes' curve of it against the loss?

    Performance is METRIC; the loss is in bits per byte of the iid text, for OTHER_DATA of the ood text. The curve is a cubic of
    the main runs' checkpoints within the losses that both have. A size is one value, the mean distance of its runs from the
    cubic of the other sizes, and so is a variant, from that of all sizes: seeds of one shape share what the shape does. The
    variant's interval and p are Student's, by the spread of the sizes; p_holm is of all rows together. `share`, low95 and
    high95: the distance over the range of the main runs' performance.
    """
    rows = []
    stable = evaluations[(evaluations["schedule"] == "stable") & (evaluations["metric"] == METRIC)]
    for task, of in stable.groupby("task", sort=False):
        main, others = of[of["variant"] == ""], of[of["variant"] != ""]
        for variant, mine in others.groupby("variant", sort=False):
            if variant in OTHER_DATA and task == "continuation":
                continue
            axis = "ood_bits_per_byte" if variant in OTHER_DATA else "bits_per_byte"
            apart = [_distance(runs, main[main["size"] != size], axis) for size, runs in main.groupby("size")]
            apart = [value for value in apart if np.isfinite(value)]
            distance = _distance(mine, main, axis)
            if len(apart) < 3 or not np.isfinite(distance):
                continue  # the variant's losses are not among the sizes'
            error = float(np.std(apart, ddof=1)) * np.sqrt(1 + 1 / len(apart))
            width = float(main["value"].max() - main["value"].min())
            reach = float(stats.t.ppf(0.975, len(apart) - 1)) * error
            rows.append(
                {"task": task, "variant": variant, "axis": axis, "runs": mine["run"].nunique(), "sizes": len(apart)}
                | {"distance": _rounded(distance), "share": _rounded(distance / width)}
                | {"low95": _rounded((distance - reach) / width), "high95": _rounded((distance + reach) / width)}
                | {"p": float(2 * stats.t.sf(abs(distance) / max(error, 1e-12), len(apart) - 1))}
            )
    for row, p in zip(rows, _holm([row["p"] for row in rows])):
        row["p"], row["p_holm"] = _rounded(row["p"]), _rounded(p)
    return rows


def _holm(p: list[float]) -> np.ndarray:
    """Holm's adjusted p-values (1979): each times the number of those not smaller, never falling."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1)), 1)
    return adjusted


def _distance(rows: pd.DataFrame, main: pd.DataFrame, axis: str) -> float:
    """Mean over the runs in `rows` of their mean distance from the cubic of `main`; NaN where no losses are shared."""
    low, high = main[axis].min(), main[axis].max()
    inside = rows[rows[axis].between(low, high)]
    curve = np.polynomial.Polynomial.fit(main[axis], main["value"], 3)
    apart = inside["value"] - curve(inside[axis].to_numpy())
    return float(apart.groupby(inside["run"]).mean().mean()) if len(inside) else np.nan
