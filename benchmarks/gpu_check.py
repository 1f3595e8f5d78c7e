"""Correctness of the kernels on this machine's GPU: all of tests/kernels, compiled, and what only a GPU can show.

    python benchmarks/gpu_check.py [--limit SECONDS] [--out DIR] [options of pytest]

Every file of tests runs in a process of its own, and what it has for backend "cuda" in another, several at a time (most of
the time goes into compiling): an illegal access ends its process' use of the GPU, and a kernel that hangs must be killed.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTHING_COLLECTED = 5  # pytest's exit status
COUNTS = re.compile(r"(\d+) (passed|failed|skipped|error|errors)")


def check(tests: Path, keyword: str, options: list[str], limit: float) -> dict | None:
    """One process of pytest: its counts, and what it said if it failed. None where it had no tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    began = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "-k", keyword, *options, str(tests)], cwd=ROOT, capture_output=True, text=True, timeout=max(limit, 1.0)
        )
        status, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as hung:
        status, said = None, (hung.stdout or b"").decode(errors="replace") + "\nkilled: its time was up"
    if status == NOTHING_COLLECTED:
        return None
    last = said.strip().splitlines()[-1] if said.strip() else ""
    counts = {word.rstrip("s") if word != "passed" else word: int(number) for number, word in COUNTS.findall(last)}
    row = {"tests": tests.name, "for": keyword, "status": status, "seconds": round(time.monotonic() - began, 1), **counts}
    return row if status == 0 else row | {"said": said[-4000:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=float, default=480.0, help="seconds for everything")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments, options = parser.parse_known_args()
    try:
        import pytest  # noqa: F401
        import torch
    except ImportError as error:
        print(f"gpu-check: {error.name} is not installed (benchmarks/README.md says how, offline too)", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("gpu-check: PyTorch sees no CUDA device here", file=sys.stderr)
        return 2
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    from emergence_kernels.bench.run import commit, device_name, versions

    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.pop("EMERGENCE_KERNELS_BACKEND", None)
    device = torch.device("cuda")
    print(f"gpu-check: {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    files = sorted((ROOT / "tests" / "kernels").glob("test_*.py"))
    wanted = [(file, keyword) for keyword in ("not cuda", "cuda") for file in files]
    end = time.monotonic() + arguments.limit
    rows: list[dict] = []
    with ThreadPoolExecutor(max_workers=max(1, min(8, (os.cpu_count() or 2) // 2))) as pool:
        for row in pool.map(lambda each: check(*each, options, end - time.monotonic()), wanted):
            if row is not None:
                rows.append(row)
                told = ", ".join(f"{row[word]} {word}" for word in ("passed", "failed", "error", "skipped") if word in row)
                print(f"{row['tests']:44s} {row['for']:9s} {row['seconds']:6.1f} s  {told}", flush=True)
                print(row.get("said", ""), end="", flush=True)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    path = arguments.out / device_name(device) / f"{stamp}-check.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"device": torch.cuda.get_device_name(), "utc": stamp, "versions": versions(), "commit": commit(),
              "command": ["gpu_check.py", *sys.argv[1:]], "processes": rows}  # fmt: skip
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    bad = [row for row in rows if row["status"] != 0]
    total = sum(row.get("passed", 0) for row in rows)
    print(f"gpu-check: {total} passed; {len(bad)} of {len(rows)} processes failed; {path}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
