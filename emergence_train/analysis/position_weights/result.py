"""The result of `analyze weights` as frozen dataclasses; result.json is `as_json` of PositionWeightsResult."""

from dataclasses import dataclass
from typing import Annotated

from emergence_train.analysis.results import Nats, Probability, Unit, absent


@dataclass(frozen=True, kw_only=True)
class WeightsDifference:
    """One kind of weights of one configuration against uniform weights, on one split and region of positions, over seeds."""

    variant: Annotated[str, 'the weights: "head x0.5", "vector", "vector of RUN", ...']
    split: str
    region: Annotated[str, "all, head (first tenth of the positions), body or tail (last tenth)"]
    step: Annotated[int, Unit("steps"), "the last one that all runs have"]
    seeds: Annotated[int, "pairs with the uniform run of the same seed"]
    loss: Annotated[Nats, "unweighted, mean over seeds"]
    difference: Annotated[Nats, "from uniform weights; negative is better"]
    low95: Annotated[Nats | None, "Student's t over seeds; null with one seed"]
    high95: Annotated[Nats | None, "Student's t over seeds; null with one seed"]
    p: Annotated[Probability | None, "two-sided, of no difference; null with one seed"]


@dataclass(frozen=True, kw_only=True)
class PositionWeightsResult:
    """Result of `analyze weights`."""

    rows: tuple[WeightsDifference, ...]
    notes: Annotated[tuple[str, ...], "runs that were parted, splits that a run has not"]
    figures: Annotated[tuple[str, ...] | None, "file names, once written"] = absent()
