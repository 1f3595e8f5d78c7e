"""Measured times and errors as tables, from the stored results under benchmarks/results/."""

import json
import re
from pathlib import Path

from docs.site_pages.markdown import code, table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def load_result(name: str) -> dict:
    """A result under benchmarks/results/."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _source(name: str, result: dict) -> str:
    """The source of a table's numbers: file, date, device, commit."""
    environment = result.get("environment", result)
    parts = [
        code(f"benchmarks/results/{name}"),
        result.get("date"),
        environment.get("device"),
        environment.get("commit"),
    ]
    return "Source: " + ", ".join(str(part)[:12] if part == parts[3] else str(part) for part in parts if part) + ".\n"


def page() -> str:
    """The page of all measurements."""
    lines = [
        "---\nhide: [toc]\n---\n",  # its tables are wide
        "# Measurements",
        "",
        "Made from the files under `benchmarks/results/` when this site is built; how each was measured is in",
        "`benchmarks/README.md`. MFU = tokens/s x FLOPs per token / (GPUs x dense bf16 peak). FLOPs per token = 6 x (weights",
        "of all matrix products, output head included, embedding look-up excluded) + 12 x layers x width x (T + 1) / 2:",
        "causal attention, no recomputation.",
        "",
        "## Training on a CPU",
        "",
        cpu_training(),
        "## Saving and loading a checkpoint",
        "",
        checkpoints(),
        "## Killed, stopped and damaged runs",
        "",
        fault_trials(),
        "## The temporal law on public runs",
        "",
        public_forecasts(),
        "## Plans against measured steps",
        "",
        plans(),
    ]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        for path in sorted(folder.glob("*.md"), key=lambda path: (path.name != "training.md", path.name)):
            lines += ["", _demoted(path), "", f"Source: `benchmarks/results/{folder.name}/{path.name}`."]
    return "\n".join(lines) + "\n"


def _demoted(path: Path) -> str:
    """A benchmark's own page, its headings a level lower."""
    return re.sub(r"^#", "##", path.read_text(encoding="utf-8"), flags=re.M).rstrip()


def cpu_training() -> str:
    """Tokens/s of the training loop against its peers."""
    result = load_result("cpu/training.json")
    rows = []
    for size, candidates in result["sizes"].items():
        for candidate in candidates:
            ratio, cost = candidate["over_faster_peer"], candidate.get("position_logging")
            rows.append(
                [
                    size,
                    candidate["candidate"],
                    f"{candidate['tokens_per_second']:,.0f} [{candidate['least']:,.0f}, {candidate['greatest']:,.0f}]",
                    f"{ratio['median']:.2f} [{ratio['low95']:.2f}, {ratio['high95']:.2f}]",
                    f"{cost['median']:+.1%} [{cost['low95']:+.1%}, {cost['high95']:+.1%}]" if cost else "",
                ]
            )
    head = [
        "size",
        "candidate",
        "tokens/s, median [least, greatest]",
        "over the faster peer, 95%",
        "cost of position logging",
    ]
    return (
        f"Steps of {result['step']}, fp32, eager, {result['environment']['cpu_threads']} threads, {result['rounds']} turns on a "
        "shared machine; ratios are medians over pairs of turns.\n\n"
        + table(head, rows)
        + "\n"
        + _source("cpu/training.json", result)
    )


def checkpoints() -> str:
    """Seconds of saving and loading against DeepSpeed's own checkpoints."""
    names = ["cpu/checkpoints-1.json", "cpu/checkpoints-2.json"]
    results = [load_result(name) for name in names]
    first = results[0]
    rows = [
        [what, *(f"{run['seconds'][what]['median']:.3f} ({run['seconds'][what]['least']:.3f})" for run in results)]
        for what in first["seconds"]
    ]
    head = ["seconds, median (least)", *(f"processes: {run['processes']}" for run in results)]
    about = (
        f"{first['parameters'] / 1e6:.1f}M parameters, ZeRO-{first['zero_stage']}, fp32; DeepSpeed writes "
        f"{first['megabytes']['deepspeed']:.0f} MB, this framework {first['megabytes']['ours']:.0f} MB, hashed and fsynced.\n\n"
    )
    return about + table(head, rows) + "\n" + "".join(_source(name, run) + "\n" for name, run in zip(names, results))


def fault_trials() -> str:
    """Number of seeded trials that ended with the logs of an uninterrupted run."""
    result = load_result("cpu/faults.json")
    rows = [[kind.replace("_", " "), counts["trials"], counts["passed"]] for kind, counts in result["by_kind"].items()]
    rows.append(["all", result["trials"], result["passed"]])
    return (
        table(["what was done", "trials", "logs identical in the end"], rows)
        + "\n"
        + _source("cpu/faults.json", result)
    )


def public_forecasts() -> str:
    """Errors of the forecasts of runs whose laboratory was left out of the prior, by the part of the run that was seen."""
    name = "temporal_laboratories.json"
    result = load_result(name)
    rows = []
    for group, label in (("folder", "speedruns, Gemstones"), ("earlier", "two earlier sources")):
        for fraction, tables in result["forecasts"].get(group, {}).items():
            row = tables["all"]
            rows.append(
                [
                    label,
                    f"first {float(fraction):.0%}",
                    row["forecasts"],
                    f"{row['median rmse']:.3f}",
                    f"{row['median quotient']:.2f}",
                    f"{row['oracle quotient']:.2f}",
                    f"{row['too low']:.0%}",
                    f"{row['rows inside 95']:.0%}",
                    f"{row['ends inside 95']:.0%}",
                    f"{row['half-width over error']:.1f} ({row['the same if calibrated']:.1f})",
                ]
            )
    head = [
        "sources",
        "seen",
        "forecasts",
        "RMSE, nats (median)",
        "squared error over the best classical law's, by hindsight",
        "that of our law fitted to the whole run",
    ]
    head += ["end too low", "95% intervals held rows", "and ends", "half-width over error (if calibrated)"]
    return table(head, rows) + "\n" + _source(name, result)


def outside_forms() -> str:
    """Ends held on forms that the temporal law does not contain, with other exponents allowed for and without."""
    name = "temporal_outside.json"
    result = load_result(name)
    shipped, alone = result["shipped"], result["laboratories"]

    def held(parts: dict) -> str:
        return ", ".join(f"{100 * part['ends held']:.0f}" for part in parts.values())

    schedules, fractions = list(shipped["schedules"]), [f"{float(part):.0%}" for part in shipped["all"]]
    rows = [
        [form, *(held(of[schedule]) for schedule in schedules), held(alone["forms"][form]["constant"])]
        for form, of in shipped["forms"].items()
    ]
    rows.append(
        ["all", *(held(shipped["schedules"][each]) for each in schedules), held(alone["schedules"]["constant"])]
    )
    head = [f"% of ends held from {', '.join(fractions)}", *schedules, "constant, laboratories' exponents alone"]
    return table(head, rows) + "\n" + _source(name, shipped)


def plans() -> str:
    """Misses of `plan`: medians of what was held out, and every step."""
    name = "plan_published.json"
    result = load_result(name)
    held = [
        [what, score["rows"], f"{score['median']:.1%}", f"{score['greatest']:.1%}"]
        for what, score in result["held_out"].items()
    ]
    rows = [
        [
            row.get("id", "own"),
            row["run"],
            "calibrates" if row["calibrates"] else "held out",
            f"{row['time']:+.1%}",
            f"{row['memory']:+.1%}" if "memory" in row else "",
        ]
        for row in [*result["own"], *result["published"]]
    ]
    planned = result["as_planned"]
    unfitted = [[row["run"], f"{row['time']:+.1%}", f"{row['memory']:+.1%}"] for row in planned["rows"]]
    about = (
        "Planned over measured, less 1. Own: an H100 and an H200, 64 x 1,024 tokens a step. Published: other programs, with "
        "their own bytes of element-wise traffic and activations; a row's memory may calibrate where its time is held out.\n\n"
    )
    return (
        about
        + table(["held out", "steps", "median miss", "greatest"], held)
        + "\n"
        + table(["row", "step", "", "seconds", "memory"], rows)
        + "\nAnother program's steps against the command as it is, with nothing fitted to that program.\n\n"
        + table(["step", "seconds", "memory"], unfitted)
        + "\n"
        + _source(name, result)
    )
