"""All that a report shows: the runs' own files and the results of the analyses. The other modules here fit nothing."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from emergence_train.analysis import emergence, temporal
from emergence_train.analysis.emergence import EmergenceAnalysis
from emergence_train.analysis.position_matrix import PositionMatrix, observed_rows, read_matrices
from emergence_train.analysis.temporal import TemporalAnalysis
from emergence_train.errors import InputError
from emergence_train.recorder import tables
from emergence_train.recorder.metrics import Metrics
from emergence_train.recorder.naming import names_of
from emergence_train.run_differences import read_config

FRACTION = 0.4  # of the planned tokens, observed by the forecast
SPLITS = (None, "iid")  # forecast: the training curve and the iid validation loss
SPLIT_ORDER = {"iid": 0, "ood": 1, "train": 2}  # then the domains


@dataclass(frozen=True)
class Run:
    """A run's files and its temporal analysis.

    positions: mean loss over positions and the sums by position, one PositionMatrix a split
    means: mean loss of every checkpoint and split (step, tokens, split, loss), by split and step
    fits: temporal.fit_matrix, the position law at every checkpoint of iid and at the last one of the other splits
    curve: numbers of the training steps in metrics.jsonl (step, tokens, loss, tokens_per_second)
    metrics: metrics.jsonl
    ood: the domains of the split ood, where config.yaml names them
    forecast: from the first FRACTION of the run, or None with the reason in `no_forecast`
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
        return int(self.means["tokens"].max())

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


def collect(directories: list[Path]) -> ReportData:
    """Read run directories and run both analyses on them. Raises InputError where one is not a run."""
    names = names_of(directories)
    runs = [_load_run(directory, names) for directory in directories]
    runs.sort(key=lambda run: (run.params, run.name))
    evaluated = [run.directory for run in runs if any((run.directory / "evaluations").glob("*.parquet"))]
    return ReportData(runs, emergence.investigate(evaluated, names) if evaluated else None)


def _load_run(directory: Path, names: dict[Path, str]) -> Run:
    metrics = Metrics.read(directory)
    if metrics.header is None:
        raise InputError(f"{directory / 'metrics.jsonl'}: has no line of kind 'run'; is this a run directory?")
    if not list((directory / "positions").glob("*.parquet")):
        raise InputError(f"{directory}: has no checkpoint yet; wait for the first one")
    positions = {str(matrix.keys["split"].iloc[0]): matrix for matrix in read_matrices(directory)}
    forecast, no_forecast = _forecast(directory, names[directory], list(positions.values()), metrics)
    columns = ("step", "tokens", "loss", "tokens_per_second")
    return Run(
        name=names[directory],
        directory=directory,
        params=int(metrics.header["params"]),
        header=metrics.header,
        positions=positions,
        means=pd.concat(
            [matrix.keys.assign(loss=matrix.mean_loss) for matrix in positions.values()], ignore_index=True
        ),
        fits=pd.concat([_fits(split, matrix) for split, matrix in positions.items()], ignore_index=True),
        curve=pd.DataFrame({name: metrics.train(name) for name in columns}),
        metrics=metrics,
        ood=_ood(directory),
        forecast=forecast,
        no_forecast=no_forecast,
    )


def _ood(directory: Path) -> tuple[str, ...]:
    tree = read_config(directory)
    sources = tree.get("data", {}).get("ood") if isinstance(tree, dict) and isinstance(tree.get("data"), dict) else None
    return tuple(str(source["domain"]) for source in sources or () if isinstance(source, dict) and "domain" in source)


def _fits(split: str, matrix: PositionMatrix) -> pd.DataFrame:
    """The position law as far as it is shown: of iid along training, of other splits at the end."""
    return temporal.fit_matrix(matrix if split == "iid" else observed_rows(matrix, slice(-1, None)))


def _forecast(
    directory: Path, name: str, matrices: list[PositionMatrix], metrics: Metrics
) -> tuple[TemporalAnalysis | None, tuple[str, ...]]:
    """The temporal analysis of a run, and why parts of it are missing."""
    try:
        curve = tables.read(tables.CURVES, metrics) if len(metrics.train("step")) else None
        shown = [matrix for matrix in matrices if matrix.keys["split"].iloc[0] in SPLITS]
        series = temporal.run_series(directory, shown, curve, name=name)
        analysis = temporal.investigate_series(series, fit_fraction=FRACTION, splits=SPLITS)
    except InputError as error:
        return None, (str(error),)
    return analysis, tuple(skipped.reason for skipped in analysis.result.skipped)
