"""Tables and plots from stored results: `python benchmarks/redraw.py benchmarks/results`."""

import json
import sys
from pathlib import Path

from emergence_kernels.bench.draw import main
from emergence_kernels.bench.results import of_this_version

KINDS = (
    "matrix products",
    "fused products",
    "attention",
    "norm",
    "swiglu",
    "rotary",
    "loss",
    "optimizer",
    "copies and fills",
)


def training_table(files: list[Path]) -> str:
    """Markdown of the training steps measured on one device (gpu_training.py), oldest first."""
    records = [of_this_version(json.loads(file.read_text())) for file in files]
    lines = [f"# Training steps on {records[0]['device']}", ""]
    lines += [
        "tokens/s: median over turns [least, greatest]. MFU by DecoderConfig.flops_per_token over the data sheet's",
        "bf16 peak. Of the profiled step: GPU milliseconds in all and by kind, launches, implicit waits of the host. Batch",
        "64 x 1,024 tokens, ZeRO-1, bf16, AdamW; rows of one time were measured in one process, in turns. predicted: GiB by the",
        "model of memory that training.micro_batch auto chooses by.",
        "fused products: those with SwiGLU or the rotary embedding inside.",
        "",
    ]
    lines += [
        "| measured (UTC) | commit | size | micro-batch | candidate | tokens/s | MFU | GiB | predicted | GPU ms | "
        + " | ".join(KINDS)
        + " | other | launches | waits |"
    ]
    lines += ["|" + "---|" * (13 + len(KINDS))]
    for record in records:
        for row in record["rows"]:
            cells = [
                record["utc"],
                record["commit"][:10],
                record["size"],
                str(record["micro_batch"]),
                row["candidate"],
            ]
            if "failed" in row:
                cells += [f"failed: {row['failed'].split(chr(10))[0][:60]}", *[""] * (7 + len(KINDS))]
            else:
                profile = row.get("profile", {})
                kinds = dict(profile.get("by_kind_ms", {}))
                named = [f"{kinds.pop(kind, 0.0):.0f}" if profile else "" for kind in KINDS]
                speed = f"{row['tokens_per_second']:,} [{row['least']:,}, {row['greatest']:,}]"
                cells += [speed, f"{row['mfu']:.1%}" if row["mfu"] else "", f"{row['peak_gib']:.1f}"]
                cells.append(f"{row['predicted_gib']:.1f}" if row.get("predicted_gib") else "")
                cells += [
                    f"{profile['gpu_ms']:.0f}" if profile else "",
                    *named,
                    f"{sum(kinds.values()):.0f}" if profile else "",
                ]
                cells += [str(profile.get("launches", "")), str(sum(profile["host_waits"].values())) if profile else ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    places = [Path(path) for path in sys.argv[1:] if not path.startswith("-")]
    for folder in {file.parent for place in places for file in place.rglob("*-training-*.json")}:
        table = folder / "training.md"
        table.write_text(training_table(sorted(folder.glob("*-training-*.json"))))
        print(table)
    sys.exit(main())
