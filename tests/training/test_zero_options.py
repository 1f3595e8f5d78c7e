"""Options of ZeRO: what DeepSpeed is given, what is refused, and that they change no loss."""

import pytest
import torch

from emergence_train import cli, config
from emergence_train.errors import InputError
from emergence_train.parallel.mesh import data_parallel
from emergence_train.training.engine import deepspeed_config
from emergence_train.training.startup import VOLATILE, resolve
from support import command, metrics

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def zero_of(config_file, device, *over: str) -> dict:
    training = config.load(config_file, ["training.zero_stage=3", *over]).training
    return deepspeed_config(training, data_parallel(0, 2, 0, device), 1000)["zero_optimization"]


def test_options_reach_deepspeed_by_its_names(config_file):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    over = ["hpz_partition_size=2", "quantized_weights=true", "offload_optimizer=cpu", "offload_param=cpu"]
    zero = zero_of(config_file, GPU, *(f"training.zero.{key}" for key in over))
    read = DeepSpeedZeroConfig(**zero)
    assert read.zero_hpz_partition_size == 2 and read.zero_quantized_weights
    assert read.offload_optimizer.device == read.offload_param.device == "cpu" and read.offload_param.pin_memory
    assert not zero_of(config_file, CPU, "training.zero.offload_optimizer=cpu")["offload_optimizer"]["pin_memory"]
    unused = {"zero_hpz_partition_size", "zero_quantized_weights", "offload_optimizer", "offload_param"}
    assert not unused & zero_of(config_file, GPU).keys()
    assert "training.zero" in VOLATILE


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("quantized_weights=true", "DeepSpeed quantises on GPUs only; set it to false"),
        ("hpz_partition_size=3", "does not divide 2 processes; give the number of a node"),
    ],
)
def test_what_these_processes_cannot_do_is_one_line(config_file, option, line):
    loaded = config.load(config_file, ["training.zero_stage=3", f"training.zero.{option}"])
    with pytest.raises(InputError, match=line):
        resolve(loaded, data_parallel(0, 2, 0, CPU))
    assert resolve(config.load(config_file, ["training.zero_stage=3"]), data_parallel(0, 2, 0, CPU))


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
def test_nvme_is_refused_before_anything_begins(config_file, key, capsys):
    """By `train` and `plan` alike; what the line says to give is taken."""
    over = ["training.zero_stage=3", "training.zero.offload_optimizer=cpu"]
    for command_line in (["train", str(config_file)], ["plan", str(config_file), "--gpus", "1", "--gpu", "h100-80gb"]):
        assert cli.main([*command_line, *over, f"training.zero.{key}=nvme"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"training.zero.{key}: what DeepSpeed keeps on NVMe is not in a checkpoint; give cpu" in line
    config.load(config_file, [*over, f"training.zero.{key}=cpu"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "processes", "options"),
    [
        (3, 4, ["hpz_partition_size=2"]),
        (2, 2, ["offload_optimizer=cpu"]),
        (3, 2, ["offload_optimizer=cpu", "offload_param=cpu"]),
        (3, 4, ["hpz_partition_size=2", "offload_optimizer=cpu"]),
    ],
)
def test_losses_and_states_are_those_without(config_file, tmp_path, stage, processes, options):
    """On CPUs, where what is offloaded moves nowhere and all else of it runs; half of the steps, then a resumed run."""
    over = [f"training.zero.{option}" for option in options]
    over += [f"training.zero_stage={stage}", "training.micro_batch=1", "training.schedule.kind=constant", "name=run"]
    alone = command("train", str(config_file), "training.schedule.kind=constant", "name=alone")
    half = command("train", str(config_file), *over, "training.tokens=1024", processes=processes)
    whole = command("train", str(config_file), *over, processes=processes)
    assert alone.returncode == half.returncode == whole.returncode == 0, half.stderr + whole.stderr
    assert "extended" in whole.stdout and "resuming from step 4" in whole.stdout
    mine, theirs = (metrics(tmp_path / "runs" / name) for name in ("run", "alone"))
    assert [row["loss"] for row in mine] == pytest.approx([row["loss"] for row in theirs], rel=3e-7)
