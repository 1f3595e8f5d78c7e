"""Record the last outcome of tests in a JSON file, for those that are too slow for `make test`."""

import json
import subprocess
import time
from pathlib import Path


class Results:
    """A plugin of pytest: {test: {"outcome", "seconds", "date", "commit"}}, added to the file.

    A test that is skipped on this machine keeps its earlier entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, dict] = {}
        self.skipped: set[str] = set()

    def pytest_runtest_logreport(self, report) -> None:
        if report.skipped:
            self.skipped.add(report.nodeid)
        row = self.outcomes.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        row["seconds"] = round(row["seconds"] + report.duration, 1)
        if report.failed:
            row["outcome"] = "failed"

    def pytest_sessionfinish(self) -> None:
        head = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
        commit = subprocess.run(head, cwd=self.path.parent, capture_output=True, text=True).stdout.strip()
        stamp = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit or None}
        known = json.loads(self.path.read_text()) if self.path.is_file() else {}
        known |= {test: row | stamp for test, row in self.outcomes.items() if test not in self.skipped}
        self.path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
