"""The plan of a configuration: its parts add up, its suggestion fits, and it needs no torch."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from emergence_train import cli, config
from emergence_train.errors import InputError
from emergence_train.models.config import ModelConfig
from emergence_train.models.devices import GPUS
from emergence_train.planning.planner import plan_run
from support import ROOT

CONFIG = str(ROOT / "configs" / "loss-paper-300m.yaml")


def plan(capsys, *arguments: str) -> dict:
    assert cli.main(["plan", CONFIG, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_parts_of_the_plan_add_up(capsys):
    result = plan(capsys, "--gpus", "64", "--gpu", "h100-80gb", "model.preset=1b", "training.micro_batch=9")
    memory = result["memory_per_gpu"]
    assert memory["total"] == pytest.approx(sum(size for part, size in memory.items() if part != "total"))
    assert result["step_seconds"] == pytest.approx(sum(result["step_seconds_by"].values()))
    step_tokens = 1152 * 2048
    assert result["tokens_per_second"] * result["step_seconds"] == pytest.approx(step_tokens)
    assert result["steps"] == -(-67_000_000_000 // step_tokens)
    assert result["days"] * 86_400 == pytest.approx(result["steps"] * result["step_seconds"])
    assert result["gpu_hours"] == pytest.approx(64 * 24 * result["days"])
    assert result["micro_batches"] * 9 * 64 == 1152
    assert result["fits"] and result["suggestion"] is None
    # 16 blocks of 4 x 2048^2 x (1 + 1/4) / 2 and 3 x 2048 x 6912, two matrices of 65,024 x 2048, norms
    assert result["parameters"] == 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 6912) + 2 * 65_024 * 2048 + 33 * 2048


def test_another_kind_of_gpu_is_one_entry(monkeypatch, capsys):
    """Of one with twice all rates, its host's too, every step with the optimizer on the host takes half the time."""
    known = GPUS["a100-80gb"]
    host = replace(known.host, bandwidth=2 * known.host.bandwidth, pcie=2 * known.host.pcie)
    rates = {name: 2 * getattr(known, name) for name in ("bf16", "fp32", "bandwidth", "nvlink", "network")}
    monkeypatch.setitem(GPUS, "other", replace(known, host=host, **rates))
    over = ("--gpus", "16", "training.micro_batch=9", "training.zero_stage=2", "training.zero.offload_optimizer=cpu")
    usual, other = (plan(capsys, "--gpu", gpu, *over) for gpu in ("a100-80gb", "other"))
    for part, seconds in usual["step_seconds_by"].items():
        assert other["step_seconds_by"][part] == pytest.approx(seconds / 2), part
    assert usual["step_seconds_by"]["offload"] > 0 and other["memory_per_gpu"] == usual["memory_per_gpu"]


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(
    "over",
    [
        ("--gpus", "8", "model.preset=6b", "training.micro_batch=48"),
        ("--gpus", "64", "model.preset=32b", "training.zero_stage=2", "training.micro_batch=18"),
        ("--gpus", "1", "model.preset=1.5b", "training.micro_batch=64", "training.precision=fp32"),
        ("--gpus", "2", "model.preset=32b"),
        ("--gpus", "8", "model.preset=32b", "training.zero_stage=3", "training.zero.hpz_partition_size=8"),
    ],
    ids=lambda over: "-".join(over[1:3]),
)
def test_suggestion_fits_when_applied(capsys, gpu, over):
    """A later --gpus replaces the first."""
    refused = plan(capsys, "--gpu", gpu, *over)
    assert not refused["fits"] and refused["memory_needed"] > refused["memory_limit"]
    applied = plan(capsys, "--gpu", gpu, *over, *refused["suggestion"].split())
    assert applied["fits"], refused["suggestion"]
    assert applied["memory_needed"] <= 0.9 * GPUS[gpu].memory


def test_quantised_gathering_is_in_bytes_memory_and_time(capsys):
    """32B over 64 GPUs, one micro-batch of 18 sequences: 1e9 weights stay for the backward pass, the rest is gathered twice."""
    over = (
        "--gpus",
        "64",
        "--gpu",
        "h100-80gb",
        "model.preset=32b",
        "training.zero_stage=3",
        "training.micro_batch=18",
    )
    over += ("training.activation_checkpointing=full",)
    plain, quantized = plan(capsys, *over), plan(capsys, *over, "training.zero.quantized_weights=true")
    gathered = 2 * plain["parameters"] - 10**9
    less = 63 / 64 * gathered * (2 - 1 - 4 / 8000)
    assert plain["communication_bytes_per_step"] - quantized["communication_bytes_per_step"] == pytest.approx(less)
    # At once: 5e7 elements, or the largest weight, which has 65,024 rows of 6,656.
    more = quantized["memory_per_gpu"]["workspace"] - plain["memory_per_gpu"]["workspace"]
    assert more == 3 * 65_024 * 6656 and quantized["memory_needed"] - plain["memory_needed"] == more
    slower = quantized["step_seconds_by"]["traffic"] - plain["step_seconds_by"]["traffic"]
    assert slower == pytest.approx(gathered * 7 / (0.76 * 3.35e12))
    within = plan(capsys, *over, "training.zero.quantized_weights=true", "training.zero.hpz_partition_size=8")
    assert within["inside_bytes_per_step"] == pytest.approx(7 / 8 * (1 + 4 / 8000) * (gathered - plain["parameters"]))
    alone = ("--gpus", "1", *over[2:-1], "training.batch=18")
    assert plan(capsys, *alone) == plan(capsys, *alone, "training.zero.quantized_weights=true"), "nothing is gathered"


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (
            ["--gpus", "16", "--gpu", "h100-80gb", "training.zero_stage=3", "training.zero.hpz_partition_size=16"],
            "training.zero.hpz_partition_size 16 is more than the 8 GPUs of a node",
        ),
        (["--gpus", "16", "--gpu", "h100-80gb", "training.zero_stage=3", "training.zero.hpz_partition_size=8"], None),
        (["--gpus", "8", "--gpu", "a100-80gb", "training.linears=fp8"], "training.linears fp8: a100-80gb has no fp8"),
        (["--gpus", "8", "--gpu", "a100-80gb"], None),
        (["--gpus", "8", "--gpu", "h200-141gb", "training.linears=fp8"], None),
    ],
)
def test_what_does_not_pay_is_a_warning(capsys, arguments, warning):
    """In the JSON and below the table, one line with the key and what to give."""
    warnings = plan(capsys, *arguments)["warnings"]
    assert [line.startswith(warning) for line in warnings] == ([True] if warning else [])
    assert cli.main(["plan", CONFIG, *arguments]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert printed == [f"warning: {line}" for line in warnings]


def test_auto_takes_the_largest_that_fits(capsys):
    over = ("--gpus", "8", "--gpu", "h100-80gb", "model.preset=1b")
    chosen = plan(capsys, *over, "training.micro_batch=auto")["micro_batch"]
    larger = min(size for size in range(chosen + 1, 145) if 144 % size == 0)
    assert plan(capsys, *over, f"training.micro_batch={chosen}")["fits"]
    assert not plan(capsys, *over, f"training.micro_batch={larger}")["fits"]


def test_table_has_every_part(capsys):
    assert cli.main(["plan", CONFIG, "--gpus", "2", "--gpu", "a100-40gb", "model.preset=32b"]) == 0
    shown = capsys.readouterr().out
    assert "does not fit" in shown and "to fit, add: --gpus" in shown
    for part in ("weights", "gradients", "optimizer", "activations", "logits", "workspace", "products", "GPU hours"):
        assert part in shown


def test_a_laptops_model_has_digits(capsys):
    """A step of some tenths of a millisecond, a run of seconds: the numbers of --json in units that show them."""
    tiny = [str(ROOT / "configs" / "tiny.yaml"), "--gpus", "1", "--gpu", "h100-80gb", "model.vocab_size=512"]
    assert cli.main(["plan", *tiny, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert cli.main(["plan", *tiny]) == 0
    shown = capsys.readouterr().out
    total = next(line for line in shown.split("milliseconds a step")[1].splitlines() if "in all" in line)
    assert (
        float(total.split()[-1]) == pytest.approx(1000 * planned["step_seconds"], abs=5e-4) and planned["days"] < 0.01
    )
    assert f" steps: {86400 * planned['days']:.0f} s, {planned['gpu_hours']:.2g} GPU hours" in shown


def test_nothing_is_suggested_where_nothing_fits():
    tree = config.load(CONFIG, ["training.batch=1", "training.micro_batch=1", "model.preset=32b"])
    planned = plan_run(tree.training, tree.model, tree.data, 1, "a100-40gb")
    assert not planned.fits and planned.suggestion is None


class Other(ModelConfig):
    """A kind with sizes and no closed form of its activations."""

    def parameters(self) -> int:
        return 1000


def test_a_kind_without_closed_form_is_one_line():
    tree = config.load(CONFIG)
    with pytest.raises(InputError, match="model.kind other: has no closed form"):
        plan_run(tree.training, Other(kind="other", vocab_size=65_024), tree.data, 1, "h100-80gb")


@pytest.mark.parametrize("size", [320, 399, 400])
def test_a_vocabulary_is_no_smaller_than_its_tokenizers(size):
    """Before prepare, as train has it after."""
    tree = config.load(CONFIG, ["data.path=elsewhere", "data.tokenizer.vocab_size=400", f"model.vocab_size={size}"])
    arguments = tree.training, tree.model, tree.data, 8, "h100-80gb"
    if size == 400:
        assert plan_run(*arguments).parameters > 0
        return
    with pytest.raises(
        InputError, match=rf"model.vocab_size {size} is smaller than the tokenizer's 400 tokens \(data.tok"
    ):
        plan_run(*arguments)


def test_every_configuration_can_be_planned(capsys):
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        assert cli.main(["plan", str(path), "--gpus", "1", "--gpu", "h200-141gb", "--json"]) == 0, path.name
        assert json.loads(capsys.readouterr().out)["step_seconds"] > 0


def test_a_plan_needs_no_torch():
    """Importing it alone takes longer than the plan may."""
    code = (
        "import sys; from emergence_train import cli; "
        f"code = cli.main(['plan', {CONFIG!r}, '--gpus', '8', '--gpu', 'h100-80gb', '--json']); "
        "assert code == 0 and 'torch' not in sys.modules and 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "arguments", [["--gpus", "8"], ["--gpus", "0", "--gpu", "h100-80gb"], ["--gpus", "8", "--gpu", "v100"]]
)
def test_wrong_use_is_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", CONFIG, *arguments])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_sharing_sequences_divides_activations(capsys):
    """Long sequences on 8 GPUs: what is kept of a token is a little more, and each GPU has a quarter of the tokens."""
    long = ("--gpus", "8", "--gpu", "h100-80gb", "model.preset=1b", "data.sequence=32768", "model.max_sequence=32768")
    long += ("training.micro_batch=1", "training.zero_stage=3")
    whole, split = plan(capsys, *long), plan(capsys, *long, "training.sequence_parallel=4")
    assert split["micro_batches"] == 4 * whole["micro_batches"]
    ratio = split["memory_per_gpu"]["activations"] / whole["memory_per_gpu"]["activations"]
    assert 1 / 4 < ratio < 1.2 / 4
    assert split["memory_per_gpu"]["optimizer"] == whole["memory_per_gpu"]["optimizer"]
    sent = (
        3 / 4 * 16 * (2 * 2048 + 2 * 4 * 128) * 2 * 2 * (1152 * 32768 / 8)
    )  # 16 blocks, 4 key heads, forward and backward
    assert split["exchanged_bytes_per_step"] == pytest.approx(sent) and whole["exchanged_bytes_per_step"] == 0
    assert split["communication_bytes_per_step"] > sent
    assert split["step_seconds_by"]["attention"] == pytest.approx(whole["step_seconds_by"]["attention"])


def test_sharing_sequences_is_suggested_where_they_are_too_long(capsys):
    long = ("--gpu", "h100-80gb", "model.preset=1b", "data.sequence=1048576", "model.max_sequence=1048576")
    long += ("--gpus", "8", "training.micro_batch=1", "training.activation_checkpointing=full")
    refused = plan(capsys, *long)
    assert "training.sequence_parallel=8" in refused["suggestion"]
    assert plan(capsys, *long, *refused["suggestion"].split())["fits"]
