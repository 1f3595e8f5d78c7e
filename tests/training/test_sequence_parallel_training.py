"""Ranks that share sequences train as one process does: losses, gradient norms and the sums of every position."""

import numpy as np
import pytest
import yaml

from emergence_train import config
from emergence_train.errors import InputError
from emergence_train.recorder import tables
from faults.comparing import compare
from support import command, metrics, run_python

# Grouped queries, of whose two key heads four ranks have copies; all that looks at positions or at heads; a task.
OVER = [
    *("model.width=64", "model.heads=8", "model.kv_heads=2", "model.ffn=48"),
    "model.attention={softcap: 20, sinks: true, bias: alibi}",
    *("training.document_mask=true", "training.z_loss=0.001", "training.micro_batch=1", "training.threads=1"),
    "training.position_weights={head: 2, body: 1, tail: 0}",
    "tasks=[{task: copying, items: 8}]",
]
STOP = """
import sys
from emergence_train import config
from emergence_train.parallel.ranks import leave
from emergence_train.training.run import train
train(config.load(sys.argv[1], sys.argv[2:]), lambda line: None, stop_after=6)
leave(0)
"""


def trained(config_file, tmp_path, name: str, *over: str, processes: int = 0):
    done = command("train", str(config_file), *OVER, *over, f"name={name}", processes=processes)
    assert done.returncode == 0, done.stderr
    return tmp_path / "runs" / name


def assert_equal(run, alone) -> None:
    """Losses and gradient norms of every step, sums of every position and split, tasks; counts exactly. The bounds are some ten
    times the largest differences in benchmarks/results/cpu/sequence_parallel.json."""
    mine, theirs = metrics(run), metrics(alone)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    assert [row["loss"] for row in mine] == pytest.approx([row["loss"] for row in theirs], rel=3e-7)
    assert [row["grad_norm"] for row in mine] == pytest.approx([row["grad_norm"] for row in theirs], rel=5e-5)
    for row, other in zip(metrics(run, "evaluation"), metrics(alone, "evaluation"), strict=True):
        assert row["value"] == pytest.approx(other["value"], rel=2e-5)
    keys = ["step", "split", "position"]
    mine, theirs = (tables.read(tables.POSITIONS, each).sort_values(keys) for each in (run, alone))
    for column in (*keys, "count"):
        assert mine[column].tolist() == theirs[column].tolist(), column
    for column in ("loss_sum", "loss_sq_sum"):
        np.testing.assert_allclose(mine[column], theirs[column], rtol=3e-6, err_msg=column)


def test_two_ranks_a_sequence_train_as_one(config_file, tmp_path):
    short = "training.tokens=1536"
    alone = trained(config_file, tmp_path, "alone", short)
    run = trained(config_file, tmp_path, "shared", short, "training.sequence_parallel=2", processes=2)
    assert_equal(run, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "ranks", "processes"), [(3, 2, 8), (3, 4, 8), (0, 2, 4), (1, 4, 4), (2, 2, 2)])
def test_eight_processes_train_as_one(config_file, tmp_path, stage, ranks, processes):
    alone = trained(config_file, tmp_path, "alone")
    split = [f"training.sequence_parallel={ranks}", f"training.zero_stage={stage}"]
    if stage == 2:
        split.append("training.activation_checkpointing=full")
    assert_equal(trained(config_file, tmp_path, "shared", *split, processes=processes), alone)


@pytest.mark.slow
def test_bf16_follows_float32(config_file, tmp_path):
    alone = trained(config_file, tmp_path, "alone")
    over = ["training.precision=bf16", "training.sequence_parallel=2", "training.activation_checkpointing=selective"]
    run = trained(config_file, tmp_path, "shared", *over, processes=2)
    mine, theirs = ([row["loss"] for row in metrics(each)] for each in (run, alone))
    assert mine == pytest.approx(theirs, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "processes"), [(1, 2), (3, 4)])
def test_a_stop_and_a_start_leave_no_trace(config_file, tmp_path, stage, processes):
    """Stopped between checkpoints and started again, a run's logs equal the uninterrupted run's, bit for bit."""
    split = ["training.sequence_parallel=2", f"training.zero_stage={stage}"]
    whole = trained(config_file, tmp_path, "whole", *split, processes=processes)
    (tmp_path / "stop.py").write_text(STOP)
    given = [str(config_file), *OVER, *split, "name=parts"]
    assert run_python(str(tmp_path / "stop.py"), *given, processes=processes).returncode == 0
    compare(whole, trained(config_file, tmp_path, "parts", *split, processes=processes))


@pytest.mark.slow
def test_a_resumed_run_may_be_split_otherwise(config_file, tmp_path):
    """A state saved between tables, by 4 processes of which 2 share a sequence, then by 1, then by 2."""
    alone = trained(config_file, tmp_path, "alone")
    (tmp_path / "stop.py").write_text(STOP)
    often = "checkpoints.state_tokens=512"  # every second step, so step 6 lies between two tables
    given = [str(config_file), *OVER, often, "name=parts", "training.sequence_parallel=2", "training.zero_stage=3"]
    assert run_python(str(tmp_path / "stop.py"), *given, processes=4).returncode == 0
    run = trained(
        config_file, tmp_path, "parts", often, "training.zero_stage=1", "training.sequence_parallel=2", processes=2
    )
    assert_equal(run, alone)


@pytest.mark.parametrize(
    ("over", "line"),
    [
        ("training.sequence_parallel=3", "data.sequence 32 is not a multiple of it"),
        ("training.sequence_parallel=4", "model.heads 2 is not a multiple of it"),
        ("training={sequence_parallel: 2, compile: true}", "set training.compile false"),
        ("training.sequence_parallel=0", "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_split_is_refused(config_file, over, line):
    overrides = [over]
    if over.startswith("training={"):
        overrides = ["training.sequence_parallel=2", "training.compile=true"]
    with pytest.raises(InputError, match=line):
        config.load(config_file, overrides)


def test_processes_that_do_not_fill_groups_are_refused(config_file):
    tree = yaml.safe_load(config_file.read_text())
    tree["training"]["sequence_parallel"] = 2
    config_file.write_text(yaml.safe_dump(tree))
    done = command("train", str(config_file))
    assert done.returncode == 2
    assert "training.sequence_parallel 2 does not divide 1 processes" in done.stderr, done.stderr
