"""What a plan says of the host: against the tensors of real engines, and by hand."""

import json

import pytest

from emergence_train import cli
from emergence_train.models.devices import GPUS
from emergence_train.planning.offload import offload_cost
from support import ROOT, run_python

WORKER = ROOT / "tests" / "planning" / "offload_worker.py"
CONFIG = str(ROOT / "configs" / "loss-paper-300m.yaml")
HOST = GPUS["h100-80gb"].host


def plan(capsys, *arguments: str) -> dict:
    assert cli.main(["plan", CONFIG, "--gpu", "h100-80gb", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_host_memory_is_that_of_real_engines(config_file, tmp_path):
    """Two processes; one, two and four micro-batches. Within 2%: partitions are padded."""
    done = run_python(str(WORKER), str(config_file), str(tmp_path / "held.json"), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "held.json").read_text())
    assert len(rows) == 18
    for stage, precision, rounds, weights, held in rows:
        size = 2 if precision == "bf16" else 4
        cost = offload_cost(10**6, size, stage, 2, rounds, 2, HOST, weights=weights)
        for kind, bytes_a_parameter in held.items():
            case = (stage, precision, rounds, weights, kind)
            # Stage 2 keeps the gradients of every parameter of which it updates a part, whole.
            most = 0.5 if (stage, kind) == (2, "gradients") and rounds > 1 else 0.02
            assert getattr(cost, kind) / 1e6 == pytest.approx(bytes_a_parameter, rel=most), case


def test_offloading_moves_bytes_from_the_gpu_to_the_host(capsys):
    over = ("--gpus", "8", "model.preset=6b", "training.micro_batch=1", "training.zero_stage=3")
    plain = plan(capsys, *over)
    state = plan(capsys, *over, "training.zero.offload_optimizer=cpu")
    both = plan(capsys, *over, "training.zero.offload_optimizer=cpu", "training.zero.offload_param=cpu")
    own = plain["parameters"] / 8
    assert plain["host_memory_per_gpu"]["total"] == 0 and plain["step_seconds_by"]["offload"] == 0
    assert state["host_memory_per_gpu"]["optimizer"] == pytest.approx(12 * own) == plain["memory_per_gpu"]["optimizer"]
    assert state["host_memory_per_gpu"]["gradients"] == pytest.approx(8 * own)
    assert state["memory_per_gpu"]["optimizer"] == state["memory_per_gpu"]["gradients"] == 0
    assert both["host_memory_per_gpu"]["weights"] == pytest.approx(2 * own) == plain["memory_per_gpu"]["weights"]
    assert both["memory_per_gpu"]["weights"] == 0
    assert plain["memory_needed"] > state["memory_needed"] > both["memory_needed"]
    assert plain["step_seconds"] < state["step_seconds"] < both["step_seconds"]


def test_state_on_nvme_leaves_buffers_on_the_host_by_hand(capsys):
    """32B on 8 GPUs: state of 12 bytes and gradients of 4 for each of 4e9 parameters on the disk, written and read once a step;
    of the host five buffers of 0.1e9 elements, and float32 gradients between micro-batches."""
    over = ("--gpus", "8", "model.preset=32b", "training.micro_batch=1", "training.zero_stage=3")
    memory, disk = (
        plan(capsys, *over, *(f"training.zero.{option}" for option in options))
        for options in (["offload_optimizer=cpu"], ["offload_optimizer=nvme", "nvme_path=disk"])
    )
    own, host = memory["parameters"] / 8, disk["host_memory_per_gpu"]
    assert host["on_disk"] == host["from_disk"] == host["to_disk"] == 16 * own
    assert (host["optimizer"], host["gradients"]) == (2e9, 4 * own)
    assert disk["memory_per_gpu"] == memory["memory_per_gpu"]
    assert disk["step_seconds"] - memory["step_seconds"] == pytest.approx(32 * own / (0.8 * 7.9e9))


def test_seconds_are_transfers_and_an_update_by_hand():
    """1.6e9 parameters in bf16 on one GPU, one micro-batch, stage 2: 4 bytes down and 2 up over PCIe at 0.8 x 64 GB/s; the update
    moves 12 + 16 + 8 + 6 bytes of host memory at half of 76.8 GB/s."""
    cost = offload_cost(1_600_000_000, 2, 2, 1, 1, 2, HOST, weights=False)
    assert (cost.to_host, cost.to_gpu) == (6.4e9, 3.2e9)
    assert cost.seconds == pytest.approx(9.6 / 51.2 + 1.6 * 42 / 38.4)
    again = offload_cost(1_600_000_000, 2, 2, 1, 3, 2, HOST, weights=False)
    assert (again.to_host, again.to_gpu) == (6.4e9 + 3 * 3.2e9, 3.2e9 + 2 * 3.2e9)


def test_a_host_that_is_too_small_does_not_fit(capsys):
    over = ("--gpus", "1", "model.preset=32b", "training.zero_stage=3", "training.micro_batch=1")
    over += ("training.zero.offload_optimizer=cpu", "training.zero.offload_param=cpu")
    refused = plan(capsys, *over)
    assert refused["host_memory_per_gpu"]["total"] > refused["host_memory_per_gpu"]["limit"] and not refused["fits"]
    applied = plan(capsys, *over, *refused["suggestion"].split())
    assert applied["fits"]


def test_the_table_says_what_is_on_the_host_and_unmeasured(capsys):
    over = ["--gpus", "8", "--gpu", "a100-80gb", "model.preset=1b", "training.micro_batch=1", "training.zero_stage=2"]
    assert cli.main(["plan", CONFIG, *over, "training.zero.offload_optimizer=cpu"]) == 0
    shown = capsys.readouterr().out
    assert "GiB of the host a GPU" in shown and "their time is unmeasured" in shown
    assert cli.main(["plan", CONFIG, *over]) == 0
    assert "host" not in capsys.readouterr().out


def test_hierarchical_partitions_pay_where_links_are_slow(capsys):
    over = ("--gpus", "64", "model.preset=32b", "training.zero_stage=3", "training.micro_batch=1", "data.sequence=512")
    plain = plan(capsys, *over)
    shared = plan(capsys, *over, "training.zero.hpz_partition_size=8")
    assert shared["inside_bytes_per_step"] > 0 == plain["inside_bytes_per_step"]
    assert shared["step_seconds_by"]["exposed"] < plain["step_seconds_by"]["exposed"]
    extra = shared["memory_per_gpu"]["weights"] - plain["memory_per_gpu"]["weights"]
    assert extra == pytest.approx(2 * plain["parameters"] / 8)
