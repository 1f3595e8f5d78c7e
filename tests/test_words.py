"""Words that the source has given up, so that they do not return: names of variables and functions, and phrases.

The field's term is in the second column. Prose is searched for whole phrases that no ordinary sentence of these pages needs.
"""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = {  # as a variable, an argument, a function or a class of Python
    "one": "the noun: series, task, run",
    "found": "the noun: files, reasons, rows",
    "made": "the noun: items, tokenizer",
    "told": "output, reported, stop_requested",
    "said": "message, lines, output",
    "of_run": "run",
    "told_by_first_rank": "already_reported",
    "meeting": "rendezvous",
    "sum_over_ranks": "all_reduce_sum",
    "from_first_rank": "broadcast_from_rank0",
    "from_every_rank": "all_gather_objects",
    "Judge": "AnomalyDetector",
    "Skips": "SkippedBatches",
    "drifted": "diverged_replicas",
    "take_back_to": "truncate_to",
    "put_away": "archive",
    "lacking": "missing",
    "hurdle": "limit",
    "mend": "fix",
    "why_not": "unsupported_reason",
    "what_takes": "dtype_limits",
    "referee": "race_detector",
    "Contender": "Candidate",
    "contender": "candidate",
    "contenders": "candidates",
    "contestant": "candidate",
    "contestants": "candidates",
    "_apart": "_forward_blocks",
    "_third": "_zero3_parts",
}
PHRASES = {  # in comments, docstrings, messages and pages
    r"mend(s|ed|ing)?": "fix",
    r"hurdles?": "limit",
    r"sign of life": "heartbeat",
    r"told to stop": "stop requested",
    r"goes on with|goes on from|went on after": "resumes, continues",
    r"stands twice": "is listed twice",
    r"two processor cores|a processor": "CPU",
    r"what breaks in": "the error's name",
    r"vouches": "is written last",
    r"what .{1,40} leaves behind": "the output of",
}
KINDS = ("*.py", "*.cu", "*.cuh", "*.cpp", "*.h", "*.md", "*.yaml", "*.sbatch", "Makefile")
DATED = "docs/notebook/"  # entries keep the words of their day
LONGEST = 60


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split() or [str(p.relative_to(ROOT)) for k in patterns for p in ROOT.glob(f"[!.]*/**/{k}")]
    own = Path(__file__).relative_to(ROOT).as_posix()
    return [ROOT / name for name in names if name != own and not name.startswith(DATED) and (ROOT / name).is_file()]


def bound_names(tree: ast.AST) -> dict[str, int]:
    """Names that the source gives to something, each with a line."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] = node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names[node.attr] = node.lineno
        elif isinstance(node, ast.arg):
            names[node.arg] = node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names[node.name] = node.lineno
    return names


@pytest.fixture(scope="module")
def names() -> dict[Path, dict[str, int]]:
    return {path: bound_names(ast.parse(path.read_text(encoding="utf-8"))) for path in tracked("*.py")}


def test_names_are_the_fields_terms(names):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name} (write: {NAMES[name]})"
        for path, bound in names.items()
        for name, line in bound.items()
        if name in NAMES
    ]
    assert wrong == []


def test_phrases_are_plain():
    pattern = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in PHRASES), re.IGNORECASE)
    wrong = []
    for path in tracked(*KINDS):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := pattern.search(line):
                term = next(term for phrase, term in PHRASES.items() if re.fullmatch(phrase, match[0], re.IGNORECASE))
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {match[0]} (write: {term})")
    assert wrong == []


def test_names_of_tests_are_short(names):
    tests = {name for path, bound in names.items() if path.name.startswith("test_") for name in bound}
    assert sorted(name for name in tests if name.startswith("test_") and len(name) > LONGEST) == []


def test_the_search_sees_every_kind_of_name():
    source = "def told(found): one = 1\nclass Judge: pass\nfor made in x: self.said = 2\nprint(meeting)\n"
    assert bound_names(ast.parse(source)).keys() & NAMES.keys() == {"told", "found", "one", "Judge", "made", "said"}


@pytest.mark.parametrize(
    "text",
    [
        "mend it",
        "a hurdle",
        "no sign of life",
        "told to stop",
        "goes on with",
        "stands twice",
        "a processor",
        "vouches",
    ],
)
def test_the_search_sees_every_phrase(text):
    assert any(re.search(rf"\b(?:{phrase})\b", f"This, {text}.") for phrase in PHRASES)
