"""The effect of size at equal loss: a monotone smooth curve of loss against the same plus the logarithm of size.

The effect is the change of performance for ten times the parameters at the same loss. Its interval and its test account for the
correlation of checkpoints within a run: between neighbours, and by an offset of the whole run, which takes four runs or more to
be known: the result says whether it is. Residuals of a few dozen rows show
less of the correlation than there is, so it is taken half a standard error higher.
"""

import numpy as np
from scipy.interpolate import BSpline
from scipy.optimize import lsq_linear

from emergence_train.analysis.emergence.result import Collapse, ExplanationName, HeldOutSize, SizeDetails, SizeEffect
from emergence_train.analysis.emergence.shapes import PRIOR_DISPERSION, neighbour_correlation
from emergence_train.analysis.emergence.table import TaskMetric

PERMUTATIONS = 999
SEGMENTS = 4  # a run is split into at most so many pieces for the permutation test
PIECES = 6  # of a monotone spline, at most
LEAST = 6  # rows where sizes overlap
LEAST_LUCK = 1.5  # degrees of freedom of the runs' offsets, below which they are not known
DRAWS = 4000
FEW_RUNS = (
    "too few runs to tell an effect of size from luck of a run: the size effect's interval and p are of items alone"
)


def size_effect(task: TaskMetric, rng: np.random.Generator) -> SizeEffect:
    """The effect of size at equal loss, or the reason why it is unknown.

    By Frisch and Waugh: `size_left` is the log of size less its fit by the curve of loss, `score_left` performance less its
    own; `beta` is the slope of `score_left` on `size_left`, and `residual` what both leave. The variance of beta has two parts:
    `own`, by noise from checkpoint to checkpoint, and by `luck`, the variance of offsets of whole runs, which moves beta by
    the runs' `lever` over the `information`.
    """
    frame = task.frame
    params = frame["params"].to_numpy(float)
    sizes = np.unique(params)
    if len(sizes) < 2:
        return _unknown("one size only: whether size matters at equal loss cannot be asked")
    if (sizes <= 0).any():
        return _unknown("a size of 0 parameters: give the column params")
    loss = frame["loss"].to_numpy(float)
    inside = overlap(loss, params)
    if inside.sum() < LEAST or len(np.unique(params[inside])) < 2:
        ranges = ", ".join(
            f"{int(s):,}: {loss[params == s].max():.3g} to {loss[params == s].min():.3g}" for s in sizes[:6]
        )
        return _unknown(f"the losses of different sizes do not overlap ({ranges}): size and loss cannot be separated")
    rows = task.rows
    x, y, run, order = rows.x[inside], rows.y[inside], rows.run[inside], rows.order[inside]
    z = np.log10(params[inside])
    # Weights from the expected share at this loss: at the observed share lucky rows would weigh more.
    first = monotone_basis(x, y, np.ones(len(x)))
    mean = rows.y.copy()
    mean[inside] = y - _residual(first, y, np.ones(len(x)))
    variance = rows.variance_at(mean)[0][inside]
    typical = float(variance.mean())
    weight = typical / variance
    basis = monotone_basis(x, y, weight)
    if len(x) < basis.shape[1] + 3:
        return _unknown(f"{int(inside.sum())} checkpoints where sizes overlap are too few")
    size_left = _residual(basis, z, weight)
    information = float(weight @ size_left**2)
    if information < 1e-6 * float(weight @ (z - np.average(z, weights=weight)) ** 2):
        return _unknown("where losses overlap, size follows from loss: they cannot be separated")
    beta = float(weight @ (size_left * y)) / information
    score_left = _residual(basis, y, weight)
    residual = score_left - beta * size_left
    degrees = len(x) - basis.shape[1] - 1
    # As in the shapes: the binomial variance has the weight of two rows in the estimate of the noise.
    noise = (float(weight @ residual**2) + PRIOR_DISPERSION * typical) / (degrees + PRIOR_DISPERSION)
    correlation = neighbour_correlation(residual * np.sqrt(weight), run, order, errors=0.5)
    inflation = (1 + correlation) / (1 - correlation)
    own = noise * inflation / information
    luck, known = _luck(np.column_stack([basis, z]), residual, weight, run, noise * inflation, rng)
    lever = np.bincount(run, weight * size_left)
    drawn = np.sqrt(own + luck * float(lever @ lever) / information**2)
    drawn *= np.abs(rng.standard_t(max(degrees / inflation, 1), DRAWS))
    half = float(np.quantile(drawn, 0.95))
    p, least = _permutation(score_left, size_left, weight, x, run, inflation, rng)
    # pieces of one run are not quite independent, the draws know that and assume more else: the larger p holds for both
    p = max(p, float(np.mean(drawn >= abs(beta))))
    if not known:
        task.notes.append(FEW_RUNS)
    explained = 1 - float(weight @ score_left**2) / max(_scatter(y, weight), 1e-300)
    both = 1 - float(weight @ residual**2) / max(_scatter(y, weight), 1e-300)
    decades = float(np.log10(sizes[-1] / sizes[0]))
    details = SizeDetails(
        unit="change of performance for ten times the parameters at the same loss",
        p_least=least,
        over_observed_sizes=beta * decades,
        interval_of="items and runs" if known else "items",
        matters=known and half < abs(beta) and p < 0.05 and abs(beta) * decades >= task.smallest,
        rows_in_overlap=int(inside.sum()),
        r2_loss=explained,
        r2_loss_and_size=both,
        correlation=correlation,
        held_out=held_out_sizes(task),
    )
    return SizeEffect(beta, beta - half, beta + half, p, details=details)


def _unknown(reason: str) -> SizeEffect:
    return SizeEffect(None, None, None, None, reason)


def overlap(loss: np.ndarray, params: np.ndarray) -> np.ndarray:
    """(n,) True where at least one other size also has rows on both sides of this loss, or at it."""
    inside = np.zeros(len(loss), bool)
    for size in np.unique(params):
        mine, others = params == size, loss[params != size]
        owners = params[params != size]
        for other in np.unique(owners):
            reached = others[owners == other]
            inside |= mine & (loss >= reached.min()) & (loss <= reached.max())
    return inside


def monotone_basis(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(n, k) columns of the monotone spline that fits best: a constant and the increasing pieces with positive weight.

    Pieces are sums of B-splines (I-splines). Rising or falling, whichever fits better; where neither fits (a curve that
    turns) the signs are free, and the curve is not monotone.
    """
    pieces = _i_splines(x)
    columns = np.hstack([np.ones((len(x), 1)), pieces])
    root = np.sqrt(weight)
    fits = []
    for sign in (1, -1):
        bounds = (np.r_[-np.inf, np.zeros(pieces.shape[1])], np.full(columns.shape[1], np.inf))
        signed = columns * np.r_[1, np.full(pieces.shape[1], sign)]
        fit = lsq_linear(signed * root[:, None], y * root, bounds=bounds, method="bvls")
        fits.append((fit.cost, signed, fit.x))
    free_residual = _residual(columns, y, weight)
    free = 0.5 * float(weight @ free_residual**2)
    cost, signed, coef = min(fits, key=lambda fit: fit[0])
    degrees = max(len(x) - columns.shape[1], 1)
    if (cost - free) / columns.shape[1] > 4 * free / degrees:  # monotone is refuted
        return columns
    active = np.r_[True, coef[1:] > 1e-10]
    return signed[:, active]


def _i_splines(x: np.ndarray) -> np.ndarray:
    count = int(np.clip(len(x) // 6, 2, PIECES))
    inner = np.unique(np.quantile(x, np.linspace(0, 1, count)[1:-1]))
    low, high = x.min(), x.max() + 1e-9
    knots = np.r_[[low] * 3, inner[(inner > low) & (inner < high)], [high] * 3]
    basis = BSpline.design_matrix(np.clip(x, low, high), knots, 2).toarray()
    return np.cumsum(basis[:, ::-1], axis=1)[:, ::-1][:, 1:]


def _residual(basis: np.ndarray, values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    root = np.sqrt(weight)
    coef, *_ = np.linalg.lstsq(basis * root[:, None], values * root, rcond=None)
    return values - basis @ coef


def _scatter(y: np.ndarray, weight: np.ndarray) -> float:
    return float(weight @ (y - np.average(y, weights=weight)) ** 2)


def _luck(
    columns: np.ndarray,
    residual: np.ndarray,
    weight: np.ndarray,
    run: np.ndarray,
    noise: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, bool]:
    """(DRAWS,) of the variance of the runs' own offsets, and whether it is known.

    A generalized confidence distribution (Weerahandi 1993): the runs' sum of squares over draws of chi squared, less the noise.
    What the fit of `columns` (n, k) takes of offsets is left out of the degrees. Zeros where those are too few.
    """
    _, run = np.unique(run, return_inverse=True)
    total = np.bincount(run, weight)
    member = np.eye(len(total))[run] / np.sqrt(total)  # (n, runs)
    root = np.sqrt(weight)[:, None]
    taken, *_ = np.linalg.lstsq(columns * root, member * root, rcond=None)
    left = (member * root).T @ (member * root - columns * root @ taken)  # (runs, runs), of unit offsets
    degrees = float(np.trace(left))
    if degrees < LEAST_LUCK or noise <= 0:
        return np.zeros(DRAWS), False
    squares = float(((member.T @ (weight * residual)) ** 2).sum())
    offsets = float((left**2 * total).sum()) / degrees
    return np.maximum(squares / rng.chisquare(degrees, DRAWS) - noise, 0) / offsets, True


def _permutation(
    score_left: np.ndarray,
    size_left: np.ndarray,
    weight: np.ndarray,
    x: np.ndarray,
    run: np.ndarray,
    inflation: float,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """p of the size effect when sizes are permuted among pieces of runs at like loss, and the least p possible.

    Pieces are longer than the correlation.
    """
    longest = max(np.bincount(run).max(), 1)
    pieces = int(np.clip(longest / inflation, 1, SEGMENTS))
    edges = np.quantile(x, np.linspace(0, 1, pieces + 1)[1:-1])
    group = np.searchsorted(edges, x)
    observed, drawn, ways = 0.0, np.zeros(PERMUTATIONS), 1.0
    for piece in range(pieces):
        members = group == piece
        names, codes = np.unique(run[members], return_inverse=True)
        if len(names) < 2:
            continue
        total = np.bincount(codes, weight[members])
        mean = np.bincount(codes, weight[members] * score_left[members]) / total
        size = np.bincount(codes, weight[members] * size_left[members]) / total
        size -= size.mean()
        strength = len(names) / np.sum(1 / total)  # harmonic: the weakest run limits a comparison
        observed += strength * float(mean @ size)
        drawn += strength * (rng.permuted(np.tile(mean, (PERMUTATIONS, 1)), axis=1) @ size)
        ways = min(ways * float(np.prod(np.arange(1.0, len(names) + 1))), 1e9)
    if ways == 1:
        return 1.0, 1.0
    p = (1 + int(np.sum(np.abs(drawn) >= abs(observed) * (1 - 1e-9)))) / (1 + PERMUTATIONS)
    return p, max(2 / ways, 1 / (1 + PERMUTATIONS))


def held_out_sizes(task: TaskMetric) -> tuple[HeldOutSize, ...]:
    """Predict each size by the others' curve within their loss range: the error, and that expected from noise alone."""
    frame, rows = task.frame, task.rows
    params, loss = frame["params"].to_numpy(float), frame["loss"].to_numpy(float)
    sizes = []
    for size in np.unique(params):
        others = params != size
        mine = ~others & (loss >= loss[others].min()) & (loss <= loss[others].max()) if others.any() else others
        if mine.sum() < 2 or others.sum() < LEAST:
            sizes.append(HeldOutSize(int(size), int(mine.sum()), None))
            continue
        weight = 1 / rows.variance[others]
        guess = _predict(rows.x[others], rows.y[others], weight / weight.mean(), rows.x[mine])
        error = rows.y[mine] - guess
        rmse, noise = float(np.sqrt(np.mean(error**2))), float(np.sqrt(np.mean(rows.variance[mine])))
        sizes.append(HeldOutSize(int(size), int(mine.sum()), rmse, float(np.mean(error)), noise))
    return tuple(sizes)


def collapse(task: TaskMetric) -> Collapse:
    """Share of the variance that a monotone curve explains: of loss, of compute (6 x parameters x tokens), and of tokens.

    Sizes that share one curve of loss and none of compute are what arXiv 2403.15796 reports.
    """
    shares = {name: explained(along, task.rows.y) for name, along in orders(task).items()}
    return Collapse(shares["loss"], shares["compute"], shares["tokens"])


def orders(task: TaskMetric) -> dict[ExplanationName, np.ndarray]:
    """What a curve of all runs may be of: (n,) of each row, the loss in [0, 1], logarithms of the tokens and of the compute."""
    frame = task.frame
    tokens = frame["tokens"].to_numpy(float)
    compute = frame["params"].to_numpy(float) * tokens
    return {
        "loss": task.rows.x,
        "tokens": np.log(np.maximum(tokens, 1.0)),
        "compute": np.log(np.maximum(compute, 1.0)),
    }


def explained(x: np.ndarray, y: np.ndarray) -> float | None:
    """R2 of a monotone curve of `y` (n,) along `x` (n,); None where one of them hardly varies."""
    if len(y) < LEAST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    weight = np.ones(len(y))
    x = (x - x.min()) / np.ptp(x)
    rest = _residual(monotone_basis(x, y, weight), y, weight)
    return 1 - float(rest @ rest) / _scatter(y, weight)


def _predict(x: np.ndarray, y: np.ndarray, weight: np.ndarray, at: np.ndarray) -> np.ndarray:
    together = np.r_[x, at]
    low, high = x.min(), x.max()
    basis = _i_splines(np.clip(together, low, high))
    columns = np.hstack([np.ones((len(together), 1)), basis])
    root = np.sqrt(weight)
    coef, *_ = np.linalg.lstsq(columns[: len(x)] * root[:, None], y * root, rcond=None)
    return columns[len(x) :] @ coef
