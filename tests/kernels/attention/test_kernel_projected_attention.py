"""projected_attention against its parts: composed, and with the rotation in the projection's product."""

import pytest
import torch
import torch.nn.functional as F
from attention_cases import plain
from kernel_checks import assert_as_good, leaves, of_attention

import emergence_kernels as ek
from emergence_kernels.attention import projected_attention as module
from emergence_kernels.attention import rotary_attention as rotary_module
from emergence_kernels.attention.op import checked
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


def test_arguments_are_checked_once(backend, device, monkeypatch):
    """As in every layer of a step: also where the rotation is not in the product."""
    calls = []
    for place in (module, rotary_module):
        monkeypatch.setattr(place, "checked", lambda *given: calls.append(given[0]) or checked(*given))
    given, angles = inputs(of_attention(backend), device)
    ek.projected_attention(*given, *angles, heads=HEADS, kv_heads=KV_HEADS, backend=backend)
    assert calls == ["projected_attention"]


def test_what_the_product_takes():
    (x, _), (cos, sin) = inputs(torch.bfloat16, "cpu")

    def fits(x=x, cos=cos, sin=sin, D=D):
        return module.fits_product(x.new_empty(()).expand(B, T, HEADS, D), x, cos, sin)

    assert fits() and fits(cos=cos[:, :16].contiguous(), sin=sin[:, :16].contiguous())
    assert not fits(cos=cos[:, :8].contiguous(), sin=sin[:, :8].contiguous()), "an eighth of a head turns"
    assert not fits(cos=cos[:, ::2], sin=sin[:, ::2]), "not adjacent"
    assert not fits(cos=cos.double(), sin=sin.double()) and not fits(cos=cos.expand(B, T, 32), sin=sin.expand(B, T, 32))
    odd = torch.empty(T * 32 + 1)[1:].view(T, 32)
    assert not fits(cos=odd) and not fits(sin=odd), "loads of 8 bytes"
    assert not fits(x=x[:, :, :36]) and not fits(x=x[:, :0]) and not fits(D=96)


@pytest.mark.parametrize("layout", ["columns", "shifted columns", "rows apart", "shifted weight"])
def test_inputs_that_copies_cannot_read(layout, in_product, device):
    (x, weight), angles = inputs(torch.bfloat16, device)
    x, weight = x.detach(), weight.detach()
    if layout == "shifted weight":
        weight = torch.empty(weight.numel() + 1, dtype=weight.dtype, device=device)[1:].view(weight.shape).copy_(weight)
    elif layout == "rows apart":
        x = torch.empty(2 * B, T, K, dtype=x.dtype, device=device)[::2].copy_(x)
    else:
        first = 1 if layout == "shifted columns" else 0
        x = torch.empty(B, T, K + 4, dtype=x.dtype, device=device)[:, :, first : first + K].copy_(x)
    options = dict(heads=HEADS, kv_heads=KV_HEADS, backend="cuda")
    out = ek.projected_attention(x, weight, *angles, **options)
    assert torch.equal(out, ek.projected_attention(x.contiguous(), weight.clone(), *angles, **options)) and in_product


def test_a_frozen_weight_and_no_tokens(backend, device):
    (x, weight), (cos, sin) = inputs(of_attention(backend), device)
    sums = torch.zeros(weight.shape, device=device)
    options = dict(heads=HEADS, kv_heads=KV_HEADS, backend=backend)
    out = ek.projected_attention(x, weight.detach(), cos, sin, main_grad=sums, **options)
    out.sum().backward()
    assert not sums.any() and x.grad is not None
    assert ek.projected_attention(x[:, :0], weight, cos[:0], sin[:0], **options).shape == (B, 0, HEADS, D)


def test_wrong_shapes(device):
    (x, weight), angles = inputs(torch.float32, device)
    with pytest.raises(ValueError, match=r"expected \(batch, seq, features\)"):
        ek.projected_attention(x, weight[:-1], *angles, heads=HEADS, kv_heads=KV_HEADS)
    with pytest.raises(ValueError, match="cos has shape"):
        ek.projected_attention(x[:, 1:], weight, *angles, heads=HEADS, kv_heads=KV_HEADS)
    with pytest.raises(ValueError, match="both must be positive"):
        ek.projected_attention(x, weight, *angles, heads=0)
    for main_grad in (torch.zeros(weight.shape, dtype=torch.bfloat16, device=device), torch.zeros(3, device=device)):
        with pytest.raises(ValueError, match="must be float32, of its weight's shape"):
            ek.projected_attention(x, weight, *angles, heads=HEADS, kv_heads=KV_HEADS, main_grad=main_grad)
