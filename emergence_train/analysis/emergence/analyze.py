"""`analyze emergence`: performance as a function of loss. Verdict and threshold of each task, the effect of size at equal
loss, the mirage check, the closed form in size, and forecasts of when each run gains each ability.

Entry points: `analyze_emergence`, and `investigate`, which also returns the findings for output, figures and the report. No files
are written here.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.emergence.confounding import in_words, without_confounding
from emergence_train.analysis.emergence.explanations import explanations
from emergence_train.analysis.emergence.finding import EmergenceAnalysis, Finding
from emergence_train.analysis.emergence.forecast import crossing, draw_all, loss_forecast
from emergence_train.analysis.emergence.inherited import with_able_runs
from emergence_train.analysis.emergence.kept import shares_kept
from emergence_train.analysis.emergence.law import fit_size_law, least_size, losses_at_equal_tokens
from emergence_train.analysis.emergence.metric_names import continuous
from emergence_train.analysis.emergence.mirage import binned, emergence_score, mirage
from emergence_train.analysis.emergence.result import (
    Ability,
    Crossing,
    EmergenceResult,
    LossForecast,
    LossInterval,
    LossRange,
    Plateau,
    SizeLawResult,
    TaskKept,
    TaskResult,
)
from emergence_train.analysis.emergence.size import collapse, size_effect
from emergence_train.analysis.emergence.table import TaskMetric
from emergence_train.analysis.emergence.untrained import CALL, HIGHEST_UNIGRAM
from emergence_train.analysis.emergence.verdict import PLATEAU, Verdict, judge
from emergence_train.analysis.results import Interval
from emergence_train.analysis.scores import ScoreOptions
from emergence_train.errors import listed
from emergence_train.recorder.metrics import read_header
from emergence_train.recorder.naming import is_run, names_of, run_name
from emergence_train.waiting import along

CONVENTION = (
    "Every task is at chance for an untrained model, so a threshold means a plateau over at least "
    f"{PLATEAU:.0%} of the loss range in which the model already beats a unigram model, then a rise. The plateau's level is "
    "estimated; it need not be nominal chance."
)


# A lower bound, nats per token, of the loss of a unigram model of subwords: measured on English, 5.4 with a vocabulary of 512,
# 6.5 with 2,048, 6.7 to 7.4 with GPT-2's (but 3.2 with bytes).
LEAST_UNIGRAM = 5.0


def analyze_emergence(paths: str | Path | Iterable[str | Path]) -> EmergenceResult:
    """Analyse the evaluations in `paths` (run directories, Parquet or CSV).

    Returns the result; results.as_json converts it to the content of result.json. Runs whose losses are not comparable
    (other vocabularies or families) are analysed separately. The result does not depend on the order of rows or files.
    Raises InputError for inconsistent tables.
    """
    return investigate(paths).result


def investigate(
    paths: str | Path | Iterable[str | Path],
    names: Mapping[Path, str] | None = None,
    *,
    options: ScoreOptions | None = None,
) -> EmergenceAnalysis:
    """analyze_emergence with the findings behind its result; `names` are those that run directories are shown by, `options` says
    what results of other programs leave out."""
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    names = names_of(paths) if names is None else names
    metrics, families, notes = emergence_table.load(paths, names, options)
    findings = with_able_runs(find(task) for task in along(metrics, "tasks analysed"))
    tasks = tuple(task_result(finding) for finding in findings)
    laws, abilities, forecasts, notes_ahead = _ahead(findings, run_directories(paths, names))
    checks = mirage(tasks)
    result = EmergenceResult(
        convention=CONVENTION,
        notes=(*notes, *notes_ahead),
        families=families,
        tasks=tasks,
        mirage=checks,
        explanations=explanations(list(zip(tasks, findings)), checks, generator("explanations")),
        survival=tuple(entry for finding in findings if (entry := _shares_kept(finding)) is not None),
        size_law=tuple(laws),
        abilities=tuple(abilities),
        outlooks=tuple(forecasts),
    )
    return EmergenceAnalysis(result, findings)


def find(task: TaskMetric) -> Finding:
    """Verdict, threshold and size effect of one task. The random numbers are seeded by the task's names alone."""
    rng = generator(task.family, task.task, task.metric)
    reason = _cannot_tell(task)
    if reason:
        verdict = Verdict("not-identified", 1.0, {}, None, None, (0.0, 0.0, 0.0), None, reason)
    else:
        verdict = judge(
            task.rows,
            chance=task.chance,
            best=task.best,
            smallest=task.smallest,
            scale=task.scale,
            rng=rng,
            majority=task.majority,
        )
        verdict = _with_shares(task, _or_unknown(task, without_confounding(task, verdict)))
    return Finding(task, verdict, size_effect(task, rng))


def _cannot_tell(task: TaskMetric) -> str:
    unigram = task.frame.attrs.get("unigram")
    if unigram is not None and task.loss_to >= unigram:
        return f"no loss is below the unigram model's, {unigram:.4g} nats: models that have not learnt, or losses of another unit"
    if np.ptp(task.rows.y) == 0 and task.rows.items is None:
        return "every value is the same" if len(task.rows.y) > 1 else "one row"
    return ""


def _with_shares(task: TaskMetric, verdict: Verdict) -> Verdict:
    """The verdict; where the loss does not explain what runs can do, its reason says what one curve of it and of others does."""
    if not verdict.able:
        return verdict
    shares = collapse(task)
    named = {"tokens": shares.r2_tokens, "compute": shares.r2_compute, "loss": shares.r2_loss}
    return replace(verdict, reason=f"{verdict.reason}; {in_words(named)}")


def _or_unknown(task: TaskMetric, verdict: Verdict) -> Verdict:
    """An emergent verdict where the unigram model's loss is unknown: kept, with a note, where it holds for every plausible
    unigram model; else not identified."""
    if verdict.begins_by is None or task.frame.attrs.get("unigram") is not None:
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
        f"{needed:.3g} nats per token, "
    )
    if needed > HIGHEST_UNIGRAM:
        reason += f"more than any of subwords has ({HIGHEST_UNIGRAM:g}): {CALL}, or give unigram_loss"
    else:
        reason += "which is not known: give unigram_loss"
    return verdict.not_identified(reason, 1 - verdict.probability)


def generator(*names: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()) for name in names])


def task_result(finding: Finding) -> TaskResult:
    """A task's part of result.json."""
    task, verdict = finding.task, finding.verdict
    loss, y = task.frame["loss"].to_numpy(float), task.rows.y
    varied = len(y) > 2 and np.ptp(y) > 0 and np.ptp(loss) > 0
    drawn = verdict.posterior
    items = task.items if np.isfinite(task.items) else None
    return TaskResult(
        family=task.family,
        task=task.task,
        metric=task.metric,
        verdict=verdict.name,
        probability=verdict.probability,
        probabilities={str(name): share for name, share in verdict.probabilities.items()},
        reason=verdict.reason or None,
        eta=_eta(finding),
        plateau=_plateau(finding),
        change=Interval(*(_finite(value) for value in verdict.change)),
        size_effect=finding.size,
        collapse=collapse(task),
        rows=len(task.frame),
        sizes=len(task.sizes),
        params=tuple(task.sizes),
        runs=int(task.frame["run"].nunique()),
        loss_range=LossRange(
            highest=task.loss_from,
            lowest=task.loss_to,
            unigram=task.frame.attrs.get("unigram"),
            unigram_needed=None if verdict.begins_by is None else task.loss_at(verdict.begins_by),
        ),
        chance=task.value_of(task.chance) if np.isfinite(task.chance) else None,
        majority=task.value_of(task.majority) if np.isfinite(task.majority) else None,
        items=items,
        resolution=1 / items if items else None,
        continuous=continuous(task.metric),
        emergence_score=emergence_score(binned(task.rows.x, y)),
        spearman=_finite(spearmanr(loss, task.sign * y).statistic) if varied else None,
        pearson=_finite(pearsonr(loss, task.sign * y).statistic) if varied else None,
        dispersion=drawn.dispersion if drawn else None,
        correlation=drawn.correlation if drawn else None,
        notes=tuple(task.notes),
    )


def _shares_kept(finding: Finding) -> TaskKept | None:
    task = finding.task
    return shares_kept(finding, generator(task.family, task.task, task.metric, "survival"))


def _eta(finding: Finding) -> LossInterval | None:
    task, onset = finding.task, finding.verdict.onset
    if onset is None:
        return None
    middle, low, high = onset
    return LossInterval(task.loss_at(middle), task.loss_at(high), task.loss_at(low))


def _plateau(finding: Finding) -> Plateau | None:
    task, onset, plateau = finding.task, finding.verdict.onset, finding.verdict.plateau
    if onset is None or plateau is None:
        return None
    low, high = sorted(map(task.value_of, plateau[1:]))
    return Plateau(task.value_of(plateau[0]), low, high, onset[0], int(np.sum(task.rows.x < onset[0])))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def run_directories(paths: list[str | Path], names: Mapping[Path, str]) -> dict[str, Path]:
    """Run directories by the names that the runs are shown by: what they plan is known."""
    directories = [path for path in map(Path, paths) if is_run(path) or (path / "config.yaml").is_file()]
    return {names.get(path) or run_name(path): path for path in directories}


def _ahead(
    findings: tuple[Finding, ...], directories: dict[str, Path]
) -> tuple[list[SizeLawResult], list[Ability], list[LossForecast], list[str]]:
    """(size laws, abilities by task and run, loss forecasts by run, notes) of every family that has an emergent task."""
    laws, abilities, forecasts, notes = [], [], [], []
    for family in sorted({finding.task.family for finding in findings}):
        group = [finding for finding in findings if finding.task.family == family]
        emergent = [finding for finding in group if finding.verdict.name == "emergent"]
        if not emergent:
            continue
        rng = generator(family, "ahead")
        whole = pd.concat([finding.task.frame for finding in group], ignore_index=True)
        whole = whole.drop_duplicates(["run", "step"])
        law = fit_size_law(*losses_at_equal_tokens(whole), rng)
        runs = draw_all(whole, directories, rng)
        forecasts += [ahead for draws in runs if (ahead := loss_forecast(family, draws)) is not None]
        for finding in emergent:
            eta = finding.eta_draws
            names = {"family": family, "task": finding.task.task, "metric": finding.task.metric}
            laws.append(SizeLawResult(**names, least_size=least_size(law, eta, rng)))
            crossings = tuple(crossing(draws, eta, rng) for draws in runs)
            abilities.append(Ability(**names, runs=crossings, smallest_size_that_has_it=_smallest(crossings)))
    if not directories and abilities:
        notes.append("planned ends and learning rates of the runs are not known from tables; give run directories")
    elif unknown := sorted(
        {run.run for ability in abilities for run in ability.runs if _has_open_end(run, directories)}
    ):
        notes.append(f"no end is planned of {listed(unknown, 3)}, so what they will reach is not known")
    return laws, abilities, forecasts, notes


def _has_open_end(run: Crossing, directories: dict[str, Path]) -> bool:
    """Whether nobody says how far a run is to go, that trains and has not reached the threshold."""
    if run.planned_end_known or run.status == "reached":
        return False
    directory = directories.get(run.run)
    return directory is None or not is_run(directory) or not read_header(directory).get("imported")


def _smallest(crossings: tuple[Crossing, ...]) -> int | None:
    return min((run.params for run in crossings if run.status == "reached"), default=None)
