"""From sources to shards: shards hold the text, held-out documents are excluded, restarts resume."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emergence_train.config import load
from emergence_train.data import parts, recipe, sources, tokenizer
from emergence_train.data import prepare as module
from emergence_train.data.dataset import Dataset
from emergence_train.data.prepare import document_hash, prepare
from emergence_train.data.shards import TokenStream, token_dtype
from emergence_train.data_config import Source
from emergence_train.errors import InputError, RunError
from support import ROOT, data_of, tree


def test_shards_hold_the_training_documents_in_order(data_path):
    data = data_of(data_path)
    encoder = tokenizer.load_file(data_path / "tokenizer.json")
    end = tokenizer.end_of_text(encoder)
    dataset = Dataset(data, seed=0)
    for source, stream in zip(data.sources, dataset.streams):
        kept = [t for t in sources.documents(source) if document_hash(t) >= 0.2 * 2**64]
        ids = [i for text in kept for i in [*encoder.encode(text).ids, end]]
        assert stream.read(0, len(stream)).tolist() == ids
        numbers = stream.document_ids(0, len(stream))
        assert numbers[-1] + 1 == len(kept) and np.array_equal(np.diff(numbers) == 1, np.array(ids[:-1]) == end)


def test_validation_windows_come_from_held_out_documents_only(data_path):
    data = data_of(data_path)
    encoder = tokenizer.load_file(data_path / "tokenizer.json")
    dataset = Dataset(data, seed=0)
    for source in [*data.sources, *data.ood]:
        held = [t for t in sources.documents(source) if source in data.ood or document_hash(t) < 0.2 * 2**64]
        streams = [" ".join(map(str, encoder.encode(text).ids)) for text in held]
        windows = dataset.windows[source.domain]
        assert windows.shape[1] == data.sequence + 1
        for window in windows:
            assert any(" ".join(map(str, window)) in stream for stream in streams)
        assert len(np.unique(np.asarray(windows), axis=0)) == len(windows)
    index = dataset.index["validation"]["splits"]
    assert {k: v["sequences"] for k, v in index.items()} == {"iid": 12, "manuals": 4, "speeches": 4, "ood": 5}
    counted = {split: 0 for split in index}
    for segment in dataset.segments():
        for split in segment.splits:
            counted[split] += segment.end - segment.begin
    assert counted == {k: v["sequences"] for k, v in index.items()}


def test_workers_and_restarts_give_the_same_bytes(data_path, tmp_path, monkeypatch):
    small = {"shard_tokens": 20_000, "tokenizer": {"file": str(data_path / "tokenizer.json")}}
    reference = tmp_path / "one"
    prepare(data_of(reference, **small), lambda line: None)
    many = tmp_path / "many"
    prepare(data_of(many, **small, workers=2), lambda line: None)
    assert tree(reference) == tree(many)
    assert len(json.loads((reference / "dataset.json").read_text())["domains"]["manuals"]["shards"]) > 1

    broken = tmp_path / "broken"
    finish, calls = parts.Part.finish, []

    def fail(self, last):
        calls.append(1)
        if len(calls) == 3:
            raise RunError("killed here")
        return finish(self, last)

    monkeypatch.setattr(parts.Part, "finish", fail)
    with pytest.raises(RunError):
        prepare(data_of(broken, **small), lambda line: None)
    monkeypatch.undo()
    assert not (broken / "dataset.json").exists()
    with pytest.raises(InputError, match="not a prepared data set"):
        Dataset(data_of(broken, **small), seed=0)
    lines = []
    prepare(data_of(broken, **small), lines.append)
    assert any("resuming after" in line for line in lines)
    assert tree(broken) == tree(reference)


def test_all_kinds_of_files_give_their_documents(tmp_path):
    texts = ["one äöü", "two\nlines", "three"]
    (tmp_path / "a.txt").write_text(texts[0])
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"body": t}) for t in texts) + "\n\n")
    pq.write_table(pa.table({"body": texts, "other": [1, 2, 3]}), tmp_path / "c.parquet")

    def read(pattern: str, **more) -> list[str]:
        return list(sources.documents(Source(domain="d", files=[str(tmp_path / pattern)], text_field="body"), **more))

    assert read("*.txt") == texts[:1] and read("b.jsonl") == texts and read("c.parquet") == texts
    assert read("*", skip=2) == [texts[1], texts[2], *texts]
    assert len(sources.sample_domains()) == 7


def test_a_hub_data_set_is_streamed_and_skipped_into(tmp_path, monkeypatch):
    """A directory in the hub's layout replaces the hub, which tests cannot reach."""
    datasets = pytest.importorskip("datasets")
    for where in (datasets.config, sys.modules["huggingface_hub.constants"]):  # both read it when imported
        monkeypatch.setattr(where, "HF_HUB_OFFLINE", True)
    rows = "\n".join(json.dumps({"content": f"document {i}"}) for i in range(5))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(rows)
    source = Source(domain="d", hub=str(tmp_path / "set"), text_field="content", limit_documents=4)
    assert list(sources.documents(source)) == [f"document {i}" for i in range(4)]
    assert list(sources.documents(source, skip=3)) == ["document 3"]
    with pytest.raises(InputError, match="no text under 'text'"):
        sources.check(source.model_copy(update={"text_field": "text"}))
    (tmp_path / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8 .*; convert it to UTF-8 first"):
        sources.check(Source(domain="d", files=[str(tmp_path / "latin.txt")]))
    with pytest.raises(InputError, match="cannot be opened"):
        next(sources.documents(Source(domain="d", hub="nobody/nothing-of-this-name")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}', "line 2 has no text"),
        ("a.jsonl", b'{"text": "x"\n', "line 1 is not JSON"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.pdf", b"%PDF", "unknown kind of file"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl", b"", "is empty"),
        ("b.txt", b"x", "no file matches"),
    ],
)
def test_a_bad_source_is_named_and_nothing_is_written(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    pattern = str(tmp_path / ("a.*" if name != "b.txt" else "missing.txt"))
    data = data_of(tmp_path / "out", sources=[{"domain": "d", "files": [pattern]}])
    with pytest.raises(InputError) as error:
        prepare(data, lambda line: None)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a few words only")
    data = data_of(tmp_path / "out", sources=[{"domain": "d", "files": [str(tmp_path / "a.txt")]}])
    with pytest.raises(InputError, match="fewer than one sequence|validation sequences"):
        prepare(data, lambda line: None)


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(RunError, match=r"0\.0 MB free, about [\d.]+ MB needed"):
        prepare(data_of(tmp_path / "out"), lambda line: None)
    assert not (tmp_path / "out").exists()


def test_another_recipe_is_refused_and_the_same_does_nothing(data_path):
    before = tree(data_path)
    with pytest.raises(InputError, match="prepared with another data.sequence"):
        prepare(data_of(data_path, sequence=16), lambda line: None)
    lines = []
    prepare(data_of(data_path, workers=2), lines.append)
    assert "already prepared" in lines[0] and tree(data_path) == before


@pytest.fixture
def copy(data_path, tmp_path) -> Path:
    return Path(shutil.copytree(data_path, tmp_path / "copy"))


@pytest.mark.parametrize("file", ["train/manuals/00000.bin", "train/speeches/00000.docs.npy", "validation/books.bin"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_shard_is_named(copy, file, damage):
    path = copy / file
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        content = content[:-2] if damage == "truncate" else content
        content[len(content) // 2] ^= damage == "flip"
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        Dataset(data_of(copy), seed=0)
    assert file in str(error.value)


def test_a_tokenizer_of_other_shards_is_refused(copy):
    other = tokenizer.train(iter(["entirely different text"] * 9), 270)
    other.save(str(copy / "tokenizer.json"))
    with pytest.raises(InputError, match="does not match the shards"):
        Dataset(data_of(copy), seed=0)


def test_other_sequence_lengths_and_domains_are_refused(data_path):
    with pytest.raises(InputError, match="prepared for sequences of 32"):
        Dataset(data_of(data_path, sequence=16), seed=0)
    with pytest.raises(InputError, match="has no domain 'news'"):
        Dataset(data_of(data_path, sources=[{"domain": "news", "sample": "code"}]), seed=0)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "t.json"))
    with pytest.raises(InputError, match="no end-of-text token"):
        prepare(data_of(tmp_path / "out", tokenizer={"file": str(tmp_path / "t.json")}), lambda line: None)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer.json"):
        prepare(data_of(tmp_path / "out2", tokenizer={"file": str(tmp_path / "t.json")}), lambda line: None)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4),
    start=st.floats(0, 1),
    length=st.floats(0, 1),
)
def test_a_stream_reads_across_shards_as_if_they_were_one(tmp_path_factory, lengths, start, length):
    """`lengths`: for each shard the lengths of its documents."""
    root = tmp_path_factory.mktemp("shards")
    entries, tokens, numbers = [], [], []
    for number, documents in enumerate(lengths):
        part = np.arange(len(tokens), len(tokens) + sum(documents), dtype=token_dtype(99))
        part.tofile(root / f"{number}.bin")
        np.save(root / f"{number}.npy", np.cumsum(documents))
        entries.append({"tokens": {"file": f"{number}.bin"}, "documents": {"file": f"{number}.npy"}})
        for document in documents:
            numbers += [numbers[-1] + 1 if numbers else 0] * document
        tokens += part.tolist()
    stream = TokenStream(root, entries, token_dtype(99))
    assert len(stream) == len(tokens)
    begin = int(start * (len(tokens) - 1))
    many = 1 + int(length * (len(tokens) - begin - 1))
    assert stream.read(begin, many).tolist() == tokens[begin : begin + many]
    wanted = np.array(numbers[begin : begin + many])
    assert np.array_equal(stream.document_ids(begin, many), wanted - wanted[0])


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"tokenizer": {"vocab_size": 600}}, ", not 600"),
        ({"validation": {"fraction": 0.3}}, "data.validation"),
        ({"shard_tokens": 2000}, "data.shard_tokens"),
        ({"text_field": "body"}, "another data.sources of manuals"),
        ({"ood": [{"domain": "books", "sample": "manuals"}]}, "another data.ood of books"),
        ({"ood": [{"domain": "mails", "sample": "manuals"}]}, "another data.ood of mails"),
    ],
)
def test_another_section_than_was_prepared_is_refused(data_path, changed, message):
    """Other text was never prepared, though domains and length agree: a run would record settings that nothing has."""
    data = data_of(data_path)
    recipe.check(data)
    sources = [source.model_copy(update={"text_field": changed.get("text_field", "text")}) for source in data.sources]
    other = data_of(data_path, **{key: value for key, value in changed.items() if key != "text_field"})
    with pytest.raises(InputError, match=re.escape(message)):
        recipe.check(other.model_copy(update={"sources": sources}))


@pytest.mark.parametrize("content", ["{", "3", "[1]", '{"sources": "x"}', '{"tokenizer": "x"}', '{"ood": [{}]}'])
def test_an_unreadable_recipe_is_passed_over(copy, content):
    """Cut, or JSON of another form: index and checksums say what the data are; `prepare` says that it cannot be read."""
    (copy / recipe.FILE).write_text(content)
    recipe.check(data_of(copy))
    with pytest.raises(InputError, match="recipe.json: cannot be read"):
        prepare(data_of(copy), lambda line: None)


def test_weights_and_sources_left_out_are_the_runs_own(data_path):
    """A validation set that is left out is measured nevertheless, as that of a source is."""
    data = data_of(data_path, workers=2, bad_rows=0.5)
    weighted = [source.model_copy(update={"weight": 7.0, "in_iid": False}) for source in data.sources]
    recipe.check(data.model_copy(update={"sources": weighted[:1], "ood": []}))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_are_readable_as_the_umask_has_it(tmp_path, umask):
    before = os.umask(umask)
    try:
        prepare(data_of(tmp_path / "out"), lambda line: None)
    finally:
        os.umask(before)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 5 and {path.stat().st_mode & 0o777 for path in written} == {0o666 & ~umask}


def test_shipped_configurations_share_no_data_unless_alike():
    """What one of them prepared the other would refuse."""
    sections = {path.name: load(path).data for path in (ROOT / "configs").glob("*.yaml")}
    prepared: dict[str, dict] = {}
    for name, data in sections.items():
        section = recipe.of_texts(data)
        assert prepared.setdefault(data.path, section) == section, name
