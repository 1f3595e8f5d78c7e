"""A process for each operation."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from ..backends import library

CUT = 75  # exit status of what ended before it was done, with everything written
PATIENCE = 60  # seconds that a process may take beyond its share of the budget: a measurement ends, or hangs


def apart(args: argparse.Namespace, ops: list[str], suite: str, dtype: str) -> int:
    """Each operation in a process of its own, as a GPU's error ends all that its process does afterwards, and a kernel that
    hangs can only be killed with it. -> main's exit status of all."""
    begin, codes = time.monotonic(), set()
    packages = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in packages if path)}
    fixed = [
        "--suite",
        suite,
        "--dtype",
        dtype,
        "--device",
        args.device,
        "--out",
        str(args.out),
        "--rounds",
        str(args.rounds),
    ]
    fixed += [
        "--only",
        args.only,
        "--where",
        args.where,
        "--since",
        args.since,
        *(["--seconds", str(args.seconds)] if args.seconds else []),
        *["--json"] * args.json,
    ]
    for index, op in enumerate(ops):
        code = None
        for without in ({}, {library.VARIABLES["cuda"]: "left out"}):
            command, limit = [sys.executable, "-m", "emergence_kernels.bench", "--op", op, *fixed], None
            if args.budget is not None:  # an equal share of the time that is left, so that a short budget starves none
                share = max(0.0, args.budget - (time.monotonic() - begin)) / (len(ops) - index)
                command, limit = [*command, "--budget", f"{share:.0f}"], share + PATIENCE
            try:
                code = subprocess.run(command, env=environment | without, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                code = 1
                print(
                    f"bench: {op} was killed {PATIENCE} seconds after its time; its rows so far are kept",
                    file=sys.stderr,
                )
            codes.add(code)
            if code in (0, CUT) or library.unsupported_reason("cuda", torch.device(args.device)) is not None:
                break
            print(
                f"bench: {op} did not go well{'' if without else '; once more without the CUDA kernels'}",
                file=sys.stderr,
            )
    return 1 if codes - {0, CUT} else max(codes, default=0)
