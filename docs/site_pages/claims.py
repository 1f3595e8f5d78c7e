"""The claims of the three sources, each with what this software measured: a table, from benchmarks/results/.

The verdict follows from the numbers by the rule beside it, so that new results change it. "Holds" is said of what was
measured, at the sizes measured; where no measurement could tell, the row says so.
"""

from collections.abc import Callable

from docs.site_pages import public_claims, story_claims
from docs.site_pages.claim import CANNOT, HOLDS, LOSS, NOT, TALK, TEMPORAL, Claim, interval, note
from docs.site_pages.markdown import code, table
from docs.site_pages.measurements import load_result

# ------------------------------------------------------------------------------------------- the temporal scaling law


def position_law() -> Claim:
    runs = load_result("quickstart_laws.json")["runs"]
    fixed = sum(run["status"] == "ok" for run in runs)
    return Claim(
        "The loss at position i is a0 / (1 + a1 i) + a2",
        TEMPORAL,
        f"12 runs of 0.1 to 0.4M, {runs[0]['sequences']:,} held-out sequences each: a0 and a1 are identified one by one in "
        f"{fixed}; in the others the loss falls within three positions, and only a0/a1 and a2 are",
        HOLDS if fixed > len(runs) / 2 else CANNOT,
        note("2026-11-26-an-ability-in-the-quickstart"),
        "benchmarks/studies/quickstart_seeds.py --laws",
    )


def decay() -> Claim:
    seeds = [
        seed for seed in load_result("quickstart_seeds.json")["seeds"] if seed.get("decay_lowers_iid_by") is not None
    ]
    gains = sorted(seed["decay_lowers_iid_by"] for seed in seeds)
    return Claim(
        "Letting the rate decay lowers the loss",
        TEMPORAL,
        f"{len(gains)} seeds, the last fifth decayed or not, from the same state: {gains[0]:.3f} to {gains[-1]:.3f} nats lower",
        HOLDS if gains[0] > 0 else NOT,
        "[Quickstart](quickstart.md)",
        "benchmarks/studies/quickstart_seeds.py",
    )


def own_runs() -> Claim:
    before, since = (load_result(f"temporal_runs_{name}.json") for name in ("tiny-cpu", "small"))
    quotient = since["median MSE over best classical"]
    shown = [
        f"quotient {result['median MSE over best classical']:.2f}, better in {result['share better than best classical']:.0%} of "
        f"{result['forecasts']}, 95% intervals held {result['coverage95 of positions']:.0%} of single positions"
        for result in (before, since)
    ]
    return Claim(
        "... also by position, on IID and OOD text",
        TEMPORAL,
        f"seven runs of 0.2 and 0.9M, 1,500 steps, by an earlier prior: {shown[0]}; eight of 0.1 to 0.4M, 800 steps, to "
        f"which no number was fitted (six of them were seen before the prior's last change of form): {shown[1]}",
        HOLDS if quotient < 0.9 else NOT if quotient > 1.1 else "no better here",
        note("2026-11-21-own-runs") + ", " + note("2026-11-27-small-runs-fall-on"),
        "benchmarks/studies/temporal_runs.py",
    )


def weights() -> Claim:
    rows = load_result("cpu/position_weights.json")["rows"]
    iid = [row for row in rows if row["split"] == "iid" and row["region"] == "all"]
    differences = ", ".join(
        f"{row['variant'].split()[0]} {row['difference']:+.3f} [{row['low95']:+.3f}, {row['high95']:+.3f}]"
        for row in iid
    )
    return Claim(
        "Training with head, body or tail positions at half weight gains nothing",
        TEMPORAL,
        f"0.2M, three seeds, nats against uniform weights: {differences}. A gain below 0.1 could not be seen",
        "no gain seen" if all(row["low95"] < 0 < row["high95"] for row in iid) else NOT,
        note("2026-11-22-position-weights"),
        "emergence-train analyze weights",
    )


# -------------------------------------------------------------------------------------- emergence from the loss


def one_curve() -> Claim:
    tasks = [t for t in load_result("emergence_runs_ladder.json")["tasks"] if t["metric"] == "answer_loglik"]
    r2 = sorted(task["size_effect"]["r2_loss"] for task in tasks)
    apart = sum(task["size_effect"]["matters"] for task in tasks)
    return Claim(
        "Performance follows the loss, whatever the model's size",
        LOSS,
        f"five sizes, 0.05 to 3.2M, log-likelihood of the right answer in {len(tasks)} tasks: one curve of the loss explains "
        f"{r2[0]:.0%} to {r2[-1]:.0%}; size matters beside it in {apart}",
        f"{HOLDS} in {len(tasks) - apart} of {len(tasks)}",
        note("2026-11-22-ladder-on-public-benchmarks"),
        "make ladder",
    )


def thresholds() -> Claim:
    tasks = [t for t in load_result("emergence_runs_ladder.json")["tasks"] if t["metric"] in ("acc", "exact_match")]
    chance = sum(task["verdict"] == "at-chance" for task in tasks)
    return Claim(
        "Four of twelve tasks (MMLU, C-Eval, GSM8K and its translation) stay at chance until the loss is about 2.2",
        LOSS,
        f"the ladder ends at 4.3 nats: {chance} of {len(tasks)} accuracies at chance, no threshold",
        CANNOT,
        note("2026-11-22-ladder-on-public-benchmarks"),
        "make ladder",
    )


def planted() -> Claim:
    fresh = [seed for seed in load_result("quickstart_seeds.json")["seeds"] if seed["group"] == "fresh"]
    alone = [_verdict(tasks, "acc") for seed in fresh for tasks in seed["tasks_by_run"].values()]
    together = [_verdict(seed["tasks"], "acc") for seed in fresh]
    brier = [_verdict(seed["tasks"], "brier") for seed in fresh]
    return Claim(
        "An ability is at chance above a loss, and there below it; sizes share the threshold",
        LOSS,
        f"a planted skill, three sizes, {len(fresh)} fresh seeds: emergent in {alone.count('emergent')} of {len(alone)} "
        f"single runs; for the sizes together in {together.count('emergent')} of {len(together)} (Brier score: "
        f"{brier.count('emergent')})",
        f"first half {HOLDS}, second {NOT}" if not together.count("emergent") else HOLDS,
        note("2026-11-26-an-ability-in-the-quickstart"),
        "benchmarks/studies/quickstart_seeds.py",
    )


def mirage() -> Claim:
    fresh = [seed for seed in load_result("quickstart_seeds.json")["seeds"] if seed["group"] == "fresh"]
    pairs = [
        (_verdict(tasks, "acc"), _verdict(tasks, "brier")) for seed in fresh for tasks in seed["tasks_by_run"].values()
    ]
    both = sum(a == b == "emergent" for a, b in pairs)
    either = sum("emergent" in pair for pair in pairs)
    return Claim(
        "Continuous metrics show the same thresholds",
        LOSS,
        f"the planted skill: accuracy and Brier score both emergent in {both} of the {either} runs where one of them is; the "
        "log-likelihood of the answer rises gradually in each",
        f"{HOLDS} for the Brier score" if both > either / 2 else NOT,
        note("2026-11-26-an-ability-in-the-quickstart"),
        "benchmarks/studies/quickstart_seeds.py",
    )


def _verdict(tasks: list[dict], metric: str) -> str:
    return next(task["verdict"] for task in tasks if task["task"] == "latest" and task["metric"] == metric)


# ---------------------------------------------------------------------------------------------- why abilities appear


def least_data() -> Claim:
    tiny = load_result("grokking_runs.json")["tiny"]
    shares = ", ".join(f"{interval(row, '.2f')} with {row['params']:,} parameters" for row in tiny["critical_fraction"])
    return Claim(
        "A task needs a least amount of data before it generalises",
        TALK,
        f"addition modulo 23, {len(tiny['times']) * 4} runs: the critical share of its table is {shares}",
        HOLDS if all(row["low95"] is not None for row in tiny["critical_fraction"]) else CANNOT,
        "[picture](images/grok-phase.svg), " + note("2026-11-26-grokking"),
        "make grok",
    )


def critical_share() -> Claim:
    trend = load_result("grokking_runs.json")["tiny"]["trend"]
    others = load_result("grokking_tasks.json")
    more = ", ".join(f"{name} {interval(others[name]['trend'])}" for name in ("permutations", "parity"))
    sign = "falls" if trend["high95"] < 0 else "grows" if trend["low95"] > 0 else None
    return Claim(
        "That share falls with size (2402.15175), or grows (2401.10463)",
        TALK,
        f"change for ten times the parameters in addition {interval(trend)}, p = {trend['p']:.3f}, three sizes and one budget; "
        f"with two sizes in {more}",
        f"{sign} here" if sign else CANNOT,
        "[picture](images/grok-phase.svg), "
        + note("2026-11-26-grokking")
        + ", "
        + note("2026-11-27-permutations-and-parity"),
        "make grok",
    )


def weight_decay() -> Claim:
    by = load_result("grokking_runs.json")["decay"]["by_weight_decay"]
    counts = ", ".join(
        f"{runs['generalised']} of {runs['runs']} with weight decay {decay}" for decay, runs in by.items()
    )
    return Claim(
        "Weight decay makes late generalisation (2201.02177)",
        TALK,
        f"generalised within 4,000 updates: {counts}; all knew their training questions",
        HOLDS if by["0"]["generalised"] == 0 < by["1"]["generalised"] else NOT,
        note("2026-11-26-grokking"),
        "emergence-train grok configs/grok/decay.yaml",
    )


def efficiency() -> Claim:
    rows = load_result("grokking_runs.json")["tiny"]["efficiency"]
    measured, verdict = "in three sizes, 60 runs, no training loss was seen late with both", CANNOT
    for row in rows[:1]:
        measured = (
            f"norm of generalising over memorising models {row['ratio']:.3f} [{row['low95']:.3f}, {row['high95']:.3f}], "
            f"{row['generalising_runs']} and {row['memorising_runs']} runs of one size; the latter saw smaller shares, which "
            "favours them"
        )
        verdict = HOLDS if row["high95"] < 1 else NOT if row["low95"] > 1 else CANNOT
    return Claim(
        "At the same training loss what generalises has the smaller norm (2309.02390)",
        TALK,
        measured,
        verdict,
        note("2026-11-26-grokking"),
        "benchmarks/studies/grokking_runs.py",
    )


def near_the_share() -> Claim:
    trend = load_result("grokking_runs.json")["tiny"]["time_trend"]
    return Claim(
        "It takes longer near the critical share",
        TALK,
        f"updates to generalise, of runs that do, go as the share to the power {interval(trend, '.1f')}",
        HOLDS if trend["high95"] is not None and trend["high95"] < 0 else CANNOT,
        note("2026-11-26-grokking"),
        "make grok",
    )


def mass_in_pretraining() -> Claim:
    result = load_result("critical_mass.json")
    shares = "; ".join(
        f"{row['params']:,} parameters {_percent(row)}, {row['learnt']} of {row['runs']} runs"
        for row in result["critical_share"]
    )
    return Claim(
        "... in pretraining too: a skill needs a least share of the mixture",
        TALK,
        f"a planted skill at 1.6 to 19% of the tokens; half of the runs learn it at: {shares}",
        HOLDS if all(0 < row["learnt"] < row["runs"] for row in result["critical_share"]) else CANNOT,
        note("2026-11-27-how-much-of-a-skill"),
        "benchmarks/studies/critical_mass.py",
    )


def loss_or_mass() -> Claim:
    by = load_result("critical_mass.json")["told_by"]
    loss, skill = by["loss"], by["skill_tokens"]
    right = loss["area"] if loss["sign"] < 0 else 1 - loss["area"]
    return Claim(
        "The loss tells whether an ability is there, whatever the data",
        LOSS,
        f"the same runs, checkpoints of different ones: the lower loss is the one with the skill in {right:.0%} of pairs, the "
        f"one that saw more of the skill's tokens in {skill['area']:.0%}. The iid loss has no text of the skill",
        HOLDS if right > 0.9 else f"{NOT} where the mixture differs",
        note("2026-11-27-how-much-of-a-skill"),
        "benchmarks/studies/critical_mass.py",
    )


def memorised_pairs(result: dict) -> str:
    """How often the run with the skill is the one that has memorised more, or fewer, of its items."""
    by = (result["told_by"] or {}).get("instances")
    if by is None or by["area"] is None:
        return "nothing is known of those memorised"
    return f"that with {'more' if by['sign'] > 0 else 'fewer'} of them memorised in {by['area']:.0%}"


def memorised_verdict(result: dict) -> str:
    """Whether more memorised items go with the skill: it does not hold where fewer do in most pairs."""
    by = (result["told_by"] or {}).get("instances")
    if by is None or by["area"] is None or by["area"] < 0.75:
        return CANNOT
    return HOLDS if by["sign"] > 0 and by["area"] > 0.9 else f"{NOT} for this skill" if by["sign"] < 0 else CANNOT


def few_instances() -> Claim:
    result = load_result("critical_instances.json")
    runs = sorted(result["runs"], key=lambda run: run["distinct"])
    able = [run for run in runs if run["accuracy"] >= result["able"]]
    by_cell: dict[tuple[str, int], list[str]] = {}
    for run in runs:
        by_cell.setdefault((run["size"], run["distinct"]), []).append(f"{run['accuracy']:.2f}")
    sizes = sorted({size for size, _ in by_cell})
    scores = "; ".join(
        f"{size.upper()}: " + ", ".join(f"{'/'.join(got)} from {n}" for (of, n), got in by_cell.items() if of == size)
        for size in sizes
    )
    written = max((run["memorised"]["extracted"] for run in able), default=0)
    return Claim(
        "... of a skill of few instances, each repeated",
        TALK,
        f"the same number of the skill's lines, so many of them distinct; accuracy on unseen lines (chance 0.25), a number a "
        f"seed: {scores}. Of its own lines no run that learnt it writes more than {written} from the beginning; of two runs, one "
        f"with the skill, it is {memorised_pairs(result)}",
        memorised_verdict(result),
        note("2026-11-27-a-handful-of-lines"),
        "benchmarks/studies/critical_instances.py",
    )


def memorises_more() -> Claim:
    result = load_result("memorisation_sizes.json")
    trend, sizes = result["trend_of_100"], result["of_100"]
    counts = ", ".join(
        f"{row['value']:.0f} [{row['low95']:.0f}, {row['high95']:.0f}] with {row['params'] / 1e6:.2f}M" for row in sizes
    )
    return Claim(
        "A larger model memorises a larger share of what it sees",
        TALK,
        f"pieces of text planted 1 to 32 times a pass, six passes, {len(sizes[0]['by_seed'])} seeds, one rate: of 100 so "
        f"many are written exactly beyond pieces never seen: {counts}; for ten times the parameters "
        f"{trend['value']:+.0f} [{trend['low95']:+.0f}, {trend['high95']:+.0f}], p = {trend['p']:.2f}",
        HOLDS if trend["low95"] > 0 else NOT if trend["high95"] < 0 else CANNOT,
        "[picture](images/memorisation-sizes.svg), " + note("2026-11-27-larger-models-and-repeated-text"),
        "benchmarks/studies/memorisation_sizes.py",
    )


def repeated() -> Claim:
    result = load_result("memorisation_sizes.json")
    last = max(row["passes"] for row in result["shares"])
    by_size: dict[int, list[float]] = {}
    for row in result["shares"]:
        if row["passes"] == last:
            by_size.setdefault(row["params"], []).append(row["extracted"]["value"])
    rises = all(shares == sorted(shares) and shares[-1] > shares[0] for shares in by_size.values())
    rarely, often = max(max(shares[:2]) for shares in by_size.values()), min(shares[-1] for shares in by_size.values())
    gains = [row["nats"] for row in result["counterfactual"] if row["seen"] == "all"]
    least = min(gains, key=lambda gain: gain["low95"])
    return Claim(
        "... and more of what is repeated",
        TALK,
        f"the same runs: seen 6 or 12 times {rarely:.0%} of pieces at most are written exactly, 200 times {often:.0%} at "
        f"least; of {result['controls']:,} pieces never seen {result['controls_extracted']}. With a piece its loss is lower by "
        f"{min(gain['value'] for gain in gains):.1f} to {max(gain['value'] for gain in gains):.1f} nats than without (the widest "
        f"interval begins at {least['low95']:.1f})",
        HOLDS if rises and not result["controls_extracted"] else NOT,
        note("2026-11-27-larger-models-and-repeated-text"),
        "benchmarks/studies/memorisation_results.py",
    )


def remembered() -> Claim:
    runs = load_result("critical_mass.json")["runs"]
    learnt = [run for run in runs if run["accuracy"] >= 0.6]
    most = max(run["memorised"]["of_100"] for run in learnt)
    return Claim(
        "What is memorised passes the critical number when an ability appears",
        TALK,
        f"{len(learnt)} of {len(runs)} runs learnt the skill; of 100 training sequences they repeat at most {max(most, 0):.0f} "
        "more than of sequences never seen",
        f"{NOT} for this skill" if most < 1 else CANNOT,
        note("2026-11-27-how-much-of-a-skill"),
        "benchmarks/studies/critical_mass.py",
    )


def _percent(row: dict) -> str:
    if row["value"] is None:
        return "not between the shares tried"
    return interval(row, ".1%")


def shrinking() -> Claim:
    fresh = [seed for seed in load_result("quickstart_seeds.json")["seeds"] if seed["group"] == "fresh"]
    last = [run["last_acc"]["latest"] for seed in fresh for run in seed["runs"].values()]
    return Claim(
        "Small models trained long keep abilities that were thought to be large ones'",
        TALK,
        f"the planted skill at 0.1 to 0.4M and equal tokens: accuracy {min(last):.2f} to {max(last):.2f} at the end of every "
        "run; no size so small was tried that it is lost",
        f"{HOLDS} within a factor of four",
        note("2026-11-26-an-ability-in-the-quickstart"),
        "benchmarks/studies/quickstart_seeds.py",
    )


ROWS: tuple[Callable[[], Claim], ...] = (
    position_law,
    story_claims.position_law,
    story_claims.separation,
    story_claims.rate,
    decay,
    story_claims.decay,
    public_claims.forecasts,
    public_claims.rebuilt,
    own_runs,
    story_claims.forecasts,
    weights,
    one_curve,
    story_claims.one_curve,
    public_claims.one_curve,
    story_claims.variants,
    story_claims.size_law,
    story_claims.returns,
    thresholds,
    public_claims.thresholds,
    planted,
    mirage,
    shrinking,
    least_data,
    mass_in_pretraining,
    loss_or_mass,
    remembered,
    few_instances,
    memorises_more,
    repeated,
    critical_share,
    near_the_share,
    weight_decay,
    efficiency,
)


def _code(row: Claim) -> str:
    return code(row.command) if row.command else ""


def page() -> str:
    """The page of claims."""
    rows = [make() for make in ROWS]
    head = ["claim", "what we measured", "verdict", "more"]
    cells = [
        [f"{row.claim} ({row.source})", row.measured, row.verdict, "<br>".join(filter(None, [row.more, _code(row)]))]
        for row in rows
    ]
    return "\n".join(
        [
            "---\nhide: [toc]\n---\n",
            "# The claims, tried",
            "",
            "Each claim of the three sources, what this software has measured of it, and whether that agrees. The numbers and",
            "verdicts are read from the files under `benchmarks/results/` when this site is built; `make docs` draws the table",
            "again. Everything of our own was trained on two CPU cores, from 0.05M to 3.2M parameters: what holds here may not",
            "at a size where it matters, and what cannot be told here may be plain there. The public curves are of larger",
            "models.",
            "",
            table(head, cells),
        ]
    )
