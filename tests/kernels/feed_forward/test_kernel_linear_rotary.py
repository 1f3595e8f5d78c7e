"""The projection with rotary embedding on Hopper, called directly: in the emulator, or on an H100."""

import emulated_barriers
import pytest
import torch
from kernel_checks import assert_as_good

from emergence_kernels.rotary.reference import rotary

CUDA = torch.cuda.is_available()
pytestmark = pytest.mark.usefixtures("hopper")


def inputs(B, T, K, heads, kv_heads, D, R, dtype, device):
    torch.manual_seed(B * T * K)
    x, weight = torch.randn(B * T, K), torch.randn((heads + 2 * kv_heads) * D, K) / K**0.5
    angles = torch.rand(T, R) * 6.3
    return x.to(device, dtype), weight.to(device, dtype), angles.cos().to(device), angles.sin().to(device)


def projected(x, weight, cos, sin, turned, D):
    qkv = torch.full((x.shape[0], weight.shape[0]), torch.nan, dtype=x.dtype, device=x.device)
    torch.ops.emergence_cuda.linear_rotary(x, weight, cos, sin, qkv, turned, D)
    return qkv


def expected(x, weight, cos, sin, turned, D, dtype):
    """Of products in x's dtype, rounded to `dtype` or not."""
    heads = (x @ weight.T).to(dtype).to(x.dtype).view(-1, cos.shape[0], weight.shape[0] // D, D)
    return torch.cat([rotary(heads[:, :, :turned], cos, sin), heads[:, :, turned:]], 2).flatten(0, 1).flatten(1)


# B, T, K, heads, key heads, D, R: one tile, ragged ones, sequences that end within a tile, several tiles a block, part of a head.
CASES = [
    (1, 64, 64, 2, 1, 64, 32),
    (3, 50, 72, 3, 1, 64, 32),
    (2, 130, 136, 4, 2, 64, 16),
    (2, 75, 64, 2, 1, 128, 64),
    (1, 200, 328, 3, 2, 128, 32),
]
REAL = [(16, 1024, 1024, 16, 16, 64, 32), (4, 2048, 2048, 16, 4, 128, 64)]


@pytest.mark.parametrize("case", CASES + (REAL if CUDA else []), ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_against_float64(case, dtype, device):
    heads, kv_heads, D = case[3:6]
    x, weight, cos, sin = inputs(*case, dtype, device)
    qkv = projected(x, weight, cos, sin, heads + kv_heads, D)
    wide = [t.double() for t in (x, weight, cos, sin)]
    exact = expected(*wide, heads + kv_heads, D, torch.float64)
    plain = expected(x, weight, cos, sin, heads + kv_heads, D, dtype)
    assert_as_good("qkv", qkv, exact, plain)


def test_what_is_refused(device):
    x, weight, cos, sin = inputs(1, 64, 64, 2, 1, 64, 32, torch.bfloat16, device)
    with pytest.raises(RuntimeError, match="whole sequences of 64"):
        projected(x[:63], weight, cos, sin, 3, 64)
    with pytest.raises(RuntimeError, match="all or half are turned"):
        projected(x, weight, cos[:, :8].contiguous(), sin[:, :8].contiguous(), 3, 64)


def run() -> torch.Tensor:
    return projected(*inputs(3, 130, 136, 4, 2, 64, 32, torch.bfloat16, "cpu"), 6, 64)


def test_the_order_of_threads_does_not_matter(emulated, monkeypatch):
    usual = run()
    monkeypatch.setenv("EMERGENCE_EMULATE_SEED", "1")
    assert torch.equal(usual, run())


@pytest.mark.slow
def test_every_barrier_wait_and_fence_is_needed(emulated, monkeypatch):
    usual = run()
    reasons = emulated_barriers.written(
        *(f"cuda/feed_forward/{name}" for name in ("products.h", "slabs.h", "rotary.cu"))
    )
    reasons -= {"no block ends while another still reaches it"}  # of clusters
    assert reasons <= emulated_barriers.met() and len(reasons) >= 15, f"not met: {reasons - emulated_barriers.met()}"
    assert not emulated_barriers.not_missed(reasons, lambda: torch.equal(usual, run()), monkeypatch)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_again_and_again(device):
    given = inputs(16, 1024, 1024, 16, 16, 64, 32, torch.bfloat16, device)
    first = projected(*given, 32, 64)
    for _ in range(20):
        assert torch.equal(first, projected(*given, 32, 64))
