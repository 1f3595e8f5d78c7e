"""CPU seconds from `emergence-train train` to the end of the first step, and of commands that print help.

    python benchmarks/speed/start.py [--beside OTHER_CHECKOUT] [--times 7] [--out FILE]

The smallest preset in configs/tiny.yaml, one process on a CPU, without W&B. Seconds are user and system time of the process, all
its threads and its children; start by start the two checkouts take turns. The least is the one to compare on a machine that is
shared: others' work makes the same instructions take up to twice as long.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

TRAIN = """
import os, resource, sys
from emergence_train import cli
def measured():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print("MEASURED", sum(u.ru_utime + u.ru_stime for u in used), len(sys.modules), flush=True)
    os._exit(0)
# The engine of the first step calls this when its optimizer has stepped: nothing is imported here that a start would not.
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "emergence_train.training.step":
            sys.meta_path.remove(self)
            import importlib.util
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module
            def execute(module):
                run(module)
                step = module.Stepper.__call__
                module.Stepper.__call__ = lambda *arguments: (step(*arguments), measured())
            spec.loader.exec_module = execute
            return spec
sys.meta_path.insert(0, Finder())
sys.exit(cli.main(["train", sys.argv[1], "logging.wandb=disabled"]))
"""
HELP = """
import resource, sys
from emergence_train import cli
try:
    cli.main(sys.argv[1:] + ["--help"])
except SystemExit:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
print("MEASURED", used.ru_utime + used.ru_stime, len(sys.modules))
"""
COMMANDS = {"--help": [], "report --help": ["report"], "analyze temporal --help": ["analyze", "temporal"]}


def python(checkout: Path, *arguments: str) -> tuple[float, int]:
    """CPU seconds and modules of a script that prints them."""
    environment = os.environ | {"PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'kernels'}"}
    done = subprocess.run([sys.executable, "-P", *arguments], env=environment, capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("MEASURED ")), None)
    if line is None:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    return float(line.split()[1]), int(line.split()[2])


def config_in(folder: Path) -> Path:
    """configs/tiny.yaml with its data and runs in `folder`, data prepared."""
    tree = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    tree["data"]["path"], tree["out"] = str(folder / "data"), str(folder / "runs")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    subprocess.run([sys.executable, "-m", "emergence_train", "prepare", str(path)], cwd=ROOT, check=True)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turns")
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu" / "start.json")
    arguments = parser.parse_args()
    checkouts = {"this": ROOT} | ({"beside": arguments.beside} if arguments.beside else {})
    rows: dict[tuple[str, str], list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        config = config_in(Path(scratch))
        for number in range(arguments.times + 1):  # the first start writes the bytecode
            for name, checkout in checkouts.items():
                subprocess.run(["rm", "-rf", str(Path(scratch) / "runs")], check=True)
                starts = {"train": python(checkout, "-c", TRAIN, str(config))}
                starts |= {text: python(checkout, "-c", HELP, *words) for text, words in COMMANDS.items()}
                for what, measured in starts.items() if number else ():
                    rows.setdefault((name, what), []).append(measured)
    record = describe(checkouts, rows)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["rows"], indent=1))
    return 0


def describe(checkouts: dict[str, Path], rows: dict[tuple[str, str], list[tuple[float, int]]]) -> dict:
    """What was measured, with what, on what."""
    import torch

    from emergence_train.recorder.environment import environment

    def commit(checkout: Path) -> str:
        command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    return {
        "utc": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"),
        "environment": environment(torch.device("cpu")),
        "load_average": round(os.getloadavg()[0], 1),
        "code": {name: commit(checkout) for name, checkout in checkouts.items()},
        "rows": [
            {
                "code": name,
                "what": what,
                "cpu_seconds_least": round(min(seconds for seconds, _ in values), 2),
                "cpu_seconds_median": round(median(seconds for seconds, _ in values), 2),
                "modules": values[0][1],
                "starts": len(values),
            }
            for (name, what), values in rows.items()
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
