"""What the page comes to: a sentence or two a run, and what differs between the runs."""

import html
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from emergence_train.analysis.emergence.figures import main_metrics
from emergence_train.analysis.emergence.result import VERDICT_ORDER
from emergence_train.analysis.intervals import reach95
from emergence_train.analysis.temporal.result import Final, RunResult
from emergence_train.errors import listed
from emergence_train.formatting import short
from emergence_train.recorder.naming import data_digest
from emergence_train.report import per_byte, seeds, what_differs
from emergence_train.report.collect import FRACTION, ReportData, Run
from emergence_train.report.families import legend, letters
from emergence_train.report.parts import count
from emergence_train.run_differences import differences, seed_groups

MOST_RUNS, FIRST_RUNS = 8, 3  # with more runs than these, only the first sentences are open
ONE_SIDE = 6  # outcomes that all lie on one side of their forecasts: by chance in 1 of 32 pages
MOST_TASKS = 6
WHERE = ("Above chance", "Not above chance", "Below chance")
LAST_STEPS = 64  # whose mean is the loss at some place
ROSE = 0.3  # nats that the loss must have risen by at the end to be named
SAME = 0.001  # nats: losses that are written alike
FEW_KEYS = 4  # settings named in a sentence
OTHER_DATA = (
    " Their prepared data are not the same, so the held-out text may not be either: the losses may not compare."
)


def sections(data: ReportData) -> list[tuple[str, str, str]]:
    """(anchor, title, body)."""
    able = _able(data)
    several = len(_by_tokenizer(data.runs)) > 1
    runs = data.runs if len(data.runs) <= MOST_RUNS else _ordered(data.runs)
    sentences = [f"<li>{_sentence(run, able.get(run.name))}</li>" for run in runs]
    shown = (
        _listed(sentences)
        if len(runs) <= MOST_RUNS
        else _listed(sentences[:FIRST_RUNS])
        + (
            f"<details><summary>The other {len(runs) - FIRST_RUNS} runs, {'by tokenizer, ' if several else ''}the lowest loss "
            "first</summary>"
            f"{_listed(sentences[FIRST_RUNS:])}</details>"
        )
    )
    rest = _verdicts(data) + what_differs.shown(data.runs)
    return [
        (
            "conclusions",
            "In short",
            _best(data.runs)
            + ("" if several else seeds.best(data.runs))
            + _how_sure(data.runs)
            + _one_side(data.runs)
            + shown
            + rest,
        )
    ]


def _listed(items: list[str]) -> str:
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _iid_loss(run: Run) -> float:
    rows = run.iid()
    return float(rows["loss"].iloc[-1]) if len(rows) else np.inf


def _by_tokenizer(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of each tokenizer, whose losses compare, the lowest loss on iid first."""
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.header.get("vocabulary"), []).append(run)
    return [sorted(group, key=_iid_loss) for group in groups.values()]


def _ordered(runs: Sequence[Run]) -> list[Run]:
    """The lowest loss first: of each tokenizer the lowest one, then the others of the first tokenizer, and so on."""
    groups = _by_tokenizer(runs)
    return [group[0] for group in groups] + [run for group in groups for run in group[1:]]


def _best(runs: Sequence[Run]) -> str:
    """Which run has the lowest held-out loss; of each tokenizer, where there are several."""
    last = [(float(run.iid()["loss"].iloc[-1]), run) for run in runs if len(run.iid())]
    if len(last) < 2:
        return ""
    if len(groups := _by_tokenizer([run for _, run in last])) > 1:
        return _best_of_each(groups)
    (loss, best), (second, following) = sorted(last, key=lambda pair: pair[0])[:2]
    if second - loss < SAME:
        alike = [
            f"<b>{html.escape(run.name)}</b>"
            for other, run in sorted(last, key=lambda pair: pair[0])
            if other - loss < SAME
        ]
        names = f"{', '.join(alike[:-1])} and {alike[-1]}"
        return f"<p>The lowest loss on iid have {names}, {loss:.3f}: less than {SAME} nats apart.</p>"
    return (
        f"<p>The lowest loss on iid has <b>{html.escape(best.name)}</b>, {second - loss:.3f} nats below the next, "
        f"{html.escape(following.name)}{_apart_by(best, following)}.{_beside_seeds(runs, best, following)}"
        f"{_other_data([run for _, run in last])}</p>"
    )


def _beside_seeds(runs: Sequence[Run], best: Run, following: Run) -> str:
    """Whether the lead of one run is more than seeds alone make: than the 95% interval of a difference of two runs, by Student's
    t with the degrees of freedom of the SD between seeds. Nothing of two runs that differ by their seed alone."""
    known = seeds.deviation(runs)
    if known is None or len(seed_groups([best.directory, following.directory])) == 1:
        return ""
    deviation, freedom = known
    reach = reach95(2**0.5 * deviation, freedom)
    much = "more than" if _iid_loss(following) - _iid_loss(best) > reach else "no more than"
    return f" That is {much} seeds alone make: runs that differ by nothing else have an SD of {deviation:.3f}."


def _other_data(runs: Sequence[Run]) -> str:
    return OTHER_DATA if len({data_digest(run.directory) for run in runs} - {None}) > 1 else ""


def _best_of_each(groups: list[list[Run]]) -> str:
    """The lowest loss with each of several tokenizers; of all per byte; and the seeds of the one that most runs have."""
    known = [group for group in groups if group[0].header.get("vocabulary") is not None]
    lowest = "; ".join(f"<b>{html.escape(group[0].name)}</b>, {_of_group(group)}" for group in known if len(group) > 1)
    some = "" if len(known) == len(groups) else " (of some it is not known)"
    largest = max(groups, key=len)
    ranks = f" The lowest loss on iid with each: {lowest}.{_other_data(largest)}" if lowest else ""
    whose = f"<p>Of the runs with the tokenizer of {html.escape(largest[0].name)}: "
    return (
        f"<p>The runs have different tokenizers{some}: their losses do not compare.{ranks}</p>{per_byte.ranked(groups)}"
        + seeds.best(largest).replace("<p>", whose)
    )


def _of_group(group: Sequence[Run]) -> str:
    """The loss of the first run of a tokenizer, and of how many it is the lowest."""
    return f"{_iid_loss(group[0]):.3f} (of {len(group)} runs)"


def _finals(runs: Sequence[Run]) -> list[tuple[Final, float]]:
    """Forecasts of the end and what came, where it is known: of each run that of iid, or of training."""
    finals = [_of_iid(run)[0].final for run in runs if run.forecast is not None and run.forecast.runs]
    return [(final, final.actual) for final in finals if final.actual is not None]


def _how_sure(runs: Sequence[Run]) -> str:
    """How the forecasts of several finished runs came out, together."""
    finals = _finals(runs)
    if len(finals) < 3:
        return ""
    inside = sum(final.low95 <= actual <= final.high95 for final, actual in finals)
    error = np.median([abs(actual - final.loss) for final, actual in finals])
    reach = np.median([final.high95 - final.low95 for final, _ in finals]) / 2
    return (
        f"<p>From the first {FRACTION:.0%} of each finished run its end was forecast: {inside} of {len(finals)} came out inside "
        f"the 95% interval, off by {error:.3f} nats in the median; half an interval is {reach:.3f}.</p>"
    )


def _one_side(runs: Sequence[Run]) -> str:
    """Whether all finished runs came out on the same side of what was forecast of them."""
    errors = [actual - final.loss for final, actual in _finals(runs)]
    if len(errors) < ONE_SIDE or min(errors) < 0 < max(errors):
        return ""
    sizes = sorted(abs(error) for error in errors)
    return (
        f"<p>All {len(errors)} finished forecasts erred to one side: the runs came out {sizes[0]:.3f} to {sizes[-1]:.3f} nats "
        f"{'below' if max(errors) <= 0 else 'above'} them.</p>"
    )


def _of_iid(run: Run) -> list[RunResult]:
    """The results of a run's forecast: that of iid, or all where there is none."""
    results = [] if run.forecast is None else [each.result for each in run.forecast.runs]
    return [result for result in results if result.split == "iid"] or results


def _apart_by(best: Run, following: Run) -> str:
    """What two runs differ in, so that a difference of seeds is not taken for one of settings."""
    keys = list(differences([best.directory, following.directory])[0])
    if not keys:
        return ""
    if len(seed_groups([best.directory, following.directory])) == 1:
        return "; the two differ in the seed alone, so no setting makes that difference"
    return f"; the two differ in {html.escape(listed(keys, FEW_KEYS))}"


def _sentence(run: Run, able: str | None) -> str:
    """Where the run is or ended, what was forecast of it, and what it can do."""
    done = run.has_ended
    rows = run.iid()
    loss = f"{rows['loss'].iloc[-1]:.3f} nats per token on iid" if len(rows) else "no loss on iid"
    if not len(run.means) and len(run.curve):  # a log
        loss = f"a training loss of {run.curve['loss'].iloc[-1]:.3f} nats per token"
    where = f"after {short(run.tokens)} tokens" if run.tokens else f"at step {_last_step(run)}"
    where += "" if done else f" of {short(run.planned_tokens)}"
    size = f" ({short(run.params)} parameters)" if run.params else ""
    parts = [f"<b>{html.escape(run.name)}</b>{size}: {loss} {where}."]
    if run.forecast is not None and (done or all(result.fit_fraction is None for result in _of_iid(run))):
        parts += [_outcome(result) for result in _of_iid(run)]
    elif not done and (newest := _newest_forecast(run)):
        parts.append(newest)
    elif run.no_forecast and len(run.curve):
        parts.append('It has no forecast: <a href="#outlook">why</a>.')
    if trouble := _trouble(run):
        parts.append(trouble)
    if able:
        parts.append(able)
    return " ".join(parts)


def _trouble(run: Run) -> str:
    """What went wrong in training and is to be looked at; "" where nothing did."""
    loss = run.curve["loss"].to_numpy(float)
    broken = ~np.isfinite(loss)
    parts = []
    if broken.any():
        first = int(run.curve["step"].to_numpy()[int(np.argmax(broken))])
        parts.append(f"has no number at {count(int(broken.sum()), 'step')}, first at {first:,}")
    means = pd.Series(loss[~broken]).rolling(LAST_STEPS).mean().dropna().to_numpy()
    if len(means) and (above := float(means[-1] - means.min())) > max(
        ROSE, 3 * float(np.std(loss[~broken][-LAST_STEPS:]))
    ):
        parts.append(f"ended {above:.2f} nats above its lowest (means of {LAST_STEPS} steps)")
    events = {kind: len(run.metrics.of_kind(kind)) for kind in ("skipped", "rewind")}
    counts = [
        count(number, noun)
        for noun, number in (("skipped batch", events["skipped"]), ("rewind", events["rewind"]))
        if number
    ]
    words = [f"Its training loss {' and '.join(parts)}."] if parts else []
    words += [f"It had {' and '.join(counts)}."] if counts else []
    return f"<b>Look at:</b> {' '.join(words)}" if words else ""


def _last_step(run: Run) -> int:
    return int((run.means if len(run.means) else run.curve)["step"].max())


def _outcome(result: RunResult) -> str:
    """What was forecast for the end beside what came."""
    final, which = result.final, "loss" if result.split == "iid" else "training loss"
    interval = f"{final.loss:.3f} [{final.low95:.3f}, {final.high95:.3f}]"
    if result.fit_fraction is None:
        return f"From all of it, a {which} of {interval} is forecast for its end at {short(final.tokens)} tokens."
    text = f"From its first {FRACTION:.0%}, a {which} of {interval} was forecast for the end"
    if final.actual is None:
        return f"{text}."
    place = "inside" if final.low95 <= final.actual <= final.high95 else "outside"
    side = "above" if final.actual > final.loss else "below"
    rows = f" (by its last {final.actual_rows} rows)" if final.actual_rows else ""
    return f"{text}: it came out {abs(final.actual - final.loss):.3f} {side} that, {place} the 95% interval{rows}."


def _newest_forecast(run: Run) -> str | None:
    """The forecast of the training loss at the end that the run itself logged last."""
    rows = [row for row in run.metrics.of_kind("forecast") if row.get("loss") is not None]
    if not rows:
        return None
    row = rows[-1]
    return f"Its training loss is forecast to end at {row['loss']:.3f} [{row['low95']:.3f}, {row['high95']:.3f}]."


def _able(data: ReportData) -> dict[str, str]:
    """For each run, which tasks are above or below chance by more than two standard errors at its last evaluation."""
    if data.emergence is None:
        return {}
    scores: dict[str, dict[str, list[str]]] = {}
    for task, finding in main_metrics(data.emergence):
        frame = finding.task.frame
        for name, rows in frame.groupby("run", observed=True):
            last = rows.sort_values("step").iloc[-1]
            if last["chance"] is None or not np.isfinite([last["chance"], last["stderr"], last["value"]]).all():
                continue
            sign = 1 if last["higher_is_better"] else -1
            beyond = sign * (last["value"] - last["chance"]) / _error(last)
            where = "Above chance" if beyond > 2 else "Below chance" if beyond < -2 else "Not above chance"
            text = html.escape(f"{task.task} ({_short_share(last['value'])}, chance {_short_share(last['chance'])})")
            scores.setdefault(str(name), {}).setdefault(where, []).append(text)
    return {
        name: " ".join(f"{where}: {listed(places[where], MOST_TASKS)}." for where in WHERE if where in places)
        for name, places in scores.items()
    }


def _error(row: pd.Series) -> float:
    """The standard error of a score, at least what guessing has: where none or all of few items are right, its own is 0."""
    chance, items = float(row["chance"]), float(row["items"])
    guessing = math.sqrt(chance * (1 - chance) / items) if 0 < chance < 1 and items > 0 else 0.0
    return max(float(row["stderr"]), guessing, 1e-12)


def _short_share(value: float) -> str:
    """Two decimals, or two digits of what they would show as 0."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:.2g}"


def _verdicts(data: ReportData) -> str:
    """What each task's score does as the loss falls, all runs together: a verdict, then the tasks that have it."""
    if data.emergence is None:
        return ""
    named: dict[str, list[str]] = {}
    metrics = main_metrics(data.emergence)
    groups = letters(data.emergence.result)
    for task, finding in metrics:
        eta = task.eta
        where = f" from {eta.value:.2f} nats [{eta.low95:.2f}, {eta.high95:.2f}]" if eta else ""
        named.setdefault(finding.verdict.name, []).append(
            html.escape(f"{groups[task.family]}: {task.task}" if groups else task.task) + where
        )
    verdicts = "; ".join(
        f"<b>{name}</b>: {', '.join(named[name][:6])}{' ...' if len(named[name]) > 6 else ''}"
        for name in VERDICT_ORDER
        if name in named
    )
    together = "runs whose losses compare together" if groups else "all runs together"
    which = legend(data.emergence.result)
    return f"<p>Tasks as the loss falls, {together}: {verdicts}.</p>{which}" if verdicts else ""
