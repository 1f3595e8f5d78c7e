"""Exceptions from the formatter: tables, and few of them. `make lint` checks the rest."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 40
MARK = "# fmt: " + "skip"


def test_few_places_are_kept_from_the_formatter():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    paths = [ROOT / name for name in tracked.stdout.split()] or list(ROOT.glob("[!.]*/**/*.py"))
    kept = [path.name for path in paths if path.exists() for line in path.read_text().splitlines() if MARK in line]
    assert len(kept) <= MOST, kept


def test_no_two_test_files_share_a_name():
    """pytest imports them by their names, and would skip the second in a run of all."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
