"""Plans of documents: what attention reads of one is what it computes without, computed once; and flash-attn's calls by them."""

import importlib
import types

import pytest
import torch
from attention_cases import documents, make, plain
from compiled import COMPILED
from kernel_checks import leaves, of_attention

import emergence_kernels as ek
from emergence_kernels.attention import compiled as compiled_attention
from emergence_kernels.attention import document_ranges
from emergence_kernels.attention import flash as flash_backend
from emergence_kernels.attention import hopper as attention_hopper
from emergence_kernels.attention.document_ranges import overlapping_and_equal_blocks, overlapping_blocks, planned


@pytest.fixture
def computed(monkeypatch) -> list:
    """The ranges that are computed, in order: a launch each where Triton runs."""
    original, calls = document_ranges.ranges_for_kernels, []
    monkeypatch.setattr(
        document_ranges, "ranges_for_kernels", lambda ids, *blocks: calls.append(blocks) or original(ids, *blocks)
    )
    return calls


def gradients(q, k, v, **options):
    tracked = leaves(q, k, v)
    out = ek.attention(*tracked, **options)
    return [out.detach(), *torch.autograd.grad(out, tracked, torch.ones_like(out))]


def assert_computed_once(computed, q, k, v, ids, backend, wanted, **options):
    without = gradients(q, k, v, document_ids=ids, backend=backend, **options)
    assert computed
    computed.clear()
    shape = dict(heads=q.shape[2], head_dim=q.shape[3], dtype=q.dtype)
    plan = ek.document_plan(ids, **shape, backend=backend, **options)
    assert len(computed) == len(set(computed)) and len(computed) in wanted
    computed.clear()
    for _ in range(2):  # layers
        assert all(map(torch.equal, gradients(q, k, v, document_ids=plan, backend=backend, **options), without))
    assert not computed
    with torch.no_grad():
        assert len(ek.document_plan(ids, **shape, backend=backend, **options).range_blocks) == 3  # forward's alone


def test_plan_is_computed_once(fused, computed, device):
    """All kernels on mma.sync read the same ranges; so do Triton's three in the interpreter, in the other tables two do."""
    if fused == "cpu":
        pytest.skip("it compares ids one by one")
    q, k, v = make((2, 20, 1, 1, 16), "plain", of_attention(fused), device)
    most = 3 if COMPILED else 1
    assert_computed_once(computed, q, k, v, documents("packed", 2, 20, device), fused, range(1, most + 1))


@pytest.mark.parametrize("deterministic, wanted", [(False, [1]), (True, [3])])
def test_plan_of_hoppers_kernels(deterministic, wanted, computed, cuda_library, monkeypatch):
    """Emulated, in the place of those for sm_80."""
    if cuda_library or torch.cuda.is_available():
        pytest.skip(cuda_library or "on a Hopper GPU the other tests take these kernels")
    monkeypatch.setitem(compiled_attention.KERNELS, "sm_80", attention_hopper)
    q, k, v = make((1, 70, 1, 1, 64), "plain", torch.bfloat16, torch.device("cpu"))
    ids = documents("packed", 1, 70, q.device)
    assert_computed_once(computed, q, k, v, ids, "cuda", wanted, deterministic=deterministic)


def test_plan_holds_what_it_is_asked_for(computed):
    """By rows, columns and kind; what was not planned is computed."""
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1, 3]])
    plan = planned(ids, [(4, 2, 2), (2, 4, 4), (4, 2, 2), (2, 2, 2)])
    assert len(computed) == 3
    assert torch.equal(plan.blocks(2, 4, 4), overlapping_and_equal_blocks(ids, 2, 4))
    for rows, columns in ((4, 2), (2, 2)):
        assert torch.equal(plan.blocks(rows, columns, 2), overlapping_blocks(ids, rows, columns))
    assert len(computed) == 3
    assert torch.equal(plan.blocks(4, 2, 4), overlapping_and_equal_blocks(ids, 4, 2)) and len(computed) == 4
    assert planned(ids[:0], [(4, 2, 2)]).blocks(4, 2, 2).shape == (0, 3, 2)


def test_wrong_documents_of_a_plan(device):
    rest = dict(heads=2, head_dim=8, dtype=torch.float32)
    for ids, message in ((torch.zeros(3), "expected"), (torch.zeros(1, 3), "int32 or int64")):
        with pytest.raises(ValueError, match=message):
            ek.document_plan(ids.to(device), **rest)
    assert ek.document_plan(torch.zeros(2, 0, dtype=torch.int64), **rest, adjacent=True).ranges is None
    comes_back = torch.tensor([[0, 0, 1, 0]])
    ek.document_plan(comes_back, **rest)
    with pytest.raises(ValueError, match="an id comes back within a row"):
        ek.document_plan(comes_back, **rest, adjacent=True)


# ---- flash-attn ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def flash_attn(monkeypatch, request) -> dict:
    """A flash-attn of generation request.param on a CPU, by documents one at a time; -> its last call's options."""
    seen: dict = {}

    def flash_attn_varlen_func(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and q.is_contiguous()
        seen.update(starts=cu_seqlens_q.tolist(), keys=cu_seqlens_k.tolist(), **options)
        seen["longest"] = max_seqlen_q, max_seqlen_k
        pieces = [
            plain(*(t[None, a:b] for t in (q, k, v)), scale=options["softmax_scale"])[0]
            for a, b in zip(seen["starts"], seen["starts"][1:])
        ]
        out = torch.cat(pieces)
        return (out, None) if request.param == 4 else out

    module = types.SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    op = importlib.import_module("emergence_kernels.attention.op")
    fused = importlib.import_module("emergence_kernels.attention.rotary_attention")
    monkeypatch.setattr(flash_backend, "_module", lambda generation: module if generation == request.param else None)
    monkeypatch.setattr(flash_backend, "generation", lambda q: request.param)

    def first(asked, operation, device, limits, *rest):
        return "torch" if operation == "rotary" or limits["flash"] else "flash"

    class OnCuda(torch.Tensor):
        device = torch.device("cuda")

    reason = flash_backend.unsupported_reason
    monkeypatch.setattr(
        flash_backend, "unsupported_reason", lambda q, *rest: reason(q.detach().bfloat16().as_subclass(OnCuda), *rest)
    )
    monkeypatch.setattr(op, "resolve_backend", first)
    monkeypatch.setattr(fused, "resolve_backend", first)
    return seen


@pytest.mark.parametrize("flash_attn", [2, 3, 4], indirect=True)
def test_flash_attn_takes_documents(flash_attn):
    """Where each begins, of the whole batch; the results are those of the mask."""
    ids = torch.tensor([[3, 3, 3, 5, 6, 6, 6], [6, 6, 6, 6, 7, 7, 8]])  # a document ends with its row
    q, k, v = make((2, 7, 4, 2, 8), "one projection", torch.float64, ids.device)
    plan = ek.document_plan(ids, heads=4, head_dim=8, dtype=q.dtype, adjacent=True)
    assert plan.cu_seqlens.tolist() == [0, 3, 4, 7, 11, 13, 14] and plan.ranges is None
    got = gradients(q, k, v, document_ids=plan, scale=0.4)
    assert flash_attn == {
        "starts": [0, 3, 4, 7, 11, 13, 14], "keys": [0, 3, 4, 7, 11, 13, 14], "longest": (7, 7),
        "causal": True, "softmax_scale": 0.4,
    }  # fmt: skip
    tracked = leaves(q, k, v)
    exact = plain(*tracked, scale=0.4, document_ids=ids)
    exact = [exact.detach(), *torch.autograd.grad(exact, tracked, torch.ones_like(exact))]
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(got, exact))


@pytest.mark.parametrize("flash_attn", [3], indirect=True)
def test_flash_attn_is_left_out_of_other_masks(flash_attn):
    """And where nobody has promised that documents are adjacent."""
    ids = torch.tensor([[0, 0, 1, 1]])
    q = torch.randn(1, 4, 2, 8)
    shape = dict(heads=2, head_dim=8, dtype=q.dtype)
    for options in ({"window": 2}, {"causal": False}, {"softcap": 3.0}):
        plan = ek.document_plan(ids, **shape, adjacent=True, **options)
        assert plan.cu_seqlens is None
    plan = ek.document_plan(ids, **shape, adjacent=True)
    assert plan.cu_seqlens is not None
    ek.attention(q, q, q, document_ids=plan, window=2)
    ek.attention(q, q, q, document_ids=plan, softcap=3.0)
    ek.attention(q, q, q, document_ids=ids)
    ek.attention(q, q, q, document_ids=ek.document_plan(ids, **shape))
    assert not flash_attn
    ek.attention(q, q, q, document_ids=plan, deterministic=True)
    assert flash_attn["deterministic"] is True
