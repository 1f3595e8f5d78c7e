"""All that a report shows: runs, tables and logs, and the results of the analyses. The other modules here fit nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis import emergence, temporal
from emergence_train.analysis.emergence import EmergenceAnalysis
from emergence_train.analysis.position_matrix import PositionMatrix, observed_rows, read_matrices
from emergence_train.analysis.scores import holds_scores
from emergence_train.analysis.temporal import Series, TemporalAnalysis
from emergence_train.errors import InputError
from emergence_train.recorder import tables
from emergence_train.recorder.metrics import Metrics
from emergence_train.recorder.naming import names_of
from emergence_train.recorder.planned_end import has_ended, planned_steps, planned_tokens
from emergence_train.recorder.sessions import read_sessions
from emergence_train.report.reading import AS_THEY_ARE, Reading
from emergence_train.run_differences import read_config
from emergence_train.waiting import along

FRACTION = 0.4  # of the planned tokens, observed by the forecast
SPLITS = (None, "iid")  # forecast: the training curve and the iid validation loss
CURVE = ("step", "tokens", "loss", "tokens_per_second")
SPLIT_ORDER = {"iid": 0, "ood": 1, "train": 2}  # then the domains


class NotYet(InputError):
    """A run that has begun and cannot be shown yet: what it lacks will come."""

    def __init__(self, directory: Path, text: str) -> None:
        super().__init__(text)
        self.directory = directory


@dataclass(frozen=True)
class Run:
    """A run's files and its temporal analysis.

    positions: mean loss over positions and the sums by position, one PositionMatrix a split
    means: mean loss of every checkpoint and split (step, tokens, split, loss), by split and step
    fits: temporal.fit_matrix, the position law at every checkpoint of iid and at the last one of the other splits
    curve: numbers of the training steps in metrics.jsonl (step, tokens, loss, tokens_per_second)
    metrics: metrics.jsonl
    ood: the domains of the split ood, where config.yaml names them
    forecast: from the first FRACTION of the run, of an unfinished log from all its rows; or None with the reason in `no_forecast`
    """

    name: str  # as shown: header["run"], or by the directory where several runs share it
    directory: Path
    params: int
    header: dict
    positions: dict[str, PositionMatrix]
    means: pd.DataFrame
    fits: pd.DataFrame
    curve: pd.DataFrame
    metrics: Metrics
    ood: tuple[str, ...] = ()
    forecast: TemporalAnalysis | None = None
    no_forecast: tuple[str, ...] = field(default=())

    @property
    def tokens(self) -> int:
        """Trained up to the last checkpoint; of a curve alone, up to its last row."""
        return int((self.means if len(self.means) else self.curve)["tokens"].max())

    @property
    def planned_tokens(self) -> int:
        """Of its planned end, 0 where none is known."""
        rows = self.curve if len(self.curve) else self.means
        return planned_tokens(self.header, float(rows["step"].max()), float(rows["tokens"].max()))

    @property
    def has_ended(self) -> bool:
        """Whether its last checkpoint is at its planned end, or none is known."""
        rows = self.means if len(self.means) else self.curve
        return not self.planned_tokens or has_ended(self.header, float(rows["step"].max()), float(rows["tokens"].max()))

    def splits(self) -> list[str]:
        """iid and ood first, then train, then the domains."""
        return sorted(self.positions, key=lambda split: (SPLIT_ORDER.get(split, 3), split))

    def iid(self) -> pd.DataFrame:
        """Mean iid loss at every checkpoint, by tokens."""
        return self.means[self.means["split"] == "iid"].sort_values("tokens")

    def last(self, frame: pd.DataFrame, split: str) -> pd.Series | None:
        """The last checkpoint's row of a split."""
        rows = frame[(frame["split"] == split) & (frame["step"] == frame["step"].max())]
        return rows.iloc[0] if len(rows) else None


@dataclass(frozen=True)
class ReportData:
    """The runs, smallest first, and the emergence analysis of those that have evaluations (None where none has)."""

    runs: list[Run]
    emergence: EmergenceAnalysis | None

    @property
    def names(self) -> list[str]:
        """Of the runs, and of those that are in results of tasks alone."""
        findings = self.emergence.pairs if self.emergence is not None else ()
        scored = [str(name) for _, finding in findings for name in finding.task.frame["run"].unique()]
        return list(dict.fromkeys([run.name for run in self.runs] + scored))


def collect(
    paths: list[Path],
    reading: Reading = AS_THEY_ARE,
    load: Callable[[Path, str], Run] | None = None,
) -> ReportData:
    """Read run directories, tables and logs, and run both analyses on them. `reading` says what files leave out; `load`
    reads a run directory to be shown by a name (load_run). Raises InputError for what is none of them."""
    load = load or load_run
    names = names_of(paths)
    scores = [path for path in paths if path not in names and holds_scores(path)]
    directories = [path for path in paths if path in names]
    runs = [load(path, names[path]) for path in along(directories, "runs read")]
    others = [path for path in paths if path not in names and path not in scores]
    if not others and reading.ahead != AS_THEY_ARE.ahead:
        raise InputError("--to-tokens and --schedule are for logs and tables of curves; leave them out")
    if not scores and reading.scores.loss is not None:
        raise InputError("--loss is for results of tasks, and none is named; leave it out")
    tables_and_logs, logs = _load_tables(others, reading)
    if not scores:
        _refuse_unknown(reading.scores.params, logs)
    runs += tables_and_logs
    runs.sort(key=lambda run: (run.params, run.name))
    evaluated = [path for path in paths if path in names and any((path / "evaluations").glob("*.parquet"))]
    if not evaluated + scores:
        return ReportData(runs, None)
    options = replace(reading.scores, elsewhere=frozenset(logs)) if scores else None
    return ReportData(runs, emergence.investigate(evaluated + scores, names, options=options))


def _refuse_unknown(sizes: Mapping[str, int], logs: list[str]) -> None:
    """Raise InputError where --params names a run that is not of a log."""
    for name, params in sizes.items():
        if name and name not in logs:
            known = ", ".join(sorted(logs)) or "none"
            raise InputError(f"--params {name}={params}: no log is of this run, they are of {known}; leave it out")


def _load_tables(paths: list[Path], reading: Reading) -> tuple[list[Run], list[str]]:
    """The runs of tables and logs, which have no directory of their own, and the names of those of logs."""
    by_run: dict[str, list[Series]] = {}
    for series in temporal.load(paths, ahead=reading.ahead, options=reading.log) if paths else []:
        by_run.setdefault(series.run, []).append(series)
    to_end = reading.ahead.to_tokens is not None
    logs = [name for name, series in by_run.items() if series[0].source is not None]
    for name in logs:
        for each in by_run[name]:
            each.params = reading.scores.params.get(name, each.params)
    return [_from_series(name, series, to_end) for name, series in by_run.items()], logs


def _interval(series: Series) -> float:
    """Usual steps between rows: a finished log ends up to so many before the planned end."""
    return float(np.median(np.diff(series.step))) if len(series.step) > 1 else 0.0


def _from_series(name: str, series: list[Series], to_end: bool) -> Run:
    """The run of its series. `to_end`: the user has given the end, so what lies before it is to be forecast."""
    for each in series:
        if not each.by_tokens:
            raise InputError(f"run {name!r}: {each.no_tokens}, which the page counts by; give --tokens-per-step")
    positions = {each.split: each.matrix for each in series if each.split is not None and each.matrix is not None}
    curve = next((each for each in series if each.split is None), None)
    columns = {} if curve is None else {"step": curve.step, "tokens": curve.tokens, "loss": curve.loss}
    sizes = [int(matrix.keys["params"].max()) for matrix in positions.values()]
    params = max([*sizes, *(each.params for each in series)])
    header = {"run": name, "params": params}
    unfinished = any(each.end_step - each.step[-1] > (0 if to_end else _interval(each)) for each in series)
    analysis, reasons = _analysed(lambda: series, None if unfinished else FRACTION)
    return Run(
        name=name,
        directory=series[0].source or Path(name),
        params=params,
        header=header,
        positions=positions,
        means=_means(positions),
        fits=_all_fits(positions),
        curve=pd.DataFrame({column: columns.get(column, np.empty(0)) for column in CURVE[:3]}).assign(
            tokens_per_second=np.nan
        ),
        metrics=Metrics(Path(name), header),
        forecast=analysis,
        no_forecast=reasons,
    )


def load_run(directory: Path, name: str) -> Run:
    """A run directory with its temporal analysis, to be shown by `name`. Raises NotYet before its first checkpoint, InputError
    for one that has none to come, or that cannot be read."""
    metrics = Metrics.read(directory)
    if metrics.header is None:
        text = (directory / "metrics.jsonl").read_bytes()
        if not text.strip() or b"\n" not in text:
            lacks = "holds half a line" if text.strip() else "is empty"
            raise NotYet(directory, f"{directory / 'metrics.jsonl'}: {lacks}; wait for the run's first line")
        raise InputError(f"{directory / 'metrics.jsonl'}: has no line of kind 'run'; is this a run directory?")
    written = any((directory / "positions").glob("*.parquet"))
    if not written or not tables.has_rows(tables.POSITIONS, directory):
        if _is_over(directory, metrics):
            raise InputError(
                f"{directory}: is finished and has no losses by position; restore its positions/, or give "
                f"{directory / 'metrics.jsonl'} for a page of its losses"
            )
        raise NotYet(directory, f"{directory}: has no checkpoint with losses by position yet; wait for the first one")
    positions = {str(matrix.keys["split"].iloc[0]): matrix for matrix in read_matrices(directory)}
    curve, unread = _read_curve(metrics)
    series = partial(_series, directory, name, list(positions.values()), curve)
    forecast, no_forecast = _analysed(series, None if _is_to_be_forecast(directory, metrics) else FRACTION)
    return Run(
        name=name,
        directory=directory,
        params=int(metrics.header["params"]),
        header=metrics.header,
        positions=positions,
        means=_means(positions),
        fits=_all_fits(positions),
        curve=pd.DataFrame({name: metrics.train(name) for name in CURVE}),
        metrics=metrics,
        ood=_ood(directory),
        forecast=forecast,
        no_forecast=unread + no_forecast,
    )


def _is_over(directory: Path, metrics: Metrics) -> bool:
    """Whether a run has reached its planned end, or where none is known its process has ended without a failure."""
    step, tokens = _last_row(metrics)
    header = metrics.header or {}
    if planned_steps(header, step, tokens) is not None:
        return has_ended(header, step, tokens)
    sessions = read_sessions(directory)
    return bool(sessions and sessions[-1].get("exit_code") == 0)


def _is_to_be_forecast(directory: Path, metrics: Metrics) -> bool:
    """Whether a run of a Recorder goes on: it logs no forecasts of its end, as `train` does."""
    header, counts = metrics.header or {}, np.asarray(metrics.train("tokens"), float)
    counts = counts[np.isfinite(counts)]
    grow = len(counts) < 2 or bool(np.ptp(counts))  # else their shares of the run are not known in tokens
    step, tokens = _last_row(metrics)
    planned = tokens > 0 and planned_tokens(header, step, tokens)
    return grow and bool(planned) and "batch" not in header and not _is_over(directory, metrics)


def _last_row(metrics: Metrics) -> tuple[float, float]:
    """(step, tokens) of the last training step or checkpoint; zeros where there is none."""
    rows = list(zip(metrics.train("step")[-1:], metrics.train("tokens")[-1:]))
    rows += [(row.get("step", 0), row.get("tokens") or 0) for row in metrics.of_kind("validation")[-1:]]
    known = [(float(step), float(tokens)) for step, tokens in rows if np.isfinite([step, tokens]).all()]
    return max(known, default=(0.0, 0.0))


def _ood(directory: Path) -> tuple[str, ...]:
    tree = read_config(directory)
    sources = tree.get("data", {}).get("ood") if isinstance(tree, dict) and isinstance(tree.get("data"), dict) else None
    return tuple(str(source["domain"]) for source in sources or () if isinstance(source, dict) and "domain" in source)


def _means(positions: dict[str, PositionMatrix]) -> pd.DataFrame:
    means = [matrix.keys.assign(loss=matrix.mean_loss) for matrix in positions.values()]
    return pd.concat(means, ignore_index=True) if means else pd.DataFrame(columns=["step", "tokens", "split", "loss"])


def _all_fits(positions: dict[str, PositionMatrix]) -> pd.DataFrame:
    """The position law as far as it is shown: of iid along training, of other splits at the end."""
    fits = [
        temporal.fit_matrix(matrix if split == "iid" else observed_rows(matrix, slice(-1, None)))
        for split, matrix in positions.items()
    ]
    return pd.concat(fits, ignore_index=True) if fits else pd.DataFrame(columns=["step", "tokens", "split"])


def _read_curve(metrics: Metrics) -> tuple[pd.DataFrame | None, tuple[str, ...]]:
    """The training curve, and why it cannot be read: the held-out splits are forecast without it."""
    try:
        return (tables.read(tables.CURVES, metrics) if len(metrics.train("step")) else None), ()
    except InputError as error:
        return None, (f"training loss: {error}",)


def _series(directory: Path, name: str, matrices: list[PositionMatrix], curve: pd.DataFrame | None) -> list[Series]:
    shown = [matrix for matrix in matrices if matrix.keys["split"].iloc[0] in SPLITS]
    return temporal.run_series(directory, shown, curve, name=name)


def _analysed(
    series: Callable[[], list[Series]], fraction: float | None = FRACTION
) -> tuple[TemporalAnalysis | None, tuple[str, ...]]:
    """The temporal analysis of a run's series, and why parts of it are missing. `fraction` of it is observed; None: all rows,
    of one that has not reached its end."""
    try:
        shown = [each for each in series() if each.split in SPLITS]
        if not shown:
            return None, ()
        analysis = temporal.investigate_series(shown, fit_fraction=fraction, splits=SPLITS)
    except InputError as error:
        return None, (str(error),)
    return analysis, tuple(skipped.reason for skipped in analysis.result.skipped)
