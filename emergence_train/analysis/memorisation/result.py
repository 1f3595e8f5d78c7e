"""The result of `memorise` as frozen dataclasses; result.json is `as_json` of MemorisationResult, a key per field."""

from dataclasses import dataclass
from typing import Annotated

from emergence_train.analysis.results import Interval, Nats, Probability, Share, Unit, absent


@dataclass(frozen=True, kw_only=True)
class MemorisedShare:
    """Sequences of one run that were seen about as often."""

    run: str
    params: Annotated[int, Unit("non-embedding parameters")]
    step: int
    seen: Annotated[str, "how often the sequence was trained on; 0: never, a control"]
    least: Annotated[float, "the fewest times"]
    most: Annotated[float, "the most"]
    items: int
    extracted: Annotated[int, "items whose continuation is produced exactly from its prefix, greedily"]
    share: Annotated[Share, "extracted / items"]
    low95: Annotated[Share, "Wilson's interval"]
    high95: Share
    loss: Annotated[Nats, "mean over the continuations"]


@dataclass(frozen=True, kw_only=True)
class RunMemorisation:
    """Trained on against never seen, of one run."""

    run: str
    params: Annotated[int, Unit("non-embedding parameters")]
    step: int
    of_100: Annotated[float, "extracted per 100 trained sequences, above what controls give"]
    of_100_low95: Annotated[float, "Newcombe's interval of the difference of shares"]
    of_100_high95: float
    p: Annotated[Probability | None, "of equal shares, Fisher's exact test, one-sided"]
    loss_gain: Annotated[Nats, "loss of controls - loss of trained sequences, on continuations"]
    loss_gain_low95: Annotated[Nats | None, "Welch; null where all losses of each kind are equal"]
    loss_gain_high95: Nats | None


@dataclass(frozen=True, kw_only=True)
class CounterfactualMemorisation:
    """Texts that some models of one size were trained on and others were not (arXiv 2112.12938)."""

    params: Annotated[int, Unit("non-embedding parameters")]
    step: int
    seen: Annotated[str, "how often models that saw the texts did, to the nearest power of two; all: whatever it is"]
    times: Annotated[float, "its mean"]
    models: Annotated[int, "runs of this size at this step"]
    items: Annotated[int, "texts that have models of both kinds"]
    nats: Annotated[Interval, "loss of models without a text - loss of models with it, mean over texts; nats per token"]
    extracted: Annotated[Interval, "share produced exactly by models with a text - by models without it"]


@dataclass(frozen=True, kw_only=True)
class MemorisationResult:
    """Of one or more runs."""

    prefix: Annotated[int, Unit("tokens")]
    continuation: Annotated[int, Unit("tokens")]
    shares: tuple[MemorisedShare, ...]
    runs: tuple[RunMemorisation, ...]
    counterfactual: Annotated[
        tuple[CounterfactualMemorisation, ...] | None, "where runs of one size differ in the texts they were trained on"
    ] = absent()
    figures: Annotated[tuple[str, ...] | None, "file names, once written"] = absent()
