"""Correctness of the kernels on this machine's GPU: tests/kernels compiled, and the tests that need a GPU.

    python benchmarks/gpu_check.py [--limit SECONDS] [--out DIR] [options of pytest]

The kernels that are most likely to hang (Hopper's) and the tests that only a GPU can pass come first, then everything
that does not concern compilers alone. Several processes share the GPU, since most of the time goes into compiling; one that
loses it (an illegal access) or hangs is replaced. Needs pytest and pytest-xdist. Skipped parts are listed at the end.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

BEGAN = time.monotonic()  # before torch is imported, which can take longer than the margin of who gives the limit
CUT = 75  # exit status where the limit came first and nothing failed
ROOT = Path(__file__).resolve().parents[1]
FIRST = (
    "test_kernel_hopper.py",
    "test_kernel_gpu.py",
    "test_kernel_compiled_attention.py",
    "test_kernel_feed_forward.py",
    "test_kernel_linear_rotary.py",
    "test_kernel_projected_attention.py",
    "test_kernel_loss_rows_hopper.py",
)
# no GPU
NEVER = (
    "test_kernel_compile.py",
    "test_kernel_ptx.py",
    "test_ptx_instructions.py",
)
# not on every machine, and what is left out without
NEEDED = {
    "hypothesis": "random inputs",
    "flash_attn_interface": "flash-attn 3",
    "pydantic": "tests of training and models",
    "deepspeed": "training",
}
OTHERWISE = ("TRITON_INTERPRET", "EMERGENCE_KERNELS_BACKEND")  # would have the tests run something else
SECONDS_A_TEST = 60
RED, PLAIN = ("\033[31m", "\033[0m") if sys.stdout.isatty() else ("", "")


def stages() -> dict[str, list[Path]]:
    files = [f for f in sorted((ROOT / "tests" / "kernels").rglob("test_*.py")) if f.name not in NEVER]
    training = [ROOT / "tests" / "training" / f"test_{name}.py" for name in ("micro_batch", "early_reduction")]
    return {
        "first": [f for f in files if f.name in FIRST] + training,
        "rest": [f for f in files if f.name not in FIRST],
    }


def check(files: list[Path], outcomes: Path, options: list[str], limit: float) -> tuple[int | None, str]:
    """Run pytest -> (its exit status, None after a timeout; the end of its output)."""
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-p",
        "gpu_isolation",
        "--rootdir",
        str(ROOT),
        "-n",
        str(workers),
        "--max-worker-restart",
        "100",
        "--timeout",
        str(SECONDS_A_TEST),
        "--timeout-method",
        "thread",
        "--tb",
        "short",
        "--outcomes",
        str(outcomes),
    ]
    paths = os.pathsep.join([str(ROOT / "tests" / "kernels" / "harness"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [*command, *options, *map(str, files)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in OTHERWISE} | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=max(limit, 1.0))
        return process.returncode, printed[-3000:]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        printed, _ = process.communicate()
        return None, printed[-3000:]


def left_out() -> list[str]:
    """Parts that this machine cannot check, with reasons."""
    import torch

    from emergence_kernels.backends import library

    reason = library.unsupported_reason("cuda", torch.device("cuda"))
    reasons = [f"the CUDA kernels: {reason}"] if reason else []
    if torch.cuda.get_device_capability() != (9, 0):
        reasons.append("Hopper's kernels: this is not compute capability 9.0")
    for name, what in NEEDED.items():
        try:
            __import__(name)
        except ImportError:
            reasons.append(f"{what}: {name} is not installed")
    return reasons


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for everything")
    parser.add_argument("--stage", choices=("first", "rest"), help="one of the two; default: both")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments, options = parser.parse_known_args()
    try:
        import torch  # noqa: I001  what everything else is for comes first
        import pytest  # noqa: F401
        import pytest_timeout  # noqa: F401
        import xdist  # noqa: F401
    except ImportError as error:
        print(f"gpu-check: {error.name} is not installed (benchmarks/README.md says how, offline too)", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("gpu-check: PyTorch sees no CUDA device here", file=sys.stderr)
        return 2
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    from emergence_kernels.backends.ranking import device_name
    from emergence_kernels.bench.results import commit, versions

    folder = arguments.out / device_name(torch.device("cuda"))
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    print(f"gpu-check: {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    record = {
        "device": torch.cuda.get_device_name(),
        "utc": stamp,
        "versions": versions(),
        "commit": commit(),
        "command": ["gpu_check.py", *sys.argv[1:]],
        "left_out": left_out(),
        "stages": [],
    }
    end, good, cut = BEGAN + arguments.limit, True, False
    for name, files in stages().items():
        if arguments.stage not in (None, name):
            continue
        began, outcomes = time.monotonic(), folder / f"{stamp}-check-{name}.jsonl"
        status, printed = check(files, outcomes, options, end - time.monotonic())
        rows = [json.loads(line) for line in outcomes.read_text().splitlines()] if outcomes.exists() else []
        counts = Counter(row["outcome"] for row in rows)
        failed = [row for row in rows if row["outcome"] == "failed"]
        record["stages"].append(
            {
                "stage": name,
                "status": status,
                "seconds": round(time.monotonic() - began, 1),
                **counts,
                "failures": failed,
                "slowest": sorted(rows, key=lambda row: -row["seconds"])[:5],
            }
        )
        ended = {None: "cut off: its time was up", 0: "all of it"}.get(status, f"status {status}")
        print(f"{name}: {dict(counts)}, {ended}, {record['stages'][-1]['seconds']} s", flush=True)
        for row in failed:
            print(f"{RED}FAILED{PLAIN} {row['test']}: {row['error'].strip().splitlines()[-1][:300]}", flush=True)
        if status not in (0, 1) or (status and not failed):
            print(printed, flush=True)
        good &= not failed and status in (0, None)
        cut |= status is None
        outcomes.unlink(missing_ok=True)
        (folder / f"{stamp}-check.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for each in record["left_out"]:
        print(f"{RED}left out{PLAIN}: {each}")
    print(f"gpu-check: {'FAILED' if not good else 'cut off' if cut else 'passed'}; {folder / f'{stamp}-check.json'}")
    return 1 if not good else CUT if cut else 0


if __name__ == "__main__":
    sys.exit(main())
