"""Inputs of prepare: bad rows, few documents, one large file, files that change, interruptions. Each ends in a correct data set
or in one line that names the place and a remedy that works.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from emergence_train import files
from emergence_train.data import parts, readers
from emergence_train.data.dataset import Dataset
from emergence_train.data.prepare import prepare
from emergence_train.data.tokenizer import load_file
from emergence_train.data.tokenizing import document_hash
from emergence_train.errors import InputError, RunError
from support import data_of, tree

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def documents(count: int, words: int = 120, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{i} " + " ".join(rng.choice(WORDS, words)) for i in range(count)]


def jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def small(out: Path, *files, **changes):
    """A configuration over these files: sequences of 32, 8 in validation."""
    source = {"domain": "d", "files": [str(file) for file in files]} | changes.pop("source", {})
    validation = {"sequences": 8, "domain_sequences": 4, "ood_sequences": 0, "fraction": 0.1}
    return data_of(
        out, **({"sources": [source], "ood": [], "tokenizer": {"vocab_size": 300}, "validation": validation} | changes)
    )


def prepared(data) -> tuple[Dataset, list[str]]:
    lines = []
    prepare(data, lines.append)
    return Dataset(data, seed=0), lines


def text_of(dataset: Dataset) -> list[str]:
    """The training documents, decoded."""
    encoder, end = load_file(dataset.root / "tokenizer.json"), dataset.index["tokenizer"]["end_of_text"]
    documents, document = [], []
    for token in dataset.streams[0].read(0, len(dataset.streams[0])).tolist():
        if token == end:
            documents.append(encoder.decode(document))
            document = []
        else:
            document.append(token)
    assert not document
    return documents


def kept(texts: list[str], fraction: float = 0.1) -> list[str]:
    return [text for text in texts if document_hash(text) >= fraction * 2**64]


def test_bad_rows_are_left_out_and_counted(tmp_path):
    texts = documents(200)
    rows: list = [{"text": text} for text in texts]
    rows[20:20] = ['{"text": "\\ud83d"}', {"text": None}, '{"text": "cut']
    dataset, lines = prepared(small(tmp_path / "out", jsonl(tmp_path / "a.jsonl", rows)))
    assert text_of(dataset) == kept(texts)
    assert any("3 of 203 rows skipped, the first:" in line and "a.jsonl: line 21 " in line for line in lines), lines
    assert dataset.index["domains"]["d"]["rows_left_out"] == 3


def test_too_many_bad_rows_are_refused_and_the_remedy_works(tmp_path):
    texts = documents(200)
    rows = [{"text": text} for text in texts] + [{"text": None}] * 30
    path = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        InputError, match=r"a\.jsonl: line 201 has no text under 'text'; 30 of 230 .*data\.bad_rows \(0\.01\)"
    ):
        prepare(small(tmp_path / "out", path), lambda line: None)
    dataset, _ = prepared(small(tmp_path / "out", path, bad_rows=0.2))
    assert text_of(dataset) == kept(texts)
    single = jsonl(tmp_path / "b.jsonl", [{"text": text} for text in texts] + [{"text": None}])
    with pytest.raises(InputError, match="1 of 201 rows"):
        prepare(small(tmp_path / "none", single, bad_rows=0), lambda line: None)


def test_files_named_by_two_patterns_are_read_once(tmp_path):
    texts = documents(200)
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    os.symlink(path, tmp_path / "b.jsonl")
    dataset, _ = prepared(small(tmp_path / "out", tmp_path / "*.jsonl", path))
    assert text_of(dataset) == kept(texts)


def test_a_file_in_two_domains_is_refused(tmp_path):
    path = str(jsonl(tmp_path / "a.jsonl", [{"text": text} for text in documents(9)]))
    data = small(tmp_path / "out", path, ood=[{"domain": "o", "files": [path]}])
    with pytest.raises(InputError, match="is in the domains 'd' and 'o'"):
        prepare(data, lambda line: None)


def _cut_off(monkeypatch, data, after: int) -> None:
    finish, calls = parts.Part.finish, []

    def fail(self, last):
        calls.append(1)
        if len(calls) > after:
            raise RunError("killed here")
        return finish(self, last)

    with monkeypatch.context() as patch:
        patch.setattr(parts.Part, "finish", fail)
        with pytest.raises(RunError):
            prepare(data, lambda line: None)


@pytest.mark.parametrize("change", ["more rows", "another file", "one file less", "nothing"])
def test_an_interrupted_prepare_resumes_over_the_same_files_only(tmp_path, monkeypatch, change):
    texts = documents(300)
    for i in range(3):
        jsonl(tmp_path / f"{i}.jsonl", [{"text": text} for text in texts[100 * i : 100 * (i + 1)]])
    data = small(tmp_path / "out", tmp_path / "*.jsonl", shard_tokens=4000)
    _cut_off(monkeypatch, data, 2)
    if change == "more rows":
        texts[:0] = documents(50, seed=1)
        jsonl(tmp_path / "0.jsonl", [{"text": text} for text in texts[:150]])
    elif change == "another file":
        texts += documents(50, seed=1)
        jsonl(tmp_path / "9.jsonl", [{"text": text} for text in texts[300:]])
    elif change == "one file less":
        (tmp_path / "0.jsonl").unlink()
        texts = texts[100:]
    dataset, lines = prepared(data)
    assert text_of(dataset) == kept(texts)
    assert any("resuming" in line for line in lines) == (change == "nothing")
    fresh = small(tmp_path / "fresh", tmp_path / "*.jsonl", shard_tokens=4000)
    prepared(fresh)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_what_never_finished_is_replaced_without_a_word(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in documents(300)])
    _cut_off(monkeypatch, small(tmp_path / "out", path, shard_tokens=4000), 1)
    dataset, _ = prepared(small(tmp_path / "out", path, shard_tokens=4000, sequence=16))
    assert dataset.sequence == 16


def test_a_finished_data_set_knows_its_files(tmp_path):
    texts = documents(200)
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    data = small(tmp_path / "out", tmp_path / "*.jsonl")
    prepare(data, lambda line: None)
    before, lines = tree(tmp_path / "out"), []
    prepare(data, lines.append)
    assert lines == [f"{tmp_path / 'out'}: already prepared from this configuration"]
    os.utime(path)
    prepare(data, lines.append)
    assert "1 source files were deleted, or rewritten" in lines[-1]
    jsonl(tmp_path / "b.jsonl", [{"text": "new"}])
    with pytest.raises(InputError, match=r"b\.jsonl: did not exist when"):
        prepare(data, lambda line: None)
    (tmp_path / "b.jsonl").unlink()
    jsonl(path, [{"text": text} for text in [*texts, "more"]])
    with pytest.raises(InputError, match=r"a\.jsonl: has .* bytes, and had"):
        prepare(data, lambda line: None)
    path.unlink()
    prepare(data, lines.append)
    assert "source files no longer exist" in lines[-1] and tree(tmp_path / "out") == before


@pytest.mark.parametrize("blank", ["\n\n", "\n", " "])
def test_one_big_text_file_becomes_documents(tmp_path, blank):
    text = blank.join(documents(400, words=60))
    (tmp_path / "a.txt").write_text(text)
    dataset, _ = prepared(small(tmp_path / "out", tmp_path / "a.txt"))
    entry = dataset.index["domains"]["d"]
    assert 30 < entry["documents"] < 200 and dataset.index["validation"]["splits"]["iid"]["sequences"] == 8
    assert dataset.index["validation"]["splits"]["iid"]["documents"] > 1
    pieces = list(readers.rows(tmp_path / "a.txt", "text", longest=max(len(text) // 128, 2000)))
    assert "".join(pieces) == text and text_of(dataset) == kept(pieces)


def test_the_cut_of_text_files_can_be_chosen(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(documents(100)))
    dataset, _ = prepared(small(tmp_path / "out", tmp_path / "a.txt", source={"document_characters": 1000}))
    assert all(len(text) <= 1000 for text in text_of(dataset))


def test_documents_shorter_than_the_sequence_are_packed(tmp_path):
    texts = [f"{i} tweet {word}" for i in range(600) for word in WORDS[:3]]
    dataset, _ = prepared(small(tmp_path / "out", jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])))
    trained = kept(texts)
    assert text_of(dataset) == trained
    end = dataset.index["tokenizer"]["end_of_text"]
    encoder = load_file(dataset.root / "tokenizer.json")
    held = set(texts) - set(trained)
    windows, sizes = dataset.windows["d"], 0
    assert len(windows) == 8
    for window in windows:
        whole = encoder.decode([int(t) if t != end else 10 for t in window])  # any byte that parts the tweets
        inner = np.split(window, np.flatnonzero(window == end))[1:-1]
        assert inner, whole
        for tokens in inner:
            assert encoder.decode(tokens[1:].tolist()) in held
        sizes += len(encoder.decode(window[1:][window[1:] != end].tolist()).encode())
    assert dataset.index["validation"]["splits"]["iid"]["bytes"] == sizes


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_small_data_are_taken_as_they_are(tmp_path, count):
    texts = documents(count, words=300)
    data = small(tmp_path / "out", jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts]))
    try:
        dataset, lines = prepared(data)
    except InputError as error:  # by the hash all documents may fall on one side: said, with what to do
        assert count == 2 and "add text" in str(error)
        return
    assert dataset.index["validation"]["splits"]["iid"]["sequences"] >= 1
    held = len(texts) - dataset.index["domains"]["d"]["documents"]
    assert 0 < held < count
    assert not set(text_of(dataset)) - set(texts)


def test_one_giant_document_in_validation_is_logged(tmp_path):
    giant = next(f"{i} " + "word " * 4000 for i in range(999) if document_hash(f"{i} " + "word " * 4000) < 0.1 * 2**64)
    texts = [giant, *documents(100, words=40)]
    dataset, lines = prepared(small(tmp_path / "out", jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])))
    assert any("validation sequences come from one document" in line for line in lines)
    assert any("documents)" in line for line in lines)
    assert dataset.index["validation"]["splits"]["iid"]["documents"] < 8


def test_error_on_many_domains_names_enough_sequences(tmp_path):
    sources = []
    for i in range(30):
        path = jsonl(tmp_path / f"{i}.jsonl", [{"text": text} for text in documents(60, seed=i)])
        sources.append({"domain": f"d{i}", "files": [str(path)]})
    few = {"sequences": 16, "domain_sequences": 1, "ood_sequences": 0, "fraction": 0.2}
    with pytest.raises(InputError, match="data.validation.sequences is 16, .*raise it to 30"):
        prepare(small(tmp_path / "out", sources=sources, validation=few), lambda line: None)
    dataset, _ = prepared(small(tmp_path / "out", sources=sources, validation=few | {"sequences": 30}))
    assert dataset.index["validation"]["splits"]["iid"]["sequences"] == 30


def test_share_of_unknown_tokens_is_logged_and_bytes_match(tmp_path):
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "</s>", *WORDS[:6]])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "t.json"))
    texts = documents(200)
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    dataset, lines = prepared(small(tmp_path / "out", path, tokenizer={"file": str(tmp_path / "t.json")}))
    entry = dataset.index["domains"]["d"]
    wanted = sum(word not in WORDS[:6] for text in kept(texts) for word in text.split())
    assert entry["unknown_tokens"] == wanted
    assert any("of them unknown to the tokenizer" in line for line in lines)
    split = dataset.index["validation"]["splits"]["iid"]
    mean = split["bytes"] / (split["sequences"] * 32)
    assert 4.5 < mean < 5.5  # a word and its space are 4.9 bytes; "<unk>" would be 5 and its neighbours without a space


def test_ids_with_holes_decide_dtype_and_rows(tmp_path):
    vocabulary = {word: 70_000 + i for i, word in enumerate(WORDS)} | {"<unk>": 0, "</s>": 1}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "t.json"))
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in documents(200)])
    dataset, _ = prepared(small(tmp_path / "out", path, tokenizer={"file": str(tmp_path / "t.json")}))
    assert dataset.vocabulary == 70_012 and dataset.index["dtype"] == "<u4"
    assert dataset.streams[0].read(0, len(dataset.streams[0])).max() >= 70_000


def test_the_end_of_text_of_another_name(tmp_path):
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["?", "STOP", *WORDS])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "t.json"))
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in documents(200)])
    with pytest.raises(InputError, match="name its own in data.tokenizer.end_of_text"):
        prepare(small(tmp_path / "out", path, tokenizer={"file": str(tmp_path / "t.json")}), lambda line: None)
    named = {"file": str(tmp_path / "t.json"), "end_of_text": "STOP"}
    dataset, _ = prepared(small(tmp_path / "out", path, tokenizer=named))
    assert dataset.index["tokenizer"]["end_of_text"] == 1
    assert (dataset.streams[0].read(0, len(dataset.streams[0])) == 1).sum() == dataset.index["domains"]["d"][
        "documents"
    ]


def test_two_prepares_of_one_directory(tmp_path):
    path, lines = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in documents(50)]), []
    with (
        files.lock(tmp_path / "out", busy="", other=""),
        pytest.raises(InputError, match="another process is preparing it"),
    ):
        prepare(small(tmp_path / "out", path), lines.append)
    assert lines == []
    prepared(small(tmp_path / "out", path))


def test_an_index_without_later_keys_still_opens(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in documents(200)])
    data = small(tmp_path / "out", path)
    prepare(data, lambda line: None)
    recipe = json.loads((tmp_path / "out/recipe.json").read_text())
    del recipe["tokenizer"]["end_of_text"]
    for source in recipe["sources"]:
        del source["document_characters"]
    (tmp_path / "out/recipe.json").write_text(json.dumps(recipe))
    lines = []
    prepare(data, lines.append)
    assert lines == [f"{tmp_path / 'out'}: already prepared from this configuration"]
    Dataset(data, seed=0)


def test_held_out_text_is_bounded_in_memory(tmp_path):
    """An ood source is held out entirely; only the windows needed are kept, and the same are chosen."""
    from emergence_train.data.held_out import HeldOut, choose
    from emergence_train.data.tokenizing import Document

    rng = np.random.default_rng(0)
    lengths, few, all_of_it = (
        rng.integers(1, 200, 3000),
        HeldOut(17, 5, np.dtype("<u2")),
        HeldOut(17, 10**6, np.dtype("<u2")),
    )
    for key, length in zip(rng.integers(0, 2**63, 3000).tolist(), lengths):
        document = Document(rng.integers(0, 99, length).astype(np.uint32), key, np.arange(1, length + 1), 0)
        few.add(document)
        all_of_it.add(document)
    assert len(few.by_priority) <= 4 * 5 + 1000 + 20 and few.short_tokens < 200_000
    a, b = (choose([held.arrays()], 5, 17, 0) for held in (few, all_of_it))
    assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.text_bytes, b.text_bytes)


def test_an_input_that_changes_while_it_is_read_is_said(tmp_path, monkeypatch):
    """What was read of it is neither the old file nor the new one."""
    texts = documents(200)
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    finish = parts.Part.finish

    def changed(self, last):
        with open(path, "a") as file:
            file.write(json.dumps({"text": "written meanwhile"}) + "\n")
        return finish(self, last)

    monkeypatch.setattr(parts.Part, "finish", changed)
    with pytest.raises(InputError, match=r"a\.jsonl: has changed while .*out was prepared from it; prepare again"):
        prepare(small(tmp_path / "out", path), lambda line: None)
    assert not (tmp_path / "out/dataset.json").exists()
    monkeypatch.undo()
    dataset, _ = prepared(small(tmp_path / "out", path))
    assert text_of(dataset) == kept([*texts, "written meanwhile"])


def test_a_shard_lost_between_two_tries_is_made_again(tmp_path, monkeypatch):
    texts = documents(300)
    data = small(tmp_path / "out", jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts]), shard_tokens=4000)
    _cut_off(monkeypatch, data, 3)
    (tmp_path / "out/train/d/00001.bin").unlink()
    (tmp_path / "out/train/d/.00003.bin.x.tmp").write_text("of a write that was killed")
    dataset, output = prepared(data)
    assert any("resuming after" in line for line in output) and text_of(dataset) == kept(texts)
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_missing_shard_names_a_remedy_that_works(tmp_path):
    data = small(tmp_path / "out", jsonl(tmp_path / "a.jsonl", [{"text": text} for text in documents(200)]))
    prepare(data, lambda line: None)
    (tmp_path / "out/train/d/00000.bin").unlink()
    with pytest.raises(InputError, match=r"00000\.bin: is missing; restore it, or delete .*out and run prepare again"):
        Dataset(data, seed=0)


def test_a_source_that_is_only_held_out_opens(tmp_path):
    """Of weight 0 and one document, it has no shard; the others are as they would be."""
    texts = documents(200)
    held = next(text for text in documents(200, seed=1) if document_hash(text) < 0.1 * 2**64)
    single = {"domain": "d", "files": [str(jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts]))]}
    none = {"domain": "e", "files": [str(jsonl(tmp_path / "b.jsonl", [{"text": held}]))], "weight": 0}
    data = small(tmp_path / "out", sources=[single, none])
    dataset, _ = prepared(data)
    assert dataset.index["domains"]["e"]["shards"] == [] and text_of(dataset) == kept(texts)
    weighted = data.model_copy(
        update={"sources": [data.sources[0], data.sources[1].model_copy(update={"weight": 1.0})]}
    )
    with pytest.raises(InputError, match="holds no training text of the domain 'e'; set its weight to 0"):
        Dataset(weighted, seed=0)


def test_weights_of_ood_sources_decide_their_sets(tmp_path):
    """They say how many windows each gives, so a finished set of other weights is another one."""
    paths = [jsonl(tmp_path / f"{i}.jsonl", [{"text": text} for text in documents(60, seed=i)]) for i in range(3)]
    validation = {"sequences": 8, "domain_sequences": 4, "ood_sequences": 6, "fraction": 0.1}

    def weighted(first: float):
        ood = [{"domain": f"o{i}", "files": [str(paths[i])], "weight": weight} for i, weight in ((1, first), (2, 1))]
        return small(tmp_path / "out", paths[0], ood=ood, validation=validation)

    dataset, _ = prepared(weighted(1))
    assert [dataset.index["validation"]["sets"][name]["sequences"] for name in ("o1", "o2")] == [3, 3]
    with pytest.raises(InputError, match=r"prepared with another data\.ood \(their weights\)"):
        prepare(weighted(2), lambda line: None)
    prepared(weighted(1))


def test_a_text_that_the_tokenizer_cannot_write_is_named(tmp_path):
    texts = documents(200)
    Tokenizer(
        models.WordLevel({"</s>": 0} | {word: i for i, word in enumerate([*WORDS, *map(str, range(150))], 1)})
    ).save(str(tmp_path / "t.json"))
    content = json.loads((tmp_path / "t.json").read_text()) | {"pre_tokenizer": {"type": "WhitespaceSplit"}}
    (tmp_path / "t.json").write_text(json.dumps(content))
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    data = small(tmp_path / "out", path, tokenizer={"file": str(tmp_path / "t.json")})
    with pytest.raises(
        InputError,
        match=r"d: document 151 cannot be written in the tokenizer .*; 50 of 200 .*: take a tokenizer with a token",
    ):
        prepare(data, lambda line: None)
    for workers in (1, 2):
        config = small(
            tmp_path / f"out-{workers}", path, tokenizer=data.tokenizer.model_dump(), bad_rows=0.5, workers=workers
        )
        dataset, output = prepared(config)
        assert dataset.index["domains"]["d"]["documents"] == len(kept(texts[:150]))
        assert any("50 of 200 rows skipped, the first: d: document 151" in line for line in output)


def test_an_end_of_text_that_is_a_word_is_not_forged(tmp_path):
    """A vocabulary that has it as an ordinary token makes it of its spelling."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["?", "STOP", *WORDS])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "t.json"))
    texts = [text.replace("two", "STOP") for text in documents(200)]
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    dataset, _ = prepared(
        small(tmp_path / "out", path, tokenizer={"file": str(tmp_path / "t.json"), "end_of_text": "STOP"})
    )
    stream = dataset.streams[0].read(0, len(dataset.streams[0]))
    assert (stream == 1).sum() == dataset.index["domains"]["d"]["documents"] == len(kept(texts))


def test_a_tokenizer_in_a_directory_is_known_by_its_content(tmp_path):
    (tmp_path / "given").mkdir()
    for vocabulary in (WORDS, WORDS[::-1]):
        made_up = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["?", "</s>", *vocabulary])}, unk_token="?"))
        made_up.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        made_up.save(str(tmp_path / "given/tokenizer.json"))
        path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in documents(200)])
        os.utime(path, ns=(1, 1))
        data = small(tmp_path / "out", path, tokenizer={"file": str(tmp_path / "given")})
        if vocabulary is WORDS:
            prepare(data, lambda line: None)
    with pytest.raises(InputError, match="is not the tokenizer of"):
        prepare(data, lambda line: None)


def test_a_pattern_over_the_prepared_directory_itself(tmp_path):
    """What prepare writes is no input, at the first try as at any other."""
    texts = documents(200)
    path = jsonl(tmp_path / "text/a.jsonl", [{"text": text} for text in texts])
    for _ in range(2):
        with pytest.raises(
            InputError, match="lies in data.path; choose another data.path, or write a pattern without it"
        ):
            prepare(small(tmp_path / "text/out", tmp_path / "text/**"), lambda line: None)
    for out, pattern in (("text/out", path), ("text/other", tmp_path / "text/**/*.jsonl"), ("elsewhere", path)):
        dataset, _ = prepared(small(tmp_path / out, pattern))
        assert text_of(dataset) == kept(texts)
