"""Hooks of mkdocs (mkdocs.yml, `hooks`): generated pages, notebooks, menu of the findings, links to the repository's files."""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
SOURCES = [str(ROOT), str(ROOT / "kernels")]
sys.path[:0] = SOURCES  # for the import below; mkdocs removes it again

from docs.site_pages import api, claims, measurements, notebook, notebooks, reference, typology  # noqa: E402

PAGES = {
    "tours/kernels.md": lambda: (
        (ROOT / "kernels" / "README.md").read_text(encoding="utf-8").replace("](../docs/", "](../")
    ),
    "claims.md": claims.page,
    "typology.md": typology.page,
    "reference/configuration.md": reference.configuration,
    "reference/command-line.md": reference.command_line,
    "reference/tables.md": reference.tables,
    "reference/results.md": reference.results,
    "reference/python.md": api.framework,
    "reference/kernels.md": api.kernels,
    "reference/measurements.md": measurements.page,
}
# Hand-written pages with generated parts at the comment <!-- generated: NAME -->
PARTS = {
    "notebook": notebook.contents,
    "exit-codes": reference.exit_codes,
    "cost-of-checkpoints": measurements.checkpoints,
    "public-forecasts": measurements.public_forecasts,
    "outside-forms": measurements.outside_forms,
}


def on_config(config):
    """Put the notebook's pages into the menu, by topic; read this checkout's packages, not installed ones."""
    sys.path[:0] = SOURCES
    for entry in config.nav:
        if "Notebook" in entry:
            entry["Notebook"] = ["notebook/index.md", *notebook.menu()]
    return config


def on_files(files, config):
    """Add the generated pages."""
    for uri, make in PAGES.items():
        files.append(File.generated(config, uri, content=make()))
    for path in notebooks.paths():
        text, pictures = notebooks.page(path)
        for name, content in {f"{path.stem}.md": text, **pictures}.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fill in the generated parts, and the page that shows the kernels' own; add the date of a finding below its title."""
    tour = posixpath.relpath("tours/kernels.md", posixpath.dirname(page.file.src_uri))
    markdown = re.sub(r"\]\((\.\./)+kernels/README\.md", f"]({tour}", markdown)
    markdown = re.sub(r"<!-- generated: ([a-z-]+) -->", lambda match: PARTS[match[1]](), markdown)
    if "topic" in page.meta:
        line = f"*{page.meta['date']} · {page.meta['topic']}*"
        markdown = re.sub(r"^(# .*\n)", lambda title: f"{title[1]}\n{line}\n", markdown, count=1)
    return markdown
