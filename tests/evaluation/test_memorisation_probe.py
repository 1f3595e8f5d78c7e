"""Repeats that were planted are found, and none among controls; counts by a plain search."""

import bz2
import gzip
import json
import lzma
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from emergence_train import cli
from emergence_train.data.lineage import Stretch
from emergence_train.data.sampling import Sampler
from emergence_train.errors import InputError
from emergence_train.evaluation.memorisation import (
    Probe,
    _in_proportion,
    continuation_loss,
    enough_texts,
    extracted,
    first_tokens,
    occurrences,
    read_texts,
    sequences,
    trained_or_not,
)
from emergence_train.parallel.mesh import data_parallel
from support import command, small_config


class Stream:
    """A stream of tokens in memory."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, length: int) -> np.ndarray:
        return self.tokens[start : start + length]


@pytest.mark.parametrize("piece", [7, 1 << 22])
def test_occurrences_are_those_of_a_plain_search(monkeypatch, piece):
    monkeypatch.setattr("emergence_train.evaluation.memorisation.PIECE", piece)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 3, 400)
    chosen = np.stack([tokens[k : k + 5] for k in rng.integers(0, 395, 30)] + [np.array([9, 9, 9, 9, 9])])
    windows = np.lib.stride_tricks.sliding_window_view(tokens, 5)
    chosen = np.unique(chosen, axis=0)
    expected = [(k, place) for k, row in enumerate(chosen) for place in np.flatnonzero((windows == row).all(1))]
    assert sorted(zip(*occurrences(Stream(tokens), chosen))) == expected


class Table(torch.nn.Module):
    """Continues text by a table of the next token; its logits are 5 at it, 0 elsewhere."""

    def __init__(self, following: list[int]) -> None:
        super().__init__()
        self.following = torch.tensor(following)

    def new_cache(self) -> dict:
        return {}

    def forward(self, tokens, targets=None, cache=None):
        logits = 5.0 * torch.nn.functional.one_hot(self.following[tokens], len(self.following)).float()
        return logits if cache is None else logits[:, -1]


def test_extraction_and_loss_by_hand():
    """0 1 2 3 4 0 ... is what the table says; one row breaks in its continuation, one in its prefix."""
    model = Table([1, 2, 3, 4, 0])
    tokens = np.array([[0, 1, 2, 3, 4], [0, 1, 2, 3, 3], [3, 3, 2, 3, 4]])
    probe = Probe(prefix=3, continuation=2)
    mesh = data_parallel(0, 1, 0, torch.device("cpu"))
    assert extracted(model, tokens, probe, mesh).tolist() == [True, False, True]
    right = np.log(np.exp(5) + 4) - 5
    np.testing.assert_allclose(continuation_loss(model, tokens, probe, mesh), [right, right + 2.5, right], rtol=1e-5)


@pytest.fixture(scope="module")
def planted_run(tmp_path_factory):
    """A run on random words, among which three texts stand 60 times each (copies of one that is held out are held out too)."""
    place = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(5)
    words = ["".join(rng.choice(list("abcdefgh"), 3)) for _ in range(200)]

    def text(count: int) -> str:
        return " ".join(rng.choice(words, count))

    documents = [text(60) for _ in range(80)] + 60 * [text(60) for _ in range(3)]
    rng.shuffle(documents)
    (place / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    tree = small_config(place / "data", place)
    tree["data"] |= {"sources": [{"domain": "words", "files": [str(place / "text.jsonl")]}], "ood": []}
    tree["data"]["validation"] = {"sequences": 40, "domain_sequences": 0, "ood_sequences": 0, "fraction": 0.2}
    tree["model"] |= {"width": 64, "heads": 4, "kv_heads": 4, "ffn": 256}
    tree["training"] |= {"tokens": 600 * 8 * 32, "micro_batch": 8}
    tree["checkpoints"] = {"every_tokens": 600 * 8 * 32}
    (place / "config.yaml").write_text(yaml.safe_dump(tree))
    for verb in ("prepare", "train"):
        done = command(verb, str(place / "config.yaml"))
        assert done.returncode == 0, done.stderr
    return place / "run"


@pytest.mark.slow
def test_planted_repeats_are_found_and_none_in_controls(planted_run, capsys, tmp_path):
    given = ["--prefix", "10", "--continuation", "8", "--items", "150", "--out", str(tmp_path / "out"), "--json"]
    assert cli.main(["memorise", str(planted_run), *given]) == 0
    result = json.loads(capsys.readouterr().out)
    shares = {row["seen"]: row for row in result["shares"]}
    often = [row for row in result["shares"] if row["least"] > 20]
    assert sum(row["extracted"] for row in often) > 0.8 * sum(row["items"] for row in often) > 0
    assert shares["0"]["extracted"] == 0 and shares["0"]["items"] > 10
    assert result["runs"][0]["of_100_low95"] > 0 and result["runs"][0]["loss_gain_low95"] > 0
    assert (tmp_path / "out" / "memorised.png").is_file()
    assert cli.main(["memorise", str(planted_run), "--prefix", "30", "--continuation", "8"]) == 2
    assert "lower one of them" in capsys.readouterr().err


@pytest.mark.slow
def test_given_texts_are_found_or_are_controls(planted_run, capsys, tmp_path):
    """The three texts that stand 60 times, unless held out, and ten of the same words that stand nowhere."""
    rows = [json.loads(line)["text"] for line in (planted_run.parent / "text.jsonl").read_text().splitlines()]
    often = sorted({text for text in rows if rows.count(text) == 60})
    words = sorted({word for text in rows for word in text.split()})
    rng = np.random.default_rng(6)
    (tmp_path / "texts.jsonl").write_text(
        "".join(
            json.dumps({"text": text}) + "\n"
            for text in [*often, *(" ".join(rng.choice(words, 60)) for _ in range(10))]
        )
    )
    given = ["--prefix", "10", "--continuation", "8", "--texts", str(tmp_path / "texts.jsonl"), "--json"]
    assert cli.main(["memorise", str(planted_run), *given]) == 0
    shares = {row["seen"]: row for row in json.loads(capsys.readouterr().out)["shares"]}
    assert shares["0"]["items"] >= 10 and shares["0"]["extracted"] == 0
    assert shares["more"]["extracted"] == shares["more"]["items"] == 13 - shares["0"]["items"]


class Words:
    """A tokenizer of words that are numbers."""

    @staticmethod
    def encode_batch(texts: list[str], add_special_tokens: bool):
        assert not add_special_tokens
        return [SimpleNamespace(ids=[int(word) for word in text.split()]) for text in texts]


def test_given_texts_are_their_first_tokens(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "1 2 3 4"}\n\n{"text": "5 6 7"}\n{"text": "1 2 3 4"}\n')
    texts = read_texts(tmp_path / "texts.jsonl")
    assert texts == ["1 2 3 4", "5 6 7"]
    assert first_tokens(texts, Words(), Probe(2, 1)).tolist() == [[1, 2, 3], [5, 6, 7]]
    with pytest.raises(InputError, match="the text '5 6 7' has 3 tokens, fewer than --prefix and --continuation"):
        first_tokens(texts, Words(), Probe(2, 2))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n\n{', r"cannot be read \(line 3: "),
        ('{"a": 1}', "row 1 has no text"),
        ("\n", "has no rows"),
        ('{"text": "a\\ud800"}', "row 1 has half of a surrogate pair"),
    ],
)
def test_unreadable_texts_are_one_line(tmp_path, content, says):
    (tmp_path / "texts.jsonl").write_text(content)
    with pytest.raises(InputError, match=says):
        read_texts(tmp_path / "texts.jsonl")


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_texts_are_read(tmp_path, suffix, compress):
    path, content = (
        tmp_path / f"texts.jsonl{suffix}",
        compress(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "zw\xc3\xb6"}\n'),
    )
    path.write_bytes(content)
    assert read_texts(path) == ["one", "zwö"]
    for damaged in (content[:-9], b"not compressed", content[:20] + b"\0\0\0\0" + content[24:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read .*; give JSONL"):
            read_texts(path)


def test_separators_inside_a_text_end_no_line(tmp_path):
    """U+2028 and the next line control are ends of lines for str.splitlines, and may stand in JSON as they are."""
    text = "one\u2028two\x85three"
    path = tmp_path / "texts.jsonl"
    path.write_text(
        json.dumps({"text": text}, ensure_ascii=False) + "\r\n" + '{"text": "b"}', encoding="utf-8", newline=""
    )
    assert read_texts(path) == [text, "b"]


OFTEN, ABSENT, HALF = 24, 9_000_000, 50  # HALF: samples of a pass of 100


def half_a_pass(seed: int) -> tuple[SimpleNamespace, np.ndarray, np.ndarray]:
    """-> a data set whose second domain is never drawn; texts that stand once (20), often (1), only there (5) and nowhere (2);
    whether each was drawn in half a pass, by a walk over the samples."""
    rng = np.random.default_rng(seed)
    first, second = np.arange(101 * 32 + 1), 1_000_000 + np.arange(400)
    often = 2_000_000 + np.arange(6)
    starts = rng.choice(100, 20 + OFTEN, replace=False) * 32 + rng.integers(0, 27, 20 + OFTEN)  # a sample may cut some
    for start in starts[20:]:
        first[start : start + 6] = often
    texts = [first[start : start + 6] for start in starts[:20]] + [often]
    texts += [second[start : start + 6] for start in range(5)] + [ABSENT + np.arange(6), ABSENT + np.arange(1, 7)]
    sampler = Sampler([len(first), len(second)], [1.0, 0.0], 32, seed)
    streams = [Stream(first), Stream(second)]
    places = [sampler[index] for index in range(HALF)]
    drawn = [streams[place.domain].read(place.start, 33) for place in places]
    windows = np.concatenate([np.lib.stride_tricks.sliding_window_view(sample, 6) for sample in drawn])
    tokens = np.stack(texts)
    return SimpleNamespace(streams=streams, sampler=sampler), tokens, (tokens[:, None] == windows).all(2).any(1)


def test_texts_of_half_a_pass_are_not_taken_for_trained():
    """Those that stand once were drawn or not: they are neither trained nor controls. What is left is so in truth."""
    for seed in range(5):
        dataset, tokens, drawn = half_a_pass(seed)
        assert dataset.sampler.epochs(HALF) == [0.5, 0.0]
        assert 0 < drawn[:20].sum() < 20, "some were and some were not"
        lines = []
        kept, seen = trained_or_not([Stretch(dataset, 0, HALF)], tokens, "run: step 5", lines.append)
        assert (kept == tokens[20:]).all() and seen.tolist() == [OFTEN / 2] + 7 * [0.0]
        assert ((seen > 0) == drawn[20:]).all()
        assert lines == [
            "run: step 5: 20 texts of the data may not have been trained on yet and are left out; give a later --step to ask "
            "about them"
        ]


@pytest.mark.parametrize(("seen", "least"), [([3.0, 1.0, 0.0], 2), ([1.0, 0.0, 0.0], 2), ([1.0, 2.0], 1), ([0.0], 1)])
def test_too_few_texts_say_how_many_are_needed(seen, least):
    trained = sum(times > 0 for times in seen)
    says = f"run: step 5: {trained} of the texts were trained on and {len(seen) - trained} never.*give at least {least} of each"
    with pytest.raises(InputError, match=says):
        enough_texts(np.array(seen), least, "run: step 5")
    enough_texts(np.array([1.0, 0.0] * least), least, "run: step 5")


def test_texts_none_of_which_was_surely_trained_are_refused():
    dataset, tokens, _ = half_a_pass(0)
    asked = np.delete(tokens, 20, 0)
    with pytest.raises(InputError, match="20 texts .* and none surely was; give a later --step"):
        trained_or_not([Stretch(dataset, 0, HALF)], asked, "run: step 5", print)
    kept, seen = trained_or_not([Stretch(dataset, 0, 2 * HALF)], asked, "run: step 10", print)
    assert len(kept) == len(asked) and seen.tolist() == 20 * [1.0] + 7 * [0.0]


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch, capsys):
    """Each with a text that the other has not seen; as one run, neither would have been trained without it."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "metrics.jsonl").write_text('{"run": "same"}\n')

    def probed(run, probe, step, log, texts):
        seen = [4.0, 4.0, 0.0, 0.0] if run.name == "a" else [0.0, 0.0, 4.0, 4.0]
        loss = [(1.0 if times else 3.0) + 0.1 * k for k, times in enumerate(seen)]
        table = {"run": "same", "params": 10, "step": 5, "item": list("wxyz"), "seen": seen, "extracted": False}
        return pd.DataFrame(table | {"loss": loss, "prefix": 3, "continuation": 2})

    monkeypatch.setattr("emergence_train.evaluation.memorisation.probe_run", probed)
    assert cli.main(["memorise", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in result["runs"]] == ["a", "b"]
    assert result["counterfactual"][0]["models"] == 2
    assert result["counterfactual"][0]["nats"]["value"] == pytest.approx(2.0)


def mixture(windows: dict[str, int], weights: list[float]) -> SimpleNamespace:
    """Domains a, b, ... of which number k has tokens from k million on, none twice, and so many validation windows, of others."""
    rng = np.random.default_rng(3)
    domains = [name for name in "abc"[: len(weights)]]
    streams = [Stream(k * 1_000_000 + np.arange(6401)) for k in range(len(weights))]
    sampler = Sampler([len(stream) for stream in streams], weights, 32, 1)
    held = {
        name: 1_000_000 * "abcdef".index(name) + rng.integers(10_000, 900_000, (count, 33))
        for name, count in windows.items()
    }

    def sample(index: int) -> np.ndarray:
        return streams[sampler[index].domain].read(sampler[index].start, 33)

    return SimpleNamespace(
        domains=domains, streams=streams, sampler=sampler, windows=held, sample=sample, sequence=32, root="data"
    )


@pytest.mark.parametrize(
    "windows",
    [{"a": 100, "b": 100, "f": 300}, {"a": 400, "b": 30}, {"a": 40, "b": 400, "c": 9}, {"b": 60}],
    ids=["out of distribution", "few of one", "many of one", "one has none"],
)
def test_controls_are_of_the_domains_that_were_trained_on(windows):
    """Of each domain as large a share as of the trained ones, within what rounding does, whatever the windows are."""
    probe = Probe(prefix=8, continuation=4, items=120)
    trained, controls, _ = sequences([Stretch(mixture(windows, [3.0, 1.0]), 0, 400)], probe)
    of_trained, of_controls = (np.bincount(part[:, 0] // 1_000_000, minlength=6) for part in (trained, controls))
    assert of_controls[2:].sum() == of_trained[2:].sum() == 0 and len(controls) >= 30
    shares = of_trained / len(trained) - of_controls / len(controls)
    assert np.abs(shares).max() <= 1 / len(controls), (of_trained, of_controls)


def test_a_mixture_without_held_out_text_has_no_controls():
    with pytest.raises(InputError, match="data: holds no validation windows of a domain that was trained on"):
        sequences([Stretch(mixture({"f": 50}, [1.0]), 0, 200)], Probe(8, 4))


def test_texts_beyond_the_windows_are_not_taken_for_trained():
    """20 passes over a stream of three windows: its first and last tokens are in a sample of some passes alone, or of none. What
    counts as trained is in a sample or cut by windows that lie next to each other; the rest is neither trained nor a control."""
    for seed in range(8):
        stream = Stream(np.arange(3 * 32 + 40))
        sampler = Sampler([len(stream)], [1.0], 32, seed)
        samples = sampler.windows[0] * 20
        ends = [(sampler.span(0, epoch)) for epoch in range(20)]
        drawn = sorted({sampler[index].start for index in range(samples)})
        assert (min(drawn), max(drawn) + 33) == (min(begin for begin, _ in ends), max(end for _, end in ends))
        tokens = np.lib.stride_tricks.sliding_window_view(stream.tokens, 8)
        held = [any(begin <= row[0] and row[-1] < end for begin, end in ends) for row in tokens]
        dataset = SimpleNamespace(streams=[stream], sampler=sampler)
        kept, seen = trained_or_not([Stretch(dataset, 0, samples)], tokens, "run: step 5", lambda line: None)
        assert kept.tolist() == tokens[held].tolist() and (seen > 0).all() and not all(held)


@pytest.mark.parametrize(
    ("trained", "windows", "kept"),
    [((180, 20), (0, 40), 20), ((180, 20), (1, 40), 21), ((150, 50), (10, 100), 60), ((30, 10), (60, 20), 40)],
)
def test_few_windows_of_a_domain_cost_no_controls(trained, windows, kept):
    """Kept are the controls that a domain of few, or none, would else cost; each domain has one for a trained sequence."""
    domains = np.repeat(["a", "b"], trained)
    free = {name: np.zeros((count, 4), np.int64) for name, count in zip("ab", windows)}
    which, controls = _in_proportion(domains, free)
    assert len(controls) == len(which) == kept
