"""`emergence-train report`: runs to one self-contained HTML page. Sections come from the modules beside this one."""

import datetime
import html
from pathlib import Path

from emergence_train import files
from emergence_train.errors import InputError
from emergence_train.report import abilities, conclusions, first_look, outlook, svg
from emergence_train.report.collect import ReportData, collect

HERE = Path(__file__).parent


def report(directories: list[Path], out: Path | None = None) -> Path:
    """Write report.html for run directories and return its path (default place: report/ of the first run)."""
    names = [directory.resolve() for directory in directories]
    if len(set(names)) < len(names):
        raise InputError("the same run directory is named twice; name each run once")
    path = (out or directories[0] / "report") / "report.html"
    files.write_bytes(path, page(collect(directories)).encode())
    return path


def page(data: ReportData) -> str:
    """The document: sections of (anchor, title, body), with their figures, style and script inside."""
    runs = data.runs
    sections = [
        *conclusions.sections(data),
        *first_look.sections(runs),
        *outlook.sections(runs),
        *abilities.sections(data),
    ]
    names = ", ".join(run.name for run in runs)
    return document(names, "Loss by position and by tokens", sections)


def document(names: str, heading: str, sections: list[tuple[str, str, str]]) -> str:
    """A self-contained document of sections (anchor, title, body as HTML) about `names`."""
    links = "".join(f'<a href="#{anchor}">{html.escape(title)}</a>' for anchor, title, _ in sections)
    bodies = "".join(
        f'<section id="{anchor}"><h2>{html.escape(title)}</h2>{body}</section>' for anchor, title, body in sections
    )
    names = html.escape(names)
    today = datetime.date.today().isoformat()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>emergence-train: {names}</title><link rel="icon" href="data:,">'
        f"<style>{svg.palette_css()}{(HERE / 'page.css').read_text()}</style></head><body>"
        f'<header><h1>{html.escape(heading)}</h1><p class="soft">{names} · {today}</p>'
        f"<nav>{links}</nav></header><main>{svg.CLIP}{bodies}</main>"
        f"<script>{(HERE / 'page.js').read_text()}</script></body></html>\n"
    )
