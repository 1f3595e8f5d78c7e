"""What the formatter is told to leave alone: tables, and few of them. `make lint` holds the rest."""

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
    """pytest imports them by their names alone, and would leave the second out of a run of all."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
