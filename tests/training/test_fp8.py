"""Linear layers in fp8: where they are installed, when their weights are rounded, and losses beside those of bf16."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import emergence_kernels as ek
from emergence_train import config as configs
from emergence_train.errors import InputError
from emergence_train.models.registry import build_model
from emergence_train.training import fp8, main_gradients
from emergence_train.training.run import train
from support import command, metrics

FP8 = ["training.precision=bf16", "training.linears=fp8"]


def layer(*sizes: int) -> fp8.Fp8Linear:
    module = torch.nn.Sequential(torch.nn.Linear(*sizes, bias=False)).bfloat16()
    fp8.install(module)
    return fp8.layers(module)[0]


def test_layers_of_fitting_sizes_are_replaced(config_file):
    """Of each block's four: down has 24 features, which is no multiple of 16. Names of weights stay."""
    model = build_model(configs.load(config_file, ["model.vocab_size=320"]).model)
    names = [name for name, _ in model.named_parameters()]
    fp8.install(model)
    assert [name for name, _ in model.named_parameters()] == names
    replaced = {name for name, module in model.named_modules() if isinstance(module, fp8.Fp8Linear)}
    of_block = {"attention.qkv", "attention.out", "swiglu.gate_up"}
    assert replaced == {f"blocks.{block}.{name}" for block in range(2) for name in of_block}
    line = fp8.describe(model, torch.device("cpu"))
    assert line.startswith("fp8 in 6 of 8 linear layers, emulated: cpu has no fp8 products")


def test_a_model_without_a_fitting_layer_is_refused():
    with pytest.raises(InputError, match="multiples of 16"):
        fp8.install(torch.nn.Sequential(torch.nn.Linear(16, 24, bias=False), torch.nn.Linear(16, 32)))


def test_evaluation_is_in_bf16():
    """A checkpoint holds bf16 weights: validation, tasks and an export compute the same."""
    linear, x = layer(32, 48), torch.randn(5, 32).bfloat16()
    with torch.no_grad():
        assert torch.equal(linear(x), F.linear(x, linear.weight))
    assert not torch.equal(linear(x), F.linear(x, linear.weight))


def test_weights_are_rounded_once_a_step():
    """In the block a changed weight is not seen; outside of it every pass rounds the weight as it is."""
    linear, x = layer(32, 48), torch.randn(5, 32).bfloat16()
    held = fp8.HeldWeights([linear])
    places = []
    for _ in range(3):
        wanted = ek.fp8_linear(x, linear.weight.detach())
        with held:
            places.append([t.data_ptr() for t in linear.held])
            assert torch.equal(linear(x), wanted)
            with torch.no_grad():
                linear.weight.add_(torch.randn(48, 32))
            assert torch.equal(linear(x), wanted)
        assert linear.held is None
        changed = linear(x)
        assert torch.equal(changed, ek.fp8_linear(x, linear.weight.detach())) and not torch.equal(changed, wanted)
    assert places[0] == places[1] == places[2], "where a CUDA graph has them"
    with pytest.raises(KeyError), held:
        raise KeyError
    assert linear.held is None


def test_weight_gradients_are_added_to_main_gradients():
    """As of a bf16 layer: dy^T x in float32, and no gradient in bf16. A layer that stays bf16 has one of its own kind."""
    model = torch.nn.Sequential(torch.nn.Linear(16, 32, bias=False), torch.nn.Linear(32, 24, bias=False)).bfloat16()
    fp8.install(model)
    weights = list(model.parameters())
    main_grads = [torch.zeros(weight.shape) for weight in weights]
    optimizer = SimpleNamespace(
        bf16_groups=[weights], fp32_groups_gradients=[main_grads], optimizer=torch.optim.AdamW(weights)
    )
    main_gradients.install(SimpleNamespace(module=model, optimizer=optimizer))
    assert [type(module) for module in model] == [fp8.Fp8Linear, main_gradients.AccumulatingLinear]
    x, dy, wanted = torch.randn(2, 7, 16).bfloat16(), torch.randn(2, 7, 32).bfloat16(), 0
    for _ in range(2):
        model[0](x).backward(dy)
        wanted = wanted + dy.reshape(14, 32).double().t() @ x.reshape(14, 16).double()
    assert (main_grads[0] - wanted).norm() <= 1e-6 * wanted.norm() and weights[0].grad is None


@pytest.mark.slow
def test_every_zero_stage_trains_alike(config_file):
    """At stage 3 weights are rounded where they are whole, at the others once a step: the same losses, to the order of sums."""
    losses = []
    for stage, processes in (1, 0), (3, 2):
        over = [f"name=stage-{stage}", f"training.zero_stage={stage}", "training.tokens=1024", *FP8]
        done = command("train", str(config_file), *over, "checkpoints.save_state=never", processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("fp8 in 6 of 8 linear layers, emulated") == 1
        run = config_file.parent / "runs" / f"stage-{stage}"
        losses.append([row["loss"] for row in metrics(run)])
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=5e-4)


def test_a_resumed_run_keeps_its_linears(config_file):
    over = ["training.tokens=1024", "checkpoints.every_tokens=1024", "training.precision=bf16"]
    train(configs.load(config_file, over), lambda line: None)
    with pytest.raises(InputError, match="training.linears = bf16, not fp8"):
        train(configs.load(config_file, [*over, "training.linears=fp8"]), lambda line: None)


def test_fp8_needs_bf16(config_file):
    with pytest.raises(InputError, match="training.linears fp8 with precision fp32"):
        configs.load(config_file, ["training.linears=fp8"])


@pytest.mark.slow
def test_losses_are_those_of_bf16(config_file):
    """200 steps, emulated: the training loss of the last 50, and the held-out loss in bf16 of weights that fp8 trained."""
    over = ["model.width=64", "model.ffn=96", "training.tokens=51200", "training.schedule.lr=0.003"]
    over += [
        "training.micro_batch=8",
        "checkpoints.every_tokens=51200",
        "checkpoints.save_state=never",
        "training.precision=bf16",
    ]
    trained, held_out = [], []
    for linears in ("bf16", "fp8"):
        more = [f"name={linears}", f"training.linears={linears}"]
        run = train(configs.load(config_file, [*over, *more]), lambda line: None)
        losses = [row["loss"] for row in metrics(run)]
        trained.append(sum(losses[-50:]) / 50)
        held_out.append(metrics(run, "validation")[-1]["loss"]["iid"])
    assert trained[0] < 4.2 < losses[0], "both learn"
    assert abs(trained[1] - trained[0]) < 0.03 and abs(held_out[1] - held_out[0]) < 0.05
    assert trained[0] != trained[1], "fp8 was used"
