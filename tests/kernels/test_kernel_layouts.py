"""Every operation, with each of its tensors a view in turn: what a kernel takes for contiguous is copied before."""

import pytest
import torch
from kernel_checks import of_attention
from test_kernel_contracts import skip_unless_offered

import emergence_kernels as ek

B, T, H, D, F = 2, 7, 2, 16, 32
IDS = torch.arange(T).expand(B, T) // 3
TARGETS = torch.arange(B * T).view(B, T) % F
ANGLES = torch.arange(T)[:, None] * 0.7 ** torch.arange(D // 2)
ROTATION = {"cos": ANGLES.cos(), "sin": ANGLES.sin()}
SCORES = {"sinks": (H,), "alibi": (H,)}  # "triton" and "torch" alone
OPERATIONS = {
    "rms_norm": (ek.rms_norm, {"x": (B, T, D), "weight": (D,), "residual": (B, T, D)}, {}),
    "swiglu": (ek.swiglu, {"gate_up": (B, T, 2 * F)}, {}),
    "feed_forward": (ek.feed_forward, {"x": (B, T, D), "gate_up_weight": (2 * F, D), "down_weight": (D, F)}, {}),
    "rotary": (ek.rotary, {"x": (B, T, H, D)} | ROTATION, {}),
    "attention": (ek.attention, {name: (B, T, H, D) for name in "qkv"} | {"document_ids": IDS}, {}),
    "attention_scores": (ek.attention, {name: (B, T, H, D) for name in "qkv"} | {"document_ids": IDS} | SCORES, {}),
    "rotary_attention": (ek.rotary_attention, {"qkv": (B, T, 3 * H * D), "document_ids": IDS} | ROTATION, {"heads": H}),
    "projected_attention": (
        ek.projected_attention,
        {"x": (B, T, D), "weight": (3 * H * D, D), "document_ids": IDS} | ROTATION,
        {"heads": H},
    ),
    "linear_cross_entropy": (ek.linear_cross_entropy, {"hidden": (B, T, D), "weight": (F, D), "targets": TARGETS}, {}),
    "position_loss": (
        lambda *tensors, **named: ek.position_loss(*tensors, **named).loss,
        {"hidden": (B, T, D), "weight": (F, D), "targets": TARGETS, "weights": torch.rand(B, T)},
        {},
    ),
    "fp8_linear": (ek.fp8_linear, {"x": (B, T, D), "weight": (F, D)}, {}),
}
GRADIENTS = (
    "x",
    "weight",
    "residual",
    "gate_up",
    "gate_up_weight",
    "down_weight",
    "q",
    "k",
    "v",
    "qkv",
    "hidden",
    "sinks",
)


def view(t, kind):
    """t's values in a layout with gaps, which hold numbers that would be seen in a result; "start": one value off."""
    if not t.dim():
        return t
    extra = (*t.shape[:-1], 2 * t.shape[-1] if kind == "features" else t.shape[-1] + 8)
    if kind == "sequences":
        extra = (t.shape[0], t.shape[1] + 1, *t.shape[2:]) if t.dim() > 1 else extra
    if kind == "start":
        return torch.cat([t.new_ones(1), t.flatten()])[1:].view(t.shape)
    if kind == "axes":
        wide = torch.empty_like(t.transpose(0, -1), memory_format=torch.contiguous_format).transpose(0, -1)
    else:
        wide = torch.full(extra, 1e3 if t.is_floating_point() else 9, dtype=t.dtype, device=t.device)
        wide = {"features": wide[..., ::2], "rows": wide[..., : t.shape[-1]]}.get(kind, wide)[
            tuple(map(slice, t.shape))
        ]
    return wide.copy_(t)


def results(op, tensors, options, upstreams):
    tracked = {name: t.detach().requires_grad_() for name, t in tensors.items() if name in GRADIENTS}
    out = op(**(tensors | tracked), **options)
    out = out if isinstance(out, tuple) else (out,)
    return [*(t.detach() for t in out), *torch.autograd.grad(out, list(tracked.values()), upstreams[: len(out)])]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", ["features", "rows", "sequences", "axes", "start"])
def test_views_give_what_their_copies_give(name, kind, backend, device):
    if name == ("attention" if backend in ("triton", "torch") else "attention_scores"):
        pytest.skip("the other case: sinks and alibi are computed by 'triton' and 'torch'")
    if (kind, backend) == ("start", "torch"):
        pytest.skip("the order of PyTorch's own sums depends on it")
    if backend != "cuda":
        skip_unless_offered(name, backend)
    elif name == "fp8_linear":
        pytest.skip("bfloat16 on tensor cores")
    op, shapes, options = OPERATIONS[name]
    dtype = of_attention(backend) if "attention" in name else torch.float32
    options = options | {"backend": backend}
    tensors = {}
    for key, shape in shapes.items():
        t = shape if isinstance(shape, torch.Tensor) else torch.randn(shape)
        narrow = key not in (*ROTATION, *SCORES) and t.is_floating_point() and key != "weights"
        tensors[key] = t.to(device, dtype if narrow else t.dtype).clone(memory_format=torch.contiguous_format)
    with torch.no_grad():
        out = op(**tensors, **options)
    upstreams = [torch.randn_like(t) for t in (out if isinstance(out, tuple) else (out,))]
    wanted = results(op, tensors, options, upstreams)
    for key in [*tensors, *range(len(upstreams))]:
        changed, grads = dict(tensors), list(upstreams)
        given = changed if key in changed else grads
        given[key] = view(given[key], kind)
        for got, exact in zip(results(op, changed, options, grads), wanted, strict=True):
            assert (got - exact).norm() <= 8 * torch.finfo(got.dtype).eps * exact.norm(), key


@pytest.mark.parametrize("kind", ["features", "rows", "sequences", "axes", "start"])
def test_gradients_are_joined_from_views(kind, triton_only, device):
    """Triton's join, where attention is by others."""
    from emergence_kernels.rotary.triton import join

    tensors = [torch.randn(B, T, heads, D, device=device) for heads in (4, H, H)]
    tensors += [t.to(device) for t in ROTATION.values()]
    wanted, got = (torch.empty(B, T, 4 + 2 * H, D, device=device) for _ in range(2))
    join(*tensors, wanted)
    for index in range(len(tensors)):
        join(*(view(t, kind) if index == place else t for place, t in enumerate(tensors)), got)
        assert torch.equal(got, wanted), index
