"""Shapes and masks that nobody thought of, against the float64 oracles (the same ones in every run)."""

import pytest
import torch
from attention_cases import plain
from kernel_checks import leaves, of_attention
from loss_cases import IGNORE, token_losses

import emergence_kernels as ek

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
tried = hypothesis.settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@tried
@hypothesis.given(
    B=st.integers(1, 2),
    T=st.integers(1, 75),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (6, 3)]),
    D=st.integers(1, 40),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 80),
    kind=st.sampled_from([None, "packed", "random"]),
    seed=st.integers(0, 1000),
)
def test_attention(fused, device, B, T, heads, D, causal, window, kind, seed):
    torch.manual_seed(seed)
    dtype = of_attention(fused)
    if fused == "cuda":
        B, D = 1, 8 * (1 + D % 16)  # emulated where there is no GPU
    shapes = [(B, T, h, D) for h in (heads[0], heads[1], heads[1])]
    q, k, v = (torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes)
    ids = None
    if kind is not None:
        ids = torch.randint(0, 4, (B, T), device=device)
        ids = ids.sort(1).values if kind == "packed" else ids
    options = dict(causal=causal, window=window, document_ids=ids)
    out = ek.attention(q, k, v, backend=fused, **options)
    upstream = torch.randn_like(out)
    got = [out, *torch.autograd.grad(out, (q, k, v), upstream)]
    copies = leaves(q, k, v, dtype=torch.float64)
    exact = plain(*copies, **options)
    wanted = [exact, *torch.autograd.grad(exact, copies, upstream.double())]
    # 16 bits: dq and dk are differences of terms that are nearly equal where a query sees few keys; and the backward pass takes
    # the sum of upstream x out from the rounded out.
    delta = ((out.double() - exact) * upstream.double()).sum(-1).norm()
    longest = max(part.double().norm(dim=-1).max() for part in (q, k))
    terms = 0.1 * torch.finfo(dtype).eps * upstream.float().norm() + D**-0.5 * delta * longest
    for a, b in zip(got, wanted):
        if fused == "cuda":
            assert (a.double() - b).norm() <= 0.01 * b.norm() + terms
        else:
            assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5)


@tried
@hypothesis.given(
    B=st.integers(1, 3),
    T=st.integers(1, 12),
    D=st.integers(1, 50),
    V=st.integers(1, 200),
    ignored=st.floats(0, 1),
    weighted=st.sampled_from([None, "position", "token"]),
    seed=st.integers(0, 1000),
)
def test_losses(backend, device, B, T, D, V, ignored, weighted, seed):
    torch.manual_seed(seed)
    hidden = torch.randn(B, T, D, device=device, requires_grad=True)
    weight = (torch.randn(V, D, device=device) * D**-0.5).requires_grad_()
    targets = torch.randint(V, (B, T), device=device)
    targets[torch.rand(B, T, device=device) < ignored] = IGNORE
    weights = {None: None, "position": torch.rand(T, device=device), "token": torch.rand(B, T, device=device)}[weighted]
    out = ek.position_loss(hidden, weight, targets, weights=weights, z_loss=1e-3, backend=backend)
    tokens = ek.linear_cross_entropy(hidden, weight, targets, z_loss=1e-3, softcap=3.0, backend=backend)
    upstream = torch.randn(B, T, device=device)
    total = out.loss * -1.7 + (tokens * upstream).sum()
    got = [out.loss, out.token_loss, tokens, *torch.autograd.grad(total, (hidden, weight))]
    x, w = leaves(hidden, weight, dtype=torch.float64)
    loss, lse, correct, entropy = token_losses(x, w, targets)
    share = (targets != IGNORE).double() * (1.0 if weights is None else weights.double())
    mean = (share * (loss + 1e-3 * lse.square())).sum() / share.sum().clamp_min(1e-300)
    capped, capped_lse, *_ = token_losses(x, w, targets, softcap=3.0)
    capped = capped + 1e-3 * capped_lse.square()
    exact = mean * -1.7 + (capped * upstream.double()).sum()
    wanted = [mean, loss, capped, *torch.autograd.grad(exact, (x, w))]
    for a, b in zip(got, wanted):
        assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5)
    sums = out.positions
    assert torch.equal(sums.count, (targets != IGNORE).sum(0)) and torch.equal(sums.correct, correct.sum(0))
    assert torch.allclose(sums.entropy_sum, entropy.sum(0), rtol=1e-4, atol=1e-5)
