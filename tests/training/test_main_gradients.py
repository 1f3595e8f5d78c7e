"""Gradients accumulated by the matrix products, and a step without synchronisation: the same training as DeepSpeed's."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from emergence_train.training import main_gradients
from emergence_train.training.main_gradients import AccumulatingLinear
from support import ROOT, run_python

WORKER = ROOT / "tests" / "training" / "main_gradients_worker.py"


@pytest.mark.parametrize(
    "processes, linears", [(1, "bf16"), (2, "bf16"), pytest.param(1, "fp8", marks=pytest.mark.slow)]
)
def test_training_is_deepspeeds(config_file, tmp_path, processes, linears):
    """bf16, ZeRO-1, clipped, two or more micro-batches a step: the rounding of gradients to bf16 is all that differs."""
    over = f"training.linears={linears}"
    done = run_python(str(WORKER), str(config_file), str(tmp_path), over, processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(processes):
        result = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        # Adam amplifies small gradients, and a weight that differs in its last bit may round to the next e4m3 value.
        assert result["apart"] < (0.06 if linears == "bf16" else 0.12) * result["moved"], result
        theirs, ours = result["norms"]
        assert ours[0] == pytest.approx(theirs[0], rel=2e-3), "of the same weights"
        assert ours == pytest.approx(theirs, rel=0.1), "of weights that differ since"
        assert result["linears"] == (
            [8, 0] if linears == "bf16" else [2, 6]
        )  # of two blocks; not the head, whose loss owns it
        assert result["before"] and result["held"] and result["went_on"], "only the step that is not finite is skipped"
        theirs, ours = result["passes"]
        assert ours == 0 and theirs >= 8 * result["rounds"], "no pass over a gradient but the product's"
        theirs, ours = result["copies"]
        assert theirs - ours == 15 * result["rounds"], "each parameter is added to without a float32 copy"
        assert result["waits"][1] == 0 < result["waits"][0]


@pytest.mark.parametrize("size", [3e-6, 2.0, 1e19, 3e38])
@pytest.mark.parametrize("clip", [1e-6, 1.0])
def test_norm_and_scale_are_those_of_exact_sums(size, clip, monkeypatch):
    """A norm of up to float32's greatest number, whose square is not in its range; as DeepSpeed clips, by norm + 1e-6."""
    scales = []
    monkeypatch.setattr(main_gradients, "adamw_step", lambda *_, grad_scale, **__: scales.append(grad_scale))
    monkeypatch.setattr(main_gradients.dist, "get_world_size", lambda group: 1)
    parts = [torch.tensor([0.6 * size]), torch.tensor([0.8 * size])]
    weights = [torch.zeros(1) for _ in parts]
    settings = [dict(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0) for _ in parts]
    optimizer = SimpleNamespace(
        dp_process_group=None,
        fp32_groups_gradient_flat_partition=parts,
        fp32_groups_flat_partition=weights,
        bf16_groups_flat=weights,
        clip_grad=clip,
        optimizer=SimpleNamespace(param_groups=settings, state={weight: {} for weight in weights}),
        _lazy_init_hp_params_optimizer_state=lambda: None,
    )
    main_gradients.step(optimizer)
    assert optimizer._global_grad_norm.item() == pytest.approx(size, rel=1e-6) and bool(optimizer.applied)
    scale = torch.tensor(max(1.0, (size + 1e-6) / clip))  # inf beyond float32
    assert [given.item() for given in scales] == pytest.approx([scale.item()] * 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_main_gradient_is_float32s(dtype):
    """Against float64, over micro-batches, with an upstream gradient of any layout."""
    torch.manual_seed(0)
    layer = AccumulatingLinear(48, 40, bias=False).to(dtype)
    plain = torch.nn.Linear(48, 40, bias=False).double()
    plain.weight.data.copy_(layer.weight.data)
    layer.weight.main_grad = torch.zeros(40, 48)
    for _ in range(5):
        x = torch.randn(3, 7, 48).to(dtype).requires_grad_()
        upstream = torch.randn(7, 3, 40).to(dtype).transpose(0, 1)  # not contiguous
        y = layer(x)
        (dx,) = torch.autograd.grad(y, x, upstream)
        wide = x.detach().double().requires_grad_()
        exact = plain(wide)
        exact.backward(upstream.double())
        assert torch.equal(y, F.linear(x, layer.weight)) and layer.weight.grad is None
        assert (dx.double() - wide.grad).norm() <= (1e-6 if dtype == torch.float32 else 5e-3) * wide.grad.norm()
    error = (layer.weight.main_grad.double() - plain.weight.grad).norm() / plain.weight.grad.norm()
    assert error < 1e-6, "bf16 operands, products added in float32: nothing is rounded to bf16"


def test_without_a_main_gradient_it_is_a_linear_layer():
    layer = AccumulatingLinear(8, 4, bias=False)
    layer(torch.randn(3, 8)).sum().backward()
    assert layer.weight.grad is not None
    layer.weight.main_grad = torch.zeros(4, 8)
    with torch.no_grad():
        assert not layer(torch.randn(3, 8)).requires_grad
