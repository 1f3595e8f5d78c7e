"""W&B's offline runs as logs: the file's framing by a writer of our own, and the real client's file."""

import struct
import time

import numpy as np
import pytest

from emergence_train import cli
from emergence_train.analysis.logs import format_of
from emergence_train.analysis.logs.wandb_offline import BLOCK, HEADER, read_offline, records
from emergence_train.errors import InputError


def framed(contents: list[bytes]) -> bytes:
    """A log of LevelDB's form: records in pieces that do not cross blocks; checksums are not written."""
    data = bytearray(b":W&B\x00\x00\x00")
    for content in contents:
        begun = False
        while True:
            left = BLOCK - len(data) % BLOCK
            if left < HEADER:
                data += bytes(left)
                continue
            piece, content = content[: left - HEADER], content[left - HEADER :]
            kind = {(False, True): 1, (False, False): 2, (True, False): 3, (True, True): 4}[begun, not content]
            data += struct.pack("<IHB", 0, len(piece), kind) + piece
            begun = True
            if not content:
                break
    return bytes(data)


def test_records_of_any_length_are_read_back():
    rng = np.random.default_rng(0)
    lengths = [1, 5, BLOCK - 2 * HEADER, BLOCK, 3 * BLOCK + 11, 7, *rng.integers(1, BLOCK, 20).tolist()]
    contents = [rng.bytes(length) for length in lengths]
    data = framed(contents)
    assert list(records(data)) == contents
    for cut in (1, 50, BLOCK + 3):
        read = list(records(data[:-cut]))
        assert read == contents[: len(read)] and len(read) < len(contents)
    assert list(records(data[:3])) == []


def test_a_file_without_a_history_is_one_line(tmp_path):
    (tmp_path / "run.wandb").write_bytes(framed([b"\xff\xff no protocol buffer"]))
    with pytest.raises(InputError, match="hold no history; name a run"):
        read_offline(tmp_path)


@pytest.mark.slow
def test_two_starts_of_the_real_client_are_one_run(tmp_path, monkeypatch, capsys):
    """What was logged is what is read; the second start has logged 5 steps again, and stands for them."""
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    losses = {step: 2 + 3 * step**-0.4 for step in range(1, 121)}
    for first, last in ((1, 60), (56, 120)):
        run = wandb.init(mode="offline", dir=str(tmp_path), project="p", name="mine", id="abc")
        for step in range(first, last + 1):
            values = {"train/global_step": step, "train/loss": losses[step], "train/learning_rate": 1e-3}
            run.log(values | {"nested": {"tokens": 1000 * step}})
        run.finish()
    until = time.monotonic() + 30  # the client's own process may write on after finish()
    while len(read_offline(tmp_path)[0].rows) < 60 + 65 and time.monotonic() < until:
        time.sleep(0.2)
    assert format_of(tmp_path) == "wandb"
    (log,) = read_offline(tmp_path)
    assert log.name == "mine" and len(log.rows) == 60 + 65
    assert (
        cli.main(["analyze", "temporal", str(tmp_path), "--fit-fraction", "0.5", "--tokens-per-step", "1000", "--json"])
        == 0
    )
    out = capsys.readouterr().out
    assert '"run": "mine"' in out
    curve = read_offline(tmp_path)[0].rows
    assert {int(s): float(v) for s, v in zip(curve["train/global_step"], curve["train/loss"])} == losses
