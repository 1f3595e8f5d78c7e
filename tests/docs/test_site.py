"""The site is built strictly, and can be read without a network."""

import os
import re
import subprocess
import sys

import pytest

from support import ROOT, locked


@pytest.fixture(scope="module")
def site(common_path):
    """The site, built once for all workers; a warning, such as a link to a missing page, fails the build."""
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    out = common_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    with locked(common_path / "site.lock"):
        if not (common_path / "site.built").is_file():
            environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            (common_path / "site.built").touch()
    return out


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img|iframe|source)[^>]+(?:src|href)=[\"']?(?:https?:)?//", text), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_menu_has_every_page():
    """The findings come into it by their topics, and notebooks by theirs."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    missing = {page for page in pages if not page.startswith(("notebook/2", "notebooks/")) and f" {page}\n" not in menu}
    assert len(pages) > 30 and not missing


def test_search_works_from_files(site):
    """A page opened from disk may read no JSON: the index is a script, and a shim replaces the worker."""
    assert "profile intervals" in (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert "iframe-worker.js" in (site / "index.html").read_text(encoding="utf-8")


def test_every_finding_is_listed_once_and_dated(site):
    listed = (site / "notebook" / "index.html").read_text(encoding="utf-8")
    for path in (ROOT / "docs" / "notebook").glob("2*.md"):
        date = path.name[:10]
        assert listed.count(f'{date}: <a href="{path.stem}.html"') == 1, path
        assert f"<em>{date} · " in (site / "notebook" / f"{path.stem}.html").read_text(encoding="utf-8"), path
