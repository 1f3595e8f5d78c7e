"""A pytest plugin for machines with a GPU: outcomes are kept as they come, and a process whose GPU is lost ends.

    pytest -p gpu_isolation --outcomes FILE -n 12 tests/kernels

An illegal access makes every later call of its process fail. With pytest-xdist the process that met one ends here, at the test
that it happened in, and another takes its place; without xdist the run ends. Each outcome is one line of JSON in FILE, so a run
that is cut off keeps what it knows.
"""

import json
import os
from pathlib import Path

import pytest
import torch

LOST = 113  # exit status of a process whose GPU no longer answers


def pytest_addoption(parser) -> None:
    parser.addoption("--outcomes", type=Path, help="file that every outcome is appended to")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item) -> None:
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        with open(os.environ.get("GPU_LOST", os.devnull), "a") as file:
            file.write(f"{item.nodeid}: the GPU is lost: {str(error).splitlines()[0]}\n")
        os._exit(LOST)


class _Outcomes:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.uncollected: set[str] = set()
        path.write_text("")

    def pytest_collectreport(self, report) -> None:
        """A file that cannot be imported; with xdist the others run nevertheless, and every process reports it."""
        test = self.name_of(report)
        if report.failed and test not in self.uncollected:
            self.uncollected.add(test)
            self.write({"test": test, "outcome": "failed", "seconds": 0.0, "error": str(report.longrepr)[-1500:]})

    def pytest_runtest_logreport(self, report) -> None:
        if report.when != "call" and report.passed:
            return
        row = {"test": self.name_of(report), "outcome": report.outcome, "seconds": round(report.duration, 2)}
        if report.failed:
            row["error"] = str(report.longrepr)[-1500:]
        elif report.skipped:
            row["reason"] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)[:200]
        self.write(row)

    def name_of(self, report) -> str:
        return report.nodeid.removeprefix("tests/kernels/")

    def write(self, row: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def pytest_configure(config) -> None:
    if config.getoption("--outcomes") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Outcomes(config.getoption("--outcomes")), "outcomes")
