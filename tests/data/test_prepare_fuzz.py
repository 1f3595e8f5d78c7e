"""Random corpora, tokenizers, bad rows, kills and changes: the way from text to shards and windows, by a plain loop.

Each case ends in a data set whose every token stands where it should, once; or in one line that names the place, and no data set.
FUZZ_EXAMPLES=2000 runs more of them; FUZZ_OUT=FILE writes how they ended.
"""

import collections
import glob
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from emergence_train.data import readers
from emergence_train.data.dataset import Dataset
from emergence_train.data.prepare import prepare
from emergence_train.data.shards import TokenStream
from emergence_train.data.tokenizing import document_hash
from emergence_train.data_config import Data
from emergence_train.errors import InputError
from foreign_tokenizers import KINDS
from made_up_corpora import FILE, SOURCE, Written, write
from support import data_of, tree

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
FRACTION, MOST = 0.25, 0.5  # held out: as configured, and at most of a small source
SHARE = 0.25  # of rows that may be bad
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # not shrunk: that takes a thousand cases more
LONGEST = 400  # characters of a document, in the place of a million
ended: collections.Counter = collections.Counter()


def words(vocabulary: list[str], **more) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, **more))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


ENCODERS = KINDS | {
    "trained": lambda: None,
    "end-of-text-is-a-word": lambda: words(["</s>", "?", "a", "word", "of", "all"], unk_token="?"),
    "no-unknown": lambda: words(["</s>", "word", "the", "end", "=" * 300, "a", "b"]),
}
encoders: dict[str, str | None] = {}


@dataclass
class Corpus:
    """One source: its folder, how it is configured, its files."""

    folder: Path
    settings: dict
    files: list[Written]

    def config(self, ood: bool) -> dict:
        """The section `data.sources` or `data.ood` wants."""
        literal = [str(file.path) for file in self.files]
        everything = glob.escape(str(self.folder)) + "/**"
        patterns = {
            "all": [everything],
            "overlap": [everything, *literal[:1], everything + "/*"],
            "literal": literal[::-1],
        }
        source = {
            "domain": self.folder.name,
            "files": patterns[self.settings["patterns"]],
            "text_field": self.settings["field"],
            "limit_documents": self.settings["limit"],
        }
        return source if ood else source | {"weight": self.settings["weight"]}

    def link(self, number: int, kind: str) -> None:
        """Another name for the first file; by either a pattern finds it once."""
        target = self.files[0].path
        if target.is_file():
            (os.symlink if kind == "symbolic" else os.link)(
                target, self.folder / f"{'0z'[number]}link.{target.name}"[-120:]
            )

    def rows(self) -> list:
        """The documents as a plain loop finds them; None for a row that is bad."""
        order = self.files[::-1]
        if self.settings["patterns"] != "literal":
            names = sorted(str(path) for path in self.folder.rglob("*") if path.is_file())
            summary = {os.stat(name).st_ino: None for name in names}
            by_file = {os.stat(file.path).st_ino: file for file in self.files if file.path.is_file()}
            order = [by_file[number] for number in summary]
        rows = []
        for file in order:
            for row in file.rows:
                rows += [None] if row is None else readers.pieces(iter([row]), LONGEST) if len(row) > LONGEST else [row]
        return rows[: self.settings["limit"]]


def killed(data: Data, after: int) -> None:
    """Run prepare in a process that is killed as it flushes or renames a file for the `after`-th time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            calls, replace = itertools.count(), os.replace

            def count(*arguments) -> None:
                if next(calls) == after:
                    os.kill(os.getpid(), signal.SIGKILL)
                if len(arguments) == 2:
                    replace(*arguments)

            os.replace = os.fsync = count
            prepare(data, lambda line: None)
            code = 0
        except InputError:
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status


def change(corpus: Corpus, what: str, other: dict) -> None:
    """What a user may do between a kill and the next try."""
    name, file = corpus.settings["field"], corpus.files[-1]
    if len(corpus.files) == 1 and corpus.settings["links"] and what in ("rename", "rewrite"):
        return  # what the links name is to stay
    if what == "add":
        corpus.files.append(write(corpus.folder, 90, other, name))
    elif what == "remove" and len(corpus.files) > 1:
        corpus.files.pop().path.unlink()
    elif what == "touch" and file.path.is_file():
        os.utime(file.path, ns=(1, 1))
    elif what == "rename" and file.path.is_file():
        file.path = file.path.rename(file.path.with_name("00" + file.path.name))
    elif what == "rewrite" and not file.damage:
        file.path.unlink()
        corpus.files[-1] = write(corpus.folder, 91, other, name)


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(
    sources=st.lists(SOURCE, min_size=1, max_size=3),
    ood=st.one_of(st.none(), SOURCE),
    encoder=st.sampled_from(list(ENCODERS)),
    shard_tokens=st.sampled_from([1000, 1500, 100_000]),
    sequence=st.sampled_from([2, 8, 31]),
    kills=st.lists(st.integers(0, 40), max_size=3),
    changes=st.lists(st.tuples(st.sampled_from(["add", "remove", "touch", "rename", "rewrite"]), FILE), max_size=1),
)
def check_case(sources, ood, encoder, shard_tokens, sequence, kills, changes):
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "LONGEST", LONGEST)
        folder = Path(scratch)
        corpora = []
        for number, source in enumerate([*sources, *([ood] if ood else [])]):
            place = folder / f"{number}"
            corpora.append(
                Corpus(
                    place, source, [write(place, i, file, source["field"]) for i, file in enumerate(source["files"])]
                )
            )
            for i, kind in enumerate(source["links"] if source["patterns"] != "literal" else ()):
                corpora[-1].link(i, kind)
        if not any(source["weight"] for source in sources):
            sources[0]["weight"] = 1

        def data() -> Data:
            sections = [corpus.config(corpus.settings is ood) for corpus in corpora]
            return data_of(
                folder / "out",
                sources=sections[: len(sources)],
                ood=sections[len(sources) :],
                tokenizer=tokenizer,
                validation={"sequences": 12, "domain_sequences": 2, "ood_sequences": 3, "fraction": FRACTION},
                shard_tokens=shard_tokens,
                sequence=sequence,
                bad_rows=SHARE,
            )

        tokenizer = {"vocab_size": 300}
        if encoder not in encoders:
            encoders[encoder] = built.to_str() if (built := ENCODERS[encoder]()) else None
        if encoders[encoder]:
            (folder / "given.json").write_text(encoders[encoder])
            tokenizer = {"file": str(folder / "given.json")}
        for number, after in enumerate(kills):
            killed(data(), after)
            if (
                number == 0 and changes and not (folder / "out/dataset.json").exists()
            ):  # what is finished is tried elsewhere
                change(corpora[0], *changes[0])
        try:
            prepare(data(), lambda line: None)
        except InputError as error:
            assert not (folder / "out" / "dataset.json").exists()
            ended[_check_refusal(str(error), folder, corpora, len(sources), sequence)] += 1
            return
        for number, corpus in enumerate(corpora):
            _check_corpus(folder / "out", data(), corpus, number < len(sources), sequence)
        assert not [name for name in tree(folder / "out") if name.endswith(".tmp") or name.startswith("parts")]
        before, notes = tree(folder / "out"), []
        prepare(data(), notes.append)
        assert len(notes) == 1 and "already prepared" in notes[0] and tree(folder / "out") == before
        ended["prepared"] += 1


def _check_refusal(text: str, folder: Path, corpora: list[Corpus], trained: int, sequence: int) -> str:
    """The kind of an error, which must have its reason in the made-up files."""
    assert "\n" not in text and any(word in text for word in (str(folder), "source", "document", "add text")), text

    def unusable(rows: list) -> int:
        """Rows that are no text, or that the tokenizer cannot write: the error names the first of either kind."""
        given = folder / "given.json"
        encoder = Tokenizer.from_file(str(given)) if given.exists() else None
        return sum(row is None or encoder is not None and encoded(encoder, row) is None for row in rows)

    kinds = {
        "are no text": lambda rows: unusable(rows) > max(SHARE * len(rows), min(10, len(rows) / 10)),
        "as all of the first": lambda rows: set(rows[:100]) == {None},
        "is empty: ": lambda rows: not rows,
    }
    for words_, holds in kinds.items():
        if words_ in text and "cannot be written in the tokenizer" not in text:
            assert any(holds(corpus.rows()) for corpus in corpora), text
            return words_.strip(": ")
    for file in (file for corpus in corpora for file in corpus.files):
        if file.damage and " ".join(file.path.name.splitlines()) in text:
            return f"damaged: {file.damage}"
    if "cannot be written in the tokenizer" in text:
        return "cannot be written in the tokenizer"
    encoder = Tokenizer.from_file(str(folder / "out" / "tokenizer.json"))
    encoder.encode_special_tokens = True
    lengths = []
    for corpus in corpora[:trained]:
        for fraction in (FRACTION, MOST):
            tokens, seen = {True: 0, False: 0}, set()
            for row in filter(None, corpus.rows()):
                held = (key := document_hash(row)) < fraction * 2**64
                tokens[held] += 0 if held and key in seen else len(encoded(encoder, row) or [])
                seen.add(key)  # of what is held out, a document that is listed twice is one
            lengths.append((corpus.settings["weight"], tokens))
    if "training tokens, fewer than one sequence" in text:
        assert any(weight and tokens[False] <= sequence + len(corpora[0].rows()) for weight, tokens in lengths)
        return "too short to train on"
    assert "of held-out text" in text, text
    assert all(tokens[True] <= sequence for weight, tokens in lengths[::2] if weight), text
    return "too short to hold out"


def encoded(encoder: Tokenizer, text: str) -> list[int] | None:
    """The ids; None where the tokenizer cannot write the text."""
    try:
        return encoder.encode(text, add_special_tokens=False).ids
    except Exception:
        return None


def _check_corpus(root: Path, data: Data, corpus: Corpus, trained: bool, sequence: int) -> None:
    assert not any(file.damage for file in corpus.files) or corpus.settings["limit"], "a damaged file was taken"
    dataset, domain = Dataset(data, seed=3), corpus.folder.name
    encoder, end = Tokenizer.from_file(str(root / "tokenizer.json")), dataset.index["tokenizer"]["end_of_text"]
    encoder.encode_special_tokens = True
    rows = corpus.rows()
    ids = {text: encoded(encoder, text) for text in rows if text is not None}
    assert not any(end in tokens for tokens in ids.values() if tokens)
    bad = sum(text is None or ids[text] is None for text in rows)
    assert bad <= max(SHARE * len(rows), min(10, 0.1 * len(rows)))
    texts = [text for text in rows if text is not None and ids[text]]
    fraction = FRACTION if trained else 1.0
    if trained:
        entry = dataset.index["domains"][domain]
        stream = TokenStream(root, entry["shards"], np.dtype(dataset.index["dtype"])) if entry["shards"] else None
        tokens = stream.read(0, len(stream)).tolist() if stream else []
        for fraction in (FRACTION, MOST):  # a small source may have had to hold out more
            kept = [text for text in texts if document_hash(text) >= fraction * 2**64]
            if tokens == [token for text in kept for token in [*ids[text], end]]:
                break
        else:
            raise AssertionError("the shards are not the training documents in order")
        assert entry["rows_left_out"] == bad and entry["documents"] == len(kept) and entry["tokens"] == len(tokens)
        if stream:
            numbers = [i for i, text in enumerate(kept) for _ in range(len(ids[text]) + 1)]
            assert stream.document_ids(0, len(stream)).tolist() == numbers
        if domain in dataset.domains:
            of_domain = dataset.domains.index(domain)
            for index in range(0, 200, 7):
                window = dataset.sampler[index]
                if window.domain == of_domain:
                    assert dataset.sample(index).tolist() == tokens[window.start : window.start + sequence + 1]
    held = [text for text in texts if document_hash(text) < fraction * 2**64]
    for window in np.asarray(dataset.windows.get(domain, [])):
        for part in _split(window, end):
            assert any(_within(part, ids[text]) for text in held), encoder.decode(part)


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


def test_every_token_stands_where_it_should_once():
    ended.clear()
    try:
        check_case()
    finally:
        if out := os.environ.get("FUZZ_OUT"):
            summary = {"cases": sum(ended.values()), "ended": dict(ended.most_common())}
            Path(out).write_text(json.dumps(summary, indent=1) + "\n")
    assert ended["prepared"], ended


def test_many_shards_need_few_descriptors(tmp_path):
    """200 shards under a limit of 100 open files, soft and hard."""
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
