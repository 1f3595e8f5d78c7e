"""The benchmark's command line: runs cases until the budget is spent, and writes each row as soon as it is known."""

import argparse
import os
import platform
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch._dynamo

from ..backends import library
from ..backends.dispatch import HAS_TRITON, IMPLEMENTED, interpreting
from ..backends.ranking import device_name
from . import attention, feed_forwards, linears, losses, norms, step, updates
from .candidate import Candidate, Case
from .processes import CUT, apart
from .results import Results, commit, finished, spelled, timestamp, versions
from .timing import Stopwatch, Timing, ceilings, clocks, difference, measure, peak_extra_bytes, summary

# Of each operation (suite, device, dtype, backends) -> its cases.
CASES: dict[str, Callable[[str, torch.device, torch.dtype, list[str]], Iterable[Case]]] = {
    "position_loss": partial(losses.cases, "position_loss"),
    "linear_cross_entropy": partial(losses.cases, "linear_cross_entropy"),
    "rms_norm": norms.norm_cases,
    "attention": attention.cases,
    "rotary": norms.rotary_cases,
    "swiglu": norms.swiglu_cases,
    "feed_forward": feed_forwards.cases,
    "fp8_linear": linears.cases,
    "adamw_step": lambda suite, device, dtype, backends: updates.cases(suite, device, backends),
}
OPS = (*CASES, "step")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        prog="emergence-kernels-bench", description="Measure the kernels beside their peers, in one run on one machine."
    )
    parse.add_argument("--op", action="append", choices=OPS, help="may be repeated; default: all")
    suites = ("full", "short", "laptop", "tiny")
    parse.add_argument(
        "--suite", choices=suites, default=None, help="which shapes; default: full on a GPU, laptop on a CPU"
    )
    parse.add_argument("--budget", type=float, default=None, metavar="SECONDS", help="start no measurement after this")
    parse.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="results go to OUT/<device>/")
    parse.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parse.add_argument("--dtype", choices=DTYPES, default=None, help="default: bfloat16 on a GPU, float32 on a CPU")
    parse.add_argument("--rounds", type=int, default=3, help="turns that every candidate of a shape gets")
    parse.add_argument("--seconds", type=float, default=None, help="of each mode of a candidate; default: 0.3 on a GPU")
    parse.add_argument("--only", default="", metavar="REGEX", help="candidates to measure, by name; default: all")
    parse.add_argument(
        "--where", default="", metavar="REGEX", help="shapes to measure, as in kind=documents; default: all"
    )
    parse.add_argument(
        "--since",
        default="",
        metavar="YYYYMMDD-HHMMSS",
        help="leave out shapes that runs in OUT have finished since then (UTC)",
    )
    parse.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    return parse


def _architecture(device: torch.device) -> str | None:
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device)) if device.type == "cuda" else None


def _backends(op: str, device: torch.device) -> list[str]:
    """Of ours, those to measure."""
    names = ["torch"]
    if HAS_TRITON and (device.type == "cuda" or interpreting()):
        names.insert(0, "triton")
    if (
        device.type == "cuda"
        and "cuda" in IMPLEMENTED.get(op, ())
        and library.unsupported_reason("cuda", device) is None
    ):
        names.insert(0, "cuda")
    if device.type == "cpu" and "cpu" in IMPLEMENTED.get(op, ()) and library.unsupported_reason("cpu", device) is None:
        names.insert(0, "cpu")
    return names


def _rates(case: Case, mode: str, timing: Timing, limits: dict[str, float]) -> dict[str, float]:
    rates = {}
    if mode in case.flops:
        rates["tflops"] = case.flops[mode] / timing.median_ms / 1e9
        rates["percent_of_matmul"] = 100 * rates["tflops"] / limits["matmul_tflops"]
    if mode in case.bytes:
        rates["gbps"] = case.bytes[mode] / timing.median_ms / 1e6
        rates["percent_of_copy"] = 100 * rates["gbps"] / limits["copy_gbps"]
    return rates


def _modes(case: Case, candidate: Candidate, upstream: torch.Tensor | None) -> dict[str, Callable[[], object]]:
    """Evaluation (no gradients), forward as in training, both ways."""

    def evaluate() -> object:
        with torch.no_grad():
            return candidate.forward()

    if not candidate.leaves:  # an update in place has no other
        return {"both": evaluate}
    return {"eval": evaluate, "forward": candidate.forward, "both": lambda: candidate.both(upstream)}


def measure_case(
    case: Case, device: torch.device, limits: dict[str, float], results: Results, args: argparse.Namespace
) -> Iterator[dict]:
    """A row of every candidate that runs. They take turns, in another order each round, so that a clock that drifts is as unkind
    to one as to the other; the first of a round is none's privilege. The results get the times so far, after each candidate is
    made (one sample, alone: it does not count later) and after each round."""
    watch, upstream = Stopwatch(device), case.upstream()
    rounds = args.rounds
    seconds = (args.seconds or (0.3 if device.type == "cuda" else 0.05)) / rounds
    ready: dict[str, tuple[Candidate, dict, dict, dict]] = {}
    alone: dict[str, dict] = {}
    for make in case.candidates:
        candidate = make()
        if not re.search(args.only, candidate.name):
            continue
        try:
            modes = _modes(case, candidate, upstream)
            repeats = {mode: watch.warm(run, seconds, -(-5 // rounds)) for mode, run in modes.items()}
            alone[candidate.name] = {mode: watch.sample(run, 1) for mode, run in modes.items()}
        except Exception as error:  # noqa: BLE001
            results.failed(case.op, case.shape, candidate.name, error)
        else:
            ready[candidate.name] = candidate, modes, repeats, {mode: [] for mode in modes}
            results.unfinished(case, 0, alone)
    order = list(ready)
    for number in range(rounds):
        random.shuffle(order)
        for name in list(order):
            _, modes, repeats, times = ready[name]
            try:
                for mode, run in modes.items():
                    times[mode] += watch.sample(run, repeats[mode])
            except Exception as error:  # noqa: BLE001
                results.failed(case.op, case.shape, name, error)
                order.remove(name)
                del ready[name]
        results.unfinished(case, number + 1, {name: times for name, (*_, times) in ready.items()})
    for candidate, modes, _, times in ready.values():
        try:
            yield _row(case, candidate, modes, times, watch, limits, upstream)
        except Exception as error:  # noqa: BLE001
            results.failed(case.op, case.shape, candidate.name, error)


def _row(case, candidate, modes, times, watch: Stopwatch, limits: dict[str, float], upstream) -> dict:
    """backward is both minus forward, where that is positive."""
    timings = {mode: summary(samples) for mode, samples in times.items()}
    if "forward" in times:
        backward = difference(times["both"], times["forward"])
        if backward.median_ms > 0:  # else the machine was too unsteady to say
            timings["backward"] = backward
    row: dict = {"op": case.op, "shape": case.shape, "candidate": candidate.name, "formula": case.formula}
    row["modes"] = {mode: asdict(timing) | _rates(case, mode, timing, limits) for mode, timing in timings.items()}
    row["host_ms"] = watch.host_ms(modes["both"])
    row["python_in_window"] = watch.python_in_window(modes["both"], row["host_ms"])
    row["peak_extra_bytes"] = peak_extra_bytes(modes["both"], watch.device)
    if case.errors is not None:
        row["errors"] = case.errors(candidate.both(upstream))
    return row


def all_cases(op: str, suite: str, device: torch.device, dtype: torch.dtype) -> Iterable[Case]:
    return CASES[op](suite, device, dtype, _backends(op, device))


def step_rows(suite: str, device: torch.device, dtype: torch.dtype, limits: dict[str, float]):
    names = ["plain", "torch", "auto"]
    if HAS_TRITON and (device.type == "cuda" or interpreting()):
        names.insert(2, "triton")
    if device.type == "cuda":
        names += ["plain + compile", "auto + compile"]
    for each in step.steps(suite, device, dtype, names):
        timing = measure(each["run"], device, 2.0 if device.type == "cuda" else 0.05)
        tflops = each["flops"] / timing.median_ms / 1e9
        yield {
            "op": "step",
            "shape": each["shape"],
            "candidate": each["name"],
            "note": "plain: PyTorch's own operations, no kernels of this package; otherwise the backend's name",
            "formula": "6N + 6 L d T per token (causal half, head included), of this run's matmul rate",
            "modes": {
                "both": asdict(timing)
                | {
                    "tokens_per_second": each["tokens"] / timing.median_ms * 1e3,
                    "tflops": tflops,
                    "percent_of_matmul": 100 * tflops / limits["matmul_tflops"],
                }
            },
            "peak_extra_bytes": peak_extra_bytes(each["run"], device),
        }


def _shapes(
    op: str, device: torch.device, limits: dict[str, float], results: Results, args: argparse.Namespace
) -> Iterator[tuple[dict, Iterable[dict]]]:
    """(shape, its rows, which are measured together as they are asked for) of one operation."""
    dtype = DTYPES[args.dtype]
    if op == "step":
        yield {}, step_rows(args.suite, device, dtype, limits)
        return
    for case in all_cases(op, args.suite, device, dtype):
        if re.search(args.where, spelled(case.shape)):
            yield case.shape, measure_case(case, device, limits, results, args)


def _open(
    args: argparse.Namespace, device: torch.device, limits: dict[str, float], argv: list[str]
) -> tuple[Results, list]:
    """The file of this run, and (operation, shape) that earlier ones of the same candidates have finished (--since)."""
    what = f"{args.op[0]}-{args.suite}" if len(args.op) == 1 else args.suite
    folder = args.out / device_name(device)
    candidates = {"dtype": args.dtype, "suite": args.suite, "only": args.only}
    candidates |= {"versions": versions(), "compiled": {name: library.describe(name) for name in library.VARIABLES}}
    measured = finished(folder, args.since, candidates) if args.since else []
    while (path := folder / f"{(stamp := timestamp())}-{what}-{args.dtype}.json").exists():
        time.sleep(0.1)  # another run began in this second
    header = {"device": device_name(device), **candidates, "utc": stamp}
    header |= {"commit": commit(), "command": " ".join(["bench", *argv])}
    header |= {"architecture": _architecture(device), "python": platform.python_version()}
    header |= {"threads": torch.get_num_threads(), "load_average": os.getloadavg()[0], "rounds": args.rounds}
    if device.type == "cuda":
        header["clocks_before"] = clocks()
    if interpreting():
        header["warning"] = "Triton ran in its interpreter: its times say nothing"
    return Results(path, header | {"ceilings": limits}), measured


def _measure_all(
    args: argparse.Namespace,
    device: torch.device,
    limits: dict[str, float],
    results: Results,
    measured: list,
    stop: float | None,
) -> list[dict]:
    """Write the rows of all shapes but those `measured`, until `stop` (time.monotonic) -> those that were not reached."""
    not_reached = []
    for index, op in enumerate(args.op):
        # Each operation gets an equal share of the time that is left, so that a short budget starves none.
        now, begun = time.monotonic(), False
        deadline = float("inf") if stop is None else now + (stop - now) / (len(args.op) - index)
        try:
            for shape, rows in _shapes(op, device, limits, results, args):
                if (op, shape) in measured:
                    continue
                if begun and time.monotonic() > deadline:  # a first shape is measured whatever the budget
                    not_reached.append({"op": op, "shape": shape})
                    continue
                begun, before = True, results.ours_failed
                for row in rows:
                    results.report(row, args.json)
                if results.ours_failed == before:
                    results.add({"op": op, "shape": shape}, "finished")
        except Exception as error:  # noqa: BLE001
            results.failed(op, {}, "emergence", error)
    return not_reached


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if a measurement of this package's own kernels failed; 75 if the budget left shapes out."""
    args = parser().parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench: --device cuda, but PyTorch sees no CUDA device here", file=sys.stderr)
        return 2
    args.dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    args.suite = args.suite or ("full" if device.type == "cuda" else "laptop")
    args.op = args.op or list(OPS)
    if device.type == "cuda" and len(args.op) > 1:
        return apart(args, args.op, args.suite, args.dtype)
    # A compiled candidate that is compiled anew for many shapes would fall back to eager, silently.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    begin = time.monotonic()
    limits = ceilings(device, DTYPES[args.dtype])
    results, measured = _open(args, device, limits, sys.argv[1:] if argv is None else argv)
    print(
        f"bench: {', '.join(args.op)} with {args.suite} shapes on {device_name(device)}, {args.dtype}",
        file=sys.stderr,
        flush=True,
    )
    stop = begin + args.budget if args.budget is not None else None
    not_reached = _measure_all(args, device, limits, results, measured, stop)
    cut = list(dict.fromkeys(each["op"] for each in not_reached))
    results.data |= {"cut_short": cut, "not_reached": not_reached}
    if device.type == "cuda":
        results.data["clocks_after"] = clocks()
    results.data["complete"] = not cut
    results.data["seconds"] = round(time.monotonic() - begin, 1)
    results.write()
    note = "".join(f"not reached: {each['op']} {spelled(each['shape'])}\n" for each in not_reached)
    print(f"{note}{len(results.data['rows'])} rows in {results.path}", file=sys.stderr)
    return 1 if results.ours_failed else CUT if cut else 0
