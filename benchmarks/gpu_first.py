"""Everything that a GPU is needed for, in stages sized for half an hour: `make gpu-first`.

    python benchmarks/gpu_first.py [--minutes 30] [--stages NAME,...] [--again] [--out DIR]

Each stage is a process with its own limit, the most informative first; a stage writes its measurements as it goes, before it
is killed. OUT/<device>/gpu-first.json has the outcome of each, with what it left out or did not reach; the next call continues
with what is not done at this commit (--again: all of it). A stage that was cut off gets twice the time, at the end of this call
where any is left, or in the next, after those that no call has reached. Limits are shares of --minutes, by what the stages took
on an H100.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
ABSENT = 127  # exit status, as a shell's, where a stage's program cannot be started
CUT = 75  # exit status of a stage that ended at its limit, with everything written
REPORTED = re.compile(
    "left out|not reached|FAILED |.* failed: "
)  # lines of a stage's log that its outcome is shown with
MARGIN = 10.0  # seconds that a stage has to end by itself
SHORTEST = 10.0  # seconds; a stage that has less left is for the next call


@dataclass(frozen=True)
class Stage:
    name: str
    share: float  # share of the minutes
    command: tuple[str, ...]
    what: str


def stages(out: Path, began: str = "") -> list[Stage]:
    """began: the benchmarks' shapes that are finished since then (UTC, YYYYMMDD-HHMMSS) are left out."""
    python, results = sys.executable, ("--out", str(out))
    limit = ("--limit", "{limit}")

    def check(name: str, share: float, what: str) -> Stage:
        return Stage(name, share, (python, str(HERE / "gpu_check.py"), *results, "--stage", name, *limit), what)

    def train(name: str, share: float, size: str, candidates: str, what: str, micro_batch: int = 16) -> Stage:
        command = (
            python,
            str(HERE / "gpu_training.py"),
            *results,
            *limit,
            "--sizes",
            size,
            "--candidates",
            candidates,
        )
        return Stage(name, share, (*command, "--set", f"training.micro_batch={micro_batch}"), what)

    def bench(op: str, share: float, what: str) -> Stage:
        command = (python, "-m", "emergence_kernels.bench", "--suite", "short", *results, "--since", began, "--op", op)
        return Stage(op, share, (*command, "--budget", "{limit}"), what)

    plain = "plain, compiled"
    sanitize = ("make", "gpu-sanitize", f"PYTHON={python}", "SANITIZERS=memcheck")
    return [
        Stage("environment", 0.02, (python, "-m", "emergence_train", "doctor"), "versions, driver, backends"),
        check("first", 0.10, "kernels most likely to hang, GPU-only tests"),
        check("rest", 0.09, "every other test of the kernels"),
        # In one process with a peer, in turns: 80 GB hold two with micro-batches of 32, or at 1.2B of 8.
        train("train-468m", 0.06, "468m", f"liger;{plain};ours", "a training step beside its peers"),
        train("train-468m-32", 0.05, "468m", "liger;ours", "with larger micro-batches", 32),
        train("train-468m-32-plain", 0.04, "468m", f"{plain};ours", "the same beside torch.compile", 32),
        train("train-1.2b", 0.05, "1.2b", "liger;ours", "a larger model", 8),
        train("train-1.2b-32", 0.04, "1.2b", "ours", "the same alone, with micro-batches that leave no room", 32),
        train("train-variants", 0.04, "468m", "ours;ours, linears=fp8;ours, logits=bfloat16", "fewer bits"),
        bench("attention", 0.09, "beside cuDNN, flash-attn, FlexAttention"),
        bench("position_loss", 0.08, "beside Liger, CCE, quack"),
        bench("rms_norm", 0.05, "beside Liger, quack"),
        bench("adamw_step", 0.02, "beside torch's fused AdamW"),
        bench("fp8_linear", 0.04, "beside cuBLAS in bf16"),
        bench("feed_forward", 0.04, "beside cuBLAS, Liger"),
        bench("linear_cross_entropy", 0.06, "beside CCE, Liger"),
        Stage("end-to-end", 0.06, (python, str(HERE / "gpu_quickstart.py")), "prepare, train, stop, resume, analyse"),
        Stage("sanitizer", 0.07, sanitize, "accesses out of bounds"),
    ]


def descendants(pid: int) -> list[int]:
    """Processes that this one started, and theirs, in whatever session."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family = [pid]
    for each in family:
        family += [child for child, parent in parents.items() if parent == each]
    return family[1:]


def run(stage: Stage, limit: float, log: Path) -> tuple[int | None, float]:
    """-> (exit status, None where it was killed at its limit or ended before it was done; seconds)."""
    command = [part.replace("{limit}", f"{max(5.0, limit - MARGIN):.0f}") for part in stage.command]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    began = time.monotonic()
    with log.open("w") as file:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # also reaches those whose parents have ended
            )
        except OSError as error:
            file.write(f"{command[0]} failed: {error.strerror}\n")
            return ABSENT, 0.0
        status: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(limit)
        finally:
            if status is None:
                others = descendants(process.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                for each in others:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(each, signal.SIGKILL)
                process.wait()
    return None if status == CUT else status, round(time.monotonic() - began, 1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="for everything")
    parser.add_argument("--stages", default="", help="only these, separated by commas")
    parser.add_argument("--again", action="store_true", help="those too that are done at this commit")
    parser.add_argument("--list", action="store_true", help="print the stages and their limits, and end")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args(argv)
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    wanted = arguments.stages.split(",") if arguments.stages else [stage.name for stage in stages(arguments.out)]
    if arguments.list:
        for stage in (each for each in stages(arguments.out) if each.name in wanted):
            print(f"{stage.name:22s} {stage.share * arguments.minutes * 60:5.0f} s  {stage.what}")
        return 0
    import torch

    if not torch.cuda.is_available():
        print("gpu-first: PyTorch sees no CUDA device here", file=sys.stderr)
        return 2
    from emergence_kernels.backends.ranking import device_name
    from emergence_kernels.bench.results import commit, versions

    folder = arguments.out / device_name(torch.device("cuda"))
    folder.mkdir(parents=True, exist_ok=True)
    path, now = folder / "gpu-first.json", commit()
    record = json.loads(path.read_text()) if path.exists() else {}
    if "stages" not in record or now is None or record["commit"] != now or arguments.again:
        record = {"commit": now, "versions": versions(), "device": torch.cuda.get_device_name(), "stages": {}}
        record["utc"] = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    end, failed = time.monotonic() + arguments.minutes * 60, []

    def before(stage: Stage) -> dict:
        return record["stages"].get(stage.name, {})

    left = [stage for stage in stages(arguments.out, record["utc"]) if stage.name in wanted]
    for stage in left:
        if before(stage).get("status") == 0:
            print(f"{stage.name:22s} done before, in {before(stage)['seconds']} s", flush=True)
    for repeated in (False, True):
        left = [stage for stage in left if before(stage).get("status") != 0 and not (repeated and stage.name in failed)]
        for stage in sorted(left, key=lambda stage: before(stage).get("cuts", 0)):
            cuts = before(stage).get("cuts", 0)
            limit = min(stage.share * arguments.minutes * 60 * 2 ** min(cuts, 2), end - time.monotonic())
            if limit < SHORTEST:
                record["stages"].setdefault(stage.name, {"status": "not reached"})
                continue
            log = folder / f"gpu-first-{stage.name}.log"
            status, seconds = run(stage, limit, log)
            reported = [line for line in log.read_text(errors="replace").splitlines() if REPORTED.match(line)]
            record["stages"][stage.name] = {
                "status": "cut off" if status is None else status,
                "seconds": seconds,
                "limit": round(limit),
                "cuts": cuts + (status != 0 and seconds >= limit - MARGIN - 1),
                "reported": reported,
                "command": " ".join(stage.command),
            }
            path.write_text(json.dumps(record, indent=1) + "\n")
            if status not in (None, 0):
                failed.append(stage.name)
            outcome = {None: "cut off at its limit", 0: "done"}.get(status, f"exit {status}, see {log}")
            print(f"{stage.name:22s} {seconds:6.1f} s  {outcome}", *reported, sep="\n    ", flush=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    names = [name for name, of in record["stages"].items() if of["status"] != 0]
    if names:
        print(f"for the next call: {', '.join(names)}")
    return 1 if set(names) & set(wanted) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # kills the stage too
    sys.exit(main())
