"""The command of a study that is a table of simulated cells: how many simulations each has, and the file that they make."""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from commands import write_result


def run(about: str, simulations: int, result: Path, cells: Callable[[int], Iterable[dict]]) -> None:
    """Print the cells as they come, and write them with how they were made.

    Args:
        about: the study's docstring, for --help.
        simulations: the default of --simulations.
        result: the file, named after the study.
        cells: of the number of simulations a cell.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=simulations)
    count = parser.parse_args().simulations
    begin, rows = time.process_time(), []
    for row in cells(count):
        rows.append(row)
        print(*row.values(), sep="  ", flush=True)
    written = {"cells": rows, "cpu_seconds": round(time.process_time() - begin, 1)}
    write_result(result, f"python benchmarks/studies/{result.stem}.py --simulations {count}", written)
