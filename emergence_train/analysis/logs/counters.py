"""Counters that begin anew, in a resumed run or in each epoch, counted on from where they were."""

import numpy as np

RISES = 4  # a log whose counter rises so many times as often as it falls is in the order of time
NEAR = 2  # intervals between rows: no further from what is expected, a counter goes on


def counted_on(count: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """A counter of which parts begin anew, by another that goes on: of steps by their tokens, or of tokens by their steps.

    Where the count falls, the other may fall too, to that of a checkpoint: the part then begins at the count that the rows before
    it had there, on the line through the last two of them.

    Args:
        count, along: (rows,) finite, in the order of the log.
    Returns:
        The count as it goes on, and the rows from which it was raised; none where a part begins elsewhere than at the log's
        beginning, or where the log is not in the order of time.
    """
    change = np.diff(count)
    if not (change < 0).any() or np.sum(change > 0) < RISES * np.sum(change < 0):
        return count, []
    interval = float(np.median(change[change > 0]))
    counted, raised, offset, kept = count.copy(), [], 0.0, [0]
    for k in range(1, len(count)):
        if count[k] < count[k - 1]:
            kept = [j for j in kept if along[j] < along[k]]
            if not kept:  # both begin anew: another run
                offset = 0.0
            elif abs((here := _on_line(counted, along, kept, along[k])) - count[k] - offset) > NEAR * interval:
                if count[k] > count[0] + interval:
                    return count, []
                offset = round(here - count[k])
                raised.append(k)
        counted[k] = count[k] + offset
        kept.append(k)
    return counted, raised


def _on_line(counted: np.ndarray, along: np.ndarray, kept: list[int], place: float) -> float:
    """The count at `place`, on the line through the last two rows kept; through the origin where they are one."""
    last = kept[-1]
    before = kept[-2] if len(kept) > 1 else None
    rise = counted[last] - (counted[before] if before is not None else 0.0)
    run = along[last] - (along[before] if before is not None else 0.0)
    return float(counted[last] + (place - along[last]) * (rise / run if run else 0.0))


def through_epochs(step: np.ndarray, epoch: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Steps that are counted in each epoch, as those of the run; with the steps of an epoch. None where they are not so counted.

    They are where the step falls, or stays, at every row whose epoch is a later one, to one about the first: a run's own rises
    there, or is logged twice, as the end and the beginning. An epoch has as many steps as lie between the lowest and the highest
    row, and an interval between rows.

    Args:
        step, epoch: (rows,) finite, in the order of the log; of an epoch with a part the whole counts.
    """
    whole = np.floor(epoch)
    later, change = np.diff(whole) > 0, np.diff(step)
    if not later.any() or (change[later] > 0).any():
        return None
    within = change[(np.diff(whole) == 0) & (change > 0)]
    if len(within) and (step[1:][later] > step[0] + np.median(within)).any():
        return None
    length = float(step.max() - step.min() + np.median(within)) if len(within) else float(step.max())
    return (whole - whole[0]) * length + step, length
