"""Random corpora, kinds of files, bad rows and interruptions: text to shards to samples and back.

Each case ends in a data set with every token once in its place, or in one error line that names a place. FUZZ_EXAMPLES=2000
runs more of them.
"""

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emergence_train.data import parts
from emergence_train.data.dataset import Dataset
from emergence_train.data.prepare import prepare
from emergence_train.data.tokenizer import load_file, train
from emergence_train.data.tokenizing import document_hash
from emergence_train.errors import InputError, RunError
from support import data_of

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
FRACTION = 0.25
TEXT = st.one_of(
    st.text(min_size=1, max_size=80).filter(lambda text: "\r" not in text),
    st.sampled_from(["word " * 40, "<|endoftext|>", "你好，世界。" * 9, "=" * 300, "a\n\nb\n\nc"]),
    st.builds("{} {}".format, st.integers(0, 10**6), st.sampled_from(["the end", "of all " * 12, "x" * 50])),
)
BAD = ['{"text": null}', '{"text": "\\ud800"}', "not json", '{"other": 1}', '{"text": 5}', "[]"]
FILE = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["jsonl", "csv", "parquet", "gz"]),
        "texts": st.lists(TEXT, max_size=25),
        "bad": st.lists(st.tuples(st.integers(0, 25), st.sampled_from(BAD)), max_size=2),
    }
)


def write(folder: Path, number: int, file: dict) -> None:
    kind, texts = file["kind"], file["texts"]
    path = folder / f"{number:02d}.{'jsonl.gz' if kind == 'gz' else kind}"
    if kind == "parquet":
        values = list(texts)
        for place, _ in file["bad"]:
            values.insert(min(place, len(values)), None)
        pq.write_table(pa.table({"text": pa.array(values, pa.string())}), path)
    elif kind == "csv":
        out = io.StringIO(newline="")
        writer = csv.writer(out)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))
        path.write_bytes(out.getvalue().encode())
    else:
        lines = [json.dumps({"text": text}) for text in texts]
        for place, line in file["bad"]:
            lines.insert(min(place, len(lines)), line)
        data = "\n".join(lines).encode()
        if kind == "gz":
            import gzip

            data = gzip.compress(data)
        path.write_bytes(data)


def interrupted(data, after: int) -> None:
    """Run prepare, and kill it at the end of a part."""
    finish, calls = parts.Part.finish, []

    def fail(self, last):
        calls.append(1)
        if len(calls) > after:
            raise RunError("killed here")
        return finish(self, last)

    parts.Part.finish = fail
    try:
        prepare(data, lambda line: None)
    except RunError as error:
        assert str(error) == "killed here"
    finally:
        parts.Part.finish = finish


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(
    files=st.lists(FILE, min_size=1, max_size=4),
    shard_tokens=st.sampled_from([1000, 1500, 100_000]),
    sequence=st.sampled_from([2, 8, 31]),
    kills=st.lists(st.integers(0, 3), max_size=2),
)
def test_every_token_stands_where_it_should_once(files, shard_tokens, sequence, kills):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number, file in enumerate(files):
            write(folder, number, file)
        _tokenizer().save(str(folder / "tokenizer.given"))
        validation = {"sequences": 3, "domain_sequences": 2, "ood_sequences": 0, "fraction": FRACTION}
        data = data_of(
            folder / "out",
            sources=[{"domain": "d", "files": [f"{folder}/[0-9]*"]}],
            ood=[],
            tokenizer={"file": str(folder / "tokenizer.given")},
            validation=validation,
            shard_tokens=shard_tokens,
            sequence=sequence,
            bad_rows=0.5,
        )
        try:
            for after in kills:
                interrupted(data, after)
            prepare(data, lambda line: None)
            dataset = Dataset(data, seed=3)
        except InputError as error:
            assert "\n" not in str(error)
            assert any(word in str(error) for word in (str(folder), "source", "add text")), error
            assert not (folder / "out" / "dataset.json").exists()
            return
        _check(dataset, [text for file in files for text in file["texts"]], sequence)


_made: list = []


def _tokenizer():
    if not _made:
        _made.append(train(iter(["the words of all that is said here, over and over"] * 30), 320))
    return _made[0]


def _check(dataset: Dataset, texts: list[str], sequence: int) -> None:
    encoder, end = load_file(dataset.root / "tokenizer.json"), dataset.index["tokenizer"]["end_of_text"]
    stream = dataset.streams[0].read(0, len(dataset.streams[0])).tolist()
    encoded = {text: encoder.encode(text, add_special_tokens=False).ids for text in texts}
    for fraction in (FRACTION, 0.5):  # a small source may have had to hold out more
        trained = [text for text in texts if document_hash(text) >= fraction * 2**64 and encoded[text]]
        if stream == [token for text in trained for token in [*encoded[text], end]]:
            break
    else:
        raise AssertionError("the shards are not the training documents in order")
    held = [text for text in texts if document_hash(text) < fraction * 2**64 and encoded[text]]
    assert not {document_hash(text) for text in trained} & {document_hash(text) for text in held}
    joined = " ".join(map(str, stream))
    for index in range(0, 40, 7):
        sample = dataset.sample(index)
        assert len(sample) == sequence + 1 and " ".join(map(str, sample)) in joined
    for window in np.asarray(dataset.windows["d"]):
        for tokens in _split(window, end):
            assert any(_within(tokens, encoded[text]) for text in held), encoder.decode(tokens)
    split = dataset.index["validation"]["splits"]["iid"]
    assert 0 <= split["bytes"] <= sum(len(text.encode()) for text in held) * max(1, split["sequences"])


def _split(window, end: int) -> list[list[int]]:
    """The window's documents: packed ones have an end of text between."""
    documents: list[list[int]] = [[]]
    for token in window.tolist():
        if token == end:
            documents.append([])
        else:
            documents[-1].append(token)
    return [tokens for tokens in documents if tokens]


def _within(tokens: list[int], document: list[int]) -> bool:
    return f" {' '.join(map(str, tokens))} " in f" {' '.join(map(str, document))} "


def test_many_shards_need_few_descriptors(tmp_path):
    """200 shards under a limit of 100 open files, soft and hard."""
    import subprocess
    import sys

    program = f"""
import resource, sys
import numpy as np
from pathlib import Path
from emergence_train.data.shards import TokenStream
root, entries = Path({str(tmp_path)!r}), []
for i in range(200):
    np.arange(10 * i, 10 * i + 10, dtype="<u2").tofile(root / f"{{i}}.bin")
    np.save(root / f"{{i}}.npy", np.array([4, 10]))
    entries.append({{"tokens": {{"file": f"{{i}}.bin"}}, "documents": {{"file": f"{{i}}.npy"}}}})
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
stream = TokenStream(root, entries, np.dtype("<u2"))
assert stream.read(0, 2000).tolist() == list(range(2000))
order = np.random.default_rng(0).permutation(1990)
assert all(stream.read(int(k), 10)[0] == k for k in order)
assert stream.document_ids(0, 2000)[-1] == 399
"""
    paths = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parents[2] / "kernels")))
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
