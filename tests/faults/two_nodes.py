"""Two nodes that are network namespaces, torchrun with two processes on each: losses of one process, and a link that is cut.

python tests/faults/two_nodes.py --out benchmarks/results/cpu/two_nodes.json     needs root, takes some ten minutes on two cores

Of ZeRO 1 and 3, each against the run of one process, step by step; and a run whose link was cut and came back against the one
that was left alone, row by row.
"""

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parents[1]),
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[2] / "kernels"),
]

import yaml

from emergence_train.recorder import tables
from faults.comparing import Wrong, compare
from faults.network import ADDRESSES, TwoNodes
from support import ROOT, command, small_config

STEPS = 120
EARLY = 20  # steps in which rounding has not grown yet
CUT_SECONDS = 12.0  # three times what silence may last
PORT = 29_400
PATIENCE = 900.0  # seconds for a run


def configure(data: Path, place: Path) -> Path:
    tree = small_config(data, place / "runs")
    tree["training"] |= {"tokens": STEPS * 8 * 32}
    tree["checkpoints"] = {"every_tokens": 20 * 8 * 32}
    tree["faults"] = {"silent_seconds": 4.0}
    (place / "config.yaml").write_text(yaml.safe_dump(tree))
    return place / "config.yaml"


def alone(config: Path, name: str, stage: int) -> Path:
    done = command("train", str(config), f"name={name}", f"training.zero_stage={stage}", timeout=PATIENCE)
    if done.returncode:
        raise Wrong(done.stderr)
    return config.parent / "runs" / name


def on_two_nodes(config: Path, name: str, stage: int, cut: bool) -> tuple[Path, str]:
    """-> the run, and what was printed."""
    run, log = config.parent / "runs" / name, config.parent / f"{name}.log"
    with TwoNodes(4) as nodes, open(log, "w") as output:
        launchers = [_launcher(nodes, node, config, name, stage, output) for node in (0, 1)]
        try:
            if cut:
                _until(lambda: step_of(run) >= STEPS // 3, launchers, log)
                nodes.cut(CUT_SECONDS)
            _until(lambda: all(launcher.poll() is not None for launcher in launchers), [], log)
        finally:
            for launcher in launchers:
                launcher.terminate()  # its workers with it
            for launcher in launchers:
                _reap(launcher)
    if codes := [launcher.returncode for launcher in launchers if launcher.returncode]:
        raise Wrong(f"the launchers ended with {codes}: {log.read_text(errors='replace')[-3000:]}")
    return run, log.read_text(errors="replace")


def _reap(launcher: subprocess.Popen) -> None:
    try:
        launcher.wait(30)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()


def _launcher(nodes: TwoNodes, node: int, config: Path, name: str, stage: int, output) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(variable, None)
    environment |= {"GLOO_SOCKET_IFNAME": nodes.links[node], "WANDB_MODE": "disabled"}
    # The namespaces share a host name, by which torchrun would take both for the store's.
    place = ["--nnodes", "2", "--nproc-per-node", "2", "--max-restarts", "3", "--local-addr", ADDRESSES[node]]
    place += ["--rdzv-backend", "c10d", "--rdzv-id", name, "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}"]
    place += ["--rdzv-conf", f"is_host={1 - node}"]
    train = ["-m", "emergence_train", "train", str(config), f"name={name}", f"training.zero_stage={stage}"]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *place, *train],
        stdout=output,
        stderr=output,
        env=environment,
        preexec_fn=functools.partial(nodes.join, node),
    )


def step_of(run: Path) -> int:
    try:
        return max((row.get("step", 0) for row in tables.read_metrics(run)), default=0)
    except Exception:
        return 0


def _until(condition, launchers: list[subprocess.Popen], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        ended = any(launcher.poll() is not None for launcher in launchers)
        if ended or time.monotonic() > end:
            raise Wrong(f"{'ended early' if ended else 'too slow'}: {log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)


def difference(whole: Path, run: Path) -> dict[str, float]:
    """The greatest relative difference of a step's loss, in the first steps and in all."""
    losses = [[row["loss"] for row in tables.read_metrics(r) if row["kind"] == "train"] for r in (whole, run)]
    if [len(series) for series in losses] != [STEPS, STEPS]:
        raise Wrong(f"{[len(series) for series in losses]} steps, not {STEPS}")
    off = [abs(b / a - 1) for a, b in zip(*losses)]
    return {"early": max(off[:EARLY]), "all": max(off)}


def trial(config: Path, stage: int) -> dict:
    """One process, two nodes, and two nodes whose link is cut for a while."""
    began, seen = time.monotonic(), {}
    whole = alone(config, f"alone-{stage}", stage)
    run, _ = on_two_nodes(config, f"nodes-{stage}", stage, cut=False)
    again, printed = on_two_nodes(config, f"cut-{stage}", stage, cut=True)
    compare(run, again)
    seen["resumed"] = printed.count("resuming from step")
    seen["lost"] = sorted({line.split(";")[0] for line in printed.splitlines() if "has sent no heartbeat" in line})
    return {
        "stage": stage,
        "steps": STEPS,
        "difference_from_one_process": difference(whole, run),
        "cut_seconds": CUT_SECONDS,
        "equal_after_the_cut": True,  # compare() raises otherwise
        **seen,
        "nodes_checked": (run / "nodes.json").is_file(),
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    import torch

    from emergence_train import files
    from emergence_train.recorder.environment import environment
    from emergence_train.recorder.sessions import now

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        config = configure(Path(place) / "data", Path(place))
        done = command("prepare", str(config), timeout=PATIENCE)
        if done.returncode:
            raise Wrong(done.stderr)
        rows = [trial(config, stage) for stage in (1, 3)]
    content = {"utc": now(), "command": sys.argv, "environment": environment(torch.device("cpu")), "rows": rows}
    files.write_json(arguments.out, content)


if __name__ == "__main__":
    main()
