"""How the runs came about: when, on what, with which code, and their configurations."""

import html
from collections.abc import Sequence

from emergence_train.input_files import read_text
from emergence_train.recorder.sessions import read_sessions
from emergence_train.report.collect import Run
from emergence_train.report.parts import table
from emergence_train.run_differences import MISSING, begun_from

MOST_CONFIGURATIONS = 8  # shown in full: with more runs, what differs between them is in the table at the top


def sections(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """(anchor, title, body); nothing where no run's directory says anything of it."""
    parents = begun_from([run.directory for run in runs])
    rows = [row for run, parent in zip(runs, parents) if (row := _row(run, parent))]
    shown = "".join(map(_configuration, runs)) if len(runs) <= MOST_CONFIGURATIONS else ""
    if not rows and not shown:
        return []
    head = ["run", "started", "device", "processes", "starts", "commit", "emergence-train", "torch", "from"]
    listed = table(head, rows, "How the runs came about") if rows else ""
    paper = '<p class="paper">The configurations are in each run\'s config.yaml.</p>' if shown else ""
    return [("origin", "How the runs came about", listed + paper + shown)]


def _row(run: Run, parent: str) -> list[str]:
    """Of the newest start; of the first one the date."""
    sessions = read_sessions(run.directory)
    if not sessions:
        return []
    newest, versions = sessions[-1], sessions[-1].get("versions") or {}
    cells = [str(sessions[0].get("started", "–"))[:10], newest.get("device"), newest.get("processes"), len(sessions)]
    cells += [newest.get("commit"), versions.get("emergence-train"), versions.get("torch")]
    cells += [None if parent == MISSING else parent]
    return [html.escape(run.name), *(html.escape(str("–" if cell is None else cell)) for cell in cells)]


def _configuration(run: Run) -> str:
    try:
        text = read_text(run.directory / "config.yaml")
    except (OSError, ValueError):
        return ""
    name = html.escape(run.name)
    return (
        f'<details class="long"><summary>Configuration of {name}</summary><pre tabindex="0" role="region" '
        f'aria-label="Configuration of {name}">{html.escape(text)}</pre></details>'
    )
