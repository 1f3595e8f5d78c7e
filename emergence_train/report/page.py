"""`emergence-train report`: runs to one self-contained HTML page. Sections come from the modules beside this one."""

import datetime
import html
from collections.abc import Callable
from pathlib import Path

from emergence_train import files
from emergence_train.analysis.figures import PALETTE, ramp_colours
from emergence_train.errors import InputError
from emergence_train.recorder.naming import is_run
from emergence_train.report import (
    abilities,
    conclusions,
    explanation_table,
    first_look,
    origin,
    outlook,
    seeds,
    svg,
    what_differs,
)
from emergence_train.report.chart import as_script
from emergence_train.report.collect import ReportData, Run, collect
from emergence_train.report.reading import AS_THEY_ARE, Reading

HERE = Path(__file__).parent
SCRIPTS = ("axes.js", "chart.js", "cursor.js", "numbers.js", "page.js")
MOST_NAMES = 8  # in the heading
ORDER = (  # what most readers come for first
    *("conclusions", "summary", "tokens", "seeds", "outlook", "emergence", "explanations", "position", "sizes", "law"),
    *("laws", "residuals", "speed", "origin"),
)
SHADES = 24  # of the ramp that page.js colours with


def report(paths: list[Path], out: Path | None = None, reading: Reading = AS_THEY_ARE) -> Path:
    """Write report.html for run directories, tables and logs, and return its path. The default place is report/ of the first
    run directory, or the working directory for a table. `reading` says what files leave out."""
    place = out or (paths[0] / "report" if is_run(paths[0]) else Path())
    files.check_writable(place, "--out")
    data = collected(paths, reading)
    files.write_bytes(place / "report.html", page(data).encode())
    return place / "report.html"


def collected(
    paths: list[Path], reading: Reading = AS_THEY_ARE, load: Callable[[Path, str], Run] | None = None
) -> ReportData:
    """What `paths` hold, read by collect; InputError where one is named twice or cannot be read."""
    names = [path.resolve() for path in paths]
    if len(set(names)) < len(names):
        raise InputError("the same run is named twice; name each run once")
    return collect(paths, reading, load)


def page(data: ReportData, version: str = "") -> str:
    """The document: sections of (anchor, title, body), with their figures, style and script inside."""
    runs = data.runs
    sections = [
        *conclusions.sections(data),
        *first_look.sections(runs),
        *seeds.sections(data),
        *outlook.sections(runs),
        *abilities.sections(data),
        *explanation_table.sections(data),
        *origin.sections(runs),
    ]
    sections.sort(key=lambda section: ORDER.index(section[0]))
    names = ", ".join(data.names)
    if len(data.names) > MOST_NAMES:
        names = f"{len(data.names)} runs, {data.names[0]} to {data.names[-1]}"
    settings = what_differs.settings(runs)
    return document(names, "Loss by position and by tokens", sections, settings=settings, version=version)


def document(
    names: str,
    heading: str,
    sections: list[tuple[str, str, str]],
    *,
    settings: dict[str, dict[str, str]] | None = None,
    version: str = "",
) -> str:
    """A self-contained document of sections (anchor, title, body as HTML) about `names`.

    settings: of each run the values of what differs between them, by which its lines can be coloured.
    version: of a served page; it then asks its server for a newer one. "": a page that is a file.
    """
    links = "".join(f'<a href="#{anchor}">{html.escape(title)}</a>' for anchor, title, _ in sections)
    bodies = "".join(
        f'<section id="{anchor}"><h2>{html.escape(title)}</h2>{body}</section>' for anchor, title, body in sections
    )
    names = html.escape(names)
    today = datetime.date.today().isoformat()
    served = f' data-version="{html.escape(version)}"' if version else ""
    live = '<p class="soft live" role="status" id="state"></p>' if version else ""
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    ramp = as_script([ramp_colours(k / (SHADES - 1)) for k in range(SHADES)], "ramp")
    return (
        f'<!doctype html><html lang="en"{served}>'
        '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>emergence-train: {names}</title><link rel="icon" href="data:,">'
        f"<style>{svg.palette_css()}{(HERE / 'page.css').read_text(encoding='utf-8')}</style></head><body>"
        '<a class="skip" href="#main">Skip to the text</a>'
        f'<header><h1>{html.escape(heading)}</h1><p class="soft">{names} · {today}</p>{live}'
        f'<nav aria-label="Sections">{links}</nav>{_controls(settings or {})}</header>'
        f'<main id="main" tabindex="-1">{svg.CLIP}{bodies}</main>{ramp}<script>{script}</script></body></html>\n'
    )


def _controls(settings: dict[str, dict[str, str]]) -> str:
    """How to use the charts, and what their lines are coloured by; shown by the script, without which there is neither."""
    keys = list(next(iter(settings.values()), {}))
    hint = (
        '<p class="soft" data-live hidden>Drag over a chart to zoom, double-click to show everything; click a name in a '
        "legend to hide it, with Shift to keep it alone. Charts of one axis share the cursor.</p>"
    )
    if not keys:
        return hint
    first = colouring(settings)
    options = "".join(
        f'<option value="{html.escape(key)}"{" selected" if key == first else ""}>{html.escape(key)}</option>'
        for key in keys
    )
    return (
        f'{hint}<p data-live hidden><label for="colour">Colour the runs by</label> <select id="colour">'
        f'<option value="">run</option>{options}</select></p>{as_script({"keys": keys, "runs": settings}, "runs")}'
    )


def colouring(settings: dict[str, dict[str, str]]) -> str:
    """The setting that more runs than there are colours are coloured by at first: of those with no more values than colours the
    one with the most, seeds apart; "" for fewer runs, which have a colour each."""
    if len(settings) <= len(PALETTE):
        return ""
    values = {key: len({each[key] for each in settings.values()}) for key in next(iter(settings.values()), {})}
    fit = [key for key, many in values.items() if many <= len(PALETTE) and key.rpartition(".")[2] != "seed"]
    return max(fit, key=lambda key: (values[key], key == "width"), default="")
