"""The notebook's list and menu, from the lines that each page begins with."""

from dataclasses import dataclass
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[1] / "notebook"


@dataclass(frozen=True)
class Finding:
    file: str
    title: str
    date: str
    topic: str


def findings() -> list[Finding]:
    """All pages, the oldest first."""
    pages = []
    for path in sorted(FOLDER.glob("*.md")):
        if path.name != "index.md":
            head = yaml.safe_load(path.read_text(encoding="utf-8").split("---")[1])
            pages.append(Finding(path.name, head["title"], str(head["date"]), head["topic"]))
    return pages


def by_topic() -> dict[str, list[Finding]]:
    """Topics in the order of their first page, each with its pages."""
    topics: dict[str, list[Finding]] = {}
    for finding in findings():
        topics.setdefault(finding.topic, []).append(finding)
    return topics


def menu() -> list[dict]:
    """A part of mkdocs' `nav`."""
    return [{topic: [f"notebook/{page.file}" for page in pages]} for topic, pages in by_topic().items()]


def contents() -> str:
    """A list of all findings as Markdown."""
    lines = []
    for topic, pages in by_topic().items():
        lines += [f"## {topic}", "", *(f"- {page.date}: [{page.title}]({page.file})" for page in pages), ""]
    return "\n".join(lines)
