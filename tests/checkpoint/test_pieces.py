"""The index of a checkpoint's pieces: the same elements as by the headers, from no more files than hold them."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from test_checkpoint_format import make

from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint.format import STATE, problems, write_tensors
from emergence_train.checkpoint.pieces import COLUMNS, INDEX
from emergence_train.checkpoint.shards import Shards
from emergence_train.errors import InputError
from faults.comparing import compare
from support import command


def indexed(tmp_path, world: int, size: int, index: tuple | None = None):
    """A checkpoint of `make` with an index, or with `index` as the content of that."""
    path = make(tmp_path, world=world, size=size)
    entries = [entry for entry in checkpoints.manifest(path) if entry["file"] != STATE]
    plain = Shards(path)
    held = {entry["file"]: plain._held(entry["file"]) for entry in entries}
    entries.append(checkpoints.write_index(path, held) if index is None else write_tensors(path / INDEX, *index))
    checkpoints.write_manifest(path, 4, [*entries, files.describe(path, path / STATE)])
    return path, held


@pytest.mark.parametrize("world", [1, 3, 7])
def test_elements_are_those_by_the_headers(tmp_path, world):
    path, held = indexed(tmp_path, world, 22)
    assert not problems(path)
    by_index = Shards(path)
    assert by_index.kinds == ["exp_avg", "weights"] and by_index.index.others == {"positions": sorted(held)}
    for start in range(22):
        for count in range(1, 23 - start):
            expected = torch.arange(start, start + count) * 1.0
            assert by_index.read("weights", "w", start, count).equal(expected)
            assert by_index.read("exp_avg", "w", start, count).equal(-expected)
    assert not by_index.holds("weights", "w", 20, 3) and not by_index.holds("weights", "other", 0, 1)
    with pytest.raises(InputError, match="holds 2 of 3 elements"):
        by_index.read("weights", "w", 20, 3)


def test_a_reader_opens_what_it_needs(tmp_path, monkeypatch):
    """Of 40 shards with 5 elements each, saved by as many ranks: what one of 39 ranks needs lies in at most 3."""
    path, _ = indexed(tmp_path, 40, 200)
    opened = []
    spy = "emergence_train.checkpoint.shards.safe_open"
    monkeypatch.setattr(spy, lambda place, kind: opened.append(place.name) or safe_open(place, kind))
    each = -(-200 // 39)
    for rank in range(34):  # the later ones have none
        opened.clear()
        start = rank * each
        shards = Shards(path)
        assert opened == [], "the index alone"
        wanted = torch.arange(start, min(200, start + each)) * 1.0
        for kind, sign in (("weights", 1), ("exp_avg", -1)):
            assert shards.read(kind, "w", start, len(wanted)).equal(sign * wanted)
        first, last = start // 5, (start + len(wanted) - 1) // 5
        assert opened == [checkpoints.shard_name(number, 40) for number in range(first, last + 1)]
    opened.clear()
    [own] = Shards(path).each("positions", checkpoints.shard_name(7, 40))
    assert own[0, 0] == 7 and opened == [checkpoints.shard_name(7, 40)]


GOOD = {"files": ["shard-00000-of-00001.safetensors"], "names": ["weights|w"], "others": {}}


@pytest.mark.parametrize(
    ("rows", "names", "line"),
    [
        ([[0], [0], [0], [11]], {}, "does not hold what pieces.index says"),
        ([[0], [0], [1], [9]], {}, "holds 0 of 10 elements"),
        ([[1], [0], [0], [10]], {}, "does not name"),
        ([[0], [1], [0], [10]], {}, "does not name"),
        ([[0], [0], [-1], [11]], {}, "numbers that no piece has"),
        ([[0], [0], [2**62], [2**62]], {}, "numbers that no piece has"),
        ([[0], [0], [0], [10]], {"files": ["../x.safetensors"]}, "not of this checkpoint"),
        ([[0], [0], [0], [10]], {"others": {"positions": ["y"]}}, "not of this checkpoint"),
        ([[0], [0], [0], [10]], {"names": None}, "says nothing of"),
        ([[0], [0], [0], [10]], {"names": 3}, "cannot be read"),
        ([[0], [0], [0], [5, 5]], {}, "several lengths"),
        ([[[0]], [[0]], [[0]], [[10]]], {}, "numbers that no piece has"),
    ],
)
def test_an_index_that_no_checkpoint_has_is_one_line(tmp_path, rows, names, line):
    """Its checksum is right."""
    content = {key: value for key, value in (GOOD | names).items() if value is not None}
    tensors = {name: torch.tensor(row) for name, row in zip(COLUMNS, rows)}
    path, _ = indexed(tmp_path, 1, 10, (tensors, {key: json.dumps(value) for key, value in content.items()}))
    with pytest.raises(InputError, match=line):
        Shards(path).read("weights", "w", 0, 10)


@pytest.mark.slow
def test_a_run_writes_one_and_resumes_by_it(config_file, tmp_path):
    """Saved by two ranks at ZeRO-3, resumed by one at ZeRO-1; and by another without the index, as from an older version."""
    over = ["training.schedule.kind=constant", "checkpoints.keep_last=9"]
    first = command("train", str(config_file), *over, "training.zero_stage=3", "training.tokens=1024", processes=2)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "runs" / "run"
    shutil.copytree(run, tmp_path / "older" / "run")
    shards = Shards(run / "checkpoints" / "step-0000000004")
    assert shards.index.files == [checkpoints.shard_name(rank, 2) for rank in range(2)]
    assert shards.kinds == ["exp_avg", "exp_avg_sq", "weights"] and not shards.opened
    old = tmp_path / "older" / "run" / "checkpoints" / "step-0000000004"
    checkpoints.write_manifest(old, 4, [entry for entry in checkpoints.manifest(old) if entry["file"] != INDEX])
    (old / INDEX).unlink()
    for where in ("runs", "older"):
        done = command("train", str(config_file), *over, f"out={tmp_path / where}")
        assert done.returncode == 0 and "resuming from step 4" in done.stdout, done.stderr
    compare(run, tmp_path / "older" / "run")
