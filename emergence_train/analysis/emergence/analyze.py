"""`analyze emergence`: performance as a function of loss. Verdict and threshold of each task, what size adds once loss is
known, the mirage check, the closed form in size, and when each run will gain each ability.

Entry points: `analyze_emergence`, `investigate` (the same with the findings behind it, for what writes and draws) and
`backtest` (hides the largest size). Nothing is written here: see output.py.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.emergence.forecast import OBSERVED, Outlook, crossing, fan, outlook, outlooks
from emergence_train.analysis.emergence.law import fit_size_law, least_size, losses_at_equal_tokens
from emergence_train.analysis.emergence.mirage import binned, continuous, emergence_score, mirage
from emergence_train.analysis.emergence.size import SizeEffect, collapse, size_effect
from emergence_train.analysis.emergence.table import TaskMetric
from emergence_train.analysis.emergence.verdict import PLATEAU, Verdict, judge

CONVENTION = (
    "Every task is at chance for an untrained model, so a threshold means a plateau over at least "
    f"{PLATEAU:.0%} of the loss range in which the model already beats a unigram model, then a rise. The plateau's level is "
    "estimated; it need not be nominal chance."
)


# Nats per token that no unigram model of subwords falls below: measured on English, 5.4 with a vocabulary of 512, 6.5 with 2,048,
# 6.7 to 7.4 with GPT-2's (but 3.2 with bytes).
LEAST_UNIGRAM = 5.0


@dataclass
class Finding:
    """One task's metric with everything found about it."""

    task: TaskMetric
    verdict: Verdict
    size: SizeEffect

    @property
    def eta_draws(self) -> np.ndarray:
        """(S,) draws of the threshold in nats per token, from the curves that were called emergent."""
        drawn = self.verdict.posterior
        low, high = self.verdict.eta[1], self.verdict.eta[2]
        width = 0.5 * (high - low) + 1e-3
        onset = drawn.onset[(drawn.onset >= low - width) & (drawn.onset <= high + width) & (drawn.onset > 0)]
        return self.task.loss_from + onset * (self.task.loss_to - self.task.loss_from)

    def curve(self) -> pd.DataFrame:
        """Posterior mean of performance along the loss with its 95% band, in the metric's own direction."""
        drawn, task = self.verdict.posterior, self.task
        low, high = np.quantile(drawn.curves, [0.025, 0.975], axis=0)
        ends = np.sort(np.stack([task.sign * low, task.sign * high]), axis=0)
        loss = task.loss_from + drawn.grid * (task.loss_to - task.loss_from)
        return pd.DataFrame(
            {"loss": loss, "value": task.sign * drawn.curves.mean(0), "low95": ends[0], "high95": ends[1]}
        )


def analyze_emergence(paths: str | Path | Iterable[str | Path]) -> dict:
    """Analyse the evaluations in `paths` (run directories, Parquet or CSV).

    Returns what result.json holds: {"tasks": [{"task", "metric", "family", "verdict", "probability", "eta",
    "size_effect", "rows", "sizes", ...}...], "mirage", "abilities", "outlooks", "size_law", "notes", "convention", "units"}.
    Runs whose losses do not compare (other vocabularies or families) are analysed apart. Raises InputError for tables
    that do not hold together. The result does not depend on the order of rows or files.
    """
    return investigate(paths)[0]


def investigate(paths: str | Path | Iterable[str | Path]) -> tuple[dict, list[Finding]]:
    """What analyze_emergence returns, and the findings behind it."""
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    tasks, notes = emergence_table.load(paths)
    findings = [find(task) for task in tasks]
    entries = [entry(one) for one in findings]
    directories = run_directories(paths)
    laws, abilities, fans, notes_ahead = _ahead(findings, directories)
    result = {
        "units": {
            "eta": "nats per token",
            "size_effect": "metric units per tenfold parameters, plus is better",
            "tokens": "trained so far",
        },
        "convention": CONVENTION,
        "notes": notes + notes_ahead,
        "tasks": entries,
        "mirage": mirage(entries),
        "size_law": laws,
        "abilities": abilities,
        "outlooks": fans,
    }
    return _plain(result), findings


def find(task: TaskMetric) -> Finding:
    """Verdict, threshold and size effect of one task. The random numbers depend on the task's names alone."""
    rng = generator(task.family, task.task, task.metric)
    if np.ptp(task.rows.y) == 0 and task.rows.items is None:
        reason = "every value is the same" if len(task.rows.y) > 1 else "one row"
        verdict = Verdict("not-identified", 1.0, {}, None, None, (0.0, 0.0, 0.0), None, reason)
    else:
        verdict = judge(
            task.rows, chance=task.chance, best=task.best, smallest=task.smallest, scale=task.scale, rng=rng
        )
        verdict = _or_unknown(task, verdict)
    return Finding(task, verdict, size_effect(task, rng))


def _or_unknown(task: TaskMetric, verdict: Verdict) -> Verdict:
    """An emergent verdict where the unigram model's loss is not known: it stands where every plausible unigram model would do,
    and what it rests on becomes a note; else it is not identified."""
    if verdict.name != "emergent" or task.frame.attrs.get("unigram") is not None:
        return verdict
    needed = task.loss_at(verdict.begins_by)
    if needed <= LEAST_UNIGRAM:
        task.notes.append(
            "the threshold rests on a unigram model's loss of loss_range.unigram_needed or more; that is below the "
            f"{LEAST_UNIGRAM:g} nats that subwords (a vocabulary of 512 or more, English) leave"
        )
        return verdict
    reason = (
        f"emergent (probability {verdict.probability:.2f}) if a unigram model's loss on this text is at least "
        f"{needed:.3g} nats per token, which is not known: give unigram_loss"
    )
    return replace(
        verdict, name="not-identified", probability=1 - verdict.probability, eta=None, plateau=None, reason=reason
    )


def generator(*names: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()) for name in names])


def entry(one: Finding) -> dict:
    """A task's part of result.json."""
    task, verdict = one.task, one.verdict
    loss, y = task.frame["loss"].to_numpy(float), task.rows.y
    varied = len(y) > 2 and np.ptp(y) > 0 and np.ptp(loss) > 0
    eta = plateau = None
    if verdict.eta is not None:
        middle, low, high = verdict.eta
        eta = {"value": task.loss_at(middle), "low95": task.loss_at(high), "high95": task.loss_at(low)}
        level = sorted(task.sign * value for value in verdict.plateau[1:])
        plateau = {
            "level": task.sign * verdict.plateau[0],
            "low95": level[0],
            "high95": level[1],
            "share_of_range": middle,
            "rows": int(np.sum(task.rows.x < middle)),
        }
    drawn = verdict.posterior
    change = verdict.change
    return {
        "family": task.family,
        "task": task.task,
        "metric": task.metric,
        "verdict": verdict.name,
        "probability": verdict.probability,
        "probabilities": verdict.probabilities,
        "reason": verdict.reason or None,
        "eta": eta,
        "plateau": plateau,
        "change": {"value": change[0], "low95": change[1], "high95": change[2]},
        "size_effect": one.size.result(),
        "collapse": collapse(task),
        "rows": len(task.frame),
        "sizes": len(task.sizes),
        "params": task.sizes,
        "runs": int(task.frame["run"].nunique()),
        "loss_range": {
            "from": task.loss_from,
            "to": task.loss_to,
            "unigram": task.frame.attrs.get("unigram"),
            "unigram_needed": _needed(one),
        },
        "chance": task.sign * task.chance if np.isfinite(task.chance) else None,
        "items": task.items if np.isfinite(task.items) else None,
        "resolution": 1 / task.items if np.isfinite(task.items) and task.items > 0 else None,
        "continuous": continuous(task.metric),
        "emergence_score": emergence_score(binned(task.rows.x, y)),
        "spearman": float(spearmanr(loss, task.sign * y).statistic) if varied else None,
        "pearson": float(pearsonr(loss, task.sign * y).statistic) if varied else None,
        "dispersion": drawn.dispersion if drawn else None,
        "correlation": drawn.correlation if drawn else None,
        "notes": task.notes,
    }


def _needed(one: Finding) -> float | None:
    """The least loss of a unigram model, nats, for which the task is emergent; None for other tasks."""
    return None if one.verdict.begins_by is None else one.task.loss_at(one.verdict.begins_by)


def run_directories(paths: list) -> dict[str, Path]:
    """Where the runs' configurations lie: run directories by the runs they hold."""
    return {Path(path).resolve().name: Path(path) for path in paths if (Path(path) / "config.yaml").is_file()}


def _ahead(findings: list[Finding], directories: dict[str, Path]) -> tuple[list, list, list, list]:
    """(size laws, abilities by task and run, loss forecasts by run, notes) of every family that has an emergent task."""
    laws, abilities, fans, notes = [], [], [], []
    for family in sorted({one.task.family for one in findings}):
        group = [one for one in findings if one.task.family == family]
        emergent = [one for one in group if one.verdict.name == "emergent"]
        if not emergent:
            continue
        rng = generator(family, "ahead")
        whole = pd.concat([one.task.frame for one in group], ignore_index=True)
        whole = whole.drop_duplicates(["run", "step"])
        law = fit_size_law(*losses_at_equal_tokens(whole), rng)
        coming: list[Outlook] = outlooks(whole, directories, rng)
        fans += [{"family": family} | found for one in coming if (found := fan(one))]
        for one in emergent:
            draws = one.eta_draws
            found = {"family": family, "task": one.task.task, "metric": one.task.metric}
            laws.append(found | least_size(law, draws, rng))
            kept = [crossing(outlook_, draws, rng) for outlook_ in coming]
            abilities.append(found | {"runs": kept, "smallest_size_that_has_it": _smallest(kept)})
    if not directories and abilities:
        notes.append("planned ends and learning rates of the runs are not known from tables; give run directories")
    return laws, abilities, fans, notes


def _plain(value):
    """JSON can hold no infinity and no NaN: null stands for "open" and "unknown"."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _smallest(kept: list[dict]) -> int | None:
    having = [one["params"] for one in kept if one["status"] == "reached"]
    return min(having) if having else None


def backtest(paths: str | Path | Iterable[str | Path], observed: float = OBSERVED) -> list[dict]:
    """Hide the largest size of each family: thresholds from the others, its loss forecast from its first `observed` share.

    One row per emergent task (as judged without the hidden size) and hidden run: predicted tokens with interval, the
    tokens at which its loss did cross the threshold that all sizes together give, and whether the interval holds them.
    """
    tasks, _ = emergence_table.load(paths)
    rows = []
    for task in tasks:
        if len(task.sizes) < 2:
            continue
        hidden = task.frame["params"] == task.sizes[-1]
        smaller = find(emergence_table.part(task, ~hidden.to_numpy()))
        whole = find(task)
        if smaller.verdict.name != "emergent" or whole.verdict.name != "emergent":
            continue
        rng = generator(task.family, task.task, task.metric, "backtest")
        for run, of_run in task.frame[hidden].groupby("run"):
            of_run = of_run.sort_values("step")
            ahead = outlook(str(run), of_run, None, rng, until=observed)
            full = Outlook(
                str(run),
                ahead.params,
                of_run["tokens"].to_numpy(float),
                of_run["loss"].to_numpy(float),
                np.empty(0),
                np.empty((0, 0)),
                True,
            )
            said = crossing(ahead, smaller.eta_draws, rng)
            truth = crossing(full, whole.eta_draws, rng)["tokens"]["value"]
            low, high = said["tokens"]["low95"], said["tokens"]["high95"]
            at = truth if truth is not None else np.inf
            inside = (low if low is not None else np.inf) <= at <= (high if high is not None else np.inf)
            rows.append(
                {
                    "family": task.family,
                    "task": task.task,
                    "metric": task.metric,
                    "run": str(run),
                    "params": ahead.params,
                    "predicted": said["tokens"],
                    "actual": truth,
                    "inside95": bool(inside),
                    "status": said["status"],
                }
            )
    return rows
