"""Every kind of file gives the same texts; a bad row is named by file and row, and only it is skipped."""

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emergence_train.data import readers
from emergence_train.data.readers import Bad, pieces, rows
from emergence_train.errors import InputError

TEXTS = ["one äöü 你好", 'two\nlines, "quoted"', "three\ttabs", " "]


def packed(data: bytes, suffix: str) -> bytes:
    if suffix == ".zst":
        return pa.compress(data, "zstd", asbytes=True)
    return {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix](data)


def as_csv(texts: list[str], comma: str) -> bytes:
    import csv

    out = io.StringIO()
    writer = csv.writer(out, delimiter=comma)
    writer.writerow(["id", "text"])
    writer.writerows(enumerate(texts))
    return out.getvalue().encode()


def content(kind: str) -> bytes:
    if kind in (".csv", ".tsv"):
        return as_csv(TEXTS, "," if kind == ".csv" else "\t")
    return "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".csv", ".tsv"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_rows_are_the_same_in_every_kind_of_file(tmp_path, kind, suffix, bom):
    path = tmp_path / f"a{kind}{suffix}"
    path.write_bytes(packed(bom + content(kind), suffix))
    assert list(rows(path, "text")) == TEXTS


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_columns_of_text_and_bytes(tmp_path, kind):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(TEXTS).cast(pa.string()).cast(kind)}), path)
    assert list(rows(path, "text")) == TEXTS


def test_a_dotted_field_reaches_nested_text(tmp_path):
    nested = [{"meta": {"body": {"text": text}}} for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, nested)))
    pq.write_table(pa.Table.from_pylist(nested), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(json.dumps({"meta.body.text": "by its whole name"}))
    for name in ("a.jsonl", "a.parquet"):
        assert list(rows(tmp_path / name, "meta.body.text")) == TEXTS
    assert list(rows(tmp_path / "b.jsonl", "meta.body.text")) == ["by its whole name"]


@pytest.mark.parametrize("group", [1, 3, 1000])
def test_a_nested_dictionary_is_read_over_row_groups(tmp_path, group):
    column = pa.StructArray.from_arrays([pa.array(TEXTS * 3).dictionary_encode()], ["text"])
    pq.write_table(pa.table({"meta": column}), tmp_path / "a.parquet", row_group_size=group)
    assert list(rows(tmp_path / "a.parquet", "meta.text")) == TEXTS * 3


def test_bad_json_lines_are_named_and_the_rest_kept(tmp_path):
    lines = [
        b'{"text": "good 1"}',
        b'{"text": "\\ud83d alone"}',
        b'{"text": null}',
        b'{"other": 1}',
        b'{"text": 3}',
        b'{"text": ["a"]}',
        b'{"text": "cut',
        b'"a string"',
        b'{"text": "\xff\xfe"}',
        b"",
        b'{"text": "good 2"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    read = list(rows(path, "text"))
    assert [row for row in read if isinstance(row, str)] == ["good 1", "good 2"]
    bad = [row for row in read if isinstance(row, Bad)]
    assert [row.place for row in bad] == [f"{path}: line {n}" for n in range(2, 10)]
    reasons = [
        "lone surrogate",
        "no text",
        "no text",
        "but int",
        "but list",
        "not JSON",
        "no text",
        "not UTF-8 (byte 11",
    ]
    assert all(word in row.problem for word, row in zip(reasons, bad)), bad


def test_bad_parquet_rows_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([b"good", None, b"\xff", b"also"])}), path)
    read = list(rows(path, "text"))
    assert read[0] == "good" and read[3] == "also"
    assert [row.place for row in read[1:3]] == [f"{path}: row 2", f"{path}: row 3"]


def test_bad_csv_rows_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,good\n2\n3,b\xffd\n4,"two\nlines"\n')
    read = list(rows(path, "text"))
    assert [row for row in read if isinstance(row, str)] == ["good", "two\nlines"]
    assert [row.place for row in read if isinstance(row, Bad)] == [f"{path}: line 3", f"{path}: line 4"]


@pytest.mark.parametrize("column", [pa.array([1, 2]), pa.array([["a"], ["b"]]), pa.array([{"a": 1}, {"a": 2}])])
def test_a_column_of_another_type_is_refused(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: column 'text' holds .*, not text; set text_field"):
        list(rows(tmp_path / "a.parquet", "text"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"text": "a"}]', "JSON array"),
        ("a.json", b'[\n{"text": "a"},\n{"text": "b"}]', "JSON array"),
        ("a.txt", "text".encode("utf-16"), "UTF-16"),
        ("a.txt", "text of some length".encode("utf-16-le"), "UTF-16"),
        ("a.txt.gz", gzip.compress("text of some length".encode("utf-16-be"), mtime=0), "UTF-16"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-32-le"), "UTF-32"),
        ("a.txt", "съешь же ещё этих мягких французских булок да выпей чаю\n".encode("utf-16-le"), "UTF-16"),
        ("a.csv", b"id,body\n1,x\n", "no column 'text' (it has id, body)"),
        ("a.csv", b'id,text\n1,"x', "not CSV"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 999, mtime=0)[:-9], "cannot be read"),
        ("a.jsonl.xz", lzma.compress(b'{"text": "x"}\n' * 999)[:-9], "cannot be read"),
        ("a.bin", b"", "unknown kind of file"),
    ],
)
def test_unreadable_file_is_one_error_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        list(rows(tmp_path / name, "text"))
    assert message in str(error.value) and str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("before", [0, 1, 700_000, 3_000_000])
def test_the_byte_that_is_no_utf8_is_counted_from_the_file(tmp_path, before):
    """Not from the start of the read buffer."""
    text = ("line\n" * (before // 5 + 1))[:before].encode()
    path = tmp_path / "a.txt"
    path.write_bytes(text + b"\xffrest")
    *_, last = rows(path, "text", longest=100_000)
    assert isinstance(last, Bad) and f"byte {len(text) + 1}" in last.place
    assert f"line {text.count(10) + 1}," in last.place


def test_characters_across_reads_are_whole(tmp_path):
    path, text = tmp_path / "a.txt", "aé你😀" * 400_000
    path.write_text(text)
    assert "".join(rows(path, "text", longest=50_000)) == text
    path.write_bytes(text.encode()[:-1])
    *_, last = rows(path, "text", longest=50_000)
    assert isinstance(last, Bad) and "within a character" in last.problem


@settings(deadline=None, max_examples=200)
@given(
    chunks=st.lists(st.text(alphabet="ab \n\r\t", max_size=60), max_size=8),
    longest=st.integers(1, 40),
)
def test_pieces_lose_nothing(chunks, longest):
    parts = list(pieces(iter(chunks), longest))
    assert "".join(parts) == "".join(chunks)
    assert all(0 < len(piece) <= longest for piece in parts)


def test_pieces_end_at_blank_lines_where_there_are_any():
    paragraphs = [f"paragraph {i} " + "word " * 20 + "\n\n" for i in range(50)]
    parts = list(pieces(iter(["".join(paragraphs)]), 500))
    assert all(piece.endswith("\n\n") and piece.startswith("paragraph") for piece in parts)


def test_a_huge_row_becomes_several_documents(tmp_path):
    text = "word " * 500_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "next"}))
    read = list(rows(Path(tmp_path / "a.jsonl"), "text"))
    assert "".join(read[:-1]) == text and read[-1] == "next"
    assert max(map(len, read)) <= readers.LONGEST
