"""Chunks of rows, and gradients summed over them."""

import pytest
import torch

import emergence_kernels as ek
from emergence_kernels.backends.products import add_to_dw
from emergence_kernels.cross_entropy.chunks import LogitChunks, equal_rows, padded


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 8192, 16384, 100_003])
@pytest.mark.parametrize("most", [1, 128, 5336, 10_672])
def test_equal_rows(rows, most):
    each = equal_rows(rows, most, 128)
    chunks = -(-rows // each)
    budget = max(128, most // 128 * 128)
    assert 1 <= each <= min(rows, budget) and (each % 128 == 0 or each == rows)
    assert chunks == -(-rows // budget), "no more chunks than the budget asks for"
    assert each - rows / chunks < 128, "alike, up to the rounding"


def test_equal_rows_of_none():
    assert equal_rows(0, 128, 128) == 1


def test_gradients_never_begin_before_their_logits():
    """Of the last half of each row: what allows the second sweep over a row to go backwards."""
    hidden, weight = torch.zeros(5, 8, dtype=torch.bfloat16), torch.zeros(50257, 8, dtype=torch.bfloat16)
    chunks = LogitChunks(hidden, weight, 3, gradient_last=True)
    S = padded(50257)
    assert S == 50272 and chunks.buffer_RS.shape == chunks.gradient_RS.shape == (3, S)
    starts = [t.data_ptr() - chunks.buffer_RS.data_ptr() for t in (chunks.gradient_RS[0], chunks.gradient_RS[1])]
    assert starts == [2 * S, 2 * S + 4 * S] and not any(start % 16 for start in starts)
    assert [(here.start, here.stop) for here, *_ in chunks] == [(0, 3), (3, 5)] and not chunks.single


def test_backward_of_one_touches_nothing(triton_only, device):
    """The upstream gradient of loss.backward() is exactly 1: gradients of the forward pass are returned unscaled."""
    from emergence_kernels.cross_entropy.triton_scale import scale

    x = torch.randn(5000, device=device).bfloat16()
    kept = x.clone()
    ones = torch.ones((), device=device)
    assert scale(x, ones, x.dtype, in_place=True) is x and torch.equal(x, kept)
    assert torch.equal(scale(x, ones, x.dtype, in_place=False), kept)
    assert torch.equal(scale(x, 3 * ones, x.dtype, in_place=True), (kept.float() * 3).bfloat16())
    wide = torch.randn(5000, device=device)
    assert torch.equal(scale(wide, ones / 3, torch.bfloat16, in_place=False), (wide * (ones / 3)).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dw_of_several_chunks_is_rounded_once(dtype, triton_only, device, monkeypatch):
    """Summed in float32, scaled in backward and only then rounded: no worse than rounding the exact sum."""
    from emergence_kernels.backends import triton_configs as configs

    hidden, weight = torch.randn(1, 40, 16, device=device).to(dtype), (torch.randn(50, 16, device=device) / 4).to(dtype)
    targets = torch.randint(50, (1, 40), device=device)
    monkeypatch.setitem(configs.CHUNK_BYTES, configs.architecture(device), 1)
    monkeypatch.setattr(configs, "CHUNK_MULTIPLE", 8)
    x, w = hidden.requires_grad_(), weight.requires_grad_()
    loss = ek.position_loss(x, w, targets, backend="triton").loss
    (dw,) = torch.autograd.grad(loss / 3, w)
    x, w = hidden.detach().double(), weight.detach().double().requires_grad_()
    exact = torch.nn.functional.cross_entropy((x @ w.t())[0], targets[0]) / 3
    (exact_dw,) = torch.autograd.grad(exact, w)
    assert dw.dtype == dtype
    # d loss / dz is rounded to 16 bits itself; its errors average out over tokens.
    assert (dw.double() - exact_dw).norm() <= 0.75 * torch.finfo(dtype).eps * exact_dw.norm()


def test_float16_sums_over_tokens_may_exceed_it(device):
    """256 tokens of 512 are twice float16's greatest number: kept in float32 until they are scaled. bfloat16 is rounded once."""
    ones = torch.ones(256, 3, device=device)
    for dtype, summed in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        dw = add_to_dw(None, ones.to(dtype), 512 * ones.to(dtype), single=True)
        assert dw.dtype == summed and torch.equal(dw.float(), torch.full((3, 3), 131072.0, device=device))
