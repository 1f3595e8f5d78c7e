"""The CUDA kernels of attention beyond the common cases: sequences of several blocks, unusual strides, scales, masks.

Without a GPU their source runs in csrc/emulator, whose race detector reports every race.
"""

import pytest
import torch
from attention_cases import documents, plain
from kernel_checks import assert_as_good, leaves

import emergence_kernels as ek
from emergence_kernels.attention import compiled as attention
from emergence_kernels.attention import mma as attention_mma
from emergence_kernels.backends import library


@pytest.fixture(autouse=True)
def _library(cuda_library, monkeypatch):
    if cuda_library:
        pytest.skip(cuda_library)
    monkeypatch.setitem(attention.KERNELS, "sm_90", attention_mma)  # a Hopper GPU runs these too


def check(q, k, v, **options) -> None:
    """Forward and both backward passes against float64."""
    upstream = torch.randn(q.shape, device=q.device).to(q.dtype)
    tracked = [t.detach().requires_grad_() for t in (q, k, v)]
    results = []
    for kept in (torch.float64, q.dtype):
        copies = leaves(q, k, v, dtype=kept)
        other = plain(*copies, **options)
        results.append([other.detach(), *torch.autograd.grad(other, copies, upstream.to(kept))])
    for deterministic in (False, True):
        out = ek.attention(*tracked, backend="cuda", deterministic=deterministic, **options)
        got = [out.detach(), *torch.autograd.grad(out, tracked, upstream)]
        for name, *three in zip(("out", "dq", "dk", "dv"), got, *results):
            assert_as_good(name, *three, terms=upstream.float().norm().item())


def heads(B, T, H, G, D, device, dtype=torch.float16):
    """float16, whose rounding errors are smaller; the common cases are bfloat16."""
    return [torch.randn(B, T, h, D, device=device).to(dtype) for h in (H, G, G)]


MASKS = {
    "causal": (True, None, None),
    "full": (False, None, None),
    "documents": (True, "packed", None),
    "full documents": (False, "packed", None),
    "full window": (False, None, 70),
    "window, documents in any order": (True, "random", 90),
}


AT_128 = ("causal", "full", "window, documents in any order")  # of head dim 128 the others are slow


@pytest.mark.parametrize(
    "D, mask",
    [
        *((64, mask) for mask in MASKS),
        *(pytest.param(128, mask, marks=[] if mask in AT_128 else [pytest.mark.slow]) for mask in MASKS),
        *((96, "causal"), (96, "full documents")),
    ],
)
def test_several_blocks(D, mask, device):
    """Every buffer is filled more than once; tiles at the edge of a mask, inside, outside, and beyond the sequence."""
    T = 203 if D == 64 else 150
    causal, kind, window = MASKS[mask]
    check(*heads(1, T, 2, 1, D, device), causal=causal, document_ids=documents(kind, 1, T, device), window=window)


@pytest.mark.parametrize(
    "lengths, D",
    [
        *(((64, 64, 101), 64), ((10, 219), 64), ((192, 37), 64), ((64, 64, 101), 128)),
        *(pytest.param(lengths, 128, marks=pytest.mark.slow) for lengths in ((10, 219), (192, 37))),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_documents_longer_than_tiles(lengths, causal, D, device):
    """Tiles that lie in one document with all of the block get no mask: two documents a block, one, an uneven edge."""
    ids = torch.repeat_interleave(torch.arange(len(lengths)) * 3 % 4, torch.tensor(lengths))[None].to(device)
    check(*heads(1, ids.shape[1], 1, 1, D, device), causal=causal, document_ids=ids)


def test_keys_hidden_from_all_of_the_first_tiles(device):
    """Rows that see nothing in the first tile that their block visits: a probability of 0 there, not of 1."""
    q, k, v = heads(1, 200, 1, 1, 64, device)
    q[:, 70:], k[:, 70:] = q[:, 70:] * 0.01, k[:, 70:] * 0.01
    v[:, :70] = 100.0
    check(q, k, v, window=3)
    ids = torch.tensor([[5] * 3 + [1] * 66 + [9] * 61 + [5] * 70], device=device)
    check(q, k, v, document_ids=ids)


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("T, causal, window", [(125, False, None), (200, False, 127), (129, True, 2)])
def test_edges_one_off(T, causal, window, D, device):
    """A last tile nearly full; a tile of which one pair alone is hidden; a tile visited for one pair alone."""
    check(*heads(1, T, 1, 1, D, device), causal=causal, window=window)


def test_a_window_that_begins_between_tiles(device):
    """The last tile of queries must end where their sequence does, or else within what it is padded to."""
    check(*heads(1, 128, 1, 1, 64, device), causal=False, window=57)


@pytest.mark.parametrize("scale", [-0.4, 0.0, 3.0])
def test_scales(scale, device):
    check(*heads(1, 70, 2, 2, 32, device), scale=scale)


def test_ids_beyond_32_bits(device):
    ids = torch.where(torch.arange(80, device=device) < 37, 3, 3 + (1 << 32))[None]
    check(*heads(1, 80, 1, 1, 64, device), document_ids=ids)
    check(*heads(1, 80, 1, 1, 64, device), document_ids=(ids != 3).int())


@pytest.mark.parametrize("layout", ["an odd start", "odd rows", "features apart", "sizes of one"])
def test_strange_strides(layout, device):
    B, T, H, D = 1, 50, 2, 24
    if layout == "an odd start":
        q = torch.randn(B * T * H * D + 1, device=device).bfloat16()[1:].view(B, T, H, D)
    elif layout == "odd rows":
        q = torch.randn(B, T, H, D + 3, device=device).bfloat16()[..., :D]
    elif layout == "features apart":
        q = torch.randn(B, D, H, T, device=device).bfloat16().transpose(1, 3)
    else:
        q = torch.randn(T * D, device=device).bfloat16().as_strided((1, T, 1, D), (1, D, 3, 1))
    check(q, q.clone(), q.clone())
    check(q, q.contiguous(), q)


def test_nothing(device):
    for shape in ((0, 4, 2, 8), (2, 0, 2, 8)):
        q = torch.zeros(shape, device=device, dtype=torch.float16, requires_grad=True)
        ids = torch.zeros(shape[:2], dtype=torch.int64, device=device)
        out = ek.attention(q, q, q, document_ids=ids, backend="cuda")
        assert out.shape == shape and torch.autograd.grad(out.sum(), q)[0].shape == shape


def test_what_does_not_fit_is_refused(device):
    q, k, v = heads(1, 16, 2, 1, 16, device)
    out, lse = torch.empty_like(q), torch.empty(1, 2, 16, device=device)
    run = library.operations("cuda").attention
    with pytest.raises(RuntimeError, match="k must be .* of q's type"):
        run(q, k.bfloat16(), v, None, None, out, lse, 1.0, True, 0)
    with pytest.raises(RuntimeError, match="rows that start at multiples of 16 bytes"):
        run(torch.randn(1, 16, 2, 20, device=device).half()[..., :16], k, v, None, None, out, lse, 1.0, True, 0)
    with pytest.raises(RuntimeError, match="lse must be contiguous"):
        run(q, k, v, None, None, out, lse[:, :1], 1.0, True, 0)
    with pytest.raises(RuntimeError, match="the scale is positive"):
        run(q, k, v, None, None, out, lse, -1.0, True, 0)
