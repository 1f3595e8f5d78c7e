"""Keeps in a JSON file how tests ended when they last ran: what is too slow for `make test` is seen to have been run."""

import json
import subprocess
import time
from pathlib import Path


class Results:
    """A plugin of pytest: {test: {"outcome", "seconds", "date", "commit"}}, added to what the file holds.

    A test that is skipped, for want of something on this machine, leaves what is known of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict] = {}
        self.skipped: set[str] = set()

    def pytest_runtest_logreport(self, report) -> None:
        if report.skipped:
            self.skipped.add(report.nodeid)
        row = self.found.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        row["seconds"] = round(row["seconds"] + report.duration, 1)
        if report.failed:
            row["outcome"] = "failed"

    def pytest_sessionfinish(self) -> None:
        head = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
        commit = subprocess.run(head, cwd=self.path.parent, capture_output=True, text=True).stdout.strip()
        stamp = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit or None}
        known = json.loads(self.path.read_text()) if self.path.is_file() else {}
        known |= {test: row | stamp for test, row in self.found.items() if test not in self.skipped}
        self.path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
