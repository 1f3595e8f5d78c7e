"""Options of ZeRO: what DeepSpeed is given, what is refused, and that they change no loss."""

import math

import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

from emergence_train import cli, config
from emergence_train.checkpoint.format import read_state
from emergence_train.checkpoint.shards import Shards
from emergence_train.errors import InputError
from emergence_train.parallel.mesh import data_parallel
from emergence_train.run_differences import VOLATILE
from emergence_train.training.engine import deepspeed_config
from emergence_train.training.startup import resolve
from support import command, metrics, run_python

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


@pytest.mark.parametrize(
    ("wrong", "line", "right"),
    [
        (
            ["offload_param=nvme"],
            "a rank's weights cannot be on NVMe, the optimizer's state can; give cpu",
            ["offload_param=cpu"],
        ),
        (["offload_optimizer=nvme"], "need one another; set both", ["offload_optimizer=nvme", "nvme_path=disk"]),
        (["nvme_path=disk"], "need one another; set both", []),
    ],
)
def test_nvme_by_halves_is_refused_at_once(config_file, wrong, line, right, capsys):
    """By `train` and `plan` alike; what the line says to give is taken."""
    over = ["training.zero_stage=3", "training.zero.offload_optimizer=cpu"]
    wrong, right = ([*over, *(f"training.zero.{option}" for option in options)] for options in (wrong, right))
    for command_line in (["train", str(config_file)], ["plan", str(config_file), "--gpus", "1", "--gpu", "h100-80gb"]):
        assert cli.main([*command_line, *wrong]) == 2
        (printed,) = capsys.readouterr().err.splitlines()
        assert line in printed
    config.load(config_file, right)


def test_nvme_of_stage_2_is_refused(config_file):
    with pytest.raises(InputError, match="nvme is of stage 3, not 2"):
        config.load(
            config_file, ["training.zero_stage=2", "training.zero.offload_optimizer=nvme", "training.zero.nvme_path=x"]
        )


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


# Groups of 200,000 elements: some are swapped, those of less than a megabyte a rank are not.
SMALL_GROUPS = """
from emergence_train import cli
from emergence_train.training import engine
engine.NVME_GROUP = 200_000
cli.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_states_on_nvme_are_those_in_memory(config_file, tmp_path, processes):
    """Half of the steps, a resumed run, then stage 2 without NVMe from its state: losses and moments of a run that kept all in
    memory. Compiles DeepSpeed's async_io where that was not done."""
    if not AsyncIOBuilder().is_compatible():
        pytest.skip("no libaio here")
    shape = [
        "model.width=256",
        "model.heads=4",
        "model.ffn=512",
        "training.schedule.lr=1e-3",
        "training.schedule.kind=constant",
    ]
    over = [*shape, "training.zero_stage=3", "training.micro_batch=1", f"training.zero.nvme_path={tmp_path / 'disk'}"]
    over += ["training.zero.offload_optimizer=nvme", "name=run"]
    memory = [*shape, "training.zero_stage=3", "training.micro_batch=1", "name=memory"]
    options = {"processes": processes, "timeout": 1200, "fresh": True}
    script = tmp_path / "small_groups.py"
    script.write_text(SMALL_GROUPS)
    kept = command("train", str(config_file), *memory, **options)
    half = run_python(str(script), "train", str(config_file), *over, "training.tokens=1024", **options)
    more = run_python(str(script), "train", str(config_file), *over, "training.tokens=2048", **options)
    assert kept.returncode == half.returncode == more.returncode == 0, kept.stderr + half.stderr + more.stderr
    assert "resuming from step 4" in more.stdout and not list((tmp_path / "disk").rglob("*"))
    mine, theirs = (saved(tmp_path / "runs" / name, 8) for name in ("run", "memory"))
    assert mine.keys() == theirs.keys() and any(key.startswith("exp_avg_sq|") for key in mine)
    for key, piece in mine.items():  # a norm is summed in another order: 4e-6 after 8 steps
        assert torch.allclose(piece, theirs[key], rtol=0, atol=2e-5 * float(theirs[key].abs().max())), key
    away = [*shape, "training.zero_stage=2", "name=run"]
    whole = command("train", str(config_file), *away, **options)
    assert whole.returncode == 0 and "resuming from step 8" in whole.stdout, whole.stderr
    mine, theirs = (metrics(tmp_path / "runs" / name) for name in ("run", "memory"))
    assert [row["loss"] for row in mine] == pytest.approx([row["loss"] for row in theirs], rel=3e-7)


def saved(run, step: int) -> dict[str, torch.Tensor]:
    """Every parameter and moment of a checkpoint, whole."""
    shards = Shards(run / "checkpoints" / f"step-{step:010d}")
    shapes = read_state(shards.path)["parameters"]
    return {
        f"{kind}|{name}": shards.read(kind, name, 0, math.prod(shape))
        for kind in shards.kinds
        for name, shape in shapes.items()
    }
