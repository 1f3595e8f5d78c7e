"""Made-up corpora: files of every kind, well-formed, odd or damaged, with what a plain reading of them gives."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

TEXT = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        [
            "word " * 40,
            "<|endoftext|>",
            "a </s> b <s><unk>[SEP]",
            "你好，世界。" * 9,
            "=" * 300,
            "a\n\nb\r\nc\rd",
            " ",
            "e\u0301\u2028\x00\x85",
        ]
    ),
    st.builds(
        "{} {}".format, st.integers(0, 10**6), st.sampled_from(["the end", "of all " * 12, "x" * 50, "line\n\n" * 150])
    ),
)
BOM = b"\xef\xbb\xbf"
BAD_JSON = [
    b"null",
    b'{"T": null}',
    b'{"T": "\\ud800"}',
    b"not json",
    b'{"other": 1}',
    b'{"T": 5}',
    b'{"T": ["a"]}',
    b'{"T": {"T": 1}}',
]
BAD_JSON += [
    b'{"T": "\xff\xfe"}',
    b'{"T": "cut',
    b'{"T": "a"}{"T": "b"}',
    b'"text"',
    b"\xef\xbb\xbf{}",
    b'{"T": true}',
    b"[" * 5000,
    b"\x00",
]
NAMES = [
    "a",
    "b c",
    "%s%d",
    "line\nbreak",
    "[1]",
    "*",
    "ünï",
    "\udcff",
    "-x",
    "'\"",
    "a.b",
    "deep/er/file",
    "deep/f",
    "\u2028",
    "z" * 100,
]
COMPRESSIONS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
DAMAGES = ["truncated", "empty", "utf-16", "array", "column", "suffix", "garbage", "numbers", "dangling", "pipe"]
FILE = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "txt", "md"]),
        "compression": st.sampled_from(["", *COMPRESSIONS]),
        "name": st.sampled_from(NAMES),
        "texts": st.one_of(st.lists(TEXT, min_size=4, max_size=25), st.lists(TEXT, max_size=2)),
        "bad": st.one_of(
            st.just([]), st.lists(st.tuples(st.integers(0, 25), st.sampled_from(range(len(BAD_JSON)))), max_size=3)
        ),
        "style": st.integers(0, 2**16),  # seeds the choices that should make no difference
        "damage": st.integers(0, 400).map(lambda number: dict(enumerate(DAMAGES, 200)).get(number)),  # few
    }
)
SOURCE = st.fixed_dictionaries(
    {
        "files": st.lists(FILE, min_size=1, max_size=4),
        "field": st.sampled_from(["text", "meta.body.text"]),
        "weight": st.sampled_from([1, 1, 2, 3, 0]),
        "patterns": st.sampled_from(["all", "all", "overlap", "literal"]),
        "links": st.lists(st.sampled_from(["symbolic", "hard"]), max_size=2),
        "limit": st.sampled_from([None] * 5 + [3, 30]),
    }
)


@dataclass
class Written:
    """A file, and what a plain reading of it gives: texts in order, None for a row that is bad."""

    path: Path
    rows: list
    damage: str | None  # as a whole it cannot be read


def insert(rows: list, bad: list) -> list:
    rows = list(rows)
    for place, row in bad:
        rows.insert(min(place, len(rows)), row)
    return rows


def nested(name: str, value) -> dict:
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def json_rows(file: dict, name: str, choose: random.Random) -> tuple[bytes, list]:
    flat = choose.random() < 0.3
    escape = choose.random() < 0.5
    rows = insert([({name: text} if flat else nested(name, text)) for text in file["texts"]], file["bad"])
    key = "T" if "." in name else name  # a bad row of a nested field has no such field at all
    lines = [
        BAD_JSON[row].replace(b"T", key.encode())
        if isinstance(row, int)
        else json.dumps(row, ensure_ascii=escape).encode()
        for row in rows
    ]
    if lines and lines[0].lstrip().startswith(b"["):  # would be taken for an array of JSON: another damage
        lines[0] = b"5"
    expected = [None if isinstance(row, int) else text_in(row, name) for row in rows]
    for place in sorted(choose.sample(range(len(lines) + 1), min(2, len(lines))), reverse=True):
        lines.insert(place, choose.choice([b"", b"  ", b"\t"]))
    end = choose.choice([b"\n", b"\r\n"])
    return end.join(lines) + choose.choice([b"", end]), expected


def text_in(row: dict, name: str) -> str:
    if name in row:
        return row[name]
    for key in name.split("."):
        row = row[key]
    return row


def csv_rows(file: dict, name: str, choose: random.Random, comma: str) -> tuple[bytes, list]:
    out = io.StringIO(newline="")
    plain = not any("\r" in text for text in file["texts"])  # which the writer does not quote by itself
    quoting = csv.QUOTE_MINIMAL if plain and choose.random() < 0.5 else csv.QUOTE_ALL
    writer = csv.writer(out, delimiter=comma, quoting=quoting, lineterminator=choose.choice(["\n", "\r\n"]))
    rows = insert(file["texts"], file["bad"])
    writer.writerow(["id", name, "more"])
    for number, row in enumerate(rows):
        if isinstance(row, str):
            writer.writerow([number, row, "y"])
        elif row % 2:
            writer.writerow([number])
        else:
            writer.writerow([number, "\udcff", ""])
    return out.getvalue().encode("utf-8", "surrogateescape"), [row if isinstance(row, str) else None for row in rows]


def parquet_rows(file: dict, name: str, choose: random.Random) -> tuple[bytes, list]:
    rows = insert(file["texts"], file["bad"])
    raw = choose.random() < 0.5
    values = [row.encode() if isinstance(row, str) else b"a\xff" if raw and row % 2 else None for row in rows]
    kinds = (
        [pa.binary(), pa.large_binary()]
        if raw
        else [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    )
    names = [name] if choose.random() < 0.4 else name.split(".")
    # pyarrow cannot write views within structs
    kind = choose.choice([kind for kind in kinds if len(names) == 1 or kind != pa.string_view()])
    if not raw:
        values = [value and value.decode() for value in values]
        values = ["" if row == "" else value for row, value in zip(rows, values)]
    column = pa.array(values, pa.string() if pa.types.is_dictionary(kind) else kind)
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column
    for key in reversed(names[1:]):
        column = pa.StructArray.from_arrays([column], [key])
    out = io.BytesIO()
    table = pa.table({"id": pa.array(range(len(rows))), names[0]: column})
    pq.write_table(
        table, out, row_group_size=choose.choice([1, 7, 1000]), compression=choose.choice(["snappy", "zstd", "none"])
    )
    return out.getvalue(), [row if isinstance(row, str) else None for row in rows]


def text_rows(file: dict, choose: random.Random) -> tuple[bytes, list]:
    data = "\n\n".join(file["texts"]).encode()
    if file["bad"]:
        return data + choose.choice([b"\xff", b"\xe4\xbd", b"\xc0\x80 more"]), [None]
    text = data.removeprefix(BOM).decode().replace("\r\n", "\n").replace("\r", "\n")
    return data, [text] if text else []


def write(folder: Path, number: int, file: dict, name: str) -> Written:
    """The file of a FILE, whose text is under `name`."""
    choose, kind = random.Random(file["style"]), file["kind"]
    if kind in ("csv", "tsv"):
        data, rows = csv_rows(file, name, choose, "," if kind == "csv" else "\t")
    elif kind == "parquet":
        data, rows = parquet_rows(file, name, choose)
    elif kind in ("txt", "md"):
        data, rows = text_rows(file, choose)
    else:
        data, rows = json_rows(file, name, choose)
    if kind != "parquet" and choose.random() < 0.3 and not data.startswith(BOM):
        data = BOM + data
    compression = "" if kind == "parquet" else file["compression"]
    written = Written(folder / f"{file['name']}{number}.{kind}{compression}", rows, file["damage"])
    written.path.parent.mkdir(parents=True, exist_ok=True)
    data = damage(written, COMPRESSIONS[compression](data), compression)
    if not os.path.lexists(written.path):
        written.path.write_bytes(data)
    return written


def damage(written: Written, data: bytes, compression: str) -> bytes:
    """The content of the damaged file, or of one that this damage does not apply to; links and pipes are made here."""
    path, kind = written.path, written.path.name.removesuffix(compression).rpartition(".")[2]
    pack = COMPRESSIONS[compression]
    out = io.BytesIO()
    if written.damage == "truncated" and (compression or kind == "parquet"):
        return data[: len(data) // 2]
    if written.damage == "empty" and compression:
        return b""
    if written.damage == "garbage" and (compression or kind == "parquet"):
        return random.Random(1).randbytes(200)
    if written.damage == "utf-16" and kind != "parquet":
        return pack("some text".encode("utf-16"))
    if written.damage == "array" and kind in ("json", "jsonl", "ndjson"):
        return pack(b"\n" + json.dumps([{"text": "a"}, {"text": "b"}], indent=len(data) % 2 or None).encode())
    if written.damage == "column" and kind in ("csv", "tsv"):
        return pack(b"id,other\n1,a\n")
    if written.damage in ("column", "numbers") and kind == "parquet":
        columns = {"other": ["a"]} if written.damage == "column" else {"text": [1, 2], "meta": [[1], [2]]}
        pq.write_table(pa.table(columns), out)
        return out.getvalue()
    if written.damage == "suffix":
        written.path = path.with_name(path.name + ".pdf")
    elif written.damage == "dangling":
        os.symlink(path.with_name("gone"), path)
    elif written.damage == "pipe":
        os.mkfifo(path)
    else:
        written.damage = None
    return data
