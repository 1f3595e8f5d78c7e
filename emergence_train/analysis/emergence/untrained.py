"""Rows of models that are not trained yet, which say nothing of where performance leaves its plateau.

At or above the loss of a unigram model there is no plateau: the model has not learnt to read. Where that loss is unknown, a
single such row would still stretch the loss range, move the threshold and turn verdicts, so rows that are plainly of this kind
are left out: those before the first token, early ones above any unigram model of subwords, and young ones far above all others.
Late in most runs losses so high are of another unit: refused where no nats can be so many, else kept, with a note.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from emergence_train.errors import InputError

# The highest loss of a unigram model that we measured, rounded up: 7.4 nats with GPT-2's vocabulary on an encyclopaedia.
HIGHEST_UNIGRAM = 7.5
SUBWORDS = f"above {HIGHEST_UNIGRAM:g} nats, the loss of any unigram model of subwords"
FAR = 0.1  # a gap below a row, as a share of the range of the rows below it, that sets it apart
OTHERS = 2.0  # and as a multiple of the next two gaps: the losses of checkpoints at even ratios are spaced like that
TIMES = 1.5  # and its loss as a multiple of the lowest
CALL = "call the column loss (ppl) or loss (bits) where it is of these"
EARLY = 0.2  # share of a run's tokens up to which a trained model may be above HIGHEST_UNIGRAM
RISEN = 1.1  # as a multiple of the run's lowest loss so far, from which a loss is of a run that diverged
MOST_NATS = 12.5  # of guesses that are uniform over 250,000 subwords
FEWEST = 3  # checkpoints above MOST_NATS, of models that are trained, that are no slip
YOUNG = 0.02  # share of the tokens of a typical run up to which a row counts as barely trained
LEAST = 6  # rows that must remain where the unigram model's loss is unknown


def check_losses(frame: pd.DataFrame, where: str) -> None:
    """Raises InputError for losses that are no nats: of tables whose units are not known, as those of run directories are.

    One bad family, or one diverged run, is no reason to refuse all others.
    """
    known = (
        frame.groupby("family")["unigram_loss"].transform("count")
        if "unigram_loss" in frame
        else pd.Series(0, frame.index)
    )
    rows = frame.drop_duplicates(["run", "step"])
    high = ((rows["loss"] > MOST_NATS) & (known[rows.index] == 0)).to_numpy()
    late = behind(rows, YOUNG)
    if (high & late).sum() >= FEWEST and _of_most_runs(rows, high, late):
        last = rows[high & late].iloc[-1]
        raise InputError(
            f"{where}: run {last['run']!r} has a loss of {last['loss']:.4g} while it trains, more nats than guessing leaves; "
            f"{CALL}, or give unigram_loss if they are nats"
        )


def check_unigram(tasks: Iterable[tuple[str, float, float, float | None]], where: str) -> None:
    """Raises InputError where no task has a loss below the unigram model's: (family, highest loss, lowest, that loss or None)."""
    tasks = list(tasks)
    if not tasks or any(unigram is None or low < unigram for _, _, low, unigram in tasks):
        return
    family, high, low, unigram = tasks[0]
    where += f", family {family}" if len({task[0] for task in tasks}) > 1 else ""
    raise InputError(
        f"{where}: every loss ({low:.4g} to {high:.4g}) is at or above unigram_loss {unigram:.4g}; "
        f"give both in nats per token of one text, or {CALL}"
    )


def behind(frame: pd.DataFrame, share: float) -> np.ndarray:
    """(n,) True of checkpoints behind that share of their run's tokens, that have not diverged."""
    frame = frame.reset_index(drop=True)
    ordered = frame.sort_values(["run", "tokens"], kind="stable")
    lowest = ordered.groupby("run")["loss"].cummin().reindex(frame.index)
    tokens = frame["tokens"] / frame.groupby("run")["tokens"].transform("max").clip(lower=1)
    return ((tokens > share) & (frame["step"] > 0) & (frame["loss"] <= RISEN * lowest)).to_numpy()


def _of_most_runs(frame: pd.DataFrame, high: np.ndarray, late: np.ndarray) -> bool:
    """Whether more than half of the runs have a late checkpoint that is high: of fewer it says that these have not learnt."""
    return 2 * frame["run"][high & late].nunique() > frame["run"].nunique()


def trained(frame: pd.DataFrame, unigram: float | None, notes: list[str]) -> pd.DataFrame:
    """The rows in which a plateau is meaningful; what is left out is noted. `unigram`: its loss, nats, None where unknown."""
    if unigram is not None:
        text = f"at or above the unigram loss {unigram:.4g} left out"
        return _without(frame, lambda rows: (rows["loss"] >= unigram).to_numpy(), text, 1, notes)
    notes.append("the unigram model's loss is unknown: the whole observed range counts (give unigram_loss)")
    frame = _without(frame, _before_training, "of models before their first token left out", LEAST, notes)
    high, late = (frame["loss"] > HIGHEST_UNIGRAM).to_numpy(), behind(frame, EARLY)
    hint = f": if they are no nats, {CALL}"
    if _of_most_runs(frame, high, late):
        notes.append(f"{int((high & late).sum())} rows late in their runs are {SUBWORDS}{hint}")
    else:
        text = f"{SUBWORDS}, left out{hint if (high & late).any() else ''}"
        frame = _without(frame, lambda rows: (rows["loss"] > HIGHEST_UNIGRAM).to_numpy(), text, LEAST, notes)
    return _without(frame, _far_above, "of barely trained models, far above all others, left out", LEAST, notes)


def _without(
    frame: pd.DataFrame, rule: Callable[[pd.DataFrame], np.ndarray], text: str, least: int, notes: list[str]
) -> pd.DataFrame:
    drop = rule(frame)
    if not drop.any() or (~drop).sum() < least:
        return frame
    notes.append(f"{int(drop.sum())} rows {text}")
    return frame[~drop]


def _before_training(frame: pd.DataFrame) -> np.ndarray:
    return ((frame["step"] == 0) & (frame["tokens"] == 0)).to_numpy()


def _far_above(frame: pd.DataFrame) -> np.ndarray:
    """(n,) True above the lowest gap that sets apart rows which are all barely trained."""
    order = np.argsort(-frame["loss"].to_numpy(float), kind="stable")
    loss, tokens = frame["loss"].to_numpy(float)[order], frame["tokens"].to_numpy(float)[order]
    young = np.logical_and.accumulate(tokens <= YOUNG * frame.groupby("run")["tokens"].max().median())
    gap = np.r_[-np.diff(loss), 0.0]
    following = np.maximum(np.r_[gap[1:], 0], np.r_[gap[2:], 0, 0])
    rest = np.r_[loss[1:], loss[-1]] - loss[-1]
    apart = young & (gap > FAR * rest) & (gap > OTHERS * following) & (loss >= TIMES * loss[-1]) & (rest > 0)
    drop = np.zeros(len(loss), bool)
    if apart.any():
        drop[order[: int(np.flatnonzero(apart)[-1]) + 1]] = True
    return drop
