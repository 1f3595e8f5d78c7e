"""Softcap, sinks and ALiBi against a float64 oracle with the sums of exponentials written out."""

import importlib

import pytest
import torch
from attention_cases import documents, make
from compiled import COMPILED
from kernel_checks import assert_as_good, leaves
from rotary_cases import angles
from torch.utils._python_dispatch import TorchDispatchMode

import emergence_kernels as ek
from emergence_kernels.attention import document_ranges
from emergence_kernels.attention.reference import dense_attention

SINKS, SLOPES = (0.3, -1.5, 4.0, 0.0), (0.5, 0.06, 0.0, 2.0)
# name: (B, T, H, G, D), factor on q, options; the first heads' sinks and slopes are taken.
CASES = {
    "softcap": ((1, 37, 2, 1, 16), 3, {"softcap": 2.0}),
    "softcap, tiny": ((1, 20, 2, 2, 16), 12, {"softcap": 1e-3}),
    "softcap, huge": ((1, 20, 2, 2, 16), 1, {"softcap": 1e6, "causal": False}),
    "sinks": ((1, 33, 2, 2, 16), 1, {"sinks": SINKS}),
    "sinks, extreme": ((1, 20, 2, 1, 16), 12, {"sinks": (90.0, -1e4), "window": 1}),  # a key and the sink
    "alibi": ((1, 37, 2, 1, 16), 1, {"alibi": SLOPES, "causal": False}),
    "everything": (
        (1, 45, 2, 1, 20),
        4,
        {"softcap": 5.0, "sinks": SINKS, "alibi": SLOPES, "window": 19, "documents": True, "scale": 0.3},
    ),
    "everything, even": ((1, 64, 2, 1, 16), 400, {"softcap": 50.0, "sinks": (30.0, -3.0), "alibi": SLOPES}),
}
TRIED = [(case, torch.float32) for case in CASES] + [("everything", torch.bfloat16)]
if COMPILED:  # on the matrix units
    TRIED += [(case, torch.bfloat16) for case in CASES if case != "everything"]
BY = pytest.mark.parametrize("by", ["torch", "triton"])


@pytest.fixture
def by(request) -> str:
    if request.param == "triton":
        request.getfixturevalue("triton_only")
    return request.param


def inputs(case, dtype, device):
    """(q, k, v), sinks or None, other options."""
    shape, factor, options = CASES[case]
    q, k, v = make(shape, "plain", dtype, device)
    options = dict(options)
    if options.pop("documents", False):
        options["document_ids"] = documents("packed", *shape[:2], device)
    of_heads = {name: options.pop(name) for name in ("sinks", "alibi") if name in options}
    of_heads = {name: torch.tensor(values[: shape[2]], device=device) for name, values in of_heads.items()}
    sinks = of_heads.pop("sinks", None)
    return (q * factor, k, v), sinks, options | of_heads


def written_out(q, k, v, sinks, causal=True, scale=None, document_ids=None, window=None, softcap=None, alibi=None):
    """Of each head and query: exp of each score that it sees, over their sum and exp of the sink. Scores in float32 at least."""
    B, T, H, D = q.shape
    heads = []
    for h in range(H):
        own = h // (H // k.shape[2])
        scores = (q[:, :, h] @ k[:, :, own].transpose(1, 2)).to(torch.promote_types(q.dtype, torch.float32))
        scores = scores * (D**-0.5 if scale is None else scale)
        if softcap is not None:
            far = torch.expm1(-2 * scores.abs() / softcap)
            scores = scores.sign() * softcap * -far / (2 + far)
        gap = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
        if alibi is not None:
            scores = scores - alibi[h].to(scores.dtype) * gap.abs()
        hidden = (causal & (gap < 0)) | (gap.abs() >= (window or T))
        if document_ids is not None:
            hidden = hidden | (document_ids[:, :, None] != document_ids[:, None, :])
        scores = scores.masked_fill(hidden, -torch.inf)
        top = scores.amax(-1, keepdim=True)
        if sinks is not None:
            top = torch.maximum(top, sinks[h].to(scores.dtype))
        terms = torch.exp(scores - top.detach())
        total = terms.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + torch.exp(sinks[h].to(scores.dtype) - top.detach())
        heads.append((terms / total).to(v.dtype) @ v[:, :, own])
    return torch.stack(heads, 2)


@BY
@pytest.mark.parametrize("case, dtype", TRIED, ids=str)
def test_scores_against_float64(case, dtype, by, device):
    tensors, sinks, options = inputs(case, dtype, device)
    upstream = torch.randn(tensors[0].shape, device=device).to(dtype)
    results = []
    for run, kept in ((ek.attention, dtype), (written_out, torch.float64), (written_out, dtype)):
        tracked = leaves(*tensors, dtype=kept)
        own = None if sinks is None else sinks.to(kept if kept == torch.float64 else sinks.dtype).requires_grad_()
        more = {"backend": by, "sinks": own} if run is ek.attention else {"sinks": own}
        out = run(*tracked, **more, **options)
        wanted = tracked if own is None else [*tracked, own]
        results.append([out.detach(), *torch.autograd.grad(out, wanted, upstream.to(kept))])
    for name, *three in zip(("out", "dq", "dk", "dv", "d_sinks"), *results):
        # ds and 1 - tanh^2 cancel to 0 where a query sees one key, or a score is at the cap.
        terms = CASES[case][1] * upstream.float().norm().item()
        if name == "d_sinks" and dtype != torch.float32:
            # A sum over queries of upstream * out, where out is rounded to 16 bits; plain PyTorch's softmax keeps it in float32.
            rounding = torch.finfo(dtype).eps / 12**0.5 * (upstream * results[1][0]).norm().item()
            terms += rounding / torch.finfo(torch.float32).eps
        assert_as_good(name, *three, floor=4.0, terms=terms)


@pytest.mark.parametrize("name, value", [("alibi", 0.0), ("sinks", -torch.inf), ("softcap", 1e9)])
def test_scores_beyond_float16_are_finite(name, value, device):
    """128 x 24 x 24 is more than float16 holds. Equal scores: the mean of the values that a query sees."""
    q = k = torch.full((1, 8, 1, 128), 24.0, dtype=torch.float16, device=device)
    v = torch.randn(1, 8, 1, 128, device=device).half()
    more = value if name == "softcap" else torch.tensor([value], device=device)
    out = ek.attention(q, k, v, **{name: more}, backend="torch")
    mean = v.double().cumsum(1) / torch.arange(1, 9, device=device).view(1, 8, 1, 1)
    assert torch.allclose(out.double(), mean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("D, factor", [(128, 3), (128, 12), (256, 6)])
def test_scores_are_kept_in_float32(D, factor, autocast, device):
    """Rounded to 16 bits once, at the end: 2^-9 at most, and less on average; rounded scores had up to 1.1e-2."""
    q, k, v = (t.bfloat16() for t in make((1, 128, 2, 2, D), "plain", torch.float32, device))
    q = q * factor
    exact = ek.attention(q.double(), k.double(), v.double(), softcap=50.0, backend="torch")
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        out = ek.attention(q, k, v, softcap=50.0, backend="torch")
    assert out.dtype == torch.bfloat16 and (out.double() - exact).norm() <= 2**-9 * exact.norm()


def test_dense_attention_does_not_repeat_keys():
    """Of one query and a long cache no tensor on the way has more values than the keys, nor copies for each query head."""
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    q, (k, v) = torch.randn(2, 1, 8, 16).bfloat16(), torch.randn(2, 2, 64, 2, 16).bfloat16()
    with Sizes():
        dense_attention(q, k, v, None, 63 - torch.arange(64)[None], softcap=50.0)
    assert largest == k.numel() * 4  # float32


def test_scores_are_deterministic(triton_only, device):
    """With twice the same bits, of the sinks' gradient too; and a sink of -inf is no sink."""
    tensors, sinks, options = inputs("sinks", torch.float32, device)
    tracked = [*leaves(*tensors), sinks.requires_grad_()]
    first, second = (
        torch.autograd.grad(
            ek.attention(*tracked[:3], sinks=tracked[3], backend="triton", deterministic=True, **options).sum(), tracked
        )
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    none = ek.attention(*tensors, sinks=torch.full_like(sinks, -torch.inf), backend="triton", **options)
    assert torch.allclose(none, ek.attention(*tensors, backend="triton", **options), rtol=1e-6, atol=1e-6)


def test_scores_opcheck(triton_only, device):
    """The new arguments; test_opcheck calls with the old ones."""
    q, k, v = (t.requires_grad_() for t in make((1, 17, 2, 1, 16), "plain", torch.float32, device))
    sinks, slopes = (
        torch.tensor([0.5, -1.0], device=device, requires_grad=True),
        torch.tensor([0.5, 0.1], device=device),
    )
    ids = documents("packed", 1, 17, device)
    plan = ek.document_plan(ids, heads=2, head_dim=16, dtype=q.dtype, softcap=3.0, backend="triton")
    more = (3.0, sinks, slopes, plan.ranges, list(plan.range_blocks))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")  # a graph's gradients: the next test
    arguments = (q, k, v, True, None, ids, None, False, "triton", *more)
    torch.library.opcheck(torch.ops.emergence_kernels.attention, arguments, test_utils=tests)
    lse = torch.rand(1, 2, 17, device=device)
    arguments = tuple(t.detach() for t in (torch.randn_like(q), q, lse, sinks))
    torch.library.opcheck(torch.ops.emergence_kernels.attention_sinks_gradient, (*arguments, "triton"))


@BY
def test_scores_of_rotary_attention(by, device, monkeypatch):
    """As rotary and attention in turn, in eager mode and in a graph: the sinks' gradient, and the ranges of a plan."""
    B, T, H, D = 1, 20, 2, 16
    cos, sin = angles(T, D // 2, device)
    given, ids = torch.randn(B, T, 3 * H * D, device=device), documents("packed", B, T, device)
    options = dict(softcap=2.0, alibi=torch.tensor([0.5, 0.1], device=device), backend=by)
    plan = ek.document_plan(ids, heads=H, head_dim=D, dtype=given.dtype, **options)

    def fused(qkv, sinks, plan):
        more = dict(document_ids=plan, sinks=sinks, overwrite=True)
        return ek.rotary_attention(qkv * 1, cos, sin, heads=H, **more, **options)

    def composed(qkv, sinks, plan):
        q, k, v = qkv.unflatten(-1, (3 * H, D)).split(H, 2)
        q, k = (ek.rotary(t, cos, sin, backend=by) for t in (q, k))
        return ek.attention(q, k, v, document_ids=plan.ids, sinks=sinks, **options)

    results = []
    for run in (composed, fused, torch.compile(fused, fullgraph=True, backend="aot_eager")):
        qkv, sinks = leaves(given, torch.tensor([0.5, -1.0], device=device))
        out = run(qkv, sinks, plan)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), (qkv, sinks))])
        monkeypatch.setattr(document_ranges, "ranges_for_kernels", None)  # they are planned from here on
    for other in results[1:]:
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(results[0], other))
        assert results[0][2].abs().min() > 0


def test_scores_are_for_triton_and_torch(device, monkeypatch):
    """On a GPU "auto" takes Triton's kernels, in float32 too; others refuse by name."""
    op = importlib.import_module("emergence_kernels.attention.op")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))

    class OnCuda(torch.Tensor):
        device = torch.device("cuda")

    for dtype in (torch.bfloat16, torch.float32):
        q = torch.empty(1, 2, 2, 64, dtype=dtype).as_subclass(OnCuda)
        slopes = torch.ones(2).as_subclass(OnCuda)
        for changed in ({"softcap": 3.0}, {"sinks": slopes}, {"alibi": slopes}):
            options = op.Options(**changed)
            monkeypatch.setattr("emergence_kernels.backends.dispatch.HAS_TRITON", True)
            assert op.checked("attention", q, q, q, options, None, None)[1] == "triton"
            for refusing in ("cuda", "flash"):
                with pytest.raises(
                    ek.BackendError, match="softcap, sinks and alibi are computed by 'triton' and 'torch'"
                ):
                    op.checked("attention", q, q, q, options, None, refusing)
    q = torch.randn(1, 4, 2, 8, device=device)
    for changed, message in (
        ({"softcap": 0.0}, "softcap must be positive"),
        ({"softcap": float("inf")}, "finite"),
        ({"sinks": torch.zeros(3, device=device)}, r"sinks have shape \(3,\), expected \(2,\)"),
        ({"alibi": torch.zeros(2, dtype=torch.int64, device=device)}, "alibi has dtype"),
        ({"alibi": torch.zeros(2, device=device, requires_grad=True)}, "constants"),
    ):
        with pytest.raises(ValueError, match=message):
            ek.attention(q, q, q, **changed)


@pytest.mark.parametrize("named", ["torch", "triton", "cuda", "cpu", "flash", None])
def test_two_biases_of_the_scores_are_refused(named, device, monkeypatch):
    """The kernels add one: another was left out without a word."""
    op = importlib.import_module("emergence_kernels.attention.op")
    slopes = torch.ones(2, device=device)

    class Extended(op.Options):
        made_up = slopes

    monkeypatch.setattr(importlib.import_module("emergence_kernels.attention.options"), "BIASES", ("alibi", "made_up"))
    q = torch.randn(1, 4, 2, 16, device=device)
    with pytest.raises(
        ValueError, match="attention: alibi and made_up are biases of the scores, of which one can be given"
    ):
        op.checked("attention", q, q, q, Extended(alibi=slopes), None, named)
    assert op.checked("attention", q, q, q, Extended(), None, "torch")[0].changes_scores
