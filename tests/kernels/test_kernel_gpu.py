"""What only a GPU can show. Skipped without one."""

import pytest
import torch
import torch.nn.functional as F

import emergence_kernels as ek

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GIB = 1 << 30


def extra_memory(run) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


def problem(N, D, V, dtype=torch.bfloat16):
    hidden = torch.randn(1, N, D, device="cuda", dtype=dtype, requires_grad=True)
    weight = (torch.randn(V, D, device="cuda") * D**-0.5).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (1, N), device="cuda")


@pytest.mark.parametrize("op", ["position_loss", "linear_cross_entropy"])
@pytest.mark.parametrize("N, D, V", [(4096, 512, 50257), (3000, 1000, 32001), (24576, 64, 131071)])
def test_losses_at_size(op, N, D, V, fused):
    """Odd vocabularies; the last has 3.2e9 logits, more than 2^31. Checked on the first and the last rows."""
    hidden, weight, targets = problem(N, D, V)
    if op == "position_loss":
        out = ek.position_loss(hidden, weight, targets, backend=fused)
        losses, loss = out.token_loss, out.loss
    else:
        losses = ek.linear_cross_entropy(hidden, weight, targets, backend=fused)
        loss = losses.mean()
    dx, dw = torch.autograd.grad(loss, (hidden, weight))
    for rows in (slice(0, 64), slice(N - 64, N)):
        x = hidden[0, rows].detach().double().requires_grad_()
        exact = F.cross_entropy(x @ weight.detach().double().t(), targets[0, rows], reduction="none")
        (exact_dx,) = torch.autograd.grad(exact.sum() / N, x)
        assert torch.allclose(losses[0, rows].double(), exact, atol=2e-3)
        assert (dx[0, rows].double() - exact_dx).norm() <= 0.02 * exact_dx.norm()
    # dW of a few words, from all rows.
    some = torch.tensor([0, V // 2, V - 1], device="cuda")
    exact_dw = torch.zeros(3, D, dtype=torch.float64, device="cuda")
    for start in range(0, N, 512):
        x = hidden[0, start : start + 512].detach().double()
        p = torch.softmax(x.float() @ weight.detach().float().t(), -1)[:, some].double()
        hit = (targets[0, start : start + 512, None] == some).double()
        exact_dw += (p - hit).t() @ x / N
    assert (dw[some].double() - exact_dw).norm() <= 0.02 * exact_dw.norm()


def test_memory_does_not_grow_with_tokens(fused):
    """Beyond gradients of the inputs' size, both losses hold one chunk of logits and one float32 dW."""
    D, V = 512, 131072
    for op in (ek.position_loss, ek.linear_cross_entropy):
        extras = []
        for N in (8192, 32768):
            hidden, weight, targets = problem(N, D, V)

            def run(op=op, hidden=hidden, weight=weight, targets=targets):
                out = op(hidden, weight, targets, backend=fused)
                loss = out.loss if op is ek.position_loss else out.sum()
                return torch.autograd.grad(loss, (hidden, weight))

            run()
            extras.append(extra_memory(run) - 2 * hidden.numel() * hidden.element_size())
        assert extras[1] <= 1.1 * extras[0] + 0.1 * GIB, extras
        assert extras[1] < 32768 * V * 2, "as much as the logits themselves"


@pytest.mark.parametrize("D", [64, 80, 96, 128])
@pytest.mark.parametrize("kind", ["causal", "full", "documents", "window"])
def test_attention_at_size(D, kind, fused):
    B, T, H, G = 2, 1500, 4, 2
    q, k, v = (torch.randn(B, T, h, D, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (H, G, G))
    ids = (torch.arange(T, device="cuda") // 400).expand(B, T) if kind == "documents" else None
    options = dict(causal=kind != "full", document_ids=ids, window=300 if kind == "window" else None)
    out = ek.attention(q, k, v, backend=fused, **options)
    upstream = torch.randn_like(out)
    got = torch.autograd.grad(out, (q, k, v), upstream)
    copies = [t.detach().double().requires_grad_() for t in (q, k, v)]
    exact = ek.attention(*copies, backend="torch", **options)
    wanted = torch.autograd.grad(exact, copies, upstream.double())
    for a, b in zip((out, *got), (exact, *wanted)):
        assert (a.double() - b).norm() <= 0.01 * b.norm()


@pytest.mark.parametrize("D", [64, 128])
def test_attention_scores_at_size(D, triton_only):
    B, T, H, G = 2, 1500, 4, 2
    q, k, v = (torch.randn(B, T, h, D, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (H, G, G))
    sinks = torch.linspace(-2, 4, H, device="cuda", requires_grad=True)
    options = dict(softcap=5.0, alibi=torch.tensor([0.5, 0.1, 0.01, 0.0], device="cuda"))
    options["document_ids"] = (torch.arange(T, device="cuda") // 400).expand(B, T).contiguous()
    out = ek.attention(q, k, v, sinks=sinks, **options)  # "auto" takes Triton's
    upstream = torch.randn_like(out)
    got = torch.autograd.grad(out, (q, k, v, sinks), upstream)
    copies = [t.detach().double().requires_grad_() for t in (q, k, v, sinks)]
    exact = ek.attention(*copies[:3], sinks=copies[3], backend="torch", **options)
    wanted = torch.autograd.grad(exact, copies, upstream.double())
    for a, b in zip((out, *got), (exact, *wanted)):
        assert (a.double() - b).norm() <= 0.01 * b.norm()


def test_attention_of_many_heads(fused):
    """More of them than a launch's second dimension holds."""
    q, k, v = (torch.randn(70000, 4, 1, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    out = ek.attention(q, k, v, backend=fused)
    got = torch.autograd.grad(out, (q, k, v), out.detach())
    some = slice(69990, 70000)
    copies = [t[some].detach().double().requires_grad_() for t in (q, k, v)]
    exact = ek.attention(*copies, backend="torch")
    wanted = torch.autograd.grad(exact, copies, out[some].detach().double())
    for a, b in zip((out, *got), (exact, *wanted)):
        assert (a[some].double() - b).norm() <= 0.01 * b.norm()


def test_attention_of_more_than_2_31_values(fused):
    """Checked on the last positions, where 32-bit offsets would have wrapped."""
    if torch.cuda.mem_get_info()[0] < 24 * GIB:
        pytest.skip("needs 24 GiB")
    T, H, D, window = (1 << 20) + 200, 16, 128, 64
    q, k, v = (torch.randn(1, T, h, D, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (H, 1, 1))
    out = ek.attention(q, k, v, window=window, backend=fused)
    got = torch.autograd.grad(out, (q, k, v), out.detach())
    copies = [t[:, -200:].detach().double().requires_grad_() for t in (q, k, v)]
    exact = ek.attention(*copies, window=window, backend="torch")
    wanted = torch.autograd.grad(exact, copies, out[:, -200:].detach().double())
    for a, b in zip((out, *got), (exact, *wanted)):
        assert (a[:, -100:].double() - b[:, -100:]).norm() <= 0.01 * b[:, -100:].norm()


@pytest.mark.parametrize("causal", [True, False])
def test_flash_agrees(causal, fused):
    q = torch.randn(2, 512, 8, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(2, 512, 8, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    results = []
    for backend in ("flash", fused):
        out = ek.attention(q, k, v, causal=causal, backend=backend)
        results.append((out, *torch.autograd.grad(out.float().square().mean(), (q, k, v))))
    for a, b in zip(*results):
        assert (a - b).norm() <= 0.02 * b.norm()


@pytest.mark.parametrize("D", [520, 1024, 2048, 4096, 8192])
def test_rms_norm_at_size(D, fused):
    x, residual = (torch.randn(8192, D, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    weight = torch.randn(D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    y, total = ek.rms_norm(x, weight, residual=residual, backend=fused)
    upstream = torch.randn_like(y)
    got = torch.autograd.grad((y, total), (x, weight, residual), (upstream, upstream))
    copies = [t.detach().double().requires_grad_() for t in (total, weight)]
    exact = F.rms_norm(copies[0], (D,), copies[1], 1e-6)
    dx, dw = torch.autograd.grad(exact, copies, upstream.double())
    assert (y.double() - exact).norm() <= 0.01 * exact.norm()
    assert (got[0].double() - (dx + upstream.double())).norm() <= 0.01 * dx.norm()
    assert (got[1].double() - dw).norm() <= 0.01 * dw.norm()


@pytest.mark.parametrize("named", ["auto", "flash", "triton", "cuda"])
@pytest.mark.parametrize("H, G, D", [(16, 16, 64), (16, 4, 128)])
def test_rotary_attention_at_size(H, G, D, named, request):
    """As rotary and attention in turn; kernels that add with atomics repeat their gradients only nearly."""
    if named == "cuda" and (reason := request.getfixturevalue("cuda_library")):
        pytest.skip(reason)
    B, T = 2, 2048
    angle = torch.rand(T, D // 2, device="cuda") * 6
    cos, sin = angle.cos(), angle.sin()
    a = torch.randn(B, T, (H + 2 * G) * D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(B, T, H, D, device="cuda", dtype=torch.bfloat16)
    ours = ek.rotary_attention(a * 1, cos, sin, heads=H, kv_heads=G, overwrite=True, backend=named)
    turned, v = a.unflatten(-1, (-1, D)).split([H + G, G], 2)
    q, k = ek.rotary(turned, cos, sin, backend="auto" if named == "flash" else named).split([H, G], 2)
    theirs = ek.attention(q, k, v, backend=named)
    assert torch.equal(ours, theirs)
    (got,), (wanted,) = torch.autograd.grad(ours, a, upstream), torch.autograd.grad(theirs, a, upstream)
    assert (got - wanted).norm() <= 0.004 * wanted.norm()


@pytest.mark.parametrize("N, F", [(16384, 2752), (8192, 8192), (1000, 131)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_swiglu_at_size(N, F, dtype, fused):
    x = (3 * torch.randn(N, 2 * F, device="cuda")).to(dtype).requires_grad_()
    upstream = torch.randn(N, F, device="cuda").to(dtype)
    y = ek.swiglu(x, backend=fused)
    (dx,) = torch.autograd.grad(y, x, upstream)
    for rows in (slice(0, 200), slice(N - 200, N)):
        wide = x[rows].detach().double().requires_grad_()
        exact = ek.swiglu(wide, backend="torch")
        (exact_dx,) = torch.autograd.grad(exact, wide, upstream[rows].double())
        assert (y[rows].double() - exact).norm() <= 0.004 * exact.norm()
        assert (dx[rows].double() - exact_dx).norm() <= 0.004 * exact_dx.norm()


def test_swiglu_beyond_two_to_the_31(fused):
    """The last row begins beyond what 32 bits address."""
    x = torch.zeros(66_000, 2 * 16_384, device="cuda", dtype=torch.bfloat16)
    x[-1].normal_()
    y = ek.swiglu(x, backend=fused)
    assert torch.equal(y[-1], ek.swiglu(x[-1:].clone(), backend=fused)[0]) and not y[:-1].any()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_other_device(fused):
    """Tensors on a device that is not the current one."""
    x = torch.randn(64, 256, device="cuda:1")
    y = ek.rms_norm(x, torch.ones(256, device="cuda:1"), backend=fused)
    assert y.device == x.device and torch.allclose(y, F.rms_norm(x, (256,), eps=1e-6), atol=1e-5)


def hopper() -> None:
    from emergence_kernels.fp8_linear.op import fp8_unsupported_reason

    if reason := fp8_unsupported_reason(torch.device("cuda")):
        pytest.skip(reason)


@pytest.mark.parametrize("promoted, limit", [(True, 5e-3), (False, 2e-2)])
@pytest.mark.parametrize("M, N, K", [(4096, 6144, 2048), (1003, 2048, 5504), (17, 48, 16), (8, 16, 16400)])
def test_fp8_products_are_the_emulated_ones(M, N, K, promoted, limit, monkeypatch):
    """Operands bit for bit; products to their sums' precision, which is some 14 bits unless they are promoted to float32."""
    from emergence_kernels.fp8_linear import reference, triton

    hopper()
    monkeypatch.setattr(triton, "FAST_ACCUMULATION", not promoted)
    x, w, dy = (torch.randn(*size, device="cuda").bfloat16() for size in ((M, K), (N, K), (M, N)))
    x[0], x[1, 0], w[:, 1] = 0, 1e30, w[:, 1] * 1e-20
    for name, t in (("quantize_rows", x), ("quantize_rows", dy), ("quantize_columns", w)):
        ours, emulated = getattr(triton, name)(t), getattr(reference, name)(t)
        assert torch.equal(ours[0].float(), emulated[0].float()) and torch.equal(ours[1], emulated[1]), name
    x.requires_grad_()
    w.requires_grad_()
    results = []
    for backend in ("triton", "torch"):
        y = ek.fp8_linear(x, w, ek.quantize_weight(w, backend=backend), backend=backend)
        results.append((y, *torch.autograd.grad(y, (x, w), dy)))
    for name, ours, emulated in zip(("y", "dx", "dW"), *results):
        rows = slice(2, None) if name == "y" else slice(None)  # two rows are not of the others' size
        error = (ours[rows].float() - emulated[rows].float()).norm() / emulated[rows].float().norm()
        assert error <= limit, f"{name}: {error:.2g}"
    assert not results[0][0][0].any()


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_fp8_keeps_what_is_not_finite(value):
    """A GPU's conversion saturates infinities; the scale of their row does not."""
    hopper()
    x, w = torch.randn(64, 256, device="cuda").bfloat16(), torch.randn(128, 256, device="cuda").bfloat16()
    x[3, 5] = value
    y = ek.fp8_linear(x, w, backend="triton")
    assert y[3].isnan().all() and y[4:].isfinite().all() and y[:3].isfinite().all()
    x, w[7, 9] = x.nan_to_num(0, 0, 0).requires_grad_(), value
    y = ek.fp8_linear(x, w, backend="triton")
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y[:, 7].isnan().all() and y[:, :7].isfinite().all() and dx[:, 9].isnan().all() and dx[:, :9].isfinite().all()


def test_fp8_in_a_graph():
    """A captured layer multiplies by the weight as it is held now: rounded again outside of the graph."""
    hopper()
    x, w = torch.randn(256, 512, device="cuda").bfloat16(), torch.randn(128, 512, device="cuda").bfloat16()
    held = ek.quantize_weight(w)
    with torch.no_grad():
        ek.fp8_linear(x, w, held)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ek.fp8_linear(x, w, held)
        w.copy_(torch.randn_like(w))
        ek.quantize_weight(w, held)
        graph.replay()
        assert torch.equal(y, ek.fp8_linear(x, w))


def test_inductor_keeps_whole_graphs(fused):
    hidden, weight, targets = problem(512, 128, 999)
    gain = torch.ones(128, device="cuda", dtype=torch.bfloat16)

    @torch.compile(fullgraph=True)
    def step(hidden, weight):
        return ek.position_loss(ek.rms_norm(hidden, gain, backend=fused), weight, targets, backend=fused).loss

    loss = step(hidden, weight)
    loss.backward()
    assert torch.isfinite(hidden.grad).all() and weight.grad.any()
