"""The study of memorised pieces: what each seed is trained on, counted in the files that it is trained on."""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml

STUDIES = str(Path(__file__).parents[2] / "benchmarks" / "studies")
sys.path.insert(0, STUDIES)
import memorisation_sizes as sizes  # noqa: E402

sys.path.remove(STUDIES)

PIECES = sizes.PIECES * len(sizes.TIMES)


def made_up(source) -> list[str]:
    """Documents of made-up words by the name of a domain; speeches have enough words for all pieces."""
    draw = random.Random(source.domain)
    words = ["".join(draw.choices("abcdefgh", k=4)) for _ in range(400)]
    length = 60 * (PIECES + 40) if source.domain == "speeches" else 300
    return [" ".join(draw.choices(words, k=length)) for _ in range(1 if source.domain == "speeches" else 3)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The files that the study writes from made-up text."""
    work = tmp_path_factory.mktemp("pieces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes.sources, "documents", made_up)
        sizes.prepare(work)
    return work


def texts(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_piece_is_planted_as_often_as_its_row_says(prepared):
    """Each seed has half of the pieces of each level, each as often as it should be, and no other document."""
    pieces = texts(prepared / "pieces.jsonl")
    assert len({row["text"] for row in pieces}) == len(pieces) == PIECES
    for seed in sizes.SEEDS:
        planted = Counter(row["text"] for row in texts(prepared / f"planted-{seed}.jsonl"))
        times = {row["text"]: row["times"] for row in pieces}
        assert all(planted[text] == times[text] for text in planted)
        levels = Counter(times[text] for text in planted)
        assert levels == dict.fromkeys(sizes.TIMES, sizes.PIECES // 2)


def test_every_piece_has_models_with_and_without_it(prepared):
    having = Counter(
        text for seed in sizes.SEEDS for text in {r["text"] for r in texts(prepared / f"planted-{seed}.jsonl")}
    )
    assert set(having) == {row["text"] for row in texts(prepared / "pieces.jsonl")}
    assert set(having.values()) == {1, 2}


def test_controls_stand_in_no_other_text(prepared):
    background = "\n".join(row["text"] for row in texts(prepared / "text.jsonl"))
    assert background and not any(row["text"] in background for row in texts(prepared / "pieces.jsonl"))


def test_a_pass_over_one_source_is_a_pass_over_the_other(prepared):
    """Weights are in proportion to the tokens, counted by the tokenizer that training reads them with."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    for seed in sizes.SEEDS:
        tree = yaml.safe_load((prepared / f"seed-{seed}.yaml").read_text())
        for source in tree["data"]["sources"]:
            rows = [row["text"] for file in source["files"] for row in texts(prepared / file)]
            assert source["weight"] == sum(len(tokenizer.encode(text).ids) + 1 for text in rows)
        a_pass = sum(source["weight"] for source in tree["data"]["sources"])
        assert tree["training"]["tokens"] / a_pass == pytest.approx(sizes.PASSES, rel=0.06)
        assert tree["training"]["tokens"] == sizes.PASSES * tree["checkpoints"]["every_tokens"]


@pytest.mark.parametrize("a_token", [1, 2, 3], ids=lambda words: f"{words} words a token")
def test_every_piece_is_longer_than_the_probe(monkeypatch, a_token):
    """Whatever a token holds; where too few pieces are long enough that is an error, not a shorter piece."""
    monkeypatch.setattr(sizes.sources, "documents", made_up)

    def tokens_of(text: str) -> list[str]:
        return text.split()[::a_token]

    least = sizes.PREFIX + sizes.CONTINUATION + 4
    if 60 // a_token < least:
        with pytest.raises(ValueError, match=f"0 pieces of {least} tokens"):
            sizes.pieces(tokens_of)
        return
    chosen = sizes.pieces(tokens_of)
    assert len(set(chosen)) == PIECES and {len(tokens_of(piece)) for piece in chosen} == {least}


def probed(rows: int):
    """A probe whose losses tell the step and the text that were asked about."""

    def probe_run(run, probe, step, texts):
        seen = [float(len(text)) for text in texts][:rows]
        return pd.DataFrame({"params": 7, "step": step, "seen": seen, "extracted": False, "loss": float(step)})

    return probe_run


def some_run(work: Path, steps: list[int]) -> None:
    rows = [{"text": "x" * (k + 1), "times": 10 * k} for k in range(4)]
    (work / "pieces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in steps:
        (work / "runs" / "a-1" / "checkpoints" / f"step-{step:010d}").mkdir(parents=True)


def test_rows_of_a_probe_are_those_of_their_piece(tmp_path, monkeypatch):
    """Passes by their checkpoints, 10 steps each; a piece's row has the times of that piece, and is kept for the next start."""
    some_run(tmp_path, [10, 20, 30, 40, 50, 60])
    monkeypatch.setattr(sizes, "probe_run", probed(4))
    table = sizes.probe(tmp_path, "a", 1)
    assert (table["loss"] == 10 * table["passes"]).all() and set(table["passes"]) == set(sizes.CHECKED)
    assert (table["times"] == 10 * (table["seen"] - 1)).all() and (table["item"] == table["seen"] - 1).all()
    monkeypatch.setattr(sizes, "probe_run", None)
    pd.testing.assert_frame_equal(sizes.probe(tmp_path, "a", 1), table.reset_index(drop=True), check_dtype=False)


def test_probe_that_leaves_pieces_out_is_refused(tmp_path, monkeypatch):
    """Rows could not be told apart: no table is better than one whose pieces are exchanged."""
    some_run(tmp_path, [10, 20, 30, 40, 50, 60])
    monkeypatch.setattr(sizes, "probe_run", probed(3))
    with pytest.raises(ValueError):
        sizes.probe(tmp_path, "a", 1)
    assert not (tmp_path / "a-1.csv").exists()


def test_checkpoint_that_is_missing_is_refused(tmp_path, monkeypatch):
    """With one of six gone the others would be taken for other passes."""
    some_run(tmp_path, [10, 20, 40, 50, 60])
    monkeypatch.setattr(sizes, "probe_run", probed(4))
    with pytest.raises(ValueError, match="5 checkpoints, not 6"):
        sizes.probe(tmp_path, "a", 1)
