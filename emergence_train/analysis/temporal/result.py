"""What `analyze temporal` finds, as frozen dataclasses; `as_json` gives what result.json holds, a field a key.

Losses in nats per token. `lowNN` and `highNN` are the ends of NN% intervals of one logged row, its noise included;
`curve_lowNN` and `curve_highNN` those of the noiseless curve.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from emergence_train.analysis.temporal.ranking import Ranking

ABSENT = {"absent": True}  # a field that is None has no key, where others are null
INLINE = {"inline": True, **ABSENT}  # the keys of a field's value stand among those of its owner


@dataclass(frozen=True, kw_only=True)
class ForecastPoint:
    step: int
    tokens: int  # 0 where the table has none
    loss: float
    low50: float
    high50: float
    low80: float
    high80: float
    low95: float
    high95: float
    actual: float | None = field(default=None, metadata=ABSENT)  # where it was held out


@dataclass(frozen=True, kw_only=True)
class Final(ForecastPoint):
    """The last forecast point."""

    curve_low50: float
    curve_high50: float
    curve_low80: float
    curve_high80: float
    curve_low95: float
    curve_high95: float


@dataclass(frozen=True, kw_only=True)
class PositionPoint:
    """The last forecast of a bin of positions, both ends inclusive."""

    position_low: int
    position_high: int
    loss: float
    low50: float
    high50: float
    low80: float
    high80: float
    low95: float
    high95: float
    actual: float | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, kw_only=True)
class ModelScore:
    """A law's error on the held-out rows; None where nothing was held out, or where there is no such number."""

    name: str
    mse: float | None
    r2: float | None
    heldout_points: int
    mse_smooth: float | None = field(default=None, metadata=ABSENT)  # after averaging over at most 100 runs of rows
    backtest_mse: float | None  # within the observed part


@dataclass(frozen=True, kw_only=True)
class JointLaw:
    """All constants of a0, a1 and a2 fitted at once."""

    a0_family: str
    a1_family: str
    a2_clock: str
    a2_kernel: str
    r2: float
    rmse: float
    constants: tuple[dict, ...]  # rows of JointFit.table


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Over all held-out checkpoints and positions; coverage is the share inside each interval."""

    mse: float
    r2: float | None
    coverage: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Positions:
    """The position law and what it forecasts."""

    law: str
    last_fit: dict  # of the last observed checkpoint: a row of position_law.fit_matrix
    identified: bool
    laws: dict[str, dict]  # a0, a1, a2 along training
    final: tuple[PositionPoint, ...]
    forms: tuple[dict, ...]  # rows of position_law.compare_forms_of
    joint: JointLaw | None = field(default=None, metadata=ABSENT)
    held_out: HeldOut | None = field(default=None, metadata=INLINE)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run's split (None: its training curve)."""

    run: str
    split: str | None
    fit_fraction: float | None
    fit_until_tokens: int
    fit_until_step: int
    observed_points: int
    selected: str
    weights: dict[str, float]
    forecast: tuple[ForecastPoint, ...]
    final: Final
    models: tuple[ModelScore, ...]  # the selected one first
    coverage: dict[str, float] | None  # share of held-out rows inside each interval
    noise: float
    law: dict
    notes: tuple[str, ...]
    positions: Positions | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True)
class Skipped:
    """A run's split that is too short to fit."""

    run: str
    split: str | None
    reason: str


@dataclass(frozen=True)
class PriorSource:
    source: str
    runs: int
    groups: int


@dataclass(frozen=True)
class Units:
    loss: str = "nats per token"
    tokens: str = "trained so far"
    mse: str = "nats^2"
    intervals: str = "percent"


@dataclass(frozen=True, kw_only=True)
class TemporalResult:
    units: Units = Units()
    prior: PriorSource
    runs: tuple[RunResult, ...]
    skipped: tuple[Skipped, ...]
    ranking: tuple[Ranking, ...]  # one for each split that at least two runs have
    figures: tuple[str, ...] | None = field(default=None, metadata=ABSENT)  # file names, once written


def as_json(value: Any) -> Any:
    """Dataclasses as dictionaries and tuples as lists, all the way down."""
    if is_dataclass(value):
        plain: dict[str, Any] = {}
        for one in fields(value):
            inner = getattr(value, one.name)
            if inner is None and one.metadata.get("absent"):
                continue
            plain |= as_json(inner) if one.metadata.get("inline") else {one.name: as_json(inner)}
        return plain
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, (tuple, list)) else value
