"""Gradients accumulated by the matrix products, and a step without synchronisation: the same training as DeepSpeed's."""

import json

import pytest
import torch
import torch.nn.functional as F

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
