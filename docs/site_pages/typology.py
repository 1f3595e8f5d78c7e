"""Kinds of task and explanations of thresholds, from benchmarks/results/: two tables of verdicts and their evidence."""

from collections import Counter

from docs.site_pages.claims import CANNOT, HOLDS, NOT, memorised_pairs, memorised_verdict
from docs.site_pages.markdown import code, table
from docs.site_pages.measurements import load_result

KINDS = {
    "gradual": "follows the loss from the start (scaling)",
    "emergent": "at chance, then a threshold",
    "u-shaped": "worse, then better",
    "inverted-u": "better, then worse",
    "inverse": "worse with lower loss",
    "at-chance": "at chance throughout",
    "saturated": "solved throughout",
    "not-identified": "the rows cannot tell",
}
FAMILIES = (
    ("in-context learning", "recall", "key and value pairs, the value of a key seen before"),
    ("in-context learning", "latest", "the value that was set last"),
    ("in-context learning", "copying", "a random string from the context"),
    ("several steps", "arithmetic", "sums; no steps are written out"),
)


def _fresh() -> list[dict]:
    return [seed for seed in load_result("quickstart_seeds.json")["seeds"] if seed["group"] == "fresh"]


def _counted(verdicts: list[str]) -> str:
    counts = Counter(verdicts)
    return ", ".join(f"{name} {counts[name]}" for name in KINDS if counts[name])


def public() -> str:
    """Verdicts of the accuracy of public tasks, by kind, with names."""
    result = load_result("typology.json")
    rows = []
    for kind, meaning in KINDS.items():
        cells = []
        for source in result["sources"]:
            names = [row["task"] for row in result["tasks"] if (row["source"], row["verdict"]) == (source, kind)]
            cells.append(f"{len(names)}" + (f": {', '.join(names)}" if 0 < len(names) <= 12 else ""))
        rows.append([kind, meaning, *cells])
    heads = [f"{code(name)} ({source})" for name, source in result["sources"].items()]
    return table(["verdict", "accuracy against loss", *heads], rows)


def _bent() -> str:
    bent = [
        row["task"] for row in load_result("typology.json")["tasks"] if row["verdict"] in ("u-shaped", "inverted-u")
    ]
    if bent:
        return f"U-shaped or bent the other way: {', '.join(bent)}."
    return "No task here is U-shaped; that kind is known from the simulation alone."


SHOWN, HIDDEN = (
    ("emergent", "gradual", "saturated"),
    ("at-chance", "inverse"),
)  # verdicts that say an ability is there, or is not


def beside_the_source() -> str:
    """What the first source's own list of tasks above chance says, and what the verdicts say; each task on which they differ."""
    rows = [row for row in load_result("typology.json")["tasks"] if "source_above_chance" in row]
    lines = []
    for listed, label, against in ((True, "above chance", HIDDEN), (False, "not listed", SHOWN)):
        tasks = [row for row in rows if row["source_above_chance"] is listed]
        differ = [
            "{task} ({verdict}; {small:+.2f}, {lowest_loss:+.2f})".format(**row, **row["above"])
            for row in tasks
            if row["verdict"] in against
        ]
        lines.append([label, str(len(tasks)), _counted([row["verdict"] for row in tasks]), ", ".join(differ) or "none"])
    head = ["the source's list", "tasks", "verdicts here", "on which they differ"]
    return table(head, lines)


def own() -> str:
    """Verdicts of own runs: real and generated tasks of the ladder, planted ones of the quickstart's fresh seeds."""
    ladder = [
        row
        for name in ("emergence_runs_ladder.json", "emergence_runs_tiny-cpu.json")
        for row in load_result(name)["tasks"]
    ]
    planted = [task for seed in _fresh() for task in seed["tasks"]]
    single = [task for seed in _fresh() for tasks in seed["tasks_by_run"].values() for task in tasks]
    rows = []
    for label, tasks in (
        ("real and generated tasks, 0.05 to 3.2M", ladder),
        ("planted tasks, sizes together, fresh seeds", planted),
        ("planted `latest`, each run", single),
    ):
        for metric in (("acc", "exact_match"), ("brier",), ("answer_loglik",)):
            rows.append([label, metric[0], _counted([row["verdict"] for row in tasks if row["metric"] in metric])])
            label = ""
    return table(["runs", "metric", "verdicts"], rows)


def simulated() -> str:
    """How often the analysis names a kind right where it is known."""
    verdicts = load_result("emergence_study.json")["verdicts"]
    return ", ".join(f"{kind} {row['right']:.0%}" for kind, row in verdicts.items())


def families() -> str:
    """The two families named by the source, each with the planted or generated tasks that stand for it."""
    verdicts: dict[str, list[str]] = {}
    for seed in _fresh():
        for task in seed["tasks"]:
            if task["metric"] == "acc":
                verdicts.setdefault(task["task"], []).append(task["verdict"])
    for task in load_result("emergence_runs_ladder.json")["tasks"]:
        if task["metric"] == "acc":
            verdicts.setdefault(task["task"], []).append(task["verdict"])
    rows = [[family, code(name), what, _counted(verdicts[name])] for family, name, what in FAMILIES]
    rows.append(["several steps", "lines of `latest`", "six values of a line, all of them right", "the table below"])
    return table(["family", "task", "what is asked", "verdicts of its accuracy"], rows)


# ---------------------------------------------------------------------------------- explanations of one planted skill


def metric() -> list[str]:
    runs = [tasks for seed in _fresh() for tasks in seed["tasks_by_run"].values()]
    pairs = [{t["metric"]: t["verdict"] for t in tasks if t["task"] == "latest"} for tasks in runs]
    jumps = [pair for pair in pairs if pair["acc"] == "emergent"]
    both = sum(pair["brier"] == "emergent" for pair in jumps)
    smooth = sum(pair["answer_loglik"] == "gradual" for pair in jumps)
    return [
        "the metric makes it",
        "continuous metrics of the same answers rise without a plateau",
        f"of {len(jumps)} runs with a jump of accuracy the Brier score jumps too in {both}; the log-likelihood rises gradually "
        f"in {smooth}",
        f"{NOT} for the Brier score, {HOLDS} for the log-likelihood" if both > len(jumps) / 2 else HOLDS,
        code("quickstart_seeds.json"),
    ]


def composition() -> list[str]:
    runs = [run["composition"] for run in load_result("critical_instances.json")["runs"] if "composition" in run]
    rows = [run for run in runs if "explained" in run]
    explained = [row["explained"] for row in rows]
    parts = "; ".join(f"{row['value']:.2f} [{row['low95']:.2f}, {row['high95']:.2f}]" for row in explained)
    beyond = ", ".join(f"{row['correlated']:+.2f}" for row in rows)
    verdict = CANNOT
    if explained and all(row["low95"] > 0.5 for row in explained):
        verdict = HOLDS
    elif explained and all(row["high95"] < 0.5 for row in explained):
        verdict = NOT
    trained = [row for row in load_result("composition_runs.json")["explanations"] if row["explanation"] == "steps"]
    cipher = "; ".join("{value:.2f} [{low95:.2f}, {high95:.2f}]".format(**row["explained"]) for row in trained)
    return [
        "all steps must be right",
        "the whole is the product of its steps, and the steps rise smoothly",
        f"six values of a line scored one by one, {len(rows)} runs: the product explains {parts} of the whole's curve over "
        f"checkpoints, and the whole is {beyond} above it: steps come right together, more or less so by run. Of five letters "
        f"of a cipher, facts apart, it explains {cipher} (composition_runs.json)",
        verdict,
        code("critical_instances.json"),
    ]


def mass() -> list[str]:
    result = load_result("critical_mass.json")
    area = result["told_by"]["skill_tokens"]["area"]
    return [
        "critical mass of data",
        "below a share of the mixture no run learns it, whatever else is the same",
        f"{sum(row['learnt'] for row in result['critical_share'])} of {len(result['runs'])} runs learn it; of two checkpoints of "
        f"different runs the one that saw more of the skill has it in {area:.0%} of pairs",
        HOLDS if area > 0.9 else CANNOT,
        code("critical_mass.json"),
    ]


def instances() -> list[str]:
    result = load_result("critical_instances.json")
    able = [run for run in result["runs"] if run["accuracy"] >= result["able"]]
    fewest = min((run["distinct"] for run in able), default=None)
    most = max((run["memorised"]["extracted"] for run in able), default=0)
    distinct = result["told_by"]["share"] if result["told_by"] else {"area": 0.5}
    return [
        "critical number of memorised items",
        "it comes where enough distinct instances are memorised",
        f"at equal tokens of the skill {len(able)} of {len(result['runs'])} runs learn it, from {fewest} distinct lines on; they "
        f"write at most {most} of their own lines from the beginning. Of two runs, one with the skill, that with more distinct "
        f"lines has it in {distinct['area']:.0%} of pairs, {memorised_pairs(result)} ({_drawn(result['runs'])})",
        memorised_verdict(result),
        code("critical_instances.json"),
    ]


def _drawn(runs: list[dict]) -> str:
    counts = {name: len({run[name] for run in runs}) for name in ("seed", "size")}
    return ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items())


def loss() -> list[str]:
    by = load_result("critical_mass.json")["told_by"]["loss"]
    right = by["area"] if by["sign"] < 0 else 1 - by["area"]
    return [
        "the loss",
        "performance is one curve of the loss, whatever the run",
        f"across mixtures the lower iid loss is the run with the skill in {right:.0%} of pairs; that loss has none of the "
        "skill's text",
        HOLDS if right > 0.9 else f"{NOT} across mixtures",
        code("critical_mass.json"),
    ]


def page() -> str:
    """The page of kinds and explanations."""
    head = ["explanation", "what it says", "what was measured", "for this skill", "source"]
    return "\n".join(
        [
            "---\nhide: [toc]\n---\n",
            "# Kinds of task, and why a threshold",
            "",
            "Drawn from `benchmarks/results/` when this site is built. Verdicts are those of `analyze emergence` on accuracy,",
            "or the metric named. Share that is right on simulated tasks, where the truth is known: "
            + simulated()
            + ".",
            "",
            "## Public tables",
            "",
            "Accuracy of other laboratories' models against their validation loss (`benchmarks/studies/typology.py`). A verdict",
            "is of the range of losses in the table: what is at chance there may have its threshold below.",
            "",
            public(),
            _bent(),
            "",
            "### What the source says of its tasks",
            "",
            "mlfoundations/scaling predicts the error of 17 of its 46 tasks, those with a model of 0.154B at least 10 points",
            "above chance (arXiv 2403.08540). It calls none emergent, inverse or U-shaped, so this is all there is to compare.",
            "In brackets: the verdict, how far above chance the best model up to 0.154B is, and the mean of the three of the",
            "lowest losses. Gemstones' repository has no such list.",
            "",
            beside_the_source(),
            "",
            "The lists ask different things: the best of many models may be above chance by luck or by always giving the",
            "commoner answer, and a task that is at chance in a small model may have its threshold further on.",
            "",
            "## Own runs",
            "",
            own(),
            "## The families that the source names",
            "",
            "In-context learning and chain of thought. The first is real: planted and generated tasks that are answered from the",
            "context. **Chain of thought is a stand-in.** What is measured are tasks of several steps, each scored with the",
            "right answers of those before it given; no model here writes reasoning, none is prompted to, and no score with it",
            "is compared with one without. A file of prompts and `extract: number` is scored, for models that can.",
            "",
            families(),
            "## Explanations beside one another",
            "",
            "All of one planted skill, `latest`, at 0.1 to 0.4M parameters. They do not exclude one another.",
            "",
            table(head, [metric(), composition(), mass(), instances(), loss()]),
        ]
    )
