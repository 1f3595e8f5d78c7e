"""training.micro_batch auto: what is chosen, that a resumed run keeps it, and what a rank without memory says."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
import yaml

from emergence_train.config import Training
from emergence_train.errors import InputError
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.models.presets import PRESETS
from emergence_train.run_differences import VOLATILE
from emergence_train.training import auto_micro_batch
from emergence_train.training.auto_micro_batch import Device, choose
from support import command, run_python

H100, A100 = Device(84_929_478_656, 9), Device(42_405_855_232, 8)  # of 80 and of 40 GB
MODEL = DecoderConfig(**PRESETS["468m"])


def training(**changes) -> Training:
    schedule = {"kind": "constant", "lr": 0.001}
    return Training.model_validate({"tokens": 1, "batch": 64, "micro_batch": "auto", "schedule": schedule} | changes)


@pytest.mark.parametrize(
    ("device", "ranks", "changes", "chosen"),
    [
        (H100, 1, {}, 64),  # 65.9 GiB were measured
        (H100, 1, {"batch": 128}, 64),
        (H100, 1, {"batch": 120}, 60),
        (H100, 8, {}, 8),
        (A100, 1, {}, 16),  # 23.6 GiB were measured of 16, 37.6 of 32
        (A100, 1, {"activation_checkpointing": "selective"}, 32),
        (A100, 1, {"activation_checkpointing": "full"}, 64),
        (H100, 1, {"batch": 67}, 67),
        (H100, 1, {"batch": 79}, 1),  # a prime number
        (None, 1, {}, 2),
    ],
)
def test_largest_divisor_that_fits(device, ranks, changes, chosen, tmp_path):
    assert choose(training(**changes), MODEL, 1024, ranks, device, tmp_path)[0] == chosen


def test_the_smallest_of_different_gpus_counts(monkeypatch):
    """A process without one, as a rank on a CPU, does not."""
    monkeypatch.setattr(auto_micro_batch, "all_gather_objects", lambda own: [H100, None, A100, H100])
    mesh = SimpleNamespace(device=torch.device("cpu"))
    assert auto_micro_batch.smallest_device(mesh) == A100
    monkeypatch.setattr(auto_micro_batch, "all_gather_objects", lambda own: [None, None])
    assert auto_micro_batch.smallest_device(mesh) is None


@pytest.mark.parametrize("ranks, chosen", [(1, 2), (2, 4), (4, 8)])
def test_a_cpu_holds_its_part_of_a_sequence(ranks, chosen, tmp_path):
    """2,048 tokens at a time, of sequences of 1,024 that `ranks` share."""
    assert choose(training(sequence_parallel=ranks), MODEL, 1024, 1, None, tmp_path)[0] == chosen


def test_nothing_fits_is_said(tmp_path):
    chosen, line = choose(training(), DecoderConfig(**PRESETS["6b"]), 1024, 1, H100, tmp_path)
    assert chosen == 1 and line.endswith("it may not fit")
    with pytest.raises(InputError, match="64 is not a multiple of 3 processes"):
        choose(training(), MODEL, 1024, 3, H100, tmp_path)


@pytest.mark.parametrize(("ranks", "kept"), [(1, 4), (2, 32)])
def test_last_start_of_as_many_ranks_is_kept(ranks, kept, tmp_path):
    """64 sequences in 16 micro-batches of 4 on one rank; on two, which share the optimizer's 5.2 GiB, 32 fit."""
    settings = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 16, "train_batch_size": 64}
    (tmp_path / "deepspeed.json").write_text(json.dumps(settings))
    chosen, line = choose(training(), MODEL, 1024, ranks, A100, tmp_path)
    assert chosen == kept and line.endswith("its last start") == (ranks == 1)


STOP = """
import sys
from emergence_train import config
from emergence_train.training.run import train
train(config.load(sys.argv[1], sys.argv[2:]), print, stop_after=4)
"""


def test_resumed_run_keeps_its_bits(config_file, tmp_path):
    """Stopped and resumed with auto, and never stopped with the number that auto chose: the same losses, to the bit."""
    over = [
        "training.tokens=1536",
        "checkpoints.every_tokens=1024",
    ]
    (tmp_path / "stop.py").write_text(STOP)
    stopped = run_python(str(tmp_path / "stop.py"), str(config_file), *over, "training.micro_batch=auto")
    assert "micro_batch auto: 8 of the rank's 8 sequences\n" in stopped.stdout, stopped.stderr
    stored = yaml.safe_load((tmp_path / "runs" / "run" / "config.yaml").read_text())
    assert stored["training"]["micro_batch"] == 8, "resolved"
    again = command("train", str(config_file), *over, "training.micro_batch=auto")
    assert "8 sequences; as in its last start" in again.stdout and "resuming from step 4" in again.stdout, again.stderr
    whole = command("train", str(config_file), *over, "training.micro_batch=8", "name=whole")
    assert whole.returncode == 0, whole.stderr
    logs = [(tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines() for name in ("run", "whole")]
    losses = [[row["loss"] for row in map(json.loads, lines) if row["kind"] == "train"] for lines in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 6


FULL = """
import sys, torch
from emergence_train import cli
from emergence_train.training.step import Stepper
step = Stepper.__call__
def limited(self, *arguments):
    if self.samples.micro_batch > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 ...")
    return step(self, *arguments)
Stepper.__call__ = limited
sys.exit(cli.main(sys.argv[1:]))
"""


def test_out_of_memory_names_what_works(config_file, tmp_path):
    """Followed word for word, twice, until it fits: 8, 4, 2 sequences."""
    (tmp_path / "full.py").write_text(FULL)
    override = "training.micro_batch=8"
    for size in (8, 4):
        done = run_python(str(tmp_path / "full.py"), "train", str(config_file), "training.tokens=512", override)
        line = done.stderr.strip()
        assert done.returncode == 1 and len(line.splitlines()) == 1, done.stderr
        assert f"rank 0: the GPU's memory does not hold micro_batch {size}" in line
        override = re.search(r"run again with (\S+)$", line)[1]
    done = run_python(str(tmp_path / "full.py"), "train", str(config_file), "training.tokens=512", override)
    assert done.returncode == 0, done.stderr


def test_a_resume_may_change_checkpointing():
    """No gradient changes."""
    assert "training.activation_checkpointing" in VOLATILE


def test_training_knows_the_number_only_once_it_is_resolved():
    assert training(micro_batch=4.0).micro_batch_size == 4
    with pytest.raises(ValueError, match="the start of a run resolves it"):
        print(training().micro_batch_size)
