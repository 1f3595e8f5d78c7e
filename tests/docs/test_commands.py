"""Every command that the documentation shows is one that the command line takes."""

import re
import shlex

import pytest

from docs.site_pages import reference
from emergence_kernels.bench.run import parser as bench_parser
from support import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
START = re.compile(r"(?:^|\s)(?:emergence-train|(?:-m|--module) emergence_train) (?=[a-z])")


def commands(text: str) -> list[str]:
    """What follows the program's name in the lines of code blocks, without comments and optional parts."""
    commands = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            start = START.search(line)
            if start and language in ("", "bash", "sh"):
                line = re.sub(r"\s#.*| {3,}.*", "", line[start.end() :].strip())
                commands.append(re.sub(r"\[[^\]]*\]", "", line).replace("...", ""))
    return commands


ALL = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page.read_text())})


def test_the_pages_show_commands():
    assert len(ALL) > 25
    assert {line.split()[0] for _, line in ALL} >= {
        "prepare",
        "train",
        "evaluate",
        "analyze",
        "report",
        "export",
        "sync",
    }


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/tours/train.md", "docs/tours/analyze.md"])
def test_first_pages_say_where_the_command_is(page):
    """make installs it into .venv, which is not on the path."""
    assert ". .venv/bin/activate" in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "line"), ALL)
def test_shown_command_parses(page, line):
    words = shlex.split(line)
    if words[0] == "bench":
        bench_parser().parse_args(words[1:])
    else:
        reference.parser().parse_args(words)


def test_optional_parts_and_comments_are_left_out():
    text = "```\ntorchrun --nproc-per-node 8 -m emergence_train train a.yaml [a.b=value ...]   # more\n```\n"
    assert commands(text) == ["train a.yaml "]
    assert commands(
        "```text\nemergence-train: no such file\n```\n```\nemergence-train doctor    what is there\n```\n"
    ) == ["doctor"]
