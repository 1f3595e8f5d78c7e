"""The result of `grok` as frozen dataclasses; result.json is `as_json` of GrokkingResult, a key per field."""

from dataclasses import dataclass
from typing import Annotated, Literal

from emergence_train.analysis.results import Probability, Share, Unit, absent

APART = 1000  # updates between comprehension and grokking
LUCK = 1e-3  # chance at most that constant or random answers reach what counts as known, at one measurement
MOST_QUESTIONS = 10_000
Outcome = Literal["comprehension", "grokking", "memorisation", "confusion", "diverged", "unclear"]
Updates = Annotated[int, Unit("updates")]
Params = Annotated[int, Unit("parameters"), "all that are trained, embeddings among them"]
Norm = Annotated[float, Unit("Euclidean norm of all parameters")]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run. Times are the first measurement at which an accuracy was reached, null where it never was."""

    run: str
    model: Annotated[str, "name of the size"]
    params: Params
    fraction: Annotated[Share, "of the questions, trained on"]
    weight_decay: float
    seed: int
    outcome: Annotated[
        Outcome,
        "comprehension: train and held-out accuracy both reached 90%, less than 1,000 updates apart; grokking: both, further "
        "apart; memorisation: train alone; confusion: not train; diverged: it ended with a training loss that is not "
        "finite before it generalised, or before the budget with such a held-out loss or norm; "
        "unclear: so few questions are held out that luck or one constant answer may get all",
    ]
    censored: Annotated[
        bool, "it ended before the held-out accuracy reached 90%: it might have later; false of unclear ones"
    ]
    stopped: Annotated[bool, "so it did, before the budget was over: critical shares leave it out"]
    train_90: Annotated[Updates | None, "train accuracy at 90%"]
    train_99: Annotated[Updates | None, "at 99%"]
    heldout_90: Annotated[
        Updates | None, "held-out accuracy at 90%, or what luck gets in one of a thousand measurements if that is more"
    ]
    heldout_99: Annotated[Updates | None, "at 99%, likewise"]
    before_heldout_90: Annotated[Updates | None, "the measurement before: it was reached between the two"]
    delay: Annotated[Updates | None, "heldout_90 - train_90"]
    updates: Annotated[Updates, "trained in all"]
    train_accuracy: Annotated[Share, "at the end"]
    heldout_accuracy: Annotated[Share, "at the end"]
    norm: Annotated[Norm, "at the end"]
    chance: Annotated[Share | None, "of a constant answer to be right, the commonest; null where the curves do not say"]

    def counts(self) -> bool:
        """Whether it says anything of how much data is needed."""
        return self.outcome not in ("diverged", "unclear")


@dataclass(frozen=True, kw_only=True)
class CriticalFraction:
    """The share of data at which half of the seeds generalise (held-out accuracy at 90%) within the budget, of one size."""

    model: str
    params: Params
    weight_decay: float
    value: Annotated[Share | None, "null where it is not between two shares of the sweep, or more data did not help"]
    low95: Annotated[Share | None, "null where the sweep has no lower bound"]
    high95: Annotated[Share | None, "null where the sweep has no upper bound"]
    runs: Annotated[int, "without those that diverged, stopped or are unclear: they do not say how much data is needed"]
    generalised: Annotated[int, "of the runs"]
    reason: Annotated[str | None, "why value is null"]


@dataclass(frozen=True, kw_only=True)
class Trend:
    """How the critical share moves with size: its change for ten times the parameters, a straight line in
    log10(parameters); with `log_share` one of the share's logarithm, and its slope at the middle of the sizes."""

    value: Annotated[float | None, Unit("share for ten times the parameters"), "negative: larger models need less data"]
    low95: float | None
    high95: float | None
    p: Annotated[
        Probability | None,
        "of no trend, sizes permuted among the runs of one share; null with one share, or where no share has two sizes",
    ]
    least_p: Annotated[
        Probability | None,
        "the smallest p that these runs could have given, whichever size they were of: above 0.05 they are too few",
    ]
    straight_p: Annotated[Probability | None, "of a straight line against a critical share of its own for each size"]
    sizes: Annotated[int, "that both generalised and did not"]
    reason: Annotated[str | None, "why value is null"] = None
    log_share: Annotated[bool, "the shares tried are spaced by factors, and the line is of the share's logarithm"] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class MedianTime:
    """Time to generalise of one size at one share, over seeds (Kaplan and Meier, runs that did not are censored)."""

    model: str
    params: Params
    weight_decay: float
    fraction: Share
    median: Annotated[Updates | None, "null where less than half generalised"]
    runs: int
    generalised: int


@dataclass(frozen=True, kw_only=True)
class TimeTrend:
    """Time of runs that generalise as share^value (lognormal, accelerated failure time, each size and weight decay with its own
    level; a run generalised between two measurements, or after its end, or never: below a critical share)."""

    value: Annotated[float | None, "negative: the less data, the later"]
    low95: float | None
    high95: float | None
    p: Probability | None
    runs: int
    generalised: int
    reason: Annotated[str | None, "why value is null"] = None


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What the two solutions of one size and weight decay cost at the same training loss, late in training (after arXiv
    2309.02390): weight decay prefers the one with the smaller norm. The memorising runs are of smaller shares, which cost
    less to memorise."""

    model: str
    params: Params
    weight_decay: float
    loss: Annotated[float, Unit("nats a question"), "the training loss at which they are compared"]
    memorising_norm: Annotated[Norm, "of runs that know the training questions and less than half of the held-out ones"]
    generalising_norm: Annotated[Norm, "of runs that know 99% of both"]
    ratio: Annotated[float, "generalising / memorising norm; below 1: generalising is the cheaper"]
    low95: Annotated[float | None, "over runs; null with fewer than two of each"]
    high95: float | None
    memorising_runs: int
    generalising_runs: int


def nothing_counts(outcomes: set[str]) -> str:
    """Why no run counts, of these outcomes and "stopped"."""
    kinds = [name for name in ("diverged", "stopped", "unclear") if name in outcomes]
    return f"every run {' or '.join('is unclear' if name == 'unclear' else name for name in kinds)}"


def questions_enough(chance: float) -> int | None:
    """How many questions luck, right with `chance` at each, gets all right of in less than one of a thousand measurements."""
    all_right, questions = chance, 1
    while all_right > LUCK and questions < MOST_QUESTIONS:
        all_right, questions = all_right * chance, questions + 1
    return questions if all_right <= LUCK else None


def shown(value: float | None, sign: str = "") -> str:
    """A share or an end of an interval: three decimals, or two digits of what they would hide."""
    if value is None:
        return "open"
    return f"{value:{sign}.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:{sign}.2g}"


@dataclass(frozen=True, kw_only=True)
class GrokkingResult:
    """Of one sweep."""

    budget: Annotated[Updates, "updates at most of a run: what 'within the budget' means"]
    outcomes: Annotated[dict[str, int], "runs by outcome"]
    runs: tuple[RunResult, ...]
    critical_fraction: tuple[CriticalFraction, ...]
    trend: Trend
    times: tuple[MedianTime, ...]
    time_trend: TimeTrend
    efficiency: Annotated[tuple[Efficiency, ...], "by size and weight decay, where both were seen at one loss"]
    figures: Annotated[tuple[str, ...] | None, "file names, once written"] = absent()

    def warning(self) -> str | None:
        """What must be known before any number is read: runs that are left out, as those whose loss did not stay finite."""
        lost = [run for run in self.runs if run.outcome == "diverged"]
        unclear = [run for run in self.runs if run.outcome == "unclear"]
        stopped = sum(run.counts() and run.stopped for run in self.runs)
        of, says = len(self.runs), []
        if lost:
            says.append(
                f"{len(lost)} of {of} runs diverged, the first after {min(run.updates for run in lost):,} updates: their "
                "loss is not finite, and critical shares and times leave them out; lower training.lr"
            )
        if unclear:
            least = questions_enough(max(run.chance or 0.0 for run in unclear))
            hold = f"hold out at least {least:,}: " if least else ""
            says.append(
                f"{len(unclear)} of {of} runs have so few held-out questions that luck or one constant answer may get all right, "
                f"and critical shares and times leave them out; {hold}lower fractions, or give the task more questions"
            )
        if stopped:
            says.append(
                f"{stopped} of {of} runs end before update {self.budget:,} without having generalised, and critical shares leave "
                "them out; train them on, or give a smaller budget"
            )
        return ". ".join(says) or None

    def note(self) -> str | None:
        """What the curves do not say: whether luck explains what counts as known."""
        unknown = sum(run.chance is None for run in self.runs)
        if not unknown:
            return None
        return (
            f"whether luck or a constant answer reaches 90% is not known of {unknown} of {len(self.runs)} runs; give columns "
            "heldout_questions and chance, the commonest answer's share"
        )

    def at_middle(self) -> str:
        """Where the change of the critical share is meant, if its line is one of its logarithm; else nothing."""
        return " (slope at the middle of the sizes)" if self.trend.log_share else ""

    def few_runs(self) -> str:
        """That no p below 0.05 was possible, where that is so; else nothing."""
        least = self.trend.least_p
        return f"; of these runs no p below {least:.2g} was possible" if least is not None and least > 0.05 else ""

    def trend_unknown(self) -> str:
        """What the sweep lacks where it says nothing of how the critical share moves with size."""
        if len({row.params for row in self.critical_fraction}) < 2:
            return "models of one size alone"
        if len({run.fraction for run in self.runs}) < 2:
            return "one share alone"
        if not any(run.counts() for run in self.runs):
            return nothing_counts({run.outcome for run in self.runs})
        if self.trend.sizes < 2:
            return "fewer than two sizes have both runs that generalised and runs that did not"
        telling = {row.model for row in self.critical_fraction if 0 < row.generalised < row.runs}
        tried = {(run.fraction, run.params) for run in self.runs if run.model in telling}
        if len({fraction for fraction, _ in tried}) == len(tried):
            return "no share was tried with two of the sizes that tell"
        if self.trend.p is not None:
            return "the runs bound it on neither side"
        return "more data did not go with more runs that generalised"
