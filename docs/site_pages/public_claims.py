"""The claims tried on other laboratories' runs and models, as rows of claims.py."""

from scipy import stats

from docs.site_pages.claim import CANNOT, HOLDS, LOSS, NOT, TEMPORAL, Claim, note
from docs.site_pages.measurements import load_result

KINDS = "[kinds of task](typology.md)"
COMMAND = "benchmarks/studies/typology.py"


def forecasts() -> Claim:
    by_part = load_result("temporal_laboratories.json")["forecasts"]["folder"]
    parts = {f"{float(part):.0%}": tables["all"] for part, tables in by_part.items()}
    quotients = ", ".join(f"{row['median quotient']:.2f} from {part}" for part, row in parts.items())
    inside = ", ".join(f"{row['ends inside 95']:.0%}" for row in parts.values())
    return Claim(
        "Early curves predict the rest better than power law, reciprocal and logarithm",
        TEMPORAL,
        f"90 public curves, their laboratory unknown to the prior: squared error over that of the best of the three, chosen by "
        f"hindsight: {quotients} (medians); 95% intervals held {inside} of the ends",
        HOLDS if all(row["median quotient"] < 1 for row in parts.values()) else NOT,
        "[picture](images/other-laboratories.svg), " + note("2026-11-26-what-holds-elsewhere"),
        "benchmarks/studies/temporal_laboratories.py",
    )


def rebuilt() -> Claim:
    rmse = load_result("temporal_public.json")["all"]["median RMSE"]
    return Claim(
        "... with the forms a0 ~ log N, a1 hyperbolic, a2 with a cosine",
        f"{TEMPORAL}, rebuilt",
        f"568 forecasts of mean losses: RMSE {rmse['paper']:.3f} nats as we rebuilt the forms from a digest, "
        f"{rmse['power']:.3f} of a power law. The paper's own forms may differ",
        HOLDS if rmse["paper"] < rmse["power"] else NOT,
        note("2026-11-21-public-curves"),
        "benchmarks/studies/temporal_prior.py",
    )


def _tasks(source: str) -> list[dict]:
    return [task for task in load_result("typology.json")["tasks"] if task["source"] == source]


def one_curve() -> Claim:
    """Of tasks not at chance, where size could add something: more than a twentieth? The tasks share their models."""
    shown, apart, count, named = [], 0, 0, []
    for source in ("gadre", "gemstones"):
        able = [task for task in _tasks(source) if task["verdict"] != "at-chance"]
        with_size = [task["task"] for task in able if task["p_size"] is not None and task["p_size"] < 0.05]
        small, large = able[0]["params"]
        shown.append(f"in {len(with_size)} of {len(able)} of {source} ({small / 1e6:.0f}M to {large / 1e9:.1f}B)")
        named += [task["task"] for task in able if task["size_matters"]]
        apart, count = apart + len(with_size), count + len(able)
    return Claim(
        "... on other laboratories' models",
        LOSS,
        f"accuracy of tasks that are not at chance throughout: size adds to the loss (p below 0.05) {', '.join(shown)}; chance "
        f"alone gives {0.05 * count:.1f}. An effect worth naming, by its interval: {', '.join(named) or 'none'}",
        f"size adds in {len(named)} of {count}" if stats.binom.sf(apart - 1, count, 0.05) > 0.05 else f"{NOT} in some",
        KINDS,
        COMMAND,
    )


def thresholds() -> Claim:
    tasks = _tasks("gadre")
    by = {kind: [task for task in tasks if task["verdict"] == kind] for kind in ("emergent", "gradual", "at-chance")}
    names = ", ".join(task["task"] for task in by["emergent"])
    etas, least = sorted(task["eta"][0] for task in by["emergent"]), tasks[0]["loss"][1]
    counts = {kind: len(of) for kind, of in by.items()}
    mmlu = next(task["verdict"] for task in tasks if task["task"] == "mmlu")
    return Claim(
        "... on other laboratories' models",
        LOSS,
        f"{len(tasks)} tasks, accuracy, 104 models down to {least:.2f} nats: a threshold in {counts['emergent']}, at "
        f"{etas[0]:.1f} to {etas[-1]:.1f} nats ({names}); {counts['gradual']} "
        f"gradual, {counts['at-chance']} at chance; MMLU: {mmlu}",
        f"some tasks have thresholds: {HOLDS}; at 2.2 nats: {CANNOT}" if etas else NOT,
        KINDS,
        COMMAND,
    )
