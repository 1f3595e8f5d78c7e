"""The claims that the story's ladder tries (`make story`, benchmarks/results/story/story.json), as rows of claims.py."""

from docs.site_pages.claim import CANNOT, HOLDS, LOSS, NOT, TEMPORAL, Claim, interval, note
from docs.site_pages.measurements import load_result

COMMAND = "make story"
FINDING = note("2026-11-27-the-claims-in-miniature")
SMALL = 0.05  # of the logarithm an octave: a parameter that changes by less has settled
MARGIN = 0.1  # of a parameter, or of a curve's range: what differs by less is the same


def load() -> dict:
    return load_result("story/story.json")


def _row(claim: str, source: str, measured: str, verdict: str, picture: str = "") -> Claim:
    """A claim of the story, with its picture under docs/images."""
    return Claim(
        claim, source, measured, verdict, f"[picture](images/{picture}.svg), " * bool(picture) + FINDING, COMMAND
    )


def position_law() -> Claim:
    rows = load()["position_law"]
    parts = {split: [row for row in rows if row["split"] == split] for split in ("iid", "ood")}
    fixed = {split: sum(row["identified"] for row in of) for split, of in parts.items()}
    runs = {split: sum(row["runs"] for row in of) for split, of in parts.items()}
    r2 = sorted(row["r2"] for row in parts["iid"])
    miss = max(row["largest_miss_of_a_bin"] for row in parts["iid"])
    return _row(
        "... on longer sequences and real text",
        TEMPORAL,
        f"five sizes, 256 positions, all held-out documents: a0 and a1 are identified one by one at the end in {fixed['iid']} of "
        f"{runs['iid']} runs on iid text, in {fixed['ood']} of {runs['ood']} on ood text; the law explains {r2[0]:.0%} to "
        f"{r2[-1]:.0%} of the differences between positions and misses a bin by {miss:.2f} nats at most (medians of sizes)",
        HOLDS if fixed["iid"] > runs["iid"] / 2 and r2[0] > 0.5 else CANNOT,
        "story-laws",
    )


def separation() -> Claim:
    """Over the second half of the octaves: does any run's interval of the slope leave 0?"""
    rows = [row for row in load()["converged"] if row["split"] == "iid" and row["a1 second"] is not None]
    moving = [row for row in rows if abs(row["a1 second"]) > 2 * row["a1 second se"]]
    vague = [row for row in rows if 2 * row["a1 second se"] > SMALL]
    slopes = sorted(row["a1 second"] for row in rows)
    spread = f"{slopes[0]:+.2f} to {slopes[-1]:+.2f}" if slopes else "none"
    return _row(
        "a0 and a1 converge after a separation point",
        TEMPORAL,
        f"log a1 changes by so much an octave in the second half of the octaves, in {len(rows)} runs where it is known at five "
        f"checkpoints or more: {spread}; beyond twice its error in {len(moving)}, and known to within {SMALL:g} in "
        f"{len(rows) - len(vague)}",
        NOT if len(moving) > len(rows) / 2 else CANNOT if len(vague) > len(rows) / 2 else HOLDS,
        "story-laws",
    )


def rate() -> Claim:
    changes = load()["decay_of_law"]
    a2, others = changes["a2"], {name: changes[name] for name in ("a0", "a1") if changes[name].get("low95") is not None}
    lower = a2.get("high95") is not None and a2["high95"] < 0
    still = len(others) == 2 and all(each["low95"] > -MARGIN and each["high95"] < MARGIN for each in others.values())
    moved = [name for name, each in others.items() if each["low95"] > 0 or each["high95"] < 0]
    shown = ", ".join(f"log {name} {interval(each)} ({each['stable_runs']})" for name, each in others.items())
    rest = "a0 and a1 stay" if still else f"{' and '.join(moved)} too" if moved else "a0 and a1 cannot be told"
    return _row(
        "a2 follows the learning rate",
        TEMPORAL,
        f"decays of {a2['stable_runs']} steady runs, each against it at the same tokens: a2 {interval(a2)} nats; "
        f"{shown or 'a0 and a1 unknown'}",
        f"{HOLDS}, {rest}" if lower else NOT,
        "story-laws",
    )


def decay() -> Claim:
    rows = load()["decay"]
    shown = "; ".join(
        f"{row['split']}, {row['tokens'] / 1e6:g}M tokens {interval(row)} nats, lower in {row['positive']} of {row['runs']}"
        for row in rows
    )
    return _row(
        "... on IID and on OOD text",
        TEMPORAL,
        f"the last fifth decayed or not, five sizes, two seeds: {shown}",
        HOLDS if all(row["low95"] is not None and row["low95"] > 0 for row in rows) else NOT,
        "story-sizes",
    )


def forecasts() -> Claim:
    """Before: the story's runs. After: others, most of them seen while the form was chosen; the finding says which not."""
    result = load_result("temporal_small.json")
    from_40 = {when: [row for row in result[when] if row["fraction"] == 0.4] for when in ("before", "after")}
    before = [row for row in from_40["before"] if row["source"] == "story"]
    of = {split: [row for row in from_40["after"] if row["split"] == split] for split in ("iid", "ood")}
    wins = {split: sum(row["median_quotient"] < 1 for row in rows) for split, rows in of.items()}
    return Claim(
        "... of small runs, IID and OOD, from 40%",
        TEMPORAL,
        f"squared error over that of the best classical law, by hindsight, medians: {_quotients(before)} where the story's runs "
        "were forecast like larger ones; with what they did in the prior, of other runs, by kind: "
        + "; ".join(f"{split} {_quotients(rows)}" for split, rows in of.items()),
        "better in " + ", ".join(f"{wins[split]} of {len(rows)} kinds ({split})" for split, rows in of.items()),
        note("2026-11-27-small-runs-fall-on"),
        "benchmarks/studies/temporal_small.py",
    )


def _quotients(rows: list[dict]) -> str:
    runs = sum(row["runs"] for row in rows)
    inside = sum(row["within95"] * row["runs"] for row in rows) / runs
    quotients = ", ".join(f"{quotient:.2f}" for quotient in sorted(row["median_quotient"] for row in rows))
    return f"{quotients} ({inside:.0%} of {runs} ends inside 95%)"


def size_law() -> Claim:
    law = load()["size_law"]
    ends = [row["params"] for row in law["ends"]]
    bent = law["lack_of_fit_p"] is not None and law["lack_of_fit_p"] < 0.05
    return _row(
        "The loss follows a power law of size at equal data, so that a threshold of loss is one of size",
        LOSS,
        f"{law['sizes']} sizes, {law['runs']} runs, {law['tokens'] / 1e6:.1f}M tokens: loss ~ N to the power "
        f"-{law['exponent']['value']:.3f} [{law['exponent']['low95']:.3f}, {law['exponent']['high95']:.3f}]; a run misses it by "
        f"{law['largest_miss_nats']:.2f} nats at most, lack of fit p = {law['lack_of_fit_p']:.3f}",
        NOT if bent or law["exponent"]["low95"] <= 0 else f"{HOLDS} over a factor of {ends[-1] / ends[0]:.0f}",
        "story-sizes",
    )


def returns() -> Claim:
    result = load()["returns"]
    change, gains = result["change"], ", ".join(f"{gain:.2f}" for gain in result["gains_a_doubling"])
    return _row(
        "What a doubling of the size gains shrinks with size",
        LOSS,
        f"nats a doubling from size to size: {gains}; change with each doubling {interval(change)}",
        HOLDS if change["high95"] < 0 else NOT if change["low95"] > 0 else CANNOT,
        "story-sizes",
    )


def variants() -> Claim:
    rows = load()["variants"]
    names = list(dict.fromkeys(row["variant"] for row in rows))
    of = {name: [row for row in rows if row["variant"] == name] for name in names}
    off = {name: [row["task"] for row in of[name] if row["p_holm"] < 0.05] for name in names}
    on = [name for name in names if all(row["low95"] > -MARGIN and row["high95"] < MARGIN for row in of[name])]
    shown = "; ".join(f"{spoken(name)}: {_furthest(of[name])}" for name in names)
    runs = " or ".join(map(str, sorted({row["runs"] for row in rows})))
    away = [f"{spoken(name)} ({', '.join(tasks)})" for name, tasks in off.items() if tasks]
    return _row(
        "One curve of performance against loss for other architectures, optimizers, corpora and tokenizers",
        LOSS,
        f"of one size, {runs} seeds each against five sizes; log-likelihood of the right answer against bits per byte; the task "
        f"furthest from the sizes' curve, as a share of its range: {shown}. "
        f"Off it (Holm's p below 0.05): {'; '.join(away) or 'none'}",
        (
            f"{NOT} for {len(away)} of {len(names)}"
            if away
            else f"{HOLDS} for {len(on)} of {len(names)}"
            if on
            else CANNOT
        )
        + (f", {len(on)} within {MARGIN:.0%} everywhere" if away else ""),
        "story-curves",
    )


def spoken(variant: str) -> str:
    return variant.replace("-", " ")


def _furthest(rows: list[dict]) -> str:
    row = max(rows, key=lambda row: abs(row["share"]))
    return f"{row['task']} {row['share']:+.0%} [{row['low95']:+.0%}, {row['high95']:+.0%}]"


def one_curve() -> Claim:
    tasks = [task for task in load()["emergence"] if task["metric"] == "answer_loglik" and task["size_effect"]]
    apart = [task["task"] for task in tasks if task["size_effect"].get("matters")]
    shown = ", ".join(f"{task['task']} {task['size_effect']['r2_loss']:.0%}" for task in tasks)
    return _row(
        "... on another ladder",
        LOSS,
        f"five sizes, budgets, decays: one curve of the loss explains of the answers' log-likelihood: {shown}; size matters "
        f"beside it in {len(apart)}{': ' + ', '.join(apart) if apart else ''}",
        f"{HOLDS} in {len(tasks) - len(apart)} of {len(tasks)}",
        "story-curves",
    )
