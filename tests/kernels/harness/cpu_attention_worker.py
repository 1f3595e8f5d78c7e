"""Attention of csrc/cpu against float64, at shapes that do and do not fill its blocks; prints the largest relative error.

EMERGENCE_CPU_LANES, read once a process, chooses the width of vectors.
"""

import itertools

import torch

import emergence_kernels as ek

# (B, T, H, G, D): blocks are 32 queries, panels 8 to 32 keys or features
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 37, 4, 2, 24),
    (1, 200, 3, 1, 48),
    (2, 129, 2, 2, 64),
    (1, 65, 2, 1, 100),
    (1, 160, 2, 2, 128),
    (3, 31, 6, 3, 7),
    (1, 33, 1, 1, 17),
    (2, 128, 2, 2, 32),
]


def attention(q, k, v, causal, scale, ids, window):
    H, T = q.shape[2], q.shape[1]
    k, v = (t.repeat_interleave(H // t.shape[2], 2) for t in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * scale
    distance = torch.arange(T)[:, None] - torch.arange(T)
    seen = (distance >= 0) | (not causal)
    if window:
        seen = seen & (distance.abs() < window)
    if ids is not None:
        seen = seen & (ids[:, :, None] == ids[:, None])[:, None]
    return torch.einsum("bhts,bshd->bthd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def largest_error() -> float:
    torch.manual_seed(0)
    largest = 0.0
    for (B, T, H, G, D), causal, window, packed in itertools.product(
        SHAPES, (True, False), (None, 1, 5, 50), (True, False)
    ):
        scale = [0.3, 0.0, -0.3, 1 / D**0.5][(T + bool(window) + causal) % 4]
        qkv = torch.randn(B, T, H + 2 * G, D, requires_grad=True)
        ids = torch.randint(0, 3, (B, T)).cumsum(1) // 7 if packed else None
        upstream = torch.randn(B, T, H, D)
        out = ek.attention(
            *qkv.split([H, G, G], 2), causal=causal, scale=scale, document_ids=ids, window=window, backend="cpu"
        )
        exact = attention(*qkv.double().split([H, G, G], 2), causal, scale, ids, window)
        results = [(out, exact), (torch.autograd.grad(o, qkv, upstream.to(o.dtype))[0] for o in (out, exact))]
        for ours, reference in results:
            scale_of = reference.abs().max().clamp_min(1e-3)
            largest = max(largest, ((ours - reference).abs().max() / scale_of).item())
    return largest


if __name__ == "__main__":
    print(largest_error())
