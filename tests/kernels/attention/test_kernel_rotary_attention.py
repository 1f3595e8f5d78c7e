"""rotary_attention against rotary followed by attention, bit for bit, and against float64."""

from functools import partial

import pytest
import torch
import torch.utils.checkpoint
from attention_cases import plain as plain_attention
from kernel_checks import assert_as_good, leaves, of_attention
from rotary_cases import angles
from rotary_cases import plain as plain_rotary

import emergence_kernels as ek
from emergence_kernels.attention import compiled as compiled_attention
from emergence_kernels.attention import hopper as attention_hopper

# name: (B, T, H, G, D), R, options
CASES = {
    "plain": ((2, 35, 2, 2, 16), 8, {}),
    "GQA": ((2, 20, 6, 2, 16), 8, {}),
    "MQA, many heads": ((1, 20, 18, 1, 8), 4, {}),
    "partial rotary": ((1, 33, 2, 1, 32), 5, {}),
    "head dim 64": ((1, 48, 2, 1, 64), 32, {}),
    "documents": ((2, 30, 2, 1, 16), 8, {"documents": True}),
    "window": ((1, 50, 2, 1, 16), 8, {"window": 11}),
    "full": ((1, 34, 2, 2, 16), 8, {"causal": False}),
    "negative scale": ((1, 34, 2, 2, 16), 8, {"scale": -0.2}),
    "deterministic": ((1, 34, 2, 1, 16), 8, {"deterministic": True}),
    "angles of each row": ((2, 19, 2, 1, 16), 8, {"batched": True}),
}
SHORT = {"short": ((2, 9, 2, 1, 16), 8, {})}  # for what autograd and compilers do, whatever the shape


def make(case, dtype, device):
    (B, T, H, G, D), R, options = (CASES | SHORT)[case]
    options = dict(options)
    cos, sin = angles(T, R, device, B if options.pop("batched", False) else None)
    if options.pop("documents", False):
        options["document_ids"] = (torch.arange(T, device=device) // 23).expand(B, T).contiguous()
    qkv = torch.randn(B, T, (H + 2 * G) * D).to(device, dtype)
    upstream = torch.randn(B, T, H, D).to(device, dtype)
    return qkv, cos, sin, H, G, options, upstream


def composed(qkv, cos, sin, H, G, options, backend, rotation):
    x = qkv.unflatten(-1, (H + 2 * G, -1))
    turned, v = x.split([H + G, G], 2)
    q, k = ek.rotary(turned, cos, sin, backend=rotation).split([H, G], 2)
    return ek.attention(q, k, v, backend=backend, **options)


def fused(qkv, cos, sin, H, G, options, backend, overwrite):
    return ek.rotary_attention(qkv, cos, sin, heads=H, kv_heads=G, backend=backend, overwrite=overwrite, **options)


def same(ours, theirs, backend):
    """To the bit, except for PyTorch's attention on a GPU, which chooses its kernel by the strides of its inputs."""
    if backend == "torch" and ours.is_cuda:
        return torch.allclose(ours, theirs, rtol=1e-2 if ours.dtype != torch.float32 else 1e-4, atol=1e-5)
    return torch.equal(ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_rotary_attention_is_the_composition(case, backend, device, monkeypatch):
    # On a Hopper GPU, too, dq and dk are rounded before they are rotated back: as they are where the two are composed.
    monkeypatch.setattr(attention_hopper, "rotates_back", lambda cos: False)
    dtype = of_attention(backend)
    qkv, *rest, upstream = make(case, dtype, device)
    (b,) = leaves(qkv)
    theirs = composed(b * 1, *rest, backend, backend)
    (wanted,) = torch.autograd.grad(theirs, b, upstream)
    for overwrite in (False, True):
        (a,) = leaves(qkv)
        ours = fused(a * 1, *rest, backend, overwrite)  # a projection's output is no leaf
        assert ours.shape == upstream.shape and same(ours, theirs, backend), overwrite
        (got,) = torch.autograd.grad(ours, a, upstream)
        assert got.shape == qkv.shape and same(got, wanted, backend), overwrite


@pytest.mark.parametrize("case", ["GQA", "MQA, many heads", "partial rotary", "angles of each row", "documents"])
@pytest.mark.parametrize("rotation", ["triton", "cuda", "cpu", "torch"])
def test_every_rotation_with_attention_by_others(rotation, case, device, request, monkeypatch):
    """SDPA returns separate gradients, which are rotated into one tensor: one kernel of Triton's, or three steps."""
    if rotation == "triton":
        request.getfixturevalue("triton_only")
    elif rotation != "torch" and (
        rotation == "cpu" and device.type != "cpu" or request.getfixturevalue(f"{rotation}_library")
    ):
        pytest.skip("not here")
    from emergence_kernels.attention import rotary_attention as module

    chosen = module.resolve_backend
    monkeypatch.setattr(module, "resolve_backend", lambda _, op, *rest: chosen(rotation, op, *rest))
    qkv, *rest, upstream = make(case, torch.float32, device)
    (b,) = leaves(qkv)
    theirs = composed(b * 1, *rest, "torch", rotation)
    (wanted,) = torch.autograd.grad(theirs, b, upstream)
    for overwrite in (False, True):
        (a,) = leaves(qkv)
        ours = fused(a * 1, *rest, "torch", overwrite)
        assert same(ours, theirs, "torch"), overwrite
        (got,) = torch.autograd.grad(ours, a, upstream)
        assert same(got, wanted, "torch"), overwrite


HOPPER = {
    "head dim 64": ((2, 70, 2, 1, 64), 32, {}),
    "head dim 128": ((1, 70, 2, 2, 128), 64, {"deterministic": True}),
    "a part of each head": ((1, 66, 3, 1, 64), 8, {"documents": True, "deterministic": True}),
    "angles of each row": ((2, 65, 1, 1, 128), 24, {"window": 20, "batched": True}),
    "negative scale": ((1, 64, 1, 1, 64), 16, {"scale": -0.2}),
    "in no one thread": ((1, 65, 2, 1, 64), 12, {}),
}


@pytest.fixture
def hopper(cuda_library, monkeypatch):
    """Emulated, in the place of the kernels for sm_80."""
    if cuda_library:
        pytest.skip(cuda_library)
    if not torch.cuda.is_available():
        monkeypatch.setitem(compiled_attention.KERNELS, "sm_80", attention_hopper)
    elif torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("not a Hopper GPU")


def gradient_by_hopper(qkv, *rest):
    *options, upstream = rest
    (a,) = leaves(qkv)
    return torch.autograd.grad(fused(a * 1, *options, "cuda", True), a, upstream)[0]


@pytest.mark.parametrize("case", HOPPER)
def test_hoppers_kernels_rotate_back(case, hopper, device, monkeypatch):
    """dq and dk leave registers rotated back, into slices of one tensor, with one rounding fewer than by another kernel."""
    from emergence_kernels.attention import rotary_attention as module

    monkeypatch.setitem(CASES, case, HOPPER[case])
    arguments = make(case, torch.bfloat16, device)
    by_other_kernels = []
    rotate = module.rotate
    monkeypatch.setattr(module, "rotate", lambda x, *rest: by_other_kernels.append(rest[2]) or rotate(x, *rest))
    got = gradient_by_hopper(*arguments)
    assert by_other_kernels.count(-1.0) == (case == "in no one thread")
    monkeypatch.setattr(attention_hopper, "rotates_back", lambda cos: False)
    separate = gradient_by_hopper(*arguments)
    assert by_other_kernels.count(-1.0) == 1 + (case == "in no one thread")
    qkv, cos, sin, H, G, options, upstream = arguments
    options.pop("deterministic", None)
    results = []
    for kept in (torch.float64, torch.bfloat16):
        (copy,) = leaves(qkv, dtype=kept)
        q, k, v = copy.unflatten(-1, (H + 2 * G, -1)).split([H, G, G], 2)
        other = plain_attention(plain_rotary(q, cos, sin), plain_rotary(k, cos, sin), v, **options)
        results.append(torch.autograd.grad(other, copy, upstream.to(kept))[0])
    assert_as_good("d_qkv", got, *results)
    ours, theirs = ((t.double() - results[0]).norm() for t in (got, separate))
    assert ours <= theirs * 1.001
    width = qkv.shape[-1] * G // (H + 2 * G)
    assert torch.equal(got[..., -width:], separate[..., -width:]), "dv is as it was"


def test_hopper_adds_the_gradient_of_what_was_overwritten(hopper, device):
    """It belongs to the rotated q and k, and is added before they are rotated back: by another kernel."""
    qkv, cos, sin, H, G, options, upstream = make("head dim 64", torch.bfloat16, device)
    gradients = []
    for of_qkv in (0, 1):
        (a,) = leaves(qkv)
        projected = a * 1
        out = fused(projected, cos, sin, H, G, options, "cuda", True)
        gradients.append(torch.autograd.grad((out * upstream).sum() + of_qkv * projected.sum(), a)[0].double())
    ones = torch.ones(*qkv.shape[:2], H + 2 * G, 64, dtype=torch.float64, device=device)
    ones[:, :, : H + G] = plain_rotary(ones[:, :, : H + G], cos.double(), -sin.double())
    assert torch.allclose(gradients[1], gradients[0] + ones.flatten(2), rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("case", ["GQA", "partial rotary"])
def test_rotary_attention_against_float64(case, backend, device):
    dtype = of_attention(backend, torch.bfloat16)
    qkv, cos, sin, H, G, options, upstream = make(case, dtype, device)
    (tracked,) = leaves(qkv)
    out = fused(tracked * 1, cos, sin, H, G, options, backend, True)
    results = [[out.detach(), *torch.autograd.grad(out, tracked, upstream)]]
    for kept in (torch.float64, dtype):
        (copy,) = leaves(qkv, dtype=kept)
        q, k, v = copy.unflatten(-1, (H + 2 * G, -1)).split([H, G, G], 2)
        other = plain_attention(plain_rotary(q, cos, sin), plain_rotary(k, cos, sin), v, **options)
        results.append([other.detach(), *torch.autograd.grad(other, copy, upstream.to(kept))])
    for name, *three in zip(("out", "d_qkv"), *results):
        assert_as_good(name, *three)


def test_what_may_not_be_overwritten_is_kept(backend, device):
    """Leaves, views and expanded tensors; and nothing is overwritten by default."""
    dtype = of_attention(backend)
    qkv, *rest, upstream = make("short", dtype, device)
    for name, make_input in {
        "leaf": lambda t: t.requires_grad_(),
        "view": lambda t: (t.requires_grad_() * 1).view(t.shape),
        "expanded": lambda t: t[:1].expand(t.shape).requires_grad_(),
        "view without gradients": lambda t: t.view(t.shape),
    }.items():
        given = make_input(qkv.clone())
        before = given.detach().clone()
        out = fused(given, *rest, backend, True)
        assert torch.equal(given.detach(), before), name
        if given.requires_grad:
            (given_grad,) = torch.autograd.grad(out, given, upstream)
            (copy,) = leaves(before)
            wanted = torch.autograd.grad(composed(copy, *rest, backend, backend), copy, upstream)[0]
            assert same(given_grad, wanted, backend), name
    given = qkv.clone()
    fused(given, *rest, backend, False)
    assert torch.equal(given, qkv)


def test_overwriting_is_known_to_autograd(triton_only, device):
    """A use of the old value raises instead of a wrong gradient; a use of the new one has the right gradient."""
    qkv, cos, sin, H, G, options, upstream = make("short", torch.float32, device)
    run = partial(ek.rotary_attention, cos=cos, sin=sin, heads=H, kv_heads=G, backend="triton", overwrite=True)
    (a,) = leaves(qkv)
    projected = a * 1
    square = projected.square().sum()  # keeps projected for its backward
    out = run(projected)
    assert not torch.equal(projected, a), "it was rotated in place"
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (out.sum() + square).backward()

    (a,) = leaves(qkv)
    projected = a * 1
    out = run(projected)
    projected.mul_(2)  # attention needs the rotated values
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()

    for with_out in (True, False):
        (a,), (b,) = leaves(qkv), leaves(qkv)
        projected = a * 1
        out = run(projected)
        loss = projected.square().sum() + (out * upstream).sum() * with_out
        (got,) = torch.autograd.grad(loss, a)
        x = (b * 1).unflatten(-1, (H + 2 * G, -1))
        turned = ek.rotary(x[:, :, : H + G], cos, sin, backend="torch")
        q, k = turned.split([H, G], 2)
        other = ek.attention(q, k, x[:, :, H + G :], backend="torch")
        loss = turned.square().sum() + x[:, :, H + G :].square().sum() + (other * upstream).sum() * with_out
        (wanted,) = torch.autograd.grad(loss, b)
        assert torch.allclose(got, wanted, atol=1e-5)


def test_second_backward_and_upstream_are_left_alone(backend, device):
    dtype = of_attention(backend)
    qkv, *rest, upstream = make("short", dtype, device)
    (a,) = leaves(qkv)
    out = fused(a * 1, *rest, backend, True)
    kept = upstream.clone()
    first = torch.autograd.grad(out, a, upstream, retain_graph=True)[0]
    second = torch.autograd.grad(out, a, upstream)[0]
    assert torch.equal(first, second) and torch.equal(upstream, kept)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, a, upstream)


def test_any_upstream_of_attention(backend, device):
    """Expanded, with stride 0 everywhere."""
    dtype = of_attention(backend)
    qkv, *rest, upstream = make("short", dtype, device)
    a, b = leaves(qkv, qkv)
    upstream = torch.tensor(0.5, dtype=dtype, device=device).expand(upstream.shape)
    (got,) = torch.autograd.grad(fused(a * 1, *rest, backend, True), a, upstream)
    (wanted,) = torch.autograd.grad(composed(b * 1, *rest, backend, backend), b, upstream)
    assert same(got, wanted, backend)


def test_a_checkpoint_runs_it_again(backend, device):
    """Non-reentrant: what is saved is packed and recomputed, rotated once more from a fresh projection."""
    dtype = of_attention(backend)
    qkv, *rest, upstream = make("short", dtype, device)
    weight = torch.eye(qkv.shape[-1], dtype=dtype, device=device)

    def run(x):
        return fused(torch.nn.functional.linear(x, weight), *rest, backend, True)

    a, b = leaves(qkv, qkv)
    (got,) = torch.autograd.grad(torch.utils.checkpoint.checkpoint(run, a, use_reentrant=False), a, upstream)
    assert torch.equal(got, torch.autograd.grad(run(b), b, upstream)[0])


def test_rotary_attention_opcheck_and_whole_graph(backend, device):
    dtype = of_attention(backend)
    qkv, cos, sin, H, G, options, upstream = make("short", dtype, device)
    (a,) = leaves(qkv)
    run = partial(ek.rotary_attention, cos=cos, sin=sin, heads=H, kv_heads=G, backend=backend, overwrite=True)
    if backend != "torch":
        torch.library.opcheck(
            torch.ops.emergence_kernels.rotary_attention,
            (a, cos, sin, H, G, backend, True, None, None, None, False, backend),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"),
        )
    step = torch.compile(lambda x: run(x * 1.0), fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(step(a), a, upstream)
    (wanted,) = torch.autograd.grad(run(a * 1.0), a, upstream)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_wrong_arguments_of_rotary_attention(device):
    qkv = torch.randn(1, 3, 4 * 8, device=device)
    cos, sin = angles(3, 4, device)
    with pytest.raises(ValueError, match=r"qkv must be \(batch, seq, 6 \* head_dim\)"):
        ek.rotary_attention(qkv, cos, sin, heads=2)
    with pytest.raises(ValueError, match="both must be positive"):
        ek.rotary_attention(qkv, cos, sin, heads=2, kv_heads=0)
    with pytest.raises(ValueError, match="cannot share"):
        ek.rotary_attention(torch.randn(1, 3, 7 * 8, device=device), cos, sin, heads=3, kv_heads=2)
    with pytest.raises(ValueError, match="2R at most 8"):
        ek.rotary_attention(qkv, *angles(3, 5, device), heads=2, kv_heads=1)
