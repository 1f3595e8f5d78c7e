"""The result of `analyze temporal` as frozen dataclasses; result.json is `as_json` of TemporalResult, a key per field.

Losses in nats per token. `lowNN` and `highNN` are the ends of NN% intervals of one logged row, its noise included;
`curve_lowNN` and `curve_highNN` those of the noiseless curve.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from emergence_train.analysis.results import Nats, Probability, Share, Tokens, Unit, absent, inline, keyed

NatsSquared = Annotated[float, Unit("nats^2")]
Steps = Annotated[int, Unit("steps")]


@dataclass(frozen=True, kw_only=True)
class ForecastPoint:
    """The loss at one step."""

    step: Steps
    tokens: Annotated[Tokens, "trained so far; 0 where the table has none"]
    loss: Nats
    low50: Nats
    high50: Nats
    low80: Nats
    high80: Nats
    low95: Nats
    high95: Nats
    actual: Annotated[Nats | None, "measured, where it was held out"] = absent()


@dataclass(frozen=True, kw_only=True)
class Final(ForecastPoint):
    """The last forecast point; where there is nothing to forecast, the fitted law at the last row. Of a training loss `actual` is
    a mean over the last rows: each is of one batch."""

    actual_rows: Annotated[int | None, "rows whose mean distance from the forecast makes `actual`, of several"] = (
        absent()
    )
    curve_low50: Nats
    curve_high50: Nats
    curve_low80: Nats
    curve_high80: Nats
    curve_low95: Nats
    curve_high95: Nats


@dataclass(frozen=True, kw_only=True)
class PositionPoint:
    """The last forecast of a bin of positions, both ends inclusive."""

    position_low: int
    position_high: int
    loss: Nats
    low50: Nats
    high50: Nats
    low80: Nats
    high80: Nats
    low95: Nats
    high95: Nats
    actual: Annotated[Nats | None, "measured, where it was held out"] = absent()


@dataclass(frozen=True, kw_only=True)
class ModelScore:
    """A law's error on the held-out rows; null where nothing was held out, or where it is undefined."""

    name: str
    mse: NatsSquared | None
    r2: Share | None
    heldout_points: int
    mse_smooth: Annotated[NatsSquared | None, "after averaging over at most 100 groups of rows"] = absent()
    backtest_mse: Annotated[NatsSquared | None, "within the observed part"]


@dataclass(frozen=True)
class Coverage:
    """The share of held-out rows inside the 50, 80 and 95% intervals."""

    within50: Share = keyed("50")
    within80: Share = keyed("80")
    within95: Share = keyed("95")


@dataclass(frozen=True)
class LawConstants:
    """L(x) = L0 + A clock(x)^-shape - B decay(x): clock and kernel of the heaviest hypothesis, and means and standard
    errors of the constants over all hypotheses."""

    clock: str
    kernel: str
    L0: Nats
    L0_se: Nats
    A: Annotated[Nats, "at the end of the fitted window"]
    A_se: Nats
    B: Annotated[Nats, "fall of the loss for a decay from the peak rate to 0"]
    B_se: Nats
    shape: float
    shape_se: float


@dataclass(frozen=True)
class MeanLaw:
    """The law of the mean loss."""

    name: str
    constants: LawConstants = inline()


@dataclass(frozen=True)
class LevelLaw:
    """The law of a2 along training."""

    family: str
    constants: LawConstants = inline()


@dataclass(frozen=True, kw_only=True)
class ShapeLaw:
    """The law of a0 or a1 along training: c0 + c1 basis(steps / observed length)."""

    family: str
    weight: Annotated[Share, "of this family among all"]
    c0: float
    c1: float
    c0_se: float
    c1_se: float
    q_per_observed_length: float
    separation_step: Annotated[float | None, Unit("steps"), "the parameter is held from here on; null: not observed"]
    r2: Share
    backtest_rmse: Annotated[float | None, "in the parameter's unit"]


@dataclass(frozen=True, kw_only=True)
class ParameterLaws:
    """The laws of a0, a1 and a2; those of a0 and a1 only where the position law is identified."""

    a0: ShapeLaw | None = absent()
    a1: ShapeLaw | None = absent()
    a2: LevelLaw


@dataclass(frozen=True)
class PositionFit:
    """The position law fitted to one checkpoint, a row of position_law.fit_matrix; null where an end is open."""

    step: Steps
    tokens: Tokens
    a0: Nats | None
    a0_se: Nats | None
    a0_low: Nats | None
    a0_high: Nats | None
    a1: Annotated[float | None, Unit("1 / position")]
    a1_se: Annotated[float | None, Unit("1 / position")]
    a1_low: Annotated[float | None, Unit("1 / position")]
    a1_high: Annotated[float | None, Unit("1 / position")]
    a2: Nats | None
    a2_se: Nats | None
    a2_low: Nats | None
    a2_high: Nats | None
    mean_loss: Nats
    r2: Share | None
    chi2_dof: float | None
    bin_chi2: float | None
    bin_max: Nats | None
    status: Annotated[str, 'either "ok" or "not identified: " with the reason']


@dataclass(frozen=True)
class FormScore:
    """A form of the law over positions, scored on held-out positions: a row of position_law.compare_forms_of."""

    form: Literal["reciprocal", "power", "exponential"]
    excess_mse: Annotated[NatsSquared | None, "squared error beyond sampling noise"]
    stderr: NatsSquared | None
    wins: Annotated[Share | None, "of checkpoints at which this form has the least error"]
    checkpoints: int


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Over all held-out checkpoints and positions."""

    mse: NatsSquared
    r2: Share | None
    coverage: Coverage


@dataclass(frozen=True, kw_only=True)
class Positions:
    """The position law and its forecast."""

    law: str
    last_fit: Annotated[PositionFit, "of the last observed checkpoint"]
    identified: bool
    laws: ParameterLaws
    final: tuple[PositionPoint, ...]
    forms: tuple[FormScore, ...]
    held_out: HeldOut | None = inline()


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run's split (null: its training curve)."""

    run: str
    split: str | None
    fit_fraction: Share | None
    fit_until_tokens: Tokens
    fit_until_step: Steps
    observed_points: int
    selected: Annotated[
        str, "the law whose forecast this is; ensemble: several averaged; rise: none, the loss has turned"
    ]
    weights: Annotated[dict[str, Share], "of the averaged laws; none where the loss has turned"]
    forecast: tuple[ForecastPoint, ...]
    final: Final
    models: Annotated[tuple[ModelScore, ...], "the selected one first"]
    coverage: Coverage | None
    noise: Annotated[Nats, "standard deviation of one logged row about the curve"]
    law: MeanLaw
    notes: tuple[str, ...]
    nothing_to_forecast: Annotated[str | None, "why, where every row was fitted and the plan ends with the last"] = (
        absent()
    )
    positions: Positions | None = absent()


@dataclass(frozen=True)
class Skipped:
    """A run's split that is too short to fit."""

    run: str
    split: str | None
    reason: str


@dataclass(frozen=True)
class PriorSource:
    """The source of the prior on the decay's effect."""

    source: str
    runs: int
    groups: int


@dataclass(frozen=True)
class Place:
    """A run's place in the ranking."""

    run: str
    loss: Annotated[Nats, "forecast; of a finished run the fitted law at its last row"]
    sd: Nats
    probability_best: Probability
    probability_above_next: Annotated[Probability | None, "null for the last"]


@dataclass(frozen=True)
class Ranking:
    """Runs in the order of their forecast final losses, lowest first."""

    split: str | None
    order: tuple[Place, ...]
    probability: Annotated[Probability, "that the whole order is right"]


@dataclass(frozen=True)
class Units:
    """Units of the numbers in this file."""

    loss: str = "nats per token"
    tokens: str = "trained so far"
    mse: str = "nats^2"
    intervals: str = "percent"


@dataclass(frozen=True, kw_only=True)
class TemporalResult:
    """The result of `analyze temporal`."""

    units: Units = Units()
    prior: PriorSource
    runs: tuple[RunResult, ...]
    skipped: tuple[Skipped, ...]
    ranking: Annotated[tuple[Ranking, ...], "one for each split that at least two runs have"]
    figures: Annotated[tuple[str, ...] | None, "file names, once written"] = absent()


@dataclass(frozen=True, kw_only=True)
class FinalForecast:
    """A forecast of the loss at a run's end, of the noiseless curve.
    `reason`: why there is none, or what it leaves out or has no law for."""

    loss: Nats | None = absent()
    sd: Nats | None = absent()
    low95: Nats | None = absent()
    high95: Nats | None = absent()
    reason: str | None = absent()
