"""The verdict on a curve of performance against loss, and its probability.

Every task is at chance for an untrained model. So a threshold means a plateau over a considerable part of the loss range in
which the model already beats a unigram model, and then a rise. Each curve drawn from the posterior over shapes is classified
by the same rules, and the shares of the draws are the verdict's probabilities:

  at-chance      an ability is not shown: performance at the best end of the curve, (p - chance) / (1 - chance), is below SHOWN
                 or no better than always giving the commonest answer; or never further from chance than guessing on so many
                 items may be; or no relevant change at a level near chance (a plateau that answer length or a majority
                 answer lifts or lowers counts as chance; its level is estimated), if runs do not differ in it
  saturated      no relevant change, level far above chance
  emergent       a plateau of at least PLATEAU of the range, then a rise
  gradual        a rise without such a plateau, also one that levels off
  inverse        a fall
  u-shaped       a fall, then a rise
  inverted-u     a rise, then a fall of at least TURNED of it
  not-identified no verdict has enough probability, there are too few rows, a rise after a plateau has fewer than SIDE rows or is
                 gone without its best one, or a common curve is flat and runs rise far above chance and their own first rows,
                 or, near chance, are far above chance and the lowest run: what they can do does not follow the loss, or they
                 give constant answers of their own
"""

import typing
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import norm

from emergence_train.analysis.emergence.result import VerdictName
from emergence_train.analysis.emergence.shapes import Posterior, Rows, posterior
from emergence_train.analysis.emergence.threshold import threshold

SHOWN = 0.05  # least normalised performance, at the best end of the curve, of an ability
TURNED = 0.25  # share of a rise that must be lost again for an inverted U
PLATEAU = 0.2  # minimum length of a plateau as a share of the loss range
SIDE = 3  # checkpoints required before and after an onset
SURE = {"emergent": 0.6}  # probability that this verdict needs; 0.5 for the others
LIFTED = 0.35  # share of the way from chance to perfect up to which a flat curve may still be a lifted plateau
CEILING = 0.75  # from this share on, changes below CEILING_CHANGE are saturation
CEILING_CHANGE = 0.08
# Standard errors of one checkpoint's score and of the curve within which a curve is at chance.
GUESSING = 2.0
MOST_CHANCE = 0.5  # of two answers
UNKNOWN_CEILING = 0.85
# A run is far above chance from so many standard errors of a checkpoint's score, and such a share of what can be reached; and it
# differs from the lowest from so many.
FAR, APART = 6.0, 0.1
DIFFER = 5.0
SURVIVES = 0.25  # probability of a rise that must be left without its best row
RISES = ("emergent", "gradual")
FLAT = ("at-chance", "saturated")
AFTER = ("onset", "late-turn")  # kinds of curves: a rise after a plateau
TURNING = ("turn", "late-turn")  # and one that turns
ROWS, LOSSES = 6, 4  # fewest rows and fewest different losses
VERDICTS: tuple[VerdictName, ...] = typing.get_args(VerdictName)


@dataclass(frozen=True)
class Verdict:
    """`onset` etc. are in shares of the range; None where the verdict is not emergent. `begins_by` is the share of the range at
    which it may begin at the latest for the verdict to hold: had the model not beaten a unigram model before."""

    name: VerdictName
    probability: float
    probabilities: dict[VerdictName, float]
    onset: tuple[float, float, float] | None  # median, 2.5 and 97.5 percent
    plateau: tuple[float, float, float] | None  # its level, likewise
    change: tuple[float, float, float]  # performance at the lowest loss less that at the highest
    posterior: Posterior | None
    reason: str = ""
    begins_by: float | None = None
    able: frozenset[int] = frozenset()  # of a common curve that is flat: codes of the runs that it does not show
    rose: bool = False  # whether those are able by what they gain themselves, not by being above the lowest run
    # (S,) of which `onset` is the median and interval
    onset_draws: np.ndarray = field(default_factory=lambda: np.empty(0))
    confounded: bool = False  # emergent, but between runs in which the loss may not be what decides

    @property
    def able_runs(self) -> int:
        return len(self.able)

    @property
    def unexplained(self) -> bool:
        """Whether runs have an ability of which the loss is not known to decide."""
        return bool(self.able) or self.confounded

    def not_identified(self, reason: str, probability: float, *, confounded: bool = False) -> "Verdict":
        """The same without its name and threshold."""
        return replace(
            self,
            name="not-identified",
            probability=probability,
            onset=None,
            onset_draws=np.empty(0),
            plateau=None,
            begins_by=None if confounded else self.begins_by,
            reason=reason,
            confounded=confounded,
        )


def judge(
    rows: Rows,
    *,
    chance: float,
    best: float,
    smallest: float,
    scale: float,
    rng: np.random.Generator,
    majority: float = np.nan,
) -> Verdict:
    """The verdict on one task's rows.

    `chance`, `majority` and `best` are performance of guessing, of always giving the commonest answer and of perfection (NaN
    where unknown), `smallest` the smallest relevant change, `scale` the prior standard deviation of changes; all in the units
    of performance.
    """
    reason = _too_little(rows)
    if reason:
        return Verdict("not-identified", 1.0, {}, None, None, (np.nan,) * 3, None, reason)
    drawn = posterior(rows, scale, rng)
    names = call(drawn, rows, chance=chance, best=best, smallest=smallest, majority=majority)
    probabilities = {name: float(np.mean(names == name)) for name in VERDICTS}
    top = max((name for name in VERDICTS if name != "not-identified"), key=probabilities.__getitem__)
    change = _interval(drawn.curves[:, -1] - drawn.curves[:, 0])
    if top in FLAT and probabilities[top] == max(probabilities.values()):  # sure or not
        able, rose, reason = _able_runs(rows, top, chance, best, majority, smallest)
        if able:
            return Verdict(
                "not-identified", 1.0, probabilities, None, None, change, drawn, reason, able=able, rose=rose
            )
    if probabilities[top] < SURE.get(top, 0.5):
        reason = _undecided(probabilities)
        return Verdict("not-identified", 1 - probabilities[top], probabilities, None, None, change, drawn, reason)
    if top in RISES:
        rest = _without_best(rows)
        left = posterior(rest, scale, rng.spawn(1)[0])
        others = call(left, rest, chance=chance, best=best, smallest=smallest, majority=majority)
        risen = float(np.isin(others, (*RISES, "not-identified")).mean())
        if risen < SURVIVES:
            reason = f"{top} by one checkpoint alone: without the highest score a rise has probability {risen:.2f}"
            return Verdict("not-identified", 1 - risen, probabilities, None, None, change, drawn, reason)
    if top == "at-chance":
        reason = _lifted(drawn, rows, chance, best, majority)
    if top != "emergent":
        return Verdict(top, probabilities[top], probabilities, None, None, change, drawn, reason)
    these = names == "emergent"
    onset = threshold(drawn.onset[these], drawn.foot[these], rows.x, rng)
    begins_by = _begins_by(drawn.onset[these], probabilities[top])
    plateau = _interval(drawn.level[these])
    return Verdict(
        top,
        probabilities[top],
        probabilities,
        _interval(onset),
        plateau,
        change,
        drawn,
        begins_by=begins_by,
        onset_draws=onset,
    )


def _undecided(probabilities: dict[VerdictName, float]) -> str:
    if probabilities["not-identified"] >= 0.5:
        return f"a rise after a plateau, which fewer than {SIDE} checkpoints show"
    known = sorted(((p, n) for n, p in probabilities.items() if n != "not-identified"), reverse=True)[:2]
    return "the rows fit " + " and ".join(f"{n} (probability {p:.2f})" for p, n in known if p > 0.005)


def _without_best(rows: Rows) -> Rows:
    """The rows but for that of the highest score, on the range that is left: a rise of which it is all may be luck."""
    keep = np.arange(len(rows.x)) != int(rows.y.argmax())
    x = rows.x[keep]
    items = None if rows.items is None else rows.items[keep]
    x = (x - x.min()) / max(float(np.ptp(x)), 1e-12)
    return Rows(x, rows.y[keep], rows.variance[keep], rows.run[keep], rows.order[keep], items)


def _begins_by(onset: np.ndarray, probability: float) -> float:
    """The latest start of the range, as a share of it, from which enough of the drawn plateaus are long enough.

    A range that begins at b leaves (onset - b) / (1 - b) of plateau, at least PLATEAU of it where b <= (onset - PLATEAU) / (1 -
    PLATEAU); `onset` are the emergent draws, `probability` their share of all.
    """
    return float(np.quantile((onset - PLATEAU) / (1 - PLATEAU), 1 - SURE["emergent"] / probability))


def call(
    drawn: Posterior, rows: Rows, *, chance: float, best: float, smallest: float, majority: float = np.nan
) -> np.ndarray:
    """Classify each drawn curve, (S,)."""
    names = np.full(len(drawn.kind), "at-chance", dtype="<U14")
    low = drawn.curves.min(1)
    span = best - chance if np.isfinite(best - chance) else np.nan
    # Without a chance level only a curve near perfection is distinguishable from one at chance.
    share = (low - chance) / span if np.isfinite(span) else (low >= UNKNOWN_CEILING * best).astype(float)
    least = np.where(
        share >= CEILING, np.maximum(smallest, CEILING_CHANGE * (span if np.isfinite(span) else 0)), smallest
    )
    plateau, followed = _real_plateau(drawn, rows)
    _name_straight(names, drawn, plateau & followed, least)
    _name_turns(names, drawn, plateau & followed, least)
    names[~_shown(names, drawn, chance, span, majority)] = "at-chance"
    names[(names == "gradual") & np.isin(drawn.kind, AFTER) & plateau & ~followed] = "not-identified"
    if np.isfinite(chance) or rows.items is not None:
        names[_guessing(drawn, rows, chance)] = "at-chance"
    flat = names == "at-chance"
    names[flat & (share > LIFTED)] = "saturated"
    return names


def _real_plateau(drawn: Posterior, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(S,) whether the plateau before each drawn onset is long enough, with enough checkpoints; whether enough follow it."""
    ordered = np.sort(rows.x)
    before = np.searchsorted(ordered, drawn.onset - 1e-9)
    return (drawn.onset >= PLATEAU) & (before >= SIDE), len(ordered) - before >= SIDE


def _name_straight(names: np.ndarray, drawn: Posterior, plateau: np.ndarray, least: np.ndarray) -> None:
    straight = ~np.isin(drawn.kind, TURNING)
    rose, fell = straight & (drawn.change > least), straight & (drawn.change < -least)
    names[rose] = np.where(plateau & (drawn.kind == "onset"), "emergent", "gradual")[rose]
    names[fell] = "inverse"


def _name_turns(names: np.ndarray, drawn: Posterior, plateau: np.ndarray, least: np.ndarray) -> None:
    turn, late = np.isin(drawn.kind, TURNING), plateau & (drawn.kind == "late-turn")
    fell, rose = turn & (drawn.before < -least), turn & (drawn.change > least)
    up, down = turn & (drawn.before > least), turn & (drawn.change < -least)
    names[fell & rose] = "u-shaped"
    names[fell & ~rose] = "inverse"
    names[up] = np.where(late, "emergent", "gradual")[up]
    names[up & down & (drawn.change < -TURNED * drawn.before)] = "inverted-u"
    still = turn & ~fell & ~up
    names[still & rose] = np.where(plateau, "emergent", "gradual")[still & rose]
    names[still & down] = "inverse"


def _shown(names: np.ndarray, drawn: Posterior, chance: float, span: float, majority: float) -> np.ndarray:
    """(S,) False where a drawn curve is named for a rise and shows no ability at its best end (at its peak, where inverted)."""
    top = np.where(names == "inverted-u", drawn.curves.max(1), np.maximum(drawn.curves[:, 0], drawn.curves[:, -1]))
    needed = chance + SHOWN * span if np.isfinite(span) else chance
    missed = (top < needed) | (top <= majority)  # False where unknown
    return ~(missed & np.isin(names, ("emergent", "gradual", "inverted-u")))


def _guessing(drawn: Posterior, rows: Rows, chance: float) -> np.ndarray:
    """(S,) whether each drawn curve is compatible with guessing: all checkpoints answer the same items, so guesses that change
    drift by the items' noise, about chance or a level below it (answer length can lower it). Where chance is unknown, about where
    the curve begins, if guessing may be right so often."""
    level = min(chance, float(drawn.curves.mean()))
    if np.isnan(chance):
        chance = level = min(MOST_CHANCE, float(drawn.curves[:, 0].mean()))
    if rows.items is not None and 0 < chance < 1:
        variance = chance * (1 - chance) / np.median(rows.items)
    else:
        variance = float(np.median(rows.variance))
    room = GUESSING * np.sqrt(variance + drawn.curves.var(0))
    return np.all(np.abs(drawn.curves - level) <= room, axis=1)


def last_rows(rows: Rows, code: int) -> np.ndarray:
    """Indices of a run's SIDE checkpoints of the lowest losses; fewer where it has fewer."""
    own = np.flatnonzero(rows.run == code)
    return own[np.argsort(rows.x[own], kind="stable")[-SIDE:]]


def first_and_last(rows: Rows, code: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Indices of a run's SIDE first checkpoints and of its SIDE last ones; None where it has fewer in all."""
    own = np.flatnonzero(rows.run == code)
    own = own[np.argsort(rows.order[own], kind="stable")]
    return (own[:SIDE], own[-SIDE:]) if len(own) >= 2 * SIDE else None


def _variance(rows: Rows, level: float) -> np.ndarray:
    """(n,) of scores at `level`: that of the items, by as much larger as standard errors that are given are."""
    larger = np.maximum(rows.variance / rows.variance_at(rows.y)[0], 1)
    return rows.variance_at(np.full(len(rows.y), level))[0] * larger


def _error(rows: Rows, own: np.ndarray, level: float) -> float:
    """Standard error of one of the scores `own` (indices), were it `level`."""
    return float(np.sqrt(_variance(rows, level)[own].mean()))


def _far_above(rows: Rows, own: np.ndarray, level: float, room: float) -> float:
    """From where scores `own` (indices) are far above `level`."""
    return level + max(FAR * _error(rows, own, level), APART * room)


def _able_runs(
    rows: Rows, top: VerdictName, chance: float, best: float, majority: float, smallest: float
) -> tuple[frozenset[int], bool, str]:
    """Runs whose SIDE last checkpoints are all far above chance and the commonest answer, and above what the loss explains: the
    lowest run, where the common curve is at chance, or the run's own SIDE first checkpoints; whether the latter; and the reason
    that this is. All checkpoints of a run answer the same items, so that several are no surer than one."""
    if not best > 0:
        return frozenset(), False, ""
    above = _above_lowest(rows, chance, best, majority, smallest) if top == "at-chance" else frozenset()
    risen = _risen(rows, chance, best, majority)
    rose = len(risen) > len(above)
    if rose:
        able, answer = risen, "come to give one answer"
        ability = f"rise far above {'' if np.isnan(chance) else 'chance and '}their own first checkpoints"
    else:
        able, answer = above, "give one answer throughout"
        ability = "are far above chance and above the lowest run"
    reason = f"{len(able)} of {len(np.unique(rows.run))} runs {ability}, which the loss does not explain"
    return able, rose, reason + (f" (or they {answer}: a column majority tells)" if np.isnan(majority) else "")


def _above_lowest(rows: Rows, chance: float, best: float, majority: float, smallest: float) -> frozenset[int]:
    """The able among several runs that differ.

    Where all are at one level, the lowest of k is below it by Blom's expectation (Statistical Estimates, 1958).
    """
    codes = np.unique(rows.run)
    if len(codes) < 2 or not np.isfinite(chance):
        return frozenset()
    last = {int(code): last_rows(rows, code) for code in codes}
    levels = {code: float(np.median(rows.y[own])) for code, own in last.items()}
    base = float(np.fmax(chance, majority))
    lowest = min(levels, key=levels.__getitem__)
    of_lowest = _error(rows, last[lowest], levels[lowest])
    common = levels[lowest] + float(norm.ppf((len(codes) - 0.375) / (len(codes) + 0.25))) * of_lowest
    differs = common + max(DIFFER * of_lowest, smallest)
    enough = {code: max(_far_above(rows, own, base, best - chance), differs) for code, own in last.items()}
    able = {code for code, own in last.items() if rows.y[own].min() > enough[code]}
    # of runs of one checkpoint each a lucky one is no ability
    return frozenset(able) if sum(len(last[code]) for code in able) >= SIDE else frozenset()


def _risen(rows: Rows, chance: float, best: float, majority: float) -> frozenset[int]:
    """The able runs that rise as they train, though no curve of the loss does: at losses at which others, or they, had not."""
    base, room = float(np.fmax(chance, majority)), best - float(np.fmax(chance, 0.0))
    risen = set()
    for code in np.unique(rows.run):
        if (ends := first_and_last(rows, code)) is None:
            continue
        first, last = ends
        level = float(np.fmax(base, np.median(rows.y[first])))
        if rows.y[last].min() > _far_above(rows, last, level, room):
            risen.add(int(code))
    return frozenset(risen)


def _lifted(drawn: Posterior, rows: Rows, chance: float, best: float, majority: float) -> str:
    """Of a flat curve far above chance that counts as chance: what it is taken for."""
    base, level = float(np.fmax(chance, majority)), float(drawn.curves.mean())
    if not 0 <= chance < best or level <= _far_above(rows, np.arange(len(rows.y)), base, best - chance):
        return ""
    return f"at {level:.2g} on average, far above chance, which lengths of answers or a constant answer may lift so far"


def _too_little(rows: Rows) -> str:
    if len(rows.x) < ROWS:
        return f"{len(rows.x)} checkpoint{'s' * (len(rows.x) != 1)}, at least {ROWS} are needed"
    if len(np.unique(rows.x)) < LOSSES:
        return f"{len(np.unique(rows.x))} different losses, at least {LOSSES} are needed"
    return ""


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    middle, low, high = np.quantile(values, [0.5, 0.025, 0.975])
    return float(middle), float(low), float(high)
