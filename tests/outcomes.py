"""Record outcomes of tests in a JSON file as they come, and leave out those that it has, for suites that take hours.

The file has the command, device and versions, and of each test {"outcome", "seconds", "date", "commit"}: "passed", "failed",
"skipped" or "not run". It is rewritten, whole, after each test, so that a run that is killed loses only the test that was
running; the next run resumes with what has not passed.
"""

import functools
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from emergence_train import files
from emergence_train.recorder.environment import environment

ROOT = Path(__file__).parents[1]
CODE = ("--", ".", ":(exclude)benchmarks/results")  # results do not change what is tested
PASSED = "results_passed"  # the key by which xdist's workers learn what to leave out


def commit() -> str | None:
    """The last commit of anything but results, with a + where files differ from it; None outside a checkout."""
    name = _git("log", "-1", "--format=%h", "--abbrev=12", *CODE)
    return name and name + ("+" if _git("status", "--porcelain", *CODE) else "")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return None if done.returncode else done.stdout.strip()


@functools.cache
def _contains(name: str | None, since: str) -> bool:
    """Whether a recorded commit is `since` or a later one, and was not changed."""
    clean = name is not None and not name.endswith("+")
    return clean and (name == since or _git("merge-base", "--is-ancestor", since, name) is not None)


class LeaveOut:
    """A plugin of pytest, in the process that collects: these tests are not run."""

    def __init__(self, passed: Iterable[str]) -> None:
        self.passed = set(passed)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items) -> None:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self.passed])
        items[:] = [item for item in items if item.nodeid not in self.passed]


class Results(LeaveOut):
    """A plugin of pytest, in the process that has the reports of all workers.

    Args:
        path: the file. What it has of other devices or versions is dropped.
        since: tests that passed at this commit or a later one are not run again; by default the commit of the code.
    """

    def __init__(self, path: Path, since: str | None = None) -> None:
        self.path, self.commit = path, commit()
        where = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self.where = {key: where[key] for key in ("device", "versions")}
        old = json.loads(path.read_text()) if path.is_file() else {}
        same = all(old.get(key) == self.where[key] for key in self.where)
        self.tests: dict[str, dict] = old["tests"] if same else {}
        self.running: dict[str, dict] = {}
        since = since or self.commit
        super().__init__(
            test
            for test, row in self.tests.items()
            if row["outcome"] == "passed" and since and _contains(row["commit"], since)
        )

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node) -> None:
        node.workerinput[PASSED] = sorted(self.passed)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids) -> None:
        self.expect(ids)

    def pytest_collection_finish(self, session) -> None:
        self.expect([item.nodeid for item in session.items])

    def expect(self, tests: list[str]) -> None:
        """List what is to run, before it does."""
        for test in tests:
            self.tests.setdefault(test, {"outcome": "not run", "seconds": None, "date": None, "commit": None})
        self.write()

    def pytest_runtest_logreport(self, report) -> None:
        """A test ends with the report of its teardown, or of the worker that it took down."""
        row = self.running.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        row["seconds"] = round(row["seconds"] + report.duration, 1)
        if report.failed:
            row["outcome"] = "failed"
        elif report.skipped:
            row["outcome"] = "skipped"
        if report.when not in ("setup", "call"):
            stamp = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": self.commit}
            self.tests[report.nodeid] = self.running.pop(report.nodeid) | stamp
            self.write()

    def write(self) -> None:
        record = {"command": shlex.join(["python", *sys.orig_argv[1:]]), **self.where}
        files.write_json(self.path, record | {"tests": dict(sorted(self.tests.items()))})
