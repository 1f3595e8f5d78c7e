"""Tables and plots from the JSON of benchmark runs. Every row is shown, also those that lose."""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from ..backends import ranking
from .results import of_this_version


def _shape(row: dict) -> str:
    return ", ".join(f"{k} {v}" for k, v in row["shape"].items())


def _cell(values: dict | None) -> str:
    if not values:
        return ""
    spread = max(values["high_ms"] - values["median_ms"], values["median_ms"] - values["low_ms"])
    text = f"{values['median_ms']:.3f} ± {spread:.3f}"
    if "tokens_per_second" in values:
        text += f" ({values['tokens_per_second']:.0f} tokens/s, {values['percent_of_matmul']:.0f}% of matmul)"
    elif "tflops" in values:
        text += f" ({values['tflops']:.3g} TFLOP/s, {values['percent_of_matmul']:.0f}%)"
    elif "gbps" in values:
        text += f" ({values['gbps']:.3g} GB/s, {values['percent_of_copy']:.0f}%)"
    return text


def table(data: dict) -> str:
    """Markdown: per operation and shape, the candidates from fastest to slowest both ways."""
    known = f"Commit {data['commit']}. " if data.get("commit") else ""
    known += ", ".join(f"{k} {v}" for k, v in data["versions"].items() if v)
    limits = data["ceilings"]
    lines = [
        f"# {data['device']}, {data['dtype']}, suite {data['suite']}, {data['utc']} UTC",
        "",
        f"{known}. Matmul {limits['matmul_tflops']:.3g} TFLOP/s, copy {limits['copy_gbps']:.3g} GB/s in the same run.",
        f"CPU threads {data['threads']}, load average at the start {data['load_average']:.1f}.",
        "Milliseconds are medians ± the larger distance to the 20th or 80th percentile; backward is both - forward.",
    ]
    if "warning" in data:
        lines += ["", f"**{data['warning']}**"]
    if not data["complete"]:
        cut = ", ".join(data.get("cut_short", [])) or "unknown"
        lines += ["", f"**Not complete; cut short: {cut}.**"]
    groups = defaultdict(list)
    for row in data["rows"]:
        groups[row["op"], _shape(row)].append(row)
    for (op, shape), rows in groups.items():
        lines += ["", f"## {op}: {shape}", "", rows[0]["formula"], ""]
        lines += ["| candidate | eval ms | forward ms | backward ms | both ms | peak extra MiB | error vs float64 |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for row in sorted(rows, key=lambda r: r["modes"]["both"]["median_ms"]):
            cells = [_cell(row["modes"].get(mode)) for mode in ("eval", "forward", "backward", "both")]
            memory = row.get("peak_extra_bytes")
            errors = ", ".join(f"{k} {v:.1e}" for k, v in row.get("errors", {}).items())
            cells += ["" if memory is None else f"{memory / 2**20:.0f}", errors]
            lines.append(f"| {row['candidate']} | " + " | ".join(cells) + " |")
    if data["failures"]:
        lines += ["", "## Failed", ""]
        lines += [f"- {f['op']} {f['candidate']} ({_shape(f)}): {f['error']}" for f in data["failures"]]
    return "\n".join(lines) + "\n"


def plot(data: dict, folder: Path, stem: str) -> list[Path]:
    """One bar chart an operation, forward and backward together."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    written = []
    for op in dict.fromkeys(row["op"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["op"] == op]
        shapes = list(dict.fromkeys(_shape(row) for row in rows))
        names = list(dict.fromkeys(row["candidate"] for row in rows))
        figure, axes = plt.subplots(figsize=(3 + 1.6 * len(shapes), 4.5))
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            mine = [(shapes.index(_shape(r)), r["modes"]["both"]) for r in rows if r["candidate"] == name]
            at = [x + (i - (len(names) - 1) / 2) * width for x, _ in mine]
            axes.bar(at, [values["median_ms"] for _, values in mine], width, label=name)
        axes.set_xticks(range(len(shapes)), [s.replace(", ", "\n") for s in shapes], fontsize=7)
        axes.set_ylabel("forward + backward, ms (lower is better)")
        axes.set_title(f"{op} on {data['device']}, {data['dtype']}")
        axes.legend(fontsize=7)
        figure.tight_layout()
        path = folder / f"{stem}-{op}.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        written.append(path)
    return written


def main(argv: list[str] | None = None) -> int:
    parse = argparse.ArgumentParser(description="Redraw tables (Markdown) and plots (PNG) beside benchmark results.")
    parse.add_argument("results", type=Path, nargs="+", help="JSON files, or folders to search")
    parse.add_argument("--no-plots", action="store_true", help="tables only (no matplotlib needed)")
    parse.add_argument("--ranking", action="store_true", help='also rewrite ranking.json, what "auto" prefers on a GPU')
    args = parse.parse_args(argv)
    files = [f for path in args.results for f in (sorted(path.rglob("*.json")) if path.is_dir() else [path])]
    runs = {}
    for file in files:
        try:
            data = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            print(f"redraw: {file}: no JSON of a benchmark ({error})", file=sys.stderr)
            return 2
        if "suite" in data:  # not other benchmarks'
            runs[file] = of_this_version(data)
    if args.ranking:
        ranking.write(ranking.from_results(list(runs.values())))
        print(ranking.FILE)
    elif not runs:
        print(f"redraw: no results of kernels in {', '.join(map(str, args.results))}", file=sys.stderr)
        return 2
    for file, data in runs.items():
        text = file.with_suffix(".md")
        text.write_text(table(data))
        plots = [] if args.no_plots else plot(data, file.parent, file.stem)
        print(text, *plots)
    return 0
