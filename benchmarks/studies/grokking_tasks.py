"""Does `grok` find late generalisation and a critical share beyond addition, in a group of permutations and in sparse parity?

    python benchmarks/studies/grokking_tasks.py [--jobs 1]

Trains configs/grok/permutations.yaml and parity.yaml. Known: composition of permutations generalises late with weight
decay (arXiv 2201.02177, of five elements); sparse parity is learnt late from few examples (arXiv 2303.11873). Writes
benchmarks/results/grokking_tasks.json; the curves stay under runs/.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from commands import write_result  # noqa: E402
from grokking_runs import sweep  # noqa: E402

from emergence_train.grokking.runner import settle_in  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "grokking_tasks.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    jobs = parser.parse_args().jobs
    settle_in()
    result = {name: sweep(name, jobs) for name in ("permutations", "parity")}
    write_result(RESULT, f"python benchmarks/studies/grokking_tasks.py --jobs {jobs}", result)


if __name__ == "__main__":
    main()
