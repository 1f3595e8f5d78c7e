"""The flight recorder: NCCL's settings before it starts, and the record."""

import os
import pickle
from pathlib import Path

import pytest

from emergence_train.faults import flight_recorder
from support import run_python

NAMES = (
    "TORCH_FR_BUFFER_SIZE",
    "TORCH_FR_DUMP_TEMP_FILE",
    "TORCH_NCCL_DUMP_ON_TIMEOUT",
)


@pytest.fixture
def environment(monkeypatch):
    """None of the variables is set before the test, nor after it."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_nothing_is_set_without_nccl(environment, tmp_path):
    flight_recorder.prepare(tmp_path, nccl=False)
    assert not set(NAMES) & set(os.environ)


def test_nccl_writes_into_the_run_directory_by_default(environment, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "9")
    monkeypatch.chdir(tmp_path)
    flight_recorder.prepare(Path("runs/run"), nccl=True)
    path = str(tmp_path / "runs" / "run" / "stacks" / "flight-")
    assert [os.environ[name] for name in NAMES] == ["9", path, "1"]


def test_a_record_holds_the_collectives_and_a_failure_is_none(tmp_path):
    script = """
import sys; from pathlib import Path
import torch, torch.distributed as dist
from emergence_train.faults import flight_recorder
flight_recorder.SECONDS = 60.0  # a machine with other work may take longer than a run would wait
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.all_reduce(torch.ones(3))
run = Path(sys.argv[1])
print(flight_recorder.write(run, 7, nccl=False), flight_recorder.write(run / "not" / "there", 7, nccl=False))
"""
    (tmp_path / "script.py").write_text(script)
    done = run_python(str(tmp_path / "script.py"), str(tmp_path))
    assert done.stdout.split() == [str(tmp_path / "stacks" / "flight-7"), "None"], done.stderr
    entries = pickle.loads((tmp_path / "stacks" / "flight-7").read_bytes())["entries"]
    assert [entry["profiling_name"] for entry in entries] == ["gloo:all_reduce"]
