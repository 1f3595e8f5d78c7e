"""The result of `analyze emergence` as frozen dataclasses; result.json is `as_json` of EmergenceResult, a key per field."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from emergence_train.analysis.results import (
    Interval,
    Nats,
    Probability,
    Share,
    Tokens,
    Unit,
    absent,
    inline,
    keyed,
)

VerdictName = Literal[
    "emergent", "gradual", "u-shaped", "inverse", "at-chance", "saturated", "not-identified", "inverted-u"
]
KeptVerdict = Literal["kept", "lost", "open"]
IntervalOf = Literal["items", "items and runs of some sizes", "items and runs"]
ExplanationName = Literal["metric", "steps", "loss", "tokens", "compute"]
Explained = Literal["explains", "in-part", "does-not", "open"]
Status = Literal["reached", "expected", "open", "not-before-the-end"]
# Verdicts in the order in which they are shown, informative ones first
VERDICT_ORDER: tuple[VerdictName, ...] = (
    "emergent",
    "u-shaped",
    "inverted-u",
    "gradual",
    "inverse",
    "saturated",
    "not-identified",
    "at-chance",
)
MetricUnits = Annotated[float, Unit("units of the metric")]
Parameters = Annotated[int, Unit("non-embedding parameters")]


@dataclass(frozen=True, kw_only=True)
class TaskKey:
    """One metric of one task; `family` separates runs whose losses are not comparable ("" where all are)."""

    family: str
    task: str
    metric: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.family, self.task, self.metric


@dataclass(frozen=True, kw_only=True)
class FamilyResult:
    """Runs that were pooled: their losses compare."""

    family: str
    decided_by: Annotated[str, "the columns that decide it; names (of the runs); or assumed, where nothing tells"]
    runs: tuple[str, ...]
    sizes: int


@dataclass(frozen=True)
class LossInterval:
    """A loss with its 95% interval."""

    value: Nats
    low95: Nats
    high95: Nats


@dataclass(frozen=True)
class Plateau:
    """Performance before the threshold."""

    level: MetricUnits
    low95: MetricUnits
    high95: MetricUnits
    share_of_range: Annotated[Share, "of the loss range that it covers"]
    rows: int


@dataclass(frozen=True)
class HeldOutSize:
    """A size predicted by the others' curve within their loss range; no error with fewer than two such rows."""

    params: Parameters
    rows: int
    rmse: MetricUnits | None
    bias: MetricUnits | None = absent()
    noise: Annotated[MetricUnits | None, "what sampling noise alone would give"] = absent()


@dataclass(frozen=True, kw_only=True)
class SizeDetails:
    """How a size effect was estimated."""

    unit: str
    p_least: Annotated[Probability, "the least p that so few runs can give"]
    over_observed_sizes: Annotated[MetricUnits, "from the smallest to the largest size"]
    interval_of: Annotated[
        IntervalOf, "what interval and p are of. Of items: of so few runs, another may differ by more"
    ]
    matters: Annotated[
        bool, "of items and runs: the interval excludes 0, p is below 0.05 and the effect is worth naming"
    ]
    rows_in_overlap: int
    r2_loss: Share
    r2_loss_and_size: Share
    correlation: Annotated[float, "of neighbouring checkpoints of a run, half a standard error above the estimate"]
    held_out: tuple[HeldOutSize, ...]


@dataclass(frozen=True)
class SizeEffect:
    """The change of performance for ten times the parameters at the same loss, positive is better; or the reason why unknown."""

    value: MetricUnits | None
    low95: MetricUnits | None
    high95: MetricUnits | None
    p: Annotated[Probability | None, "two-sided, of no effect"]
    reason: str | None = absent()
    details: SizeDetails | None = inline()


@dataclass(frozen=True)
class Collapse:
    """The share of the variance that one monotone curve explains, of loss, of training compute and of tokens."""

    r2_loss: Share | None
    r2_compute: Share | None
    r2_tokens: Share | None = None


@dataclass(frozen=True, kw_only=True)
class LossRange:
    """The losses that were analysed."""

    highest: Nats = keyed("from")
    lowest: Nats = keyed("to")
    unigram: Annotated[Nats | None, "loss of a unigram model on this text"]
    unigram_needed: Annotated[Nats | None, "the least loss of a unigram model for which the task is emergent"]


@dataclass(frozen=True, kw_only=True)
class TaskResult(TaskKey):
    """One metric of one task as a function of loss."""

    verdict: VerdictName
    probability: Annotated[Probability, "of the verdict; of not-identified, that the likeliest other one is wrong"]
    probabilities: Annotated[dict[str, Probability], "of every verdict; empty where too few rows were given"]
    reason: str | None
    eta: Annotated[LossInterval | None, "the loss at which performance leaves its plateau"]
    plateau: Plateau | None
    change: Annotated[Interval, "performance at the lowest loss less that at the highest"]
    size_effect: SizeEffect
    collapse: Collapse
    rows: int
    sizes: int
    params: tuple[Parameters, ...]
    runs: int
    loss_range: LossRange
    chance: MetricUnits | None
    majority: Annotated[MetricUnits | None, "what always giving the commonest answer scores, where known or implied"]
    items: Annotated[float | None, "median over checkpoints"]
    resolution: Annotated[float | None, "1 / items"]
    continuous: Annotated[bool, "the metric moves with every change of the model's probabilities"]
    emergence_score: Annotated[float | None, "arXiv 2304.15004"]
    spearman: float | None
    pearson: float | None
    dispersion: Annotated[float | None, "variance of rows over that of their items alone"]
    correlation: Annotated[float | None, "of neighbouring checkpoints of a run"]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MirageCheck(TaskKey):
    """Whether an emergent verdict holds in a continuous metric of the same task too (arXiv 2304.15004)."""

    continuous: Annotated[dict[str, VerdictName], "verdicts of the continuous metrics"]
    survives: Annotated[bool | None, "null: not known"]
    says: str
    resolution: float | None


@dataclass(frozen=True, kw_only=True)
class Explanation(TaskKey):
    """What one explanation of a threshold says of it, and how far the rows bear it out."""

    explanation: Annotated[
        ExplanationName, "the metric; several steps that must all be right; a curve of loss, tokens or compute"
    ]
    explained: Annotated[Interval | None, "share of the score's variation that it explains; null: a yes or no"]
    verdict: Annotated[
        Explained,
        "explains: at least 0.8; in-part: at least 0.5 and less than 1; does-not: less than 0.5; with 95%, else open",
    ]
    evidence: str


@dataclass(frozen=True, kw_only=True)
class LeastSize:
    """The closed form N >= N0 (eta - L_inf)^(-1/alpha) at equal tokens (arXiv 2403.15796)."""

    alpha: Interval | None = absent()
    l_inf: Annotated[Interval | None, Unit("nats per token")] = absent()
    log10_n0: Interval | None = absent()
    tokens: Annotated[Tokens | None, "at which the sizes were compared"] = absent()
    sizes: int | None = absent()
    probability_that_any_size_suffices: Probability | None = absent()
    identified: bool
    reason: str | None = absent()
    n: Annotated[Interval | None, Unit("non-embedding parameters")] = absent()


@dataclass(frozen=True, kw_only=True)
class SizeLawResult(TaskKey):
    """The least size that gains the ability."""

    least_size: LeastSize = inline()


@dataclass(frozen=True)
class Kept:
    """What a smaller size keeps of the largest one's performance above chance: kept is more than half, lost is less."""

    share: Interval
    verdict: KeptVerdict
    reason: Annotated[str | None, "why the share is null"] = absent()


@dataclass(frozen=True, kw_only=True)
class SizeKept:
    """A smaller size beside the largest."""

    params: Parameters
    runs: int
    at_equal_tokens: Kept
    at_equal_loss: Kept


@dataclass(frozen=True, kw_only=True)
class TaskKept(TaskKey):
    """Whether an ability holds as the model shrinks, at the most tokens and the lowest loss that every run reached which has
    any in common with the largest size."""

    largest: Parameters
    tokens: Tokens
    loss: Nats
    interval_of: Annotated[
        IntervalOf,
        "what the intervals are of. Of items: each size is one run, and another run of it may differ by more. Of runs of some "
        "sizes: the others, of one run each, are taken to differ as those do",
    ]
    left_out: Annotated[tuple[str, ...], "runs that ended before half of the tokens of their size's longest"] = ()
    sizes: tuple[SizeKept, ...]


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """When a run's loss falls to a threshold."""

    run: str
    params: Parameters
    status: Status
    tokens: Annotated[
        Interval, Unit("tokens"), "null: beyond what was forecast; low95 0: at or before the run's first row"
    ]
    probability: Annotated[Probability, "that it happens by until_tokens"]
    reached_now: Probability
    until_tokens: Annotated[float, Unit("tokens")]
    planned_end_known: bool
    note: str


@dataclass(frozen=True, kw_only=True)
class Ability(TaskKey):
    """When each run gains the ability that the task measures."""

    runs: tuple[Crossing, ...]
    smallest_size_that_has_it: Parameters | None


@dataclass(frozen=True, kw_only=True)
class LossForecast:
    """The forecast loss of an unfinished run: medians and quantiles at `tokens`."""

    family: str
    run: str
    params: Parameters
    planned_end_known: bool
    tokens: tuple[Annotated[float, Unit("tokens")], ...]
    loss: tuple[Nats, ...]
    low95: tuple[Nats, ...]
    high95: tuple[Nats, ...]
    low80: tuple[Nats, ...]
    high80: tuple[Nats, ...]
    low50: tuple[Nats, ...]
    high50: tuple[Nats, ...]

    def interval(self, level: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(low, high) at 50, 80 or 95 percent, nats."""
        return {50: (self.low50, self.high50), 80: (self.low80, self.high80), 95: (self.low95, self.high95)}[level]


@dataclass(frozen=True)
class Units:
    """Units of the numbers in this file."""

    eta: str = "nats per token"
    size_effect: str = "metric units per tenfold parameters, plus is better"
    tokens: str = "trained so far"


@dataclass(frozen=True, kw_only=True)
class EmergenceResult:
    """The result of `analyze emergence`."""

    units: Units = field(default_factory=Units)
    convention: str
    notes: tuple[str, ...]
    families: tuple[FamilyResult, ...]
    tasks: tuple[TaskResult, ...]
    mirage: tuple[MirageCheck, ...]
    explanations: Annotated[
        tuple[Explanation, ...],
        "those that were measured, of each task that is emergent, or that some runs alone can do",
    ]
    survival: Annotated[tuple[TaskKept, ...], "one for each ability that the largest size clearly has"]
    size_law: tuple[SizeLawResult, ...]
    abilities: Annotated[tuple[Ability, ...], "one for each emergent task"]
    outlooks: tuple[LossForecast, ...]
    figures: Annotated[tuple[str, ...] | None, "file names, once written"] = absent()


@dataclass(frozen=True, kw_only=True)
class BacktestRow(TaskKey):
    """An ability forecast for a hidden size against the measurement."""

    run: str
    params: Parameters
    predicted: Annotated[Interval, Unit("tokens")]
    actual: Annotated[float | None, Unit("tokens")]
    inside95: bool
    status: Status
