"""The benchmark's candidates of the tile tables give what float64 gives: on a GPU, or as PTX executed (test_kernel_ptx.py)."""

import pytest
import torch
from attention_cases import plain
from kernel_checks import assert_as_good, leaves

import emergence_kernels as ek
from conftest import COMPILED, NVCC
from emergence_kernels.cross_entropy.reference import chunk_rows

if not COMPILED or NVCC:
    pytest.skip("Triton's interpreter has tiles of its own", allow_module_level=True)

from emergence_kernels.backends import triton_configs as configs  # noqa: E402

ARCHITECTURE = configs.architecture(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
LOSSES = configs.LOGITS_VARIANTS.get((ARCHITECTURE, 2, False), {})
ATTENTION = {
    (head_dim, name): entry
    for head_dim in (64, 128)
    for name, entry in configs.ATTENTION_VARIANTS.get((ARCHITECTURE, 2, head_dim), {}).items()
}


@pytest.mark.parametrize("name", LOSSES)
def test_triton_variants_of_the_losses(name, device, monkeypatch):
    """Several tiles of tokens and of the vocabulary, neither divided by them; loops longer than the pipeline."""
    monkeypatch.setitem(configs.LOGITS, (ARCHITECTURE, 2, False), LOSSES[name])
    hidden = torch.randn(1, 140, 400, device=device).bfloat16()
    weight = (torch.randn(300, 400, device=device) * 0.05).bfloat16()
    targets = torch.randint(300, (1, 140), device=device)
    targets[0, 3:9] = -100
    upstream = torch.randn(1, 140, device=device)
    results = []
    for kept in (torch.float64, torch.bfloat16, None):
        x, w = leaves(hidden, weight, dtype=kept)
        if kept is None:
            assert chunk_rows(140, 300, x.device) == 140  # one chunk: the tiles are what is tried
            tokens = ek.linear_cross_entropy(x, w, targets, backend="triton")
            mean = ek.position_loss(x, w, targets, backend="triton").loss
        else:
            logits = (x @ w.t()).double() if kept == torch.float64 else (x @ w.t()).float()
            tokens = torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="none")[None]
            mean = tokens.sum() / (targets >= 0).sum()
        total = (tokens * upstream.to(tokens.dtype)).sum() + 3.0 * mean
        results.append([tokens.detach(), *torch.autograd.grad(total, (x, w))])
    for what, exact, usual, got in zip(("losses", "dX", "dW"), *results):
        assert_as_good(what, got, exact, usual.to(got.dtype))


@pytest.mark.parametrize("name", configs.LOSS_ROWS_VARIANTS)
def test_triton_variants_of_loss_rows(name, device, monkeypatch):
    """Several blocks of a row, of an odd number of words."""
    monkeypatch.setitem(configs.LOSS_ROWS, ARCHITECTURE, configs.LOSS_ROWS_VARIANTS[name])
    _, got, exact, usual = rows_of_logits(device)
    for what, *three in zip(("losses", "dX", "dW"), got(), exact, usual):
        assert_as_good(what, *three)


def test_triton_logits_in_bfloat16(device, monkeypatch):
    """The error is that of rounding z to 8 bits: 2^-9 of a logit in the loss, as much of p in the gradients."""
    monkeypatch.setitem(configs.LOGITS_DTYPE, ARCHITECTURE, configs.LOGITS_DTYPE_VARIANTS["bf16 logits"])
    z, got, exact, _ = rows_of_logits(device)
    bound = 2.0**-9 * z.abs().max().item()
    losses, *gradients = got()
    assert (losses.double() - exact[0]).abs().max() <= 2 * bound
    assert (losses.double() - exact[0]).abs().max() > 0.01 * bound  # the variant was taken
    for a, b in zip(gradients, exact[1:]):
        assert (a.double() - b).norm() <= (2 * bound + 0.01) * b.norm()


def rows_of_logits(device):
    """-> logits, what position_loss gives in Triton (token losses, dX, dW), the same in float64, and of PyTorch in bfloat16."""
    hidden, weight = torch.randn(1, 6, 24, device=device).bfloat16(), torch.randn(9001, 24, device=device).bfloat16()
    targets = torch.tensor([[0, 9000, -100, 4711, 8192, 17]], device=device)

    def run(x, w):
        out = ek.position_loss(x, w, targets, backend="triton")
        return [out.token_loss, *torch.autograd.grad(out.loss, (x, w))]

    others = []
    for kept in (torch.float64, torch.bfloat16):
        x, w = leaves(hidden, weight, dtype=kept)
        z = (x @ w.t()).double() if kept == torch.float64 else (x @ w.t()).float()
        tokens = torch.nn.functional.cross_entropy(z[0], targets[0], reduction="none")[None]
        others.append([tokens.detach(), *torch.autograd.grad(tokens.sum() / (targets >= 0).sum(), (x, w))])
    return z.detach(), lambda: run(*leaves(hidden, weight)), *others


@pytest.mark.parametrize("head_dim, name", ATTENTION)
@pytest.mark.parametrize("causal", [True, False])
def test_triton_variants_of_attention(head_dim, name, causal, device, monkeypatch):
    monkeypatch.setitem(configs.ATTENTION[ARCHITECTURE, 2, head_dim], "forward", ATTENTION[head_dim, name])
    q, k, v = (torch.randn(1, 512, heads, head_dim, device=device).bfloat16() for heads in (2, 1, 1))
    out = ek.attention(q, k, v, causal=causal, backend="triton")
    exact, usual = (
        plain(q.to(kept), k.to(kept), v.to(kept), causal=causal) for kept in (torch.float64, torch.bfloat16)
    )
    assert_as_good("out", out, exact, usual)
