"""projected_attention against its parts: composed, and with the rotation in the projection's product."""

import pytest
import torch
import torch.nn.functional as F
from attention_cases import plain
from kernel_checks import assert_as_good, leaves, of_attention

import emergence_kernels as ek
from emergence_kernels.attention import projected_attention as module
from emergence_kernels.rotary.reference import rotary

B, T, K, HEADS, KV_HEADS, D = 2, 50, 40, 2, 1, 64


@pytest.fixture
def in_product(hopper, monkeypatch):
    """Wherever "cuda" is named, the emulator's too."""
    calls: list[bool] = []
    monkeypatch.setattr(module, "turns_in_product", lambda *_: calls.append(True) or True)
    return calls


def inputs(dtype, device, R=32):
    x, weight = torch.randn(B, T, K), torch.randn((HEADS + 2 * KV_HEADS) * D, K) / K**0.5
    angles = torch.rand(T, R) * 6.3
    return leaves(x.to(device, dtype), weight.to(device, dtype)), (angles.cos().to(device), angles.sin().to(device))


def parts(x, weight, cos, sin, **options):
    heads = F.linear(x, weight).unflatten(-1, (-1, D))
    q, k, v = heads.split([HEADS, KV_HEADS, KV_HEADS], 2)
    return plain(rotary(q, cos.to(x.dtype), sin.to(x.dtype)), rotary(k, cos.to(x.dtype), sin.to(x.dtype)), v, **options)


def compared(given, angles, out, main_grad=None, **options):
    upstream = torch.randn_like(out)
    wanted = given if main_grad is None else given[:1]
    got = [out.detach(), *torch.autograd.grad(out, wanted, upstream)]
    if main_grad is not None:
        got.append((main_grad - 0.5).to(out.dtype))
    results = []
    for dtype in (torch.float64, out.dtype):
        copies = leaves(*given, dtype=dtype)
        y = parts(*copies, *angles, **options)
        results.append([y.detach(), *torch.autograd.grad(y, copies, upstream.to(dtype))])
    for name, *three in zip(("out", "dx", "dweight"), got, *results):
        assert_as_good(name, *three, factor=3.0)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("accumulated", [False, True], ids=["", "main gradient"])
def test_composed(accumulated, window, backend, device):
    given, angles = inputs(of_attention(backend), device)
    main_grad = torch.full(given[1].shape, 0.5, device=device) if accumulated else None
    out = ek.projected_attention(
        *given, *angles, heads=HEADS, kv_heads=KV_HEADS, window=window, main_grad=main_grad, backend=backend
    )
    compared(given, angles, out, main_grad, window=window)


@pytest.mark.parametrize("R", [32, 16])
@pytest.mark.parametrize("accumulated", [False, True], ids=["", "main gradient"])
def test_in_the_product(accumulated, R, in_product, device):
    given, angles = inputs(torch.bfloat16, device, R)
    ids = torch.arange(T, device=device).div(20, rounding_mode="floor").expand(B, T)
    main_grad = torch.full(given[1].shape, 0.5, device=device) if accumulated else None
    out = ek.projected_attention(
        *given, *angles, heads=HEADS, kv_heads=KV_HEADS, document_ids=ids, main_grad=main_grad, backend="cuda"
    )
    assert in_product
    compared(given, angles, out, main_grad, document_ids=ids)


def test_what_the_product_takes():
    given, (cos, sin) = inputs(torch.bfloat16, "cpu")
    q = given[0].new_empty(()).expand(B, T, HEADS, D)
    assert not module.turns_in_product(q, *given, cos, sin), "a CPU's tensors"


def test_wrong_shapes(device):
    (x, weight), angles = inputs(torch.float32, device)
    with pytest.raises(ValueError, match=r"expected \(batch, seq, features\)"):
        ek.projected_attention(x, weight[:-1], *angles, heads=HEADS, kv_heads=KV_HEADS)
    with pytest.raises(ValueError, match="cos has shape"):
        ek.projected_attention(x[:, 1:], weight, *angles, heads=HEADS, kv_heads=KV_HEADS)
