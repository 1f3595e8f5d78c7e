"""The claims that the story's ladder tries (`make story`, benchmarks/results/story/story.json), as rows of claims.py."""

from docs.site_pages.claim import CANNOT, HOLDS, LOSS, NOT, TEMPORAL, Claim, interval, note
from docs.site_pages.measurements import load_result

COMMAND = "make story"
FINDING = note("2026-11-27-the-claims-in-miniature")
CONTINUOUS = ("answer_loglik", "brier", "correct_choice_prob")  # of every task, one value an item
SMALL = 0.05  # of the logarithm an octave: a parameter that changes by less has settled


def load() -> dict:
    return load_result("story/story.json")


def picture(name: str) -> str:
    return f"[picture](images/{name}.svg), "


def separation() -> Claim:
    """Over the second half of the octaves: does any run's interval of the slope leave 0?"""
    rows = [row for row in load()["converged"] if row["split"] == "iid" and row["a1 second"] is not None]
    moving = [row for row in rows if abs(row["a1 second"]) > 2 * row["a1 second se"]]
    vague = [row for row in rows if 2 * row["a1 second se"] > SMALL]
    slopes = sorted(row["a1 second"] for row in rows)
    spread = f"{slopes[0]:+.2f} to {slopes[-1]:+.2f}" if slopes else "none"
    return Claim(
        "a0 and a1 converge after a separation point",
        TEMPORAL,
        f"log a1 changes by so much an octave in the second half of the octaves, in {len(rows)} runs where it is known at five "
        f"checkpoints or more: {spread}; beyond twice its error in {len(moving)}, and known to within {SMALL:g} in "
        f"{len(rows) - len(vague)}",
        NOT if len(moving) > len(rows) / 2 else CANNOT if len(vague) > len(rows) / 2 else HOLDS,
        picture("story-laws") + FINDING,
        COMMAND,
    )


def rate() -> Claim:
    changes = load()["decay_of_law"]
    a2, others = changes["a2"], [changes[name] for name in ("a0", "a1")]
    lower = a2["high95"] is not None and a2["high95"] < 0
    known = all(each["pairs"] > 2 and each["low95"] is not None for each in others)
    still = known and all(each["low95"] < 0 < each["high95"] for each in others)
    shown = ", ".join(
        f"log {name} {interval(changes[name])} ({changes[name]['pairs']} pairs)" for name in ("a0", "a1") if known
    )
    return Claim(
        "a2 follows the learning rate",
        TEMPORAL,
        f"{a2['pairs']} decays against their steady runs at the same tokens: a2 {interval(a2)} nats; {shown or 'a0, a1 unknown'}",
        (f"{HOLDS}, a0 and a1 unchanged" if still else HOLDS) if lower else NOT,
        picture("story-laws") + FINDING,
        COMMAND,
    )


def decay() -> Claim:
    rows = load()["decay"]
    shown = "; ".join(
        f"{row['split']}, {row['tokens'] / 1e6:g}M tokens {interval(row)} nats, lower in {row['positive']} of {row['runs']}"
        for row in rows
    )
    return Claim(
        "... on IID and on OOD text",
        TEMPORAL,
        f"the last fifth decayed or not, five sizes, two seeds: {shown}",
        HOLDS if all(row["low95"] is not None and row["low95"] > 0 for row in rows) else NOT,
        picture("story-sizes") + FINDING,
        COMMAND,
    )


def forecasts() -> Claim:
    by_split = load()["forecasts"]
    shown = "; ".join(
        f"{split}: quotient {row['median_quotient']:.2f}, better in {row['better']:.0%} of {row['forecasts']}, ends within 95% "
        f"{row['ends_inside95']:.0%}"
        for split, row in by_split.items()
    )
    quotients = [row["median_quotient"] for row in by_split.values()]
    return Claim(
        "... on constant rates, IID and OOD, from 40%",
        TEMPORAL,
        f"squared error over that of the best classical law, chosen by hindsight: {shown}",
        HOLDS if max(quotients) < 1 else NOT if min(quotients) > 1 else "one of two",
        FINDING,
        COMMAND,
    )


def size_law() -> Claim:
    law = load()["size_law"]
    bent = law["lack_of_fit_p"] is not None and law["lack_of_fit_p"] < 0.05
    return Claim(
        "The loss follows a power law of size at equal data, so that a threshold of loss is one of size",
        LOSS,
        f"{law['sizes']} sizes, {law['runs']} runs, {law['tokens'] / 1e6:.1f}M tokens: loss ~ N to the power "
        f"-{law['exponent']['value']:.3f} [{law['exponent']['low95']:.3f}, {law['exponent']['high95']:.3f}]; a run misses it by "
        f"{law['largest_miss_nats']:.2f} nats at most, lack of fit p = {law['lack_of_fit_p']:.3f}",
        NOT if bent or law["exponent"]["low95"] <= 0 else f"{HOLDS} over a factor of eighteen",
        picture("story-sizes") + FINDING,
        COMMAND,
    )


def returns() -> Claim:
    result = load()["returns"]
    change, gains = result["change"], ", ".join(f"{gain:.2f}" for gain in result["gains_a_doubling"])
    return Claim(
        "What a doubling of the size gains shrinks with size",
        LOSS,
        f"nats a doubling from size to size: {gains}; change with each doubling {interval(change)}",
        HOLDS if change["high95"] < 0 else NOT if change["low95"] > 0 else CANNOT,
        picture("story-sizes") + FINDING,
        COMMAND,
    )


def variants() -> Claim:
    """By the iid text where the corpus is the same; by the ood text for another mixture or tokenizer too."""
    rows = [row for row in load()["variants"] if row["metric"] in CONTINUOUS]
    names = list(dict.fromkeys(row["variant"] for row in rows))
    parts = []
    for axis, label in (("bits_per_byte", "iid"), ("ood_bits_per_byte", "ood")):
        off = {
            name: sum(row["p_holm"] < 0.05 for row in rows if (row["variant"], row["axis"]) == (name, axis))
            for name in names
        }
        of = sum(row["axis"] == axis for row in rows) // len(names)
        shown = ", ".join(f"{name.replace('-', ' ')} {count}" for name, count in off.items() if count) or "none"
        parts.append(f"by the {label} loss {shown}")
    every = {name for name in names for row in rows if row["variant"] == name and row["p_holm"] < 0.05}
    return Claim(
        "One curve of performance against loss for other architectures, optimizers, corpora and tokenizers",
        LOSS,
        f"{', '.join(name.replace('-', ' ') for name in names)}; two seeds each, bits per byte, {of} tasks and metrics: off the "
        f"five sizes' curve (Holm's p below 0.05): {'; '.join(parts)}",
        f"{HOLDS} for {len(names) - len(every)} of {len(names)}",
        picture("story-curves") + FINDING,
        COMMAND,
    )


def one_curve() -> Claim:
    tasks = [task for task in load()["emergence"] if task["metric"] == "answer_loglik" and task["size_effect"]]
    apart = [task["task"] for task in tasks if task["size_effect"].get("matters")]
    shown = ", ".join(f"{task['task']} {task['size_effect']['r2_loss']:.0%}" for task in tasks)
    return Claim(
        "... on another ladder",
        LOSS,
        f"five sizes, budgets, decays: one curve of the loss explains of the answers' log-likelihood: {shown}; size matters "
        f"beside it in {len(apart)}{': ' + ', '.join(apart) if apart else ''}",
        f"{HOLDS} in {len(tasks) - len(apart)} of {len(tasks)}",
        picture("story-curves") + FINDING,
        COMMAND,
    )
