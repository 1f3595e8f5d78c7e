"""Attention of csrc/cpu: every width of vectors, and what it does not take."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cpu_attention_worker import largest_error

import emergence_kernels as ek
from emergence_kernels.backends import library

WORKER = Path(__file__).parents[1] / "harness" / "cpu_attention_worker.py"


@pytest.fixture(autouse=True)
def built(cpu_library):
    if cpu_library:
        pytest.skip(cpu_library)


def test_every_shape_against_float64():
    assert largest_error() < 3e-6


@pytest.mark.parametrize("lanes", [4, 8])
def test_narrower_vectors_against_float64(lanes):
    environment = os.environ | {"EMERGENCE_CPU_LANES": str(lanes), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, WORKER], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and float(done.stdout) < 3e-6, done.stderr


@pytest.mark.parametrize("size", [1.0, 30.0, 300.0])
def test_gradient_of_values_is_exact_where_a_query_sees_itself(size):
    """P is 1 whatever its score, which is a large number that backward subtracts again."""
    q, k, v = (size * torch.randn(1, 9, 2, 16) for _ in range(3))
    v.requires_grad_()
    upstream = torch.randn(1, 9, 2, 16)
    (dv,) = torch.autograd.grad(ek.attention(q, k, v, window=1, backend="cpu"), v, upstream)
    assert torch.equal(dv, upstream)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_defaults_of_torch_do_not_matter(dtype):
    q = torch.randn(1, 8, 2, 16, dtype=torch.float32, requires_grad=True)
    wanted = ek.attention(q, q, q, backend="cpu")
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            out = ek.attention(q, q, q, backend="cpu")
            (grad,) = torch.autograd.grad(out, q, torch.ones_like(out))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out, wanted) and grad.dtype == torch.float32


def test_infinite_scores_as_pytorch():
    """A key at infinity takes all, and a row whose scores are -inf or NaN is NaN, and no other."""
    q, k, v = (torch.randn(1, 8, 1, 16) for _ in range(3))
    q, k = q.abs(), k.abs()
    k[0, 5] = torch.inf
    k[0, 2] = torch.nan
    ours, theirs = (ek.attention(q, k, v, backend=backend) for backend in ("cpu", "torch"))
    assert torch.equal(ours.isnan(), theirs.isnan()) and torch.allclose(ours[:, :2], theirs[:, :2], atol=1e-5)


def test_wrong_tensors_raise():
    library.unsupported_reason("cpu", torch.device("cpu"))
    q, lse = torch.randn(1, 4, 2, 8), torch.empty(1, 2, 4)
    operation = torch.ops.emergence_cpu.attention
    with pytest.raises(RuntimeError, match="adjacent features"):
        operation(q, q, q.double(), None, q, lse, 1.0, True, 4)
    with pytest.raises(RuntimeError, match="key heads must divide"):
        operation(q[:, :, :1].repeat(1, 1, 3, 1), q, q, None, torch.empty(1, 4, 3, 8), lse, 1.0, True, 4)
    with pytest.raises(ek.BackendError, match="softcap, sinks and alibi"):
        ek.attention(q, q, q, softcap=5.0, backend="cpu")
